"""detectron2's name tables against the parameter lists in `shared/parity/models` and names stated here."""

import collections
import fnmatch
import json

import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import detectron2
from keras_mrcnn.weights.tables import number_of_classes
from tests.weights import tiny

C4 = {
    "backbone": {"features": "c4", "region_stride": 2},
    "rpn": {"channels": 1024},
    "box_head": {"pool_size": 14, "fcs": 0},
    "mask_head": {"convs": 0},
}
DC5 = {
    "backbone": {"features": "c5", "dilated": True},
    "rpn": {"channels": 2048},
    "box_head": {"units": 256},
}
# spec -> what its config changes
MODELS = {
    "d2_maskrcnn_r50_fpn": {},
    "d2_maskrcnn_r101_fpn": {"backbone": {"name": "resnet101"}},
    "d2_maskrcnn_x101_fpn": {"backbone": {"name": "resnext101_32x8d"}},
    "d2_keypointrcnn_r50_fpn": {"mask_head": {"enabled": False}, "keypoint_head": {"enabled": True}},
    "d2_maskrcnn_r50_c4": C4,
    "d2_maskrcnn_r50_dc5": DC5,
}
ALWAYS = ("d2_maskrcnn_r50_c4", "d2_keypointrcnn_r50_fpn")  # the others with the slow proofs
LSJ = {
    "backbone": {"norm": "batch"},
    "fpn": {"norm": "batch"},
    "rpn": {"convs": 2},
    "box_head": {"convs": 4, "norm": "batch", "fcs": 1},
    "mask_head": {"norm": "batch"},
}
STATISTICS = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(params=MODELS)
def model(request, shared):
    """(config, table, {name: (shape, kind)}, classes) of each spec."""
    return opened(request.param, shared)


def opened(name, shared):
    spec = json.loads((shared / f"parity/models/{name}.json").read_text())
    parameters = {name: (tuple(shape), kind) for name, shape, kind, _ in spec["params"]}
    model_config = config.model_from_dict(MODELS[name])
    classes = spec["config"]["num_classes_without_background"]
    return model_config, detectron2.detector(model_config, classes), parameters, classes


def unmatched(table, names):
    """(names of rows that the file lacks, names of the file without a row, names of several rows)."""
    found = collections.Counter(row.theirs for row in table.rows)
    ignored = {name for name in names if any(fnmatch.fnmatch(name, p) for p in table.ignored)}
    return (
        {name for name in found if name not in names},
        {name for name in names if name not in ignored and name not in found},
        {name for name, count in found.items() if count > 1 or name in ignored},
    )


def expected_shape(shape, kind):
    """Shape in Keras of an array of this kind."""
    if kind == "conv":
        return (*shape[2:], shape[1], shape[0])
    if kind == "convt":
        return (*shape[2:], shape[1], shape[0])
    return shape[::-1] if kind == "linear" else shape


def converted_shapes(table, parameters):
    """{our path: shape of the converted array}."""
    return {
        row.ours: row.convert(np.broadcast_to(np.float32(0), parameters[row.theirs][0])).shape
        for row in table.rows
    }


def variables(model_config, classes):
    """{path: shape} of the model's variables."""
    built = MaskRCNN(model_config, tiny.numbered(classes, 17))
    return {v.path: tuple(v.shape) for v in built.variables if "seed_generator" not in v.path}


def test_every_name_has_one_row_and_every_row_its_name(model):
    _, table, parameters, _ = model
    assert unmatched(table, parameters) == (set(), set(), set())
    ours = [row.ours for row in table.rows]
    assert len(set(ours)) == len(ours) == len(parameters)
    assert all(row.theirs is not None for row in table.rows)


def test_shapes(model):
    _, table, parameters, _ = model
    for row, shape in zip(table.rows, converted_shapes(table, parameters).values(), strict=True):
        assert shape == expected_shape(*parameters[row.theirs]), row.ours


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.proof) for name in MODELS]
)
def test_targets_are_the_variables_of_the_model(name, shared):
    model_config, table, parameters, classes = opened(name, shared)
    expected = variables(model_config, classes)
    assert converted_shapes(table, parameters) == expected


@pytest.mark.parametrize(
    "name, stated",
    [
        (
            "d2_maskrcnn_x101_fpn",
            {
                # 32 groups of 8 channels in C2, of 64 in C5
                "backbone/c2_block1/conv2/kernel": (
                    "backbone.bottom_up.res2.0.conv2.weight",
                    (3, 3, 8, 256),
                ),
                "backbone/c5_block3/conv2/kernel": (
                    "backbone.bottom_up.res5.2.conv2.weight",
                    (3, 3, 64, 2048),
                ),
                "box_head/fc1/kernel": ("roi_heads.box_head.fc1.weight", (12544, 1024)),
                "rpn_head/conv/kernel": ("proposal_generator.rpn_head.conv.weight", (3, 3, 256, 256)),
            },
        ),
        (
            "d2_maskrcnn_r50_c4",
            {
                "backbone/c4_block6/conv3/kernel": ("backbone.res4.5.conv3.weight", (1, 1, 256, 1024)),
                "stage5/c5_block1/shortcut/normalization/gamma": (
                    "roi_heads.res5.0.shortcut.norm.weight",
                    (2048,),
                ),
                "stage5/c5_block3/conv2/kernel": ("roi_heads.res5.2.conv2.weight", (3, 3, 512, 512)),
                "rpn_head/deltas/kernel": (
                    "proposal_generator.rpn_head.anchor_deltas.weight",
                    (1, 1, 1024, 60),
                ),
                "box_head/classes/kernel": ("roi_heads.box_predictor.cls_score.weight", (2048, 81)),
                "mask_head/upsample/kernel": ("roi_heads.mask_head.deconv.weight", (2, 2, 256, 2048)),
            },
        ),
        (
            "d2_maskrcnn_r50_dc5",
            {
                "backbone/c5_block1/conv1/kernel": ("backbone.res5.0.conv1.weight", (1, 1, 1024, 512)),
                "box_head/fc1/kernel": ("roi_heads.box_head.fc1.weight", (49 * 2048, 256)),
                "mask_head/conv1/kernel": ("roi_heads.mask_head.mask_fcn1.weight", (3, 3, 2048, 256)),
            },
        ),
        (
            "d2_keypointrcnn_r50_fpn",
            {
                "keypoint_head/conv8/bias": ("roi_heads.keypoint_head.conv_fcn8.bias", (512,)),
                "keypoint_head/upsample/kernel": (
                    "roi_heads.keypoint_head.score_lowres.weight",
                    (4, 4, 17, 512),
                ),
            },
        ),
    ],
)
def test_stated_rows(name, stated, shared):
    _, table, parameters, _ = opened(name, shared)
    shapes = converted_shapes(table, parameters)
    found = {row.ours: (row.theirs, shapes[row.ours]) for row in table.rows if row.ours in stated}
    assert found == stated


def lsj_names():
    """Names of a baseline with large-scale jitter, from detectron2's modules one by one."""
    names = set()

    def conv(prefix, norm=True):
        names.add(f"{prefix}.weight")
        names.update(f"{prefix}.norm.{s}" for s in STATISTICS) if norm else names.add(f"{prefix}.bias")

    conv("backbone.bottom_up.stem.conv1")
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        conv(f"backbone.bottom_up.res{stage}.0.shortcut")
        for block in range(blocks):
            for n in (1, 2, 3):
                conv(f"backbone.bottom_up.res{stage}.{block}.conv{n}")
        conv(f"backbone.fpn_lateral{stage}")
        conv(f"backbone.fpn_output{stage}")
    for n in (1, 2, 3, 4):
        conv(f"roi_heads.box_head.conv{n}")
        conv(f"roi_heads.mask_head.mask_fcn{n}")
    for prefix in ("conv.conv0", "conv.conv1", "objectness_logits", "anchor_deltas"):
        conv(f"proposal_generator.rpn_head.{prefix}", norm=False)
    for prefix in ("box_head.fc1", "box_predictor.cls_score", "box_predictor.bbox_pred"):
        conv(f"roi_heads.{prefix}", norm=False)
    for prefix in ("deconv", "predictor"):
        conv(f"roi_heads.mask_head.{prefix}", norm=False)
    return names


def test_large_scale_jitter():
    model_config = config.model_from_dict(LSJ)
    table = detectron2.detector(model_config, 80)
    names = lsj_names()
    # 53 + 8 + 4 + 4 convolutions with a normalisation, 9 layers with a bias
    assert len(names) == 69 * 5 + 9 * 2
    counts = {name.replace(".weight", ".num_batches_tracked") for name in names if ".norm.weight" in name}
    assert unmatched(table, names | counts) == (set(), set(), set())
    ours = {row.theirs: row.ours for row in table.rows}
    assert ours["backbone.fpn_lateral2.norm.weight"] == "fpn/lateral2/normalization/gamma"
    assert ours["roi_heads.box_head.conv1.norm.bias"] == "box_head/conv1/normalization/beta"
    assert ours["proposal_generator.rpn_head.conv.conv0.weight"] == "rpn_head/conv1/kernel"
    assert ours["roi_heads.mask_head.mask_fcn4.norm.running_var"] == (
        "mask_head/conv4/normalization/moving_variance"
    )
    assert sorted(ours.values()) == sorted(variables(model_config, 80))


def test_group_normalisation_has_no_statistics():
    norms = {name: {"norm": "group"} for name in ("backbone", "fpn", "box_head", "mask_head")}
    theirs = {row.theirs for row in detectron2.detector(config.model_from_dict(norms), 80).rows}
    assert {"backbone.fpn_output5.norm.weight", "backbone.fpn_output5.norm.bias"} < theirs
    assert not [name for name in theirs if "running" in name or name == "backbone.fpn_output5.bias"]


@pytest.mark.parametrize("name", ["pixel_mean", "pixel_std", "stem.norm.num_batches_tracked"])
@pytest.mark.parametrize("number", range(5))
def test_buffers_are_ignored(name, number, shared):
    _, table, parameters, _ = opened("d2_maskrcnn_r50_fpn", shared)
    anchors = f"proposal_generator.anchor_generator.cell_anchors.{number}"
    assert unmatched(table, [*parameters, name, anchors]) == (set(), set(), set())


@pytest.mark.parametrize("name", ["pixel_means", "roi_heads.box_head.fc3.weight", "iteration"])
def test_what_nobody_knows_is_not_ignored(name, shared):
    _, table, parameters, _ = opened("d2_maskrcnn_r50_fpn", shared)
    assert unmatched(table, [*parameters, name]) == (set(), {name}, set())


class TestValues:
    """The rows whose conversion cannot be told by its shape."""

    def rows(self, classes=3, rgb=False, **stations):
        model_config = config.model_from_dict({"box_head": {"pool_size": 2}, **stations})
        return {row.ours: row for row in detectron2.detector(model_config, classes, rgb=rgb).rows}

    @pytest.mark.parametrize("features", ["fpn", "c4", "c5"])
    def test_only_the_stem_takes_bgr(self, features):
        theirs = np.arange(3.0).reshape(1, 3, 1, 1)  # blue, green, red
        rows = self.rows(backbone={"features": features})
        np.testing.assert_array_equal(np.ravel(rows["backbone/stem/kernel"].convert(theirs)), [2, 1, 0])
        other = rows["backbone/c2_block1/conv1/kernel"].convert(theirs)
        np.testing.assert_array_equal(np.ravel(other), [0, 1, 2])
        stem = self.rows(rgb=True, backbone={"features": features})["backbone/stem/kernel"]
        np.testing.assert_array_equal(np.ravel(stem.convert(theirs)), [0, 1, 2])

    def test_the_first_fully_connected_layer_takes_rows_columns_channels(self):
        rng = np.random.default_rng(1)
        theirs, features = rng.normal(size=(4, 12)), rng.normal(size=(3, 2, 2))
        ours = self.rows()["box_head/fc1/kernel"].convert(theirs)
        expected = theirs @ features.ravel()
        np.testing.assert_allclose(features.transpose(1, 2, 0).ravel() @ ours, expected, rtol=1e-5)
        second = self.rows()["box_head/fc2/kernel"].convert(theirs)
        np.testing.assert_allclose(features.ravel() @ second, expected, rtol=1e-5)

    def test_classes_keep_their_order(self):
        rows = self.rows()
        np.testing.assert_array_equal(rows["box_head/classes/bias"].convert([1, 2, 3, -9]), [1, 2, 3, -9])
        weight = rows["box_head/classes/kernel"].convert([[1, 5], [2, 6], [3, 7], [-9, 8]])
        np.testing.assert_array_equal(weight, [[1, 2, 3, -9], [5, 6, 7, 8]])
        deltas = np.arange(12)
        np.testing.assert_array_equal(rows["box_head/deltas/bias"].convert(deltas), deltas)
        np.testing.assert_array_equal(rows["box_head/deltas/kernel"].convert(deltas[:, None]), [deltas])
        masks = rows["mask_head/logits/kernel"].convert(np.reshape([1, 2, 3], (3, 1, 1, 1)))
        np.testing.assert_array_equal(masks, [[[[1, 2, 3]]]])

    def test_one_box_and_one_mask_for_all_classes(self):
        agnostic = {"class_agnostic": True}
        rows = self.rows(box_head={"pool_size": 2, **agnostic}, mask_head=agnostic)
        for name, outputs in (("box_head/classes", 4), ("box_head/deltas", 4), ("mask_head/logits", 1)):
            assert rows[f"{name}/bias"].convert(np.zeros(outputs)).shape == (outputs,)
            with pytest.raises(ValueError, match=f"Expected {outputs} outputs"):
                rows[f"{name}/bias"].convert(np.zeros(12))

    @pytest.mark.parametrize("classes", [8, 80, 1203])  # Cityscapes, COCO, LVIS
    def test_numbers_of_classes(self, classes):
        rows = self.rows(classes)
        for name, outputs in (
            ("box_head/classes", classes + 1),
            ("box_head/deltas", 4 * classes),
            ("mask_head/logits", classes),
        ):
            assert rows[f"{name}/bias"].convert(np.zeros(outputs)).shape == (outputs,)
            with pytest.raises(ValueError, match=f"Expected {outputs} outputs"):
                rows[f"{name}/bias"].convert(np.zeros(outputs + 1))


def test_number_of_classes_of_the_files(model):
    _, _, parameters, classes = model
    shapes = {name: np.broadcast_to(0, shape) for name, (shape, _) in parameters.items()}
    assert number_of_classes(shapes) == classes
