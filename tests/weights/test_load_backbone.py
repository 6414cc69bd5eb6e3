"""ImageNet classifiers into the backbone: the model's own pixels through it, or a refusal."""

import pickle

import keras
import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.model import MaskRCNN
from tests.weights import tiny
from tests.weights.tiny import values

MSRA = ["input.std=[1,1,1]", "backbone.stride_in_1x1=true"]
KERAS = [*MSRA, "input.mean=[123.68,116.779,103.939]", "backbone.norm_epsilon=1.001e-5"]
SMALL = [line for line in tiny.SMALL if not line.startswith("backbone.")]
PARTS = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}


def built(*overrides):
    return MaskRCNN(config.override(config.Model(), [*SMALL, *overrides]), ["nucleus"])


@pytest.fixture(scope="module")
def resnet18():
    return built("backbone.name=resnet18")


@pytest.fixture(scope="module")
def resnet50():
    """One block in each stage, with the rules of MSRA's files."""
    return built("backbone.blocks=[1,1,1,1]", *MSRA)


def features(model, image):
    """C2..C5 of one image, through the model's own normalisation."""
    pixels = model.normalize(image[None], np.int32([image.shape[:2]]))
    return model.backbone(pixels, training=False)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def refusal(model, source):
    """The error; the model is bit for bit as it was."""
    before = values(model)
    with pytest.raises(ValueError) as error:
        model.load_backbone(source)
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, before[path], path)
    return str(error.value)


def torch_file(model, path):
    """Random weights for the backbone, with torchvision's names."""
    rng = np.random.default_rng(0)
    arrays = {}
    for ours, value in values(model.backbone).items():
        _, *block, part, kind = ours.replace("/normalization/", "_bn/").split("/")
        stage = f"layer{int(block[0][1]) - 1}.{int(block[0][-1]) - 1}." if block else ""
        part = part.replace("stem", "conv1")
        if part.endswith("_bn"):
            part = part.replace("shortcut_bn", "downsample.1").replace("conv", "bn").replace("_bn", "")
        kinds = {"kernel": "weight", "gamma": "weight", "beta": "bias"}
        name = f"{stage}{part.replace('shortcut', 'downsample.0')}." + kinds.get(
            kind, kind.replace("moving", "running").replace("variance", "var")
        )
        arrays[name] = rng.random(value.shape[::-1], np.float32)
        if name.endswith("running_var"):
            arrays[name.replace("running_var", "num_batches_tracked")] = np.int64(7)
    arrays |= {"fc.weight": np.zeros([1000, 512]), "fc.bias": np.zeros(1000)}
    return tiny.write(path, arrays), arrays


class TestFolded:
    FILE = "data/weights/resnet18_imagenet_stem_layer123_bnfolded.npz"

    def test_the_same_activations_as_torchvision(self, resnet18, shared):
        before = values(resnet18)
        report = resnet18.load_backbone(shared / self.FILE)
        reference = np.load(shared / "data/weights/reference_activations.npz")
        found = features(resnet18, reference["input_rgb_uint8"])
        for name, stage in zip(("layer1", "layer2", "layer3"), found):
            assert relative(stage[0], reference[name]) < 1e-4, name
        assert set(report.initialised) == {path for path in before if path.startswith("backbone/c5")}
        assert len(report.loaded) + len(report.initialised) == len(resnet18.backbone.variables)
        after = values(resnet18)
        for path in set(before) - set(report.loaded):
            np.testing.assert_array_equal(before[path], after[path], path)
        lines = str(report).splitlines()
        assert "  initialised anew: backbone/c5_block1/conv1/kernel, N(0, 2 / fan_out)" in lines
        assert "  initialised anew: backbone/c5_block1/conv1/normalization/gamma, ones" in lines

    def test_an_incomplete_file(self, resnet18, shared, tmp_path):
        arrays = dict(np.load(shared / self.FILE))
        del arrays["layer2.0.downsample.0.bias"]
        message = refusal(resnet18, tiny.write(tmp_path / "w.npz", arrays))
        assert "missing in the file: 1\n  layer2.0.downsample.0.bias" in message


class TestTorchvision:
    def test_weights(self, resnet18, tmp_path):
        path, arrays = torch_file(resnet18, tmp_path / "resnet18.pkl")
        report = resnet18.load_backbone(path)
        assert str(report) == f"loaded {len(report.loaded)}/{len(resnet18.backbone.variables)}"
        found = values(resnet18)
        np.testing.assert_array_equal(
            found["backbone/c4_block1/shortcut/normalization/moving_mean"],
            arrays["layer3.0.downsample.1.running_mean"],
        )
        kernel = arrays["layer4.1.conv2.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found["backbone/c5_block2/conv2/kernel"], kernel)

    @pytest.mark.parametrize(
        "override, key",
        [
            ("input.mean=[0,0,0]", "model.input.mean is [0.0, 0.0, 0.0], these"),
            ("input.std=[1,1,1]", "model.input.std is [1.0, 1.0, 1.0], these"),
            ("backbone.norm_epsilon=0", "model.backbone.norm_epsilon is 0.0, these weights were trained "),
        ],
    )
    def test_a_config_that_contradicts(self, resnet18, tmp_path, monkeypatch, override, key):
        path, _ = torch_file(resnet18, tmp_path / "resnet18.npz")
        monkeypatch.setattr(resnet18, "config", config.override(resnet18.config, [override]))
        message = refusal(resnet18, path)
        assert key in message and message.startswith(f"{path} ") and "nothing was loaded" in message

    def test_where_basic_blocks_have_their_stride_needs_no_rule(self, resnet18, tmp_path, monkeypatch):
        path, _ = torch_file(resnet18, tmp_path / "resnet18.npz")
        other = config.override(resnet18.config, ["backbone.stride_in_1x1=true"])
        monkeypatch.setattr(resnet18, "config", other)
        assert not resnet18.load_backbone(path).initialised

    def test_a_deeper_network(self, resnet18, tmp_path):
        path, arrays = torch_file(resnet18, tmp_path / "resnet18.npz")
        arrays["layer1.2.conv1.weight"] = arrays["layer1.1.conv1.weight"]
        assert "unexpected in the file: 1\n  layer1.2" in refusal(resnet18, tiny.write(path, arrays))

    def test_a_detector_is_no_classifier(self, resnet18, tmp_path):
        message = refusal(resnet18, tiny.write(tmp_path / "detector.npz", tiny.state()))
        assert "no classifier" in message and "backbone.body.conv1.weight" in message


def caffe2_file(model, path):
    """As detectron2 keeps R-50.pkl: a pickle of Caffe2's blobs, random, of one block in each stage."""
    rng, arrays = np.random.default_rng(0), {"conv1_b": np.zeros(64), "fc1000_w": np.zeros([1000, 2048])}
    kinds = {"gamma": "gamma", "beta": "beta", "moving_mean": "running_mean"}
    for ours, value in values(model).items():
        station, *block, part, kind = ours.replace("/normalization/", "/").split("/")
        if station in ("backbone", "stage5"):
            prefix = f"res{block[0][1]}_0_{PARTS[part]}" if block else "res_conv1"
            name = f"{prefix}_bn_{kinds.get(kind, 'running_var')}"
            if kind == "kernel":
                name = f"{prefix}_w" if block else "conv1_w"
            arrays[name] = rng.random(value.shape[::-1], np.float32)
    path.write_bytes(pickle.dumps(arrays, protocol=2))
    return path, arrays


class TestMSRA:
    @pytest.fixture
    def file(self, resnet50, tmp_path):
        return caffe2_file(resnet50, tmp_path / "R-50.pkl")

    def test_weights(self, resnet50, file):
        path, arrays = file
        report = resnet50.load_backbone(path)
        assert str(report) == f"loaded {len(report.loaded)}/{len(resnet50.backbone.variables)}"
        found = values(resnet50)
        stem = arrays["conv1_w"][:, ::-1].transpose(2, 3, 1, 0)  # BGR
        np.testing.assert_array_equal(found["backbone/stem/kernel"], stem)
        variance = arrays["res5_0_branch2c_bn_running_var"]
        np.testing.assert_array_equal(
            found["backbone/c5_block1/conv3/normalization/moving_variance"], variance
        )

    def test_a_config_that_contradicts(self, resnet50, file, monkeypatch):
        wrong = ["backbone.stride_in_1x1=false", "input.std=[58.395,57.12,57.375]"]
        monkeypatch.setattr(resnet50, "config", config.override(resnet50.config, wrong))
        message = refusal(resnet50, file[0])
        assert "model.backbone.stride_in_1x1 is False, these weights were trained with True" in message
        assert "model.input.std is [58.395, 57.12, 57.375], these weights were trained with [1.0" in message
        assert "epsilon" not in message and "mean" not in message

    def test_torchvision_has_its_stride_elsewhere(self, resnet50, tmp_path):
        path, _ = torch_file(resnet50, tmp_path / "resnet50.npz")
        message = refusal(resnet50, path)
        assert "model.backbone.stride_in_1x1 is True, these weights were trained with False" in message


class TestOtherBodies:
    BLOCKS = "backbone.blocks=[1,1,1,1]"

    def test_stage_5_of_c4(self, tmp_path):
        model = built(self.BLOCKS, *MSRA, "backbone.features=c4")
        path, arrays = caffe2_file(model, tmp_path / "R-50.pkl")
        report = model.load_backbone(path)
        body = [*model.backbone.variables, *model.stage5.variables]
        assert str(report) == f"loaded {len(body)}/{len(body)}"
        found = values(model)
        kernel = arrays["res5_0_branch2b_w"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found["stage5/c5_block1/conv2/kernel"], kernel)
        kernel = arrays["res4_0_branch2b_w"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found["backbone/c4_block1/conv2/kernel"], kernel)

    def test_stage_5_of_c4_that_the_file_has_not(self, shared):
        model = built("backbone.name=resnet18", "backbone.features=c4", "rpn.own_features=true")
        report = model.load_backbone(shared / TestFolded.FILE)
        assert set(report.initialised) == {v.path for v in model.stage5.variables}
        assert len(report.loaded) == 2 * len(model.backbone.variables)

    @pytest.mark.parametrize("features", ["fpn", "c4"])
    @pytest.mark.proof
    def test_the_features_of_the_rpn(self, tmp_path, features):
        model = built(self.BLOCKS, *MSRA, f"backbone.features={features}", "rpn.own_features=true")
        path, _ = caffe2_file(model, tmp_path / "R-50.pkl")
        assert not model.load_backbone(path).initialised
        found = values(model)
        own = [path for path in found if path.startswith("rpn_backbone/")]
        assert len(own) == len(model.backbone.variables)
        for path in own:
            np.testing.assert_array_equal(found[path], found[path.removeprefix("rpn_")], path)

    @pytest.mark.proof
    def test_resnext(self, resnet50, tmp_path, monkeypatch):
        """X-101-32x8d.pkl goes by torchvision's rules, R-50.pkl and R-101.pkl by MSRA's."""
        model = built("backbone.name=resnext101_32x8d", self.BLOCKS)
        path, arrays = caffe2_file(model, tmp_path / "X-101-32x8d.pkl")
        assert arrays["res2_0_branch2b_w"].shape == (256, 8, 3, 3)
        assert not model.load_backbone(path).initialised
        found = values(model)
        kernel = arrays["res5_0_branch2b_w"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found["backbone/c5_block1/conv2/kernel"], kernel)
        np.testing.assert_array_equal(
            found["backbone/stem/kernel"], arrays["conv1_w"][:, ::-1].transpose(2, 3, 1, 0)
        )
        monkeypatch.setattr(model, "config", config.override(model.config, MSRA))
        message = refusal(model, path)
        assert "model.backbone.stride_in_1x1 is True, these weights were trained with False" in message
        other = tmp_path / "R-50.pkl"
        caffe2_file(resnet50, other)
        assert "of another shape" in refusal(model, other)

    def test_a_network_of_keras_applications(self, resnet18, tmp_path, monkeypatch):
        path, _ = torch_file(resnet18, tmp_path / "resnet18.npz")
        monkeypatch.setattr(resnet18.config.backbone, "name", "EfficientNetV2S")
        assert "`model.backbone.load()` fills a network of keras.applications" in refusal(resnet18, path)


class TestKerasApplications:
    @pytest.fixture(scope="class")
    @classmethod
    def source(cls):
        """ResNet50 with weights, biases and statistics unlike the initial ones."""
        source = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 96, 3))
        rng = np.random.default_rng(0)
        for variable in source.variables:
            kind = variable.path.split("/")[-1]
            if kind == "gamma":
                variable.assign(rng.uniform(0.3, 0.7, variable.shape))
            elif kind == "moving_variance":
                variable.assign(rng.uniform(0.5, 2, variable.shape))
            elif kind != "kernel":
                variable.assign(rng.normal(0, 0.3, variable.shape))
        return source

    def test_the_same_features(self, source):
        model = built(*KERAS)
        report = model.load_backbone(source)
        assert not report.initialised and len(report.loaded) == len(model.backbone.variables)
        image = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.float32)
        theirs = source(keras.applications.resnet.preprocess_input(image[None].copy()))
        assert relative(features(model, image)[-1], np.asarray(theirs)) < 1e-4
        model.config = config.override(model.config, ["backbone.norm_epsilon=1e-5"])
        assert "norm_epsilon is 1e-05, these weights were trained with 1.001e-05" in refusal(model, source)
        assert source.name in refusal(model, source)

    def test_pre_activation(self, resnet50):
        inputs = keras.Input((32, 32, 3))
        other = keras.Model(inputs, keras.layers.Conv2D(64, 1, name="conv2_block1_1_conv")(inputs))
        assert "conv1_conv/bias" in refusal(resnet50, other)


def test_another_keras_model(resnet18):
    inputs = keras.Input((3,))
    assert "no classifier" in refusal(resnet18, keras.Model(inputs, keras.layers.Dense(2)(inputs)))
