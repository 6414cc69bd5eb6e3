"""The stations of the walk, made from a config, and how features go through them (Figures 1 and 4)."""

import types

from keras import ops

from keras_mrcnn.backbones.applications import Application
from keras_mrcnn.backbones.fpn import FPN
from keras_mrcnn.backbones.normalize import Normalize
from keras_mrcnn.backbones.resnet import ResNet
from keras_mrcnn.config.checks import RESNETS
from keras_mrcnn.roi.box_head import BoxHead
from keras_mrcnn.roi.detections import Detections
from keras_mrcnn.roi.keypoint_head import KeypointHead, RegionKeypoints, with_keypoints
from keras_mrcnn.roi.mask_head import MaskHead, MLPMaskHead, RegionMasks
from keras_mrcnn.roi.pooling import RoIPooling
from keras_mrcnn.roi.sampling import RoISampling
from keras_mrcnn.roi.stage5 import Stage5
from keras_mrcnn.rpn.anchors import Anchors
from keras_mrcnn.rpn.head import RPNHead
from keras_mrcnn.rpn.proposals import Proposals
from keras_mrcnn.rpn.targets import RPNTargets

FPN_STRIDES = (4, 8, 16, 32, 64)


def stations(config, categories, seed=None, dtype=None, backbone=None):
    """Every layer of a model.

    Args:
        config: `config.Model`.
        categories: list of C `Category`.
        seed: int or None, of the random sampling in training.
        dtype: dtype policy of the layers that learn.
        backbone: a layer that gives C2..C5, instead of the one that the config names.

    Returns:
        Namespace of layers by name; None where the architecture has no such station.

    Raises:
        ValueError: a backbone is given, and the RPN is to have its own; or there is a keypoint head, and no
            category has keypoints.
    """
    if backbone is not None and config.rpn.own_features:
        raise ValueError(
            "A model with a `backbone` of yours has one: set `config.rpn.own_features` to False."
        )
    num_classes, points = len(categories), [len(category.keypoints) for category in categories]
    if config.keypoint_head.enabled and not any(points):
        raise ValueError(
            "`config.keypoint_head` is enabled, and no category has keypoints. A COCO json names them in its "
            f"categories. Received: {', '.join(category.name for category in categories)}"
        )
    common = {"dtype": dtype}
    seeds = (None, None) if seed is None else (seed, seed + 1)
    fpn, c4 = config.backbone.features == "fpn", config.backbone.features == "c4"
    anchors, rpn, box_head, mask_head = config.anchors, config.rpn, config.box_head, config.mask_head
    strides = feature_strides(config)
    sizes = [[size] for size in anchors.sizes] if fpn else [anchors.sizes]
    pooling = {"strides": strides[:4], **vars(config.roi_align), **common}
    masks, keypoint_head = mask_head.enabled, config.keypoint_head
    return types.SimpleNamespace(
        normalize=Normalize(config.input.mean, config.input.std, name="normalize", **common),
        backbone=_backbone(config, dtype, "backbone") if backbone is None else backbone,
        fpn=FPN(**vars(config.fpn), name="fpn", **common) if fpn else None,
        rpn_backbone=_backbone(config, dtype, "rpn_backbone") if rpn.own_features else None,
        rpn_fpn=FPN(**vars(config.fpn), name="rpn_fpn", **common) if fpn and rpn.own_features else None,
        anchors=Anchors(
            sizes, strides, anchors.aspect_ratios, anchors.rounded, anchors.fitted_strides, name="anchors"
        ),
        rpn_head=RPNHead(
            len(anchors.aspect_ratios) * len(sizes[0]), rpn.channels, rpn.convs, name="rpn_head", **common
        ),
        rpn_targets=RPNTargets(
            rpn.positive_iou,
            rpn.negative_iou,
            rpn.samples,
            rpn.positive_fraction,
            seed=seeds[0],
            name="rpn_targets",
        ),
        proposals=Proposals(**vars(config.proposals), name="proposals"),
        roi_sampling=RoISampling(**vars(config.sampling), seed=seeds[1], name="roi_sampling"),
        box_pooling=RoIPooling(box_head.pool_size, name="box_pooling", **pooling),
        stage5=_stage5(config.backbone, dtype) if c4 else None,
        box_head=BoxHead(
            num_classes,
            box_head.convs,
            box_head.channels,
            box_head.norm,
            box_head.fcs,
            box_head.units,
            box_head.class_agnostic,
            name="box_head",
            **common,
        ),
        detections=Detections(**vars(config.detections), box_weights=box_head.box_weights, name="detections"),
        mask_pooling=(
            RoIPooling(mask_head.pool_size, name="mask_pooling", **pooling) if masks and not c4 else None
        ),
        mask_head=_mask_head(mask_head, num_classes, dtype) if masks else None,
        region_masks=RegionMasks(mask_head.activation, name="region_masks") if masks else None,
        **_keypoint_stations(keypoint_head, points, pooling, dtype),
    )


def _keypoint_stations(config, points, pooling, dtype):
    if not config.enabled:
        return dict.fromkeys(("keypoint_pooling", "keypoint_head", "region_keypoints"))
    return {
        "keypoint_pooling": RoIPooling(config.pool_size, name="keypoint_pooling", **pooling),
        "keypoint_head": KeypointHead(
            max(points), config.convs, config.channels, config.norm, dtype=dtype, name="keypoint_head"
        ),
        "region_keypoints": RegionKeypoints(points, name="region_keypoints"),
    }


def feature_strides(config):
    """Image pixels per feature pixel of each map of the RPN; regions are pooled from the first four."""
    if config.backbone.features == "fpn":
        return FPN_STRIDES
    return (16,) if config.backbone.features == "c4" or config.backbone.dilated else (32,)


def _backbone(config, dtype, name):
    channels, config = len(config.input.mean), config.backbone
    if config.name not in RESNETS:
        return Application(
            config.name, config.outputs, config.frozen_stages, channels, dtype=dtype, name=name
        )
    return ResNet(
        config.name,
        config.norm,
        config.frozen_stages,
        config.blocks,
        config.stride_in_1x1,
        config.norm_epsilon,
        last_stage=4 if config.features == "c4" else 5,
        dilated=config.dilated,
        dtype=dtype,
        name=name,
    )


def _stage5(config, dtype):
    return Stage5(
        config.name,
        config.norm,
        config.region_stride,
        config.blocks,
        config.stride_in_1x1,
        config.norm_epsilon,
        trainable=config.frozen_stages < 5,
        dtype=dtype,
        name="stage5",
    )


def _mask_head(config, num_classes, dtype):
    maps = 1 if config.class_agnostic else num_classes
    maps += config.activation == "softmax"  # the background competes, too
    if config.kind == "mlp":
        size = 2 * config.pool_size
        return MLPMaskHead(maps, size, config.fcs, config.units, dtype=dtype, name="mask_head")
    return MaskHead(maps, config.convs, config.channels, config.norm, dtype=dtype, name="mask_head")


def feature_maps(at, images, training=None):
    """What regions are pooled from, and what the RPN sees.

    Args:
        at: the stations, a namespace or the model that has them.
        images: float `[B, H, W, C]`, normalised.

    Returns:
        Two lists of maps (P2..P6, or C4 or C5 alone), the same one twice unless the RPN has its own features.
    """

    def maps(backbone, fpn):
        stages = backbone(images, training=training)
        return fpn(stages, training=training) if fpn else stages[-1:]

    shared = maps(at.backbone, at.fpn)
    return shared, maps(at.rpn_backbone, at.rpn_fpn) if at.rpn_backbone else shared


def box_features(at, maps, boxes, valid, training=None):
    """What the box head sees of the valid regions: pooled, in C4 also through stage 5. `[N, S, S, c]`."""
    pooled = at.box_pooling(maps, boxes, valid)
    return at.stage5(pooled, training=training) if at.stage5 else pooled


def mask_features(at, maps, boxes, valid, training=None):
    """What the mask head sees of the valid regions. `[N, S, S, c]`."""
    if at.stage5:
        return box_features(at, maps, boxes, valid, training)
    return at.mask_pooling(maps, boxes, valid)


def detect(at, inputs):
    """The outputs of the model: the walk from images to detections and their masks.

    Args:
        at: the stations.
        inputs: images and image_sizes, see `MaskRCNN`.

    Returns:
        Dictionary, see `MaskRCNN`.
    """
    image_sizes = inputs["image_sizes"]
    maps, rpn_maps = feature_maps(at, at.normalize(inputs["images"], image_sizes))
    logits, deltas = at.rpn_head(rpn_maps)
    proposals, _, valid = at.proposals(logits, deltas, at.anchors(rpn_maps), image_sizes)
    class_logits, box_deltas = at.box_head(box_features(at, maps, proposals, valid))
    boxes, scores, classes, valid = at.detections(proposals, valid, class_logits, box_deltas, image_sizes)
    outputs = {
        "boxes": boxes,
        "scores": scores,
        "classes": classes,
        "num_detections": ops.sum(ops.cast(valid, "int32"), axis=1),
    }
    if at.mask_head:
        outputs["masks"] = _masks(at, maps, boxes, classes, valid)
    if at.keypoint_head:
        outputs["keypoints"] = _keypoints(at, maps, boxes, classes, valid)
    return outputs


def maps_of_boxes(at, inputs):
    """What the mask head and the keypoint head make of boxes that are given.

    Args:
        at: the stations.
        inputs: images and image_sizes, boxes `[B, D, 4]` in the network frame and classes int32 `[B, D]`.

    Returns:
        Dictionary, as far as there are such heads. masks: float32 `[B, D, M, M]`, probabilities. heatmaps:
        float32 `[N, S, S, K]`, logits, of the boxes of all images whose class has keypoints.
    """
    maps, _ = feature_maps(at, at.normalize(inputs["images"], inputs["image_sizes"]))
    boxes, classes = inputs["boxes"], inputs["classes"]
    valid, outputs = ops.ones_like(classes, dtype="bool"), {}
    if at.mask_head:
        outputs["masks"] = _masks(at, maps, boxes, classes, valid)
    if at.keypoint_head:
        outputs["heatmaps"] = _heatmaps(at, maps, boxes, classes, valid)[0]
    return outputs


def _masks(at, maps, boxes, classes, valid):
    logits = at.mask_head(mask_features(at, maps, boxes, valid))
    return at.region_masks(logits, classes, valid)


def _keypoints(at, maps, boxes, classes, valid):
    logits, chosen = _heatmaps(at, maps, boxes, classes, valid)
    return at.region_keypoints(logits, boxes, classes, chosen)


def _heatmaps(at, maps, boxes, classes, valid):
    """Heat maps of the detections whose class has keypoints, and bool `[B, D]` which they are."""
    chosen = with_keypoints(classes, valid, at.region_keypoints.counts)
    return at.keypoint_head(at.keypoint_pooling(maps, boxes, chosen)), chosen
