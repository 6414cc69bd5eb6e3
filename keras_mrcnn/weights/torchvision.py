"""Name tables of torchvision's detectors and ResNets.

Two generations of names are about. Releases up to 0.12, and with them the published weights of the first
Faster, Mask and Keypoint R-CNN, say `backbone.fpn.inner_blocks.0.weight`, `rpn.head.conv.weight` and
`roi_heads.mask_head.mask_fcn1.weight`; since 0.13 it is `backbone.fpn.inner_blocks.0.0.weight`,
`rpn.head.conv.0.0.weight` and `roi_heads.mask_head.0.0.weight`. torchvision renames name by name when it
loads (`_load_from_state_dict` of its FPN, RPN head and mask head), and so do the tables: where the old name
is in the file the row has the old one, otherwise the new one.
"""

from keras_mrcnn.weights import tables
from keras_mrcnn.weights.tables import Row, Table

IGNORED = ("*.num_batches_tracked",)
FIRST_FC = 6  # its head without convolutions counts on from the layers of VGG-16: fc6, fc7


def detector(config, num_classes, names=()):
    """Table of Faster, Mask and Keypoint R-CNN with a ResNet and FPN.

    The models: `fasterrcnn_resnet50_fpn`, `maskrcnn_resnet50_fpn`, their `_v2`, `keypointrcnn_resnet50_fpn`,
    and whatever `resnet_fpn_backbone` makes of the four ResNets. Background is class 0 there: its logit is
    moved to the end, its box deltas and its mask are dropped.

    Args:
        config: a `config.Model`; mask_head.enabled, keypoint_head.enabled: whether there is such a head.
        num_classes: int, classes of the file without background (90 for COCO, 1 of keypoints).
        names: the names in the file (any container), which decide between old and new ones.

    Returns:
        A `Table`.

    Raises:
        ValueError: the config has no FPN, or a box head that torchvision does not make.
    """
    if config.backbone.features != "fpn":
        raise ValueError(
            "torchvision's detectors have a feature pyramid: model.backbone.features is fpn. "
            f"Received: {config.backbone.features!r}"
        )
    rows = body_rows(config.backbone, "backbone.body.")
    rows += _fpn_rows(config.fpn, names)
    rows += _rpn_rows(config.rpn, names)
    rows += _box_rows(config.box_head, num_classes)
    if config.mask_head.enabled:
        rows += _mask_rows(config.mask_head, num_classes, names)
    if config.keypoint_head.enabled:
        rows += _keypoint_rows(config.keypoint_head)
    return Table(rows, IGNORED)


def resnet(config):
    """Table of an ImageNet ResNet or ResNeXt of torchvision or timm: the backbone only.

    timm's plain ones (`resnet50.a1_in1k`, `resnet50_gn` with `backbone.norm` group, ...) have the same names
    and meaning. Its variants c, d, s, t have a stem of three convolutions (`conv1.0.weight`) and, d and
    t, an average pool before the shortcut's convolution (`downsample.1.weight`); SE and ECA ones more names;
    wide ones other shapes: strict loading refuses all of them. `resnetblur18` and `resnetblur50`
    cannot be told by their names, and are not to be loaded: they blur before each stride.

    Args:
        config: a `config.Model`.
    """
    return Table(body_rows(config.backbone, ""), ("fc.*", *IGNORED))


def body_rows(backbone, prefix):
    """Rows of a ResNet or ResNeXt with torchvision's names after `prefix`.

    Args:
        backbone: a `config.Backbone`.
        prefix: string, "backbone.body." in a detector.
    """
    rows = []
    for conv in tables.resnet_convs(backbone):
        weight, norm = _body_names(conv)
        rows += tables.conv_rows(
            conv.ours, f"{prefix}{weight}.weight", None, backbone.norm, f"{prefix}{norm}"
        )
    return rows


def _body_names(conv):
    """Prefixes of a convolution and of its normalisation, "layer1.0.conv1" and "layer1.0.bn1"."""
    if conv.part == "stem":
        return "conv1", "bn1"
    block = f"layer{conv.stage - 1}.{conv.block}"
    if conv.part == "shortcut":
        return f"{block}.downsample.0", f"{block}.downsample.1"
    return f"{block}.{conv.part}", f"{block}.bn{conv.part[-1]}"


def _renamed_rows(ours, new, old, norm, names):
    """Rows of a convolution inside a sequence `new`, which older releases had alone, as `old`."""

    def name(kind):
        return f"{old}.{kind}" if f"{old}.{kind}" in names else f"{new}.0.{kind}"

    return tables.conv_rows(ours, name("weight"), name("bias"), norm, f"{new}.1")


def _fpn_rows(fpn, names):
    rows = []
    for level in range(2, 6):
        for ours, theirs in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
            prefix = f"backbone.fpn.{theirs}.{level - 2}"
            rows += _renamed_rows(f"fpn/{ours}{level}", prefix, prefix, fpn.norm, names)
    return rows


def _rpn_rows(rpn, names):
    rows = []
    if rpn.convs == 1:
        rows += _renamed_rows("rpn_head/conv", "rpn.head.conv.0", "rpn.head.conv", "none", names)
    else:  # which the old releases could not have
        for index in range(rpn.convs):
            conv = f"rpn.head.conv.{index}.0"
            rows += tables.conv_rows(
                f"rpn_head/conv{index + 1}", f"{conv}.weight", f"{conv}.bias", "none", None
            )
    for ours, theirs in (("objectness", "cls_logits"), ("deltas", "bbox_pred")):
        prefix = f"rpn.head.{theirs}"
        rows += tables.conv_rows(f"rpn_head/{ours}", f"{prefix}.weight", f"{prefix}.bias", "none", None)
    return rows


def _box_rows(head, num_classes):
    rows, prefix = [], "roi_heads.box_head"
    for index in range(head.convs):
        conv = f"{prefix}.{index}"
        rows += tables.conv_rows(
            f"box_head/conv{index + 1}", f"{conv}.0.weight", f"{conv}.0.bias", head.norm, f"{conv}.1"
        )
    convert = tables.flattened_dense(head.pool_size)
    for index, layer in enumerate(_box_layers(head)):
        rows.append(Row(f"box_head/fc{index + 1}/kernel", f"{prefix}.{layer}.weight", convert))
        rows.append(Row(f"box_head/fc{index + 1}/bias", f"{prefix}.{layer}.bias", tables.same))
        convert = tables.dense
    for kind, ours, layout in (("weight", "kernel", tables.dense), ("bias", "bias", tables.same)):
        predictor = "roi_heads.box_predictor"
        classes = tables.background_last(num_classes, layout)
        deltas = tables.without_background(num_classes, layout, 4)
        rows.append(Row(f"box_head/classes/{ours}", f"{predictor}.cls_score.{kind}", classes))
        rows.append(Row(f"box_head/deltas/{ours}", f"{predictor}.bbox_pred.{kind}", deltas))
    return rows


def _box_layers(head):
    """Names of the fully connected layers inside the box head, in order."""
    if head.convs:  # one sequence: convolutions, a flattening, then each layer with its ReLU
        return [str(head.convs + 1 + 2 * index) for index in range(head.fcs)]
    if head.fcs != 2:
        raise ValueError(
            "torchvision's box head without convolutions has two fully connected layers. "
            f"Received: box_head.fcs={head.fcs}, box_head.convs=0"
        )
    return [f"fc{FIRST_FC + index}" for index in range(head.fcs)]


def _mask_rows(head, num_classes, names):
    rows, prefix = [], "roi_heads.mask_head"
    for index in range(head.convs):
        old = f"{prefix}.mask_fcn{index + 1}"
        rows += _renamed_rows(f"mask_head/conv{index + 1}", f"{prefix}.{index}", old, head.norm, names)
    for kind, ours, layout in (("weight", "kernel", tables.kernel), ("bias", "bias", tables.same)):
        predictor = "roi_heads.mask_predictor"
        logits = tables.without_background(num_classes, layout)
        rows.append(Row(f"mask_head/upsample/{ours}", f"{predictor}.conv5_mask.{kind}", layout))
        rows.append(Row(f"mask_head/logits/{ours}", f"{predictor}.mask_fcn_logits.{kind}", logits))
    return rows


def _keypoint_rows(head):
    rows, prefix = [], "roi_heads.keypoint_head"
    for index in range(head.convs):  # one sequence, each followed by a ReLU
        conv = f"{prefix}.{2 * index}"
        rows += tables.conv_rows(
            f"keypoint_head/conv{index + 1}", f"{conv}.weight", f"{conv}.bias", "none", None
        )
    last = "roi_heads.keypoint_predictor.kps_score_lowres"
    return rows + tables.conv_rows("keypoint_head/upsample", f"{last}.weight", f"{last}.bias", "none", None)
