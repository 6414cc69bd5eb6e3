"""torchvision's name tables against the parameter lists in `shared/parity/models`."""

import collections
import fnmatch
import json

import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import torchvision
from keras_mrcnn.weights.tables import number_of_classes
from tests.weights import tiny

NO_MASKS = {"mask_head": {"enabled": False}}
# spec -> what its config changes
MODELS = {
    "tv_maskrcnn_r50_fpn": {},
    "tv_fasterrcnn_r50_fpn": NO_MASKS,
    "tv_keypointrcnn_r50_fpn": {"keypoint_head": {"enabled": True}, **NO_MASKS},
    "tv_maskrcnn_r50_fpn_v2": {
        "fpn": {"norm": "batch"},
        "rpn": {"convs": 2},
        "box_head": {"convs": 4, "norm": "batch", "fcs": 1},
        "mask_head": {"norm": "batch"},
    },
    "tv_small": {"backbone": {"name": "resnet18"}},
    "tv_mini": {
        "backbone": {"blocks": [1, 1, 2, 1]},
        "box_head": {"units": 128},
        "mask_head": {"convs": 2, "channels": 64},
    },
    "tv_mini_keypoint": {
        "backbone": {"blocks": [1, 1, 2, 1]},
        "box_head": {"units": 128},
        "keypoint_head": {"enabled": True, "convs": 2, "channels": 64},
        **NO_MASKS,
    },
}


@pytest.fixture(params=MODELS)
def model(request, shared):
    """(config, table, {name: (shape, kind)}, classes) of each spec."""
    return opened(request.param, shared)


def opened(name, shared):
    spec = json.loads((shared / f"parity/models/{name}.json").read_text())
    parameters = {name: (tuple(shape), kind) for name, shape, kind, _ in spec["params"]}
    model_config = config.model_from_dict(MODELS[name])
    classes = spec["config"]["num_classes_with_background"] - 1
    table = torchvision.detector(model_config, classes, names=parameters)
    return model_config, table, parameters, classes


def unmatched(table, names):
    """(names of rows that the file lacks, names of the file without a row, names of several rows)."""
    found = collections.Counter(row.theirs for row in table.rows)
    ignored = {name for name in names if any(fnmatch.fnmatch(name, p) for p in table.ignored)}
    return (
        {name for name in found if name not in names},
        {name for name in names if name not in ignored and name not in found},
        {name for name, count in found.items() if count > 1 or name in ignored},
    )


def expected_shape(name, shape, kind, classes):
    """Shape in Keras of an array of this kind, classes without background."""
    last = {"cls_score": classes + 1, "bbox_pred": 4 * classes, "mask_fcn_logits": classes}
    part = name.split(".")[-2] if name.startswith("roi_heads") else ""
    out = last.get(part, shape[0])
    if kind == "conv":
        return (*shape[2:], shape[1], out)
    if kind == "convt":
        return (*shape[2:], shape[1], shape[0])
    return (shape[1], out) if kind == "linear" else (out,)


def test_every_name_has_one_row_and_every_row_its_name(model):
    _, table, parameters, _ = model
    assert unmatched(table, parameters) == (set(), set(), set())
    ours = [row.ours for row in table.rows]
    assert len(set(ours)) == len(ours)
    assert all(row.theirs is not None for row in table.rows)
    assert sum(kind != "count" for _, kind in parameters.values()) == len(ours)


def test_shapes(model):
    _, table, parameters, classes = model
    for row in table.rows:
        shape, kind = parameters[row.theirs]
        array = row.convert(np.broadcast_to(np.float32(0), shape))
        assert array.shape == expected_shape(row.theirs, shape, kind, classes), row.ours
        assert array.dtype == np.float32


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.proof if "mini" not in name else ()) for name in MODELS]
)
def test_targets_are_the_variables_of_the_model(name, shared):
    model_config, table, parameters, classes = opened(name, shared)
    built = MaskRCNN(model_config, tiny.numbered(classes, 17))
    variables = {v.path: tuple(v.shape) for v in built.variables if "seed_generator" not in v.path}
    found = {
        row.ours: row.convert(np.broadcast_to(np.float32(0), parameters[row.theirs][0])).shape
        for row in table.rows
    }
    assert found == variables


def test_rows_of_v2_as_published(shared):
    _, table, parameters, _ = opened("tv_maskrcnn_r50_fpn_v2", shared)
    rows = {row.ours: row for row in table.rows}
    stated = {
        "backbone/stem/kernel": ("backbone.body.conv1.weight", (7, 7, 3, 64)),
        "backbone/c4_block6/conv2/kernel": ("backbone.body.layer3.5.conv2.weight", (3, 3, 256, 256)),
        "backbone/c5_block1/shortcut/normalization/moving_variance": (
            "backbone.body.layer4.0.downsample.1.running_var",
            (2048,),
        ),
        "fpn/lateral5/kernel": ("backbone.fpn.inner_blocks.3.0.weight", (1, 1, 2048, 256)),
        "fpn/output2/normalization/beta": ("backbone.fpn.layer_blocks.0.1.bias", (256,)),
        "rpn_head/conv1/bias": ("rpn.head.conv.0.0.bias", (256,)),
        "rpn_head/conv2/kernel": ("rpn.head.conv.1.0.weight", (3, 3, 256, 256)),
        "rpn_head/objectness/kernel": ("rpn.head.cls_logits.weight", (1, 1, 256, 3)),
        "rpn_head/deltas/bias": ("rpn.head.bbox_pred.bias", (12,)),
        "box_head/conv4/normalization/moving_mean": ("roi_heads.box_head.3.1.running_mean", (256,)),
        "box_head/fc1/kernel": ("roi_heads.box_head.5.weight", (12544, 1024)),
        "box_head/classes/kernel": ("roi_heads.box_predictor.cls_score.weight", (1024, 91)),
        "box_head/deltas/kernel": ("roi_heads.box_predictor.bbox_pred.weight", (1024, 360)),
        "mask_head/conv1/normalization/gamma": ("roi_heads.mask_head.0.1.weight", (256,)),
        "mask_head/upsample/kernel": ("roi_heads.mask_predictor.conv5_mask.weight", (2, 2, 256, 256)),
        "mask_head/logits/kernel": ("roi_heads.mask_predictor.mask_fcn_logits.weight", (1, 1, 256, 90)),
    }
    found = {
        ours: (rows[ours].theirs, rows[ours].convert(np.zeros(parameters[rows[ours].theirs][0])).shape)
        for ours in stated
    }
    assert found == stated
    assert not {"rpn_head/conv/kernel", "fpn/lateral5/bias", "box_head/fc2/kernel"} & set(rows)


def renamed(name):
    """The name in releases up to 0.12."""
    parts = name.split(".")
    if name.startswith("backbone.fpn.") or name.startswith("rpn.head.conv."):
        drop = 4 if name.startswith("backbone") else slice(3, 5)
        del parts[drop]
    elif name.startswith("roi_heads.mask_head."):
        parts[2:4] = [f"mask_fcn{int(parts[2]) + 1}"]
    return ".".join(parts)


class TestOldNames:
    def test_as_in_the_published_files(self):
        assert renamed("backbone.fpn.layer_blocks.3.0.bias") == "backbone.fpn.layer_blocks.3.bias"
        assert renamed("rpn.head.conv.0.0.weight") == "rpn.head.conv.weight"
        assert renamed("roi_heads.mask_head.3.0.bias") == "roi_heads.mask_head.mask_fcn4.bias"
        assert renamed("rpn.head.bbox_pred.bias") == "rpn.head.bbox_pred.bias"

    @pytest.mark.parametrize(
        "name", ["tv_maskrcnn_r50_fpn", "tv_fasterrcnn_r50_fpn", "tv_keypointrcnn_r50_fpn", "tv_mini"]
    )
    def test_both_generations_become_the_same(self, name, shared):
        model_config, new, parameters, classes = opened(name, shared)
        old_names = [renamed(name) for name in parameters]
        assert "rpn.head.conv.weight" in old_names and "backbone.fpn.inner_blocks.0.bias" in old_names
        old = torchvision.detector(model_config, classes, names=old_names)
        assert unmatched(old, old_names) == (set(), set(), set())
        assert [(row.ours, row.theirs) for row in old.rows] == [
            (row.ours, renamed(row.theirs)) for row in new.rows
        ]

    def test_a_name_of_each_generation_leaves_one_over(self, shared):
        model_config, _, parameters, classes = opened("tv_mini", shared)
        both = [*parameters, "rpn.head.conv.weight"]
        table = torchvision.detector(model_config, classes, names=both)
        assert unmatched(table, both) == (set(), {"rpn.head.conv.0.0.weight"}, set())

    def test_two_convolutions_never_share_the_old_name(self):
        model_config = config.model_from_dict({"rpn": {"convs": 2}})
        table = torchvision.detector(model_config, 1, names=["rpn.head.conv.weight", "rpn.head.conv.bias"])
        assert "rpn.head.conv.weight" not in {row.theirs for row in table.rows}


class TestValues:
    """The rows whose conversion cannot be told by its shape."""

    CLASSES = 3

    @pytest.fixture
    def rows(self):
        model_config = config.model_from_dict({"box_head": {"pool_size": 2}})
        table = torchvision.detector(model_config, self.CLASSES)
        return {row.ours: row.convert for row in table.rows}

    def test_the_stem_takes_rgb(self, rows):
        theirs = np.random.default_rng(0).normal(size=(2, 3, 7, 7))
        np.testing.assert_allclose(rows["backbone/stem/kernel"](theirs)[:, :, 2, 1], theirs[1, 2], rtol=1e-6)

    def test_the_first_fully_connected_layer_takes_rows_columns_channels(self, rows):
        rng = np.random.default_rng(1)
        theirs, features = rng.normal(size=(4, 12)), rng.normal(size=(3, 2, 2))
        ours = rows["box_head/fc1/kernel"](theirs)
        expected = theirs @ features.ravel()
        np.testing.assert_allclose(features.transpose(1, 2, 0).ravel() @ ours, expected, rtol=1e-5)
        second = rows["box_head/fc2/kernel"](theirs)
        np.testing.assert_allclose(features.ravel() @ second, expected, rtol=1e-5)

    def test_background_is_last_or_gone(self, rows):
        scores = rows["box_head/classes/bias"]([-9, 1, 2, 3])
        np.testing.assert_array_equal(scores, [1, 2, 3, -9])
        np.testing.assert_array_equal(rows["box_head/classes/kernel"]([[-9], [1], [2], [3]]), [[1, 2, 3, -9]])
        deltas = np.arange(16)
        np.testing.assert_array_equal(rows["box_head/deltas/bias"](deltas), np.arange(4, 16))
        np.testing.assert_array_equal(rows["box_head/deltas/kernel"](deltas[:, None]), [np.arange(4, 16)])
        np.testing.assert_array_equal(rows["mask_head/logits/bias"]([-9, 1, 2, 3]), [1, 2, 3])
        masks = rows["mask_head/logits/kernel"](np.reshape([-9, 1, 2, 3], (4, 1, 1, 1)))
        np.testing.assert_array_equal(masks, [[[[1, 2, 3]]]])

    def test_a_file_of_other_classes_is_refused(self, rows):
        for name in ("box_head/classes", "box_head/deltas", "mask_head/logits"):
            with pytest.raises(ValueError, match="outputs"):
                rows[f"{name}/bias"](np.zeros(91))


def test_number_of_classes_of_the_files(model):
    _, _, parameters, classes = model
    shapes = {name: np.broadcast_to(0, shape) for name, (shape, _) in parameters.items()}
    assert number_of_classes(shapes) == classes


def test_a_box_head_that_torchvision_has_not():
    with pytest.raises(ValueError, match="two fully connected layers.*fcs=1"):
        torchvision.detector(config.model_from_dict({"box_head": {"fcs": 1}}), 1)


@pytest.mark.parametrize("features", ["c4", "c5"])
def test_torchvision_has_no_other_features(features):
    with pytest.raises(ValueError, match=f"features is fpn. Received: '{features}'"):
        torchvision.detector(config.model_from_dict({"backbone": {"features": features}}), 1)


class TestResNet:
    @pytest.mark.parametrize("spec, name", [("tv_small", "resnet18"), ("tv_maskrcnn_r50_fpn", "resnet50")])
    def test_classifier(self, spec, name, shared):
        _, _, parameters, _ = opened(spec, shared)
        prefix = "backbone.body."
        names = {name.removeprefix(prefix) for name in parameters if name.startswith(prefix)}
        names |= {"fc.weight", "fc.bias", "bn1.num_batches_tracked", "layer1.0.bn2.num_batches_tracked"}
        table = torchvision.resnet(config.model_from_dict({"backbone": {"name": name}}))
        assert unmatched(table, names) == (set(), set(), set())
        assert all(row.ours.startswith("backbone/") for row in table.rows)

    def test_group_normalisation(self):
        table = torchvision.resnet(config.model_from_dict({"backbone": {"norm": "group"}}))
        theirs = {row.theirs for row in table.rows}
        assert {"bn1.weight", "bn1.bias"} < theirs and "bn1.running_mean" not in theirs
        assert len(table.rows) == 53 * 3

    def test_variant_d_does_not_fit(self):
        table = torchvision.resnet(config.Model())
        # timm's resnet50d: a stem of three convolutions, a pooled shortcut
        names = {row.theirs for row in table.rows} - {"conv1.weight", "layer2.0.downsample.0.weight"}
        names |= {"conv1.0.weight", "conv1.1.weight", "layer2.0.downsample.2.weight"}
        missing, unexpected, _ = unmatched(table, names)
        assert missing == {"conv1.weight", "layer2.0.downsample.0.weight"}
        assert unexpected == {"conv1.0.weight", "conv1.1.weight", "layer2.0.downsample.2.weight"}
