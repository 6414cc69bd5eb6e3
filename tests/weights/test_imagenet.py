"""ImageNet backbones: names of each source, and the same feature maps as the source computes."""

import collections
import fnmatch

import keras
import numpy as np
import pytest
from keras import ops

from keras_mrcnn import config
from keras_mrcnn.backbones.resnet import ResNet
from keras_mrcnn.weights import imagenet

R50_BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}


def unmatched(table, names):
    """(names of rows that the file lacks, names of the file without a row, names of several rows)."""
    found = collections.Counter(row.theirs for row in table.rows if row.theirs)
    ignored = {name for name in names if any(fnmatch.fnmatch(name, p) for p in table.ignored)}
    return (
        {name for name in found if name not in names},
        {name for name in names if name not in ignored and name not in found},
        {name for name, count in found.items() if count > 1 or name in ignored},
    )


def with_backbone(**changes):
    return config.model_from_dict({"backbone": changes})


def loaded(table, weights, depth, **options):
    """(our backbone with the rows of `table`, {path: variable} that no row is for)."""
    backbone = ResNet(depth, name="backbone", **options)
    backbone(keras.Input((64, 64, 3)))
    variables = {variable.path: variable for variable in backbone.variables}
    for row in table.rows:
        array = row.convert(None if row.theirs is None else weights[row.theirs])
        assert array.dtype == np.float32 and array.shape == tuple(variables[row.ours].shape), row.ours
        variables.pop(row.ours).assign(array)
    return backbone, variables


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def affine(conv, epsilon=1e-5):
    """(scale, shift) of a normalisation, {name: array}, in float64."""
    gamma, beta, mean, variance = (conv[name].astype(np.float64) for name in imagenet.NORM)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


class TestFolded:
    def test_same_features_as_torchvision(self, shared):
        weights = np.load(shared / "data/weights/resnet18_imagenet_stem_layer123_bnfolded.npz")
        reference = np.load(shared / "data/weights/reference_activations.npz")
        model_config = with_backbone(name="resnet18")
        table = imagenet.folded(model_config)
        assert unmatched(table, weights.files) == (set(), set(), set())
        backbone, left = loaded(table, weights, "resnet18")
        assert left and all(path.startswith("backbone/c5_") for path in left)
        mean, std = np.float32(model_config.input.mean), np.float32(model_config.input.std)
        image = (reference["input_rgb_uint8"].astype(np.float32)[None] - mean) / std
        padded = ops.pad(backbone.stem(image), [[0, 0], [1, 1], [1, 1], [0, 0]])
        assert relative(ops.max_pool(padded, 3, 2, "valid")[0], reference["stem"]) < 1e-4
        for name, features in zip(("layer1", "layer2", "layer3"), backbone(image)):
            assert relative(features[0], reference[name]) < 1e-4, name

    @pytest.mark.parametrize("epsilon", [1e-5, 1.001e-5, 0.0, 1e-3])
    def test_the_affine_map_is_the_bias(self, epsilon):
        table = imagenet.folded(with_backbone(name="resnet18", norm_epsilon=epsilon))
        rows = {row.ours: row for row in table.rows if row.ours.startswith("backbone/c3_block1/shortcut")}
        bias = np.random.default_rng(0).normal(size=128)
        constants = {
            ours.split("/")[-1]: row.convert(bias if row.theirs else None)
            for ours, row in rows.items()
            if "normalization" in ours
        }
        assert rows["backbone/c3_block1/shortcut/normalization/beta"].theirs == "layer2.0.downsample.0.bias"
        scale, shift = affine(constants, epsilon)
        np.testing.assert_allclose(scale, np.ones(128), atol=1e-6)
        np.testing.assert_allclose(shift, bias, atol=1e-6)


def caffe2_names(kinds, blocks):
    """Blobs of a ResNet with bottlenecks."""
    prefixes = ["res_conv1"]
    for stage, count in blocks.items():
        prefixes.append(f"res{stage}_0_branch1")
        prefixes += [f"res{stage}_{b}_branch2{letter}" for b in range(count) for letter in "abc"]
    names = {f"{prefix}_bn_{kind}" for prefix in prefixes for kind in kinds}
    return names | {"conv1_w"} | {f"{prefix}_w" for prefix in prefixes[1:]}


class TestCaffe2:
    KINDS = [("gamma", "beta", "running_mean", "running_var"), ("s", "b", "rm", "riv"), ("s", "b")]

    @pytest.mark.parametrize("kinds", KINDS)
    @pytest.mark.parametrize("depth", ["resnet50", "resnet101", "resnext101_32x8d"])
    def test_names(self, kinds, depth):
        blocks = R50_BLOCKS | {4: 6 if depth == "resnet50" else 23}
        names = caffe2_names(kinds, blocks)
        convolutions = 53 if depth == "resnet50" else 104
        assert len(names) == convolutions * (1 + len(kinds))
        extra = {"conv1_b", "fc1000_w", "fc1000_b", "pred_w", "pred_b", "conv1_w_momentum"}
        table = imagenet.caffe2(with_backbone(name=depth), names)
        assert unmatched(table, names | extra) == (set(), set(), set())
        assert len({row.ours for row in table.rows}) == len(table.rows) == convolutions * 5

    @pytest.mark.parametrize("kinds", KINDS)
    def test_stated_names(self, kinds):
        table = imagenet.caffe2(config.Model(), caffe2_names(kinds, R50_BLOCKS))
        theirs = {row.ours: row.theirs for row in table.rows}
        assert theirs["backbone/stem/kernel"] == "conv1_w"
        assert theirs["backbone/stem/normalization/beta"] == f"res_conv1_bn_{kinds[1]}"
        assert theirs["backbone/c2_block1/conv1/kernel"] == "res2_0_branch2a_w"
        assert theirs["backbone/c2_block1/shortcut/normalization/gamma"] == f"res2_0_branch1_bn_{kinds[0]}"
        statistics = [f"res5_2_branch2c_bn_{kind}" for kind in kinds[2:]] or [None, None]
        prefix = "backbone/c5_block3/conv3/normalization"
        assert [theirs[f"{prefix}/moving_mean"], theirs[f"{prefix}/moving_variance"]] == statistics

    def test_folded_statistics_divide_by_nothing(self):
        table = imagenet.caffe2(with_backbone(norm_epsilon=1e-5), ("res_conv1_bn_s",))
        given = {"gamma": np.float32([0.5, 3.0] * 256), "beta": np.float32([-2.0, 7.0] * 256)}
        found = {}
        for row in table.rows:
            if row.ours.startswith("backbone/c4_block2/conv3/normalization"):
                name = row.ours.split("/")[-1]
                found[name] = row.convert(given[name] if row.theirs else None)
        assert found["moving_mean"].shape == found["moving_variance"].shape == (1024,)
        found |= {name: array for name, array in given.items()}
        found = {name: array[:512] for name, array in found.items()}
        scale, shift = affine(found)
        np.testing.assert_allclose(scale, given["gamma"], rtol=1e-6)
        np.testing.assert_allclose(shift, given["beta"], rtol=1e-6)

    @pytest.mark.parametrize("name, width", [("resnet101", 64), ("resnext101_32x8d", 256)])
    def test_constants_have_the_widths_of_the_convolutions(self, name, width):
        table = imagenet.caffe2(with_backbone(name=name), ())
        sizes = {row.ours: row.convert(None).size for row in table.rows if row.theirs is None}
        prefix = "backbone/c4_block1"
        assert sizes["backbone/stem/normalization/moving_mean"] == 64
        assert sizes[f"{prefix}/conv1/normalization/moving_mean"] == 4 * width
        assert sizes[f"{prefix}/conv2/normalization/moving_variance"] == 4 * width
        assert sizes[f"{prefix}/conv3/normalization/moving_mean"] == 1024
        assert sizes[f"{prefix}/shortcut/normalization/moving_variance"] == 1024

    def test_the_stem_is_turned_to_rgb(self):
        rng = np.random.default_rng(0)
        theirs, rgb = rng.normal(size=(4, 3, 7, 7)), rng.normal(size=(1, 7, 7, 3))
        stem, *_ = imagenet.caffe2(config.Model(), ()).rows
        expected = np.einsum("oiyx,iyx->o", theirs, rgb[0, :, :, ::-1].transpose(2, 0, 1))
        found = ops.conv(rgb.astype("float32"), stem.convert(theirs))
        np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-4)

    def test_refusals(self):
        with pytest.raises(ValueError, match="resnet50, resnet101 or.*'resnet18'"):
            imagenet.caffe2(with_backbone(name="resnet18"), ())
        with pytest.raises(ValueError, match="norm='group'"):
            imagenet.caffe2(with_backbone(norm="group"), ())


@pytest.fixture(scope="module")
def applications():
    """ResNet50 with random weights, biases and statistics unlike the initial ones."""
    source = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(None, None, 3))
    rng = np.random.default_rng(0)
    for variable in source.variables:
        kind = variable.path.split("/")[-1]
        if kind == "moving_variance":
            variable.assign(rng.uniform(1e-3, 2, variable.shape))
        elif kind == "gamma":
            variable.assign(rng.uniform(0.3, 0.7, variable.shape))
        elif kind != "kernel":
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return source


class TestKerasApplications:
    def test_same_features(self, applications):
        weights = imagenet.variables_of(applications)
        table = imagenet.keras_applications(with_backbone(norm_epsilon=1.001e-5), weights)
        assert unmatched(table, weights) == (set(), set(), set())
        backbone, left = loaded(table, weights, "resnet50", stride_in_1x1=True, epsilon=1.001e-5)
        assert not left
        image = np.random.default_rng(1).normal(size=(1, 64, 96, 3)).astype(np.float32)
        last = [f"conv{stage}_block{count}_out" for stage, count in R50_BLOCKS.items()]
        expected = keras.Model(applications.input, [applications.get_layer(name).output for name in last])(
            image[..., ::-1]  # it takes BGR
        )
        for name, theirs, ours in zip(last, expected, backbone(image), strict=True):
            assert relative(ours, np.asarray(theirs)) < 1e-4, name

    def test_the_bias_goes_into_the_mean(self, applications):
        weights = imagenet.variables_of(applications)
        table = imagenet.keras_applications(config.Model(), weights)
        row = {row.ours: row for row in table.rows}["backbone/c3_block1/shortcut/normalization/moving_mean"]
        assert row.theirs == "conv3_block1_0_bn/moving_mean"
        mean, bias = weights["conv3_block1_0_bn/moving_mean"], weights["conv3_block1_0_conv/bias"]
        np.testing.assert_allclose(row.convert(mean), mean - bias, atol=1e-6)
        constants = {kind: weights[f"conv3_block1_0_bn/{kind}"] for kind in imagenet.NORM}
        scale, shift = affine(constants, 1.001e-5)
        folded_scale, folded_shift = affine(constants | {"moving_mean": row.convert(mean)}, 1.001e-5)
        x = np.float64(-1.7)  # any output of the convolution
        np.testing.assert_allclose(
            x * folded_scale + folded_shift, (x + bias) * scale + shift, rtol=1e-6, atol=1e-6
        )

    def test_names_of_the_published_files(self, applications):
        weights = {}
        for path, array in imagenet.variables_of(applications).items():
            layer, kind = path.split("/")
            weights[f"{layer}/{layer}/{kind}:0"] = array
        names = [*weights, "predictions/predictions/kernel:0"]
        table = imagenet.keras_applications(config.Model(), weights)
        assert unmatched(table, names) == (set(), set(), set())

    def test_refusals(self, applications):
        weights = imagenet.variables_of(applications)
        missing = {name: array for name, array in weights.items() if name != "conv1_conv/bias"}
        with pytest.raises(ValueError, match="`conv1_conv/bias`"):
            imagenet.keras_applications(config.Model(), missing)
        with pytest.raises(ValueError, match="`conv4_block7_1_conv/bias`"):
            imagenet.keras_applications(with_backbone(name="resnet101"), weights)
        with pytest.raises(ValueError, match="norm='group'"):
            imagenet.keras_applications(with_backbone(norm="group"), weights)


class TestKerasHub:
    def names(self, blocks, convs, first_shortcut):
        layers = ["conv1"]
        for stack, count in enumerate(blocks):
            layers += [f"stack{stack}_block0_0"] if stack or first_shortcut else []
            layers += [f"stack{stack}_block{b}_{n}" for b in range(count) for n in range(1, convs + 1)]
        names = {f"{layer}_conv/kernel" for layer in layers}
        return names | {f"{layer}_bn/{kind}" for layer in layers for kind in imagenet.NORM}

    @pytest.mark.parametrize(
        "name, blocks, convs, first_shortcut",
        [("resnet18", (2, 2, 2, 2), 2, False), ("resnet50", (3, 4, 6, 3), 3, True)],
    )
    def test_names(self, name, blocks, convs, first_shortcut):
        names = self.names(blocks, convs, first_shortcut) | {"predictions/kernel", "predictions/bias"}
        assert unmatched(imagenet.keras_hub(with_backbone(name=name)), names) == (set(), set(), set())

    def test_stated_names(self):
        theirs = {row.ours: row.theirs for row in imagenet.keras_hub(config.Model()).rows}
        assert theirs["backbone/stem/normalization/gamma"] == "conv1_bn/gamma"
        assert theirs["backbone/c2_block1/shortcut/kernel"] == "stack0_block0_0_conv/kernel"
        assert theirs["backbone/c5_block3/conv3/kernel"] == "stack3_block2_3_conv/kernel"

    def test_arrays_stay_as_they_are(self):
        kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
        row = {row.ours: row for row in imagenet.keras_hub(config.Model()).rows}["backbone/stem/kernel"]
        np.testing.assert_array_equal(row.convert(kernel), kernel)

    def test_pre_activation_and_group_do_not_fit(self):
        names = self.names((3, 4, 6, 3), 3, True) - {f"conv1_bn/{kind}" for kind in imagenet.NORM}
        missing, unexpected, _ = unmatched(imagenet.keras_hub(config.Model()), names | {"post_bn/gamma"})
        assert missing == {f"conv1_bn/{kind}" for kind in imagenet.NORM} and unexpected == {"post_bn/gamma"}
        with pytest.raises(ValueError, match="norm='group'"):
            imagenet.keras_hub(with_backbone(norm="group"))


def test_variables_of():
    inputs = keras.Input((3,))
    layer = keras.layers.Dense(2, name="last")
    found = imagenet.variables_of(keras.Model(inputs, layer(inputs)))
    assert set(found) == {"last/kernel", "last/bias"}
    np.testing.assert_array_equal(found["last/kernel"], np.asarray(layer.kernel))
