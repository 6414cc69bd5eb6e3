"""The list of presets against what the sources publish and against the parity models."""

import collections
import json
import math
import re

import pytest

from keras_mrcnn import config
from keras_mrcnn.data.categories import Category
from keras_mrcnn.weights import presets

# parity model -> the preset that it stands for
PARITY = {
    "tv_maskrcnn_r50_fpn": "torchvision/mask_rcnn_r50_fpn",
    "tv_maskrcnn_r50_fpn_v2": "torchvision/mask_rcnn_r50_fpn_v2",
    "tv_fasterrcnn_r50_fpn": "torchvision/faster_rcnn_r50_fpn",
    "tv_keypointrcnn_r50_fpn": "torchvision/keypoint_rcnn_r50_fpn",
    "d2_maskrcnn_r50_fpn": "detectron2/mask_rcnn_r50_fpn_3x",
    "d2_maskrcnn_r101_fpn": "detectron2/mask_rcnn_r101_fpn_3x",
    "d2_maskrcnn_x101_fpn": "detectron2/mask_rcnn_x101_fpn_3x",
    "d2_maskrcnn_r50_c4": "detectron2/mask_rcnn_r50_c4_3x",
    "d2_maskrcnn_r50_dc5": "detectron2/mask_rcnn_r50_dc5_3x",
    "d2_keypointrcnn_r50_fpn": "detectron2/keypoint_rcnn_r50_fpn_3x",
}


def spec(shared, name):
    """The parity model's settings and {parameter: shape}."""
    content = json.loads((shared / "parity" / "models" / f"{name}.json").read_text())
    return content["config"], {row[0]: row[1] for row in content["params"] if row[2] != "count"}


def model_of(name):
    return presets.preset_model(name)[0]


@pytest.mark.parametrize("name", presets.published())
def test_rows_agree_with_their_file_names(name):
    preset = presets.preset(name)
    stem = preset.file_name.rsplit(".", 1)[0]
    if name.startswith("torchvision/"):
        assert preset.url == f"https://download.pytorch.org/models/{preset.file_name}"
        assert preset.checksum == "sha256:" + stem.rsplit("-", 1)[1]
        assert len(preset.checksum) == len("sha256:") + 8
        assert preset.licence == "BSD-3-Clause"
    else:
        assert preset.url.startswith("https://dl.fbaipublicfiles.com/detectron2/")
        digits = stem.removeprefix("model_final_") if "model_final_" in stem else ""
        assert preset.checksum == (f"md5:{digits}" if digits else "")
        assert preset.licence == "CC-BY-SA-3.0"
    depth = re.search(r"(?:_r|_x|net|next)(18|34|50|101)_", name)[1]
    assert f"{depth}_" in preset.url.replace("R-", "").replace("X-", "").replace("-", "_").replace(".", "_")
    for schedule in ("1x", "3x", "100ep", "200ep", "400ep"):
        assert (schedule in name.rsplit("/", 1)[1].split("_")) == (f"_{schedule}" in preset.url)


def test_no_two_rows_are_the_same_file():
    for field in ("url", "checksum"):
        values = collections.Counter(getattr(p, field) for p in presets.published().values())
        assert {value: n for value, n in values.items() if value and n > 1} == {}


def test_published_numbers_by_hand():
    # detectron2's MODEL_ZOO.md, "R50-FPN 3x": box 41.0, mask 37.2, model id 137849600
    row = presets.preset("detectron2/mask_rcnn_r50_fpn_3x")
    assert (row.box_ap, row.mask_ap, row.keypoint_ap) == (41.0, 37.2, None)
    assert row.url.endswith("mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl")
    # torchvision's MaskRCNN_ResNet50_FPN_Weights.COCO_V1: 169.84 MiB
    assert presets.preset("torchvision/mask_rcnn_r50_fpn").size == round(169.84 * 2**20)


def test_torchvision_rows_are_its_metadata():
    models = pytest.importorskip("torchvision").models
    weights = {w.url: w for name in models.list_models() for w in models.get_model_weights(name)}
    rows = [p for p in presets.published().values() if p.name.startswith("torchvision/")]
    assert len(rows) == 12
    for row in rows:
        meta = weights[row.url].meta
        assert row.size == round(meta["_file_size"] * 2**20)
        scores = meta["_metrics"].get("COCO-val2017", {})
        expected = [scores.get(key) for key in ("box_map", "mask_map", "kp_map")]
        assert [row.box_ap, row.mask_ap, row.keypoint_ap] == expected
        if row.categories == "coco_91":
            names = [c["name"] for c in presets.categories("coco_91")]
            assert names == meta["categories"][1:]
        if row.keypoint_ap is not None:
            assert presets.categories(row.categories)[0]["keypoints"] == meta["keypoint_names"]


@pytest.mark.parametrize("parity, name", PARITY.items())
def test_sizes_are_those_of_the_parity_models(shared, parity, name):
    _, parameters = spec(shared, parity)
    values = sum(math.prod(shape) for shape in parameters.values())
    if parity == "d2_maskrcnn_r50_dc5":  # its two layers of 1024 are 256 wide there
        values += 768 * (2048 * 49 + 1 + 81 + 320) + (1024 * 1025 - 256 * 257)
    elif parity.startswith("tv_"):  # a file has a header and names
        assert values * 4 == pytest.approx(presets.preset(name).size, rel=5e-3)
        return
    assert presets.preset(name).size == values * 4


@pytest.mark.parametrize("parity, name", PARITY.items())
def test_settings_are_those_of_the_parity_models(shared, parity, name):
    given, parameters = spec(shared, parity)
    model = model_of(name)
    first = parity.startswith("tv_")
    if first:  # RGB, 0..1
        assert [v / 255 for v in model.input.mean] == pytest.approx(given["image_mean"])
        assert [v / 255 for v in model.input.std] == pytest.approx(given["image_std"])
        thresholds = [given["rpn_bg_iou"], given["rpn_fg_iou"], given["box_fg_iou"]]
        classes = given["num_classes_with_background"] - 1
        pool = given["box_pool"]["aligned"], given["box_pool"]["sampling_ratio"]
        # torchvision's models/detection/rpn.py and roi_heads.py: beta=1 / 9 in both
        assert (model.rpn.smooth_l1_beta, model.box_head.smooth_l1_beta) == (1 / 9, 1 / 9)
        convs = sum(n.startswith("rpn.head.conv.") and n.endswith("weight") for n in parameters)
    else:  # BGR, 0..255
        assert model.input.mean[::-1] == given["pixel_mean"]
        assert model.input.std[::-1] == given["pixel_std"]
        assert given["anchor_offset"] == 0
        thresholds = [*given["rpn_iou_thresholds"], *given["box_iou_thresholds"]]
        classes = given["num_classes_without_background"]
        pool = given["box_pool"]["type"] == "ROIAlignV2", given["box_pool"]["sampling_ratio"]
        convs = 1
        assert model.rpn.smooth_l1_beta == given["rpn_smooth_l1_beta"]
        assert model.box_head.smooth_l1_beta == given["box_smooth_l1_beta"]
        assert (
            model.backbone.name
            == {
                (50, 1, 64): "resnet50",
                (101, 1, 64): "resnet101",
                (101, 32, 8): "resnext101_32x8d",
            }[given["depth"], given["num_groups"], given["width_per_group"]]
        )
        features = {"res4": "c4", "res5": "c5"}.get(given["rpn_in_features"][0], "fpn")
        assert (model.backbone.features, model.backbone.dilated) == (features, given["res5_dilation"] == 2)
        assert model.rpn.channels == parameters["proposal_generator.rpn_head.conv.weight"][0]
        assert model.box_head.pool_size == given["box_pool"]["output"]
        assert model.box_head.fcs == given["box_fc"][0]
        # after its stride the region is 7 x 7
        assert features != "c4" or model.box_head.pool_size == 7 * model.backbone.region_stride
        if model.mask_head.enabled:
            about = given["mask"]["num_conv"], given["mask"]["conv_dim"], given["mask"]["output"]
            assert (model.mask_head.convs, model.mask_head.channels, model.mask_head.pool_size) == about
    assert model.mask_head.enabled == any(name.startswith("roi_heads.mask") for name in parameters)
    assert (model.anchors.rounded, model.anchors.fitted_strides) == (first, first)
    assert (model.roi_align.aligned, model.roi_align.sampling_ratio) == pool
    assert model.input.resize == ("plain" if first else "pillow")
    assert model.mask_head.soft_targets == first
    assert model.mask_head.paste == ("widened" if first else "centres")
    assert model.detections.min_size == (0.01 if first else 0)
    assert model.proposals.min_size == given["rpn_min_size"]
    assert model.backbone.norm_epsilon == given["norm_eps"]
    assert model.backbone.stride_in_1x1 == given["stride_in_1x1"]
    assert model.anchors.sizes == [size for sizes in given["anchor_sizes"] for size in sizes]
    assert model.anchors.aspect_ratios == given["anchor_aspect_ratios"][0]
    assert [model.rpn.negative_iou, model.rpn.positive_iou, model.sampling.foreground_iou] == thresholds
    assert (model.rpn.samples, model.rpn.positive_fraction) == (
        given["rpn_batch_size_per_image"],
        given["rpn_positive_fraction"],
    )
    assert (model.sampling.rois, model.sampling.foreground_fraction) == (
        given["box_batch_size_per_image"],
        given["box_positive_fraction"],
    )
    assert model.proposals.nms_iou == given["rpn_nms_thresh"]
    assert model.proposals.pre_nms_train == given["rpn_pre_nms_top_n"]["training"]
    assert model.proposals.pre_nms_test == given["rpn_pre_nms_top_n"]["testing"]
    assert model.detections.score_threshold == given["box_score_thresh"]
    assert model.detections.nms_iou == given["box_nms_thresh"]
    assert model.box_head.box_weights == given["bbox_reg_weights"]
    assert model.rpn.convs == convs
    if "changed" not in given or len(given["changed"]) == 2:  # not made smaller for the tests
        assert model.detections.max_detections == given["box_detections_per_img"]
        assert model.proposals.post_nms_test == given["rpn_post_nms_top_n"]["testing"]
    expected = 2000 if first else given["rpn_post_nms_top_n"]["training"]  # torchvision's: 300 for the tests
    assert model.proposals.post_nms_train == expected
    assert len(presets.categories(presets.preset(name).categories)) == classes


@pytest.mark.parametrize("parity, name", PARITY.items())
def test_keypoint_heads_are_those_of_the_parity_models(shared, parity, name):
    given, parameters = spec(shared, parity)
    head = model_of(name).keypoint_head
    prefix = ("roi_heads.keypoint_head.", "roi_heads.keypoint_predictor.")
    *convs, last = [n for n in parameters if n.startswith(prefix) and n.endswith("weight")] or [None]
    assert head.enabled == (last is not None)
    if head.enabled:
        assert [parameters[conv][0] for conv in convs] == [head.channels] * head.convs
        assert parameters[last] == [head.channels, 17, 4, 4]
        size = (
            given["keypoint_pool"]["output"][0] if parity.startswith("tv_") else given["keypoint"]["output"]
        )
        assert head.pool_size == size


def test_heads_of_v2_are_those_of_the_parity_model(shared):
    _, parameters = spec(shared, "tv_maskrcnn_r50_fpn_v2")
    model = model_of("torchvision/mask_rcnn_r50_fpn_v2")

    def count(prefix, dimensions):
        named = [n for n, shape in parameters.items() if n.startswith(prefix) and n.endswith("weight")]
        return sum(len(parameters[n]) == dimensions for n in named)

    assert (model.box_head.convs, model.box_head.fcs) == (
        count("roi_heads.box_head", 4),
        count("roi_heads.box_head", 2),
    )
    assert model.mask_head.convs == count("roi_heads.mask_head.", 4)
    # each convolution of these has a normalisation
    assert [count(p, 1) for p in ("roi_heads.box_head", "roi_heads.mask_head", "backbone.fpn")] == [4, 4, 8]
    assert {model.backbone.norm, model.fpn.norm, model.box_head.norm, model.mask_head.norm} == {"batch"}


def test_settings_that_no_parity_model_shows():
    lsj = model_of("detectron2/mask_rcnn_r101_fpn_lsj_400ep")
    assert lsj.backbone == config.Backbone("resnet101", stride_in_1x1=True, norm="batch", frozen_stages=0)
    assert (lsj.rpn.convs, lsj.box_head.convs, lsj.box_head.fcs) == (2, 4, 1)
    assert {lsj.fpn.norm, lsj.box_head.norm, lsj.mask_head.norm} == {"batch"}
    assert lsj.input.std == [1.0, 1.0, 1.0]
    lvis = model_of("detectron2/mask_rcnn_r50_fpn_1x_lvis")
    assert (lvis.detections.score_threshold, lvis.detections.max_detections) == (0.0001, 300)
    cityscapes = model_of("detectron2/mask_rcnn_r50_fpn_cityscapes")
    assert (cityscapes.input.short_edge, cityscapes.input.long_edge) == (1024, 2048)
    legacy = model_of("torchvision/keypoint_rcnn_r50_fpn_legacy")
    assert legacy.backbone.norm_epsilon == 1e-5  # torchvision takes the epsilon from COCO_V1 only
    msra = model_of("detectron2/resnet101_imagenet_msra")
    assert (msra.backbone.name, msra.backbone.stride_in_1x1, msra.input.std) == ("resnet101", True, [1.0] * 3)
    # detectron2's configs of X-101-32x8d: STRIDE_IN_1X1 False, PIXEL_STD of blue, green, red
    resnext = model_of("detectron2/resnext101_32x8d_imagenet")
    assert resnext.backbone == config.Backbone("resnext101_32x8d")
    assert resnext.input.std == [58.395, 57.12, 57.375]
    assert model_of("torchvision/resnet50_imagenet_v2") == config.Model()
    assert model_of("torchvision/resnet18_imagenet_v1").backbone == config.Backbone("resnet18")


@pytest.mark.parametrize("name", presets.published())
def test_models_are_valid(name):
    model, categories = presets.preset_model(name)
    assert isinstance(model, config.Model)
    assert bool(categories) == (presets.preset(name).data != "ImageNet")
    assert model.keypoint_head.enabled == (presets.preset(name).keypoint_ap is not None)
    assert [len(c["keypoints"]) for c in categories if "keypoints" in c] == [17] * model.keypoint_head.enabled


def test_what_one_caller_changes_the_next_does_not_see():
    name = "torchvision/mask_rcnn_r50_fpn"
    model, categories = presets.preset_model(name)
    model.anchors.sizes.append(1.0)
    model.input.mean[0] = -1.0
    categories.clear()
    again, coco = presets.preset_model(name)
    assert (len(again.anchors.sizes), again.input.mean[0], len(coco)) == (5, 123.675, 90)


def test_categories():
    coco, holes = presets.categories("coco"), presets.categories("coco_91")
    assert [c["id"] for c in holes] == list(range(1, 91))
    assert [c for c in holes if c["name"] != "N/A"] == coco
    assert (len(coco), coco[0], coco[-1]) == (
        80,
        {"id": 1, "name": "person"},
        {"id": 90, "name": "toothbrush"},
    )
    # the ids that COCO skips
    skipped = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert {c["id"] for c in holes if c["name"] == "N/A"} == skipped
    assert [c["id"] for c in presets.categories("cityscapes")] == [24, 25, 26, 27, 28, 31, 32, 33]
    lvis = presets.categories("lvis_v0.5")
    assert [c["id"] for c in lvis] == list(range(1, 1231))
    assert len({c["name"] for c in lvis}) == 1230
    assert lvis[0]["name"] == "acorn"


def test_keypoints(shared):
    """As COCO's own json has them; their mirror images follow from the names."""
    stored = json.loads((shared / "data/coco_sample/annotations/person_keypoints_val2017.json").read_text())
    (given,), (person,) = stored["categories"], presets.categories("person")
    assert person == {key: given[key] for key in ("id", "name", "keypoints", "skeleton")}
    pairs = Category.from_dict(person).flip_pairs  # eyes, ears, ... stand side by side, after the nose
    assert pairs == ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))


def test_table():
    lines = presets.preset_table().splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(presets.published())]] == list(presets.published())
    row = next(line for line in lines if line.startswith("torchvision/mask_rcnn_r50_fpn_v2 "))
    assert row.split() == "torchvision/mask_rcnn_r50_fpn_v2 COCO 47.4 41.8 186 MB BSD-3-Clause".split()
    row = next(line for line in lines if line.startswith("detectron2/keypoint_rcnn_r50_fpn_1x "))
    assert row.split() == "detectron2/keypoint_rcnn_r50_fpn_1x COCO 53.6 64.0 237 MB CC-BY-SA-3.0".split()
    assert row.index("64.0") + 4 == lines[0].index("keypoint AP") + len("keypoint AP")


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="Did you mean torchvision/mask_rcnn_r50_fpn_v2"):
        presets.preset_model("torchvision/mask_rcnn_r50_fpn_v3")
