"""Name tables of detectron2's model zoo: Faster, Mask and Keypoint R-CNN with a ResNet or ResNeXt.

Names as in its `modeling/backbone/{resnet,fpn}.py`, `modeling/proposal_generator/rpn.py` and
`modeling/roi_heads/*.py`. Background is the last class there too.
"""

from keras_mrcnn.weights import tables
from keras_mrcnn.weights.tables import Row, Table

IGNORED = (  # buffers, which some files have and some have not
    "pixel_mean",
    "pixel_std",
    "proposal_generator.anchor_generator.cell_anchors.*",
    "*.num_batches_tracked",
)


def detector(config, num_classes, rgb=False):
    """Table of a detector.

    It serves R-50, R-101 and X-101-32x8d with FPN, C4 and DC5; COCO (80 classes), Cityscapes (8), LVIS (1203;
    v0.5: 1230); and the baselines with large-scale jitter (`fpn.norm`, `box_head.norm`, `mask_head.norm`
    batch, `rpn.convs` 2, `box_head.convs` 4, `box_head.fcs` 1).

    Args:
        config: a `config.Model`. backbone.features: fpn; c4: stage 5 is the head's, `roi_heads.res5`; c5: the
            zoo's is dilated. mask_head.enabled, keypoint_head.enabled: whether there is such a head.
        num_classes: int, classes of the file without background.
        rgb: bool, whether the network was trained on RGB; all of the zoo takes BGR.

    Returns:
        A `Table`.
    """
    rows = _body_rows(config.backbone, rgb)
    if config.backbone.features == "fpn":
        rows += _fpn_rows(config.fpn)
    rows += _rpn_rows(config.rpn)
    rows += _box_rows(config.box_head)
    rows += _prediction_rows(config.box_head, num_classes)
    if config.mask_head.enabled:
        rows += _mask_rows(config.mask_head, num_classes)
    if config.keypoint_head.enabled:
        rows += _keypoint_rows(config.keypoint_head)
    return Table(rows, IGNORED)


def _body_rows(backbone, rgb):
    body = "backbone.bottom_up" if backbone.features == "fpn" else "backbone"
    rows = []
    for conv in tables.resnet_convs(backbone):
        prefix = "roi_heads" if conv.station == "stage5" else body
        name = "stem.conv1" if conv.part == "stem" else f"res{conv.stage}.{conv.block}.{conv.part}"
        rows += _conv_rows(conv.ours, f"{prefix}.{name}", backbone.norm)
    if not rgb:
        rows[0] = rows[0]._replace(convert=tables.bgr_kernel)
    return rows


def _conv_rows(ours, theirs, norm="none"):
    return tables.conv_rows(ours, f"{theirs}.weight", f"{theirs}.bias", norm, f"{theirs}.norm")


def _fpn_rows(fpn):
    rows = []
    for level in range(2, 6):
        for name in ("lateral", "output"):
            rows += _conv_rows(f"fpn/{name}{level}", f"backbone.fpn_{name}{level}", fpn.norm)
    return rows


def _rpn_rows(rpn):
    rows, prefix = [], "proposal_generator.rpn_head"
    if rpn.convs == 1:
        rows += _conv_rows("rpn_head/conv", f"{prefix}.conv")
    else:  # counted from 0, and only when there are several
        for index in range(rpn.convs):
            rows += _conv_rows(f"rpn_head/conv{index + 1}", f"{prefix}.conv.conv{index}")
    rows += _conv_rows("rpn_head/objectness", f"{prefix}.objectness_logits")
    return rows + _conv_rows("rpn_head/deltas", f"{prefix}.anchor_deltas")


def _box_rows(head):
    rows = []
    for n in range(1, head.convs + 1):
        rows += _conv_rows(f"box_head/conv{n}", f"roi_heads.box_head.conv{n}", head.norm)
    convert = tables.flattened_dense(head.pool_size)
    for n in range(1, head.fcs + 1):
        rows.append(Row(f"box_head/fc{n}/kernel", f"roi_heads.box_head.fc{n}.weight", convert))
        rows.append(Row(f"box_head/fc{n}/bias", f"roi_heads.box_head.fc{n}.bias", tables.same))
        convert = tables.dense
    return rows


def _prediction_rows(head, num_classes):
    rows = []
    for ours, theirs, count in (
        ("classes", "cls_score", num_classes + 1),
        ("deltas", "bbox_pred", 4 if head.class_agnostic else 4 * num_classes),
    ):
        prefix = f"roi_heads.box_predictor.{theirs}"
        weight, bias = tables.outputs(count, tables.dense), tables.outputs(count, tables.same)
        rows.append(Row(f"box_head/{ours}/kernel", f"{prefix}.weight", weight))
        rows.append(Row(f"box_head/{ours}/bias", f"{prefix}.bias", bias))
    return rows


def _mask_rows(head, num_classes):
    rows, prefix = [], "roi_heads.mask_head"
    for n in range(1, head.convs + 1):
        rows += _conv_rows(f"mask_head/conv{n}", f"{prefix}.mask_fcn{n}", head.norm)
    rows += _conv_rows("mask_head/upsample", f"{prefix}.deconv")
    masks = 1 if head.class_agnostic else num_classes
    weight, bias = tables.outputs(masks, tables.kernel), tables.outputs(masks, tables.same)
    rows.append(Row("mask_head/logits/kernel", f"{prefix}.predictor.weight", weight))
    rows.append(Row("mask_head/logits/bias", f"{prefix}.predictor.bias", bias))
    return rows


def _keypoint_rows(head):
    rows, prefix = [], "roi_heads.keypoint_head"
    for n in range(1, head.convs + 1):
        rows += _conv_rows(f"keypoint_head/conv{n}", f"{prefix}.conv_fcn{n}")
    return rows + _conv_rows("keypoint_head/upsample", f"{prefix}.score_lowres")
