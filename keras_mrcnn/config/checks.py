"""Which values a config may have."""

import difflib

from omegaconf import OmegaConf

RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
CHOICES = {
    "model.backbone.norm": ("frozen", "batch", "group"),
    "model.backbone.features": ("fpn", "c4", "c5"),
    "model.input.resize": ("pillow", "plain"),
    "model.fpn.norm": ("none", "frozen", "batch", "group"),
    "model.box_head.norm": ("none", "frozen", "batch", "group"),
    "model.mask_head.norm": ("none", "frozen", "batch", "group"),
    "model.keypoint_head.norm": ("none", "frozen", "batch", "group"),
    "model.mask_head.kind": ("fcn", "mlp"),
    "model.mask_head.activation": ("sigmoid", "softmax"),
    "model.mask_head.paste": ("centres", "widened"),
    "model.roi_align.operation": ("align", "warp", "pool"),
    "model.roi_align.reduction": ("average", "maximum"),
    "data.format": ("coco", "cityscapes"),
    "data.invalid": ("skip", "error"),
    "training.optimizer": ("sgd", "adamw"),
    "training.decay": ("step", "cosine"),
    "training.precision": ("float32", "mixed_bfloat16", "mixed_float16"),
}
POSITIVE = (
    "model.input.short_edge",
    "model.input.long_edge",
    "model.sampling.rois",
    "model.detections.max_detections",
    "model.rpn.convs",
    "model.mask_head.fcs",
    "data.batch_size",
    "data.crop_size",
    "training.epochs",
    "training.evaluate_every",
    "training.accumulate",
)


def check(config):
    """Raise a ValueError at the first value that is not one of its choices or out of range."""
    values = OmegaConf.structured(config)
    for key, choices in CHOICES.items():
        value = OmegaConf.select(values, key)
        if value not in choices:
            raise ValueError(
                f"`{key}` is one of {', '.join(choices)}. Received: {value!r}." + nearest(str(value), choices)
            )
    for key in POSITIVE:
        value = OmegaConf.select(values, key)
        if value < 1:
            raise ValueError(f"`{key}` is at least 1. Received: {value}")
    for key, rule, holds in _rules(config):
        if not holds:
            value = OmegaConf.select(values, key)
            value = list(value) if OmegaConf.is_list(value) else value
            known = RESNETS if key == "model.backbone.name" else ()
            raise ValueError(f"`{key}` {rule}. Received: {value!r}." + nearest(str(value), known))


def _rules(config):
    """(key, what it must be, whether it is) where that is more than a choice."""
    model, edges, jitter = config.model, config.data.short_edges, config.data.jitter_scales
    backbone, anchors, pooling = model.backbone, model.anchors, model.roi_align
    fpn, own = backbone.features == "fpn", backbone.name in RESNETS
    return [
        (
            "data.short_edges",
            "are the lengths, in pixels, that one is drawn from for each training image",
            edges and min(edges) >= 1,
        ),
        (
            "data.jitter_scales",
            "is two shares of `data.crop_size`, the lowest above 0 first, or empty",
            not jitter or (len(jitter) == 2 and 0 < jitter[0] <= jitter[1]),
        ),
        *(
            (f"data.{name}", "is from 0 to 1", 0 <= getattr(config.data, name) <= 1)
            for name in ("copy_paste", "brightness", "contrast", "saturation", "hue", "repeat_threshold")
        ),
        (
            "model.input.std",
            "has an entry for each channel, as `model.input.mean`",
            len(model.input.std) == len(model.input.mean) > 0,
        ),
        (
            "model.backbone.name",
            f"is one of {', '.join(RESNETS)}, or a function of keras.applications together with "
            "`model.backbone.outputs`, the layers that give C2..C5",
            own or len(backbone.outputs) == 4,
        ),
        ("model.backbone.features", "is fpn with a network of keras.applications", own or fpn),
        (
            "model.backbone.dilated",
            "needs model.backbone.features=c5",
            not (backbone.dilated and backbone.features != "c5"),
        ),
        ("model.backbone.region_stride", "is 1 or 2", backbone.region_stride in (1, 2)),
        (
            "model.backbone.blocks",
            "has four entries, the blocks in each of C2..C5, or none",
            not backbone.blocks or (len(backbone.blocks) == 4 and min(backbone.blocks) >= 1),
        ),
        (
            "model.backbone.frozen_stages",
            "is 0 (none), 1 (stem), 2 (stem and C2) ... 5 (all)",
            0 <= backbone.frozen_stages <= 5,
        ),
        (
            "model.anchors.sizes",
            "has five entries, one for each of P2..P6" if fpn else "has at least one entry",
            len(anchors.sizes) == 5 if fpn else bool(anchors.sizes),
        ),
        ("model.anchors.sizes", "are pixels, so positive", min(anchors.sizes, default=0) > 0),
        (
            "model.anchors.aspect_ratios",
            "are heights / widths, at least one and all positive",
            min(anchors.aspect_ratios, default=0) > 0,
        ),
        (
            "model.roi_align.sampling_ratio",
            "is the samples per bin and axis, or 0 for as many as fit",
            pooling.sampling_ratio >= 0,
        ),
        (
            "model.roi_align.reduction",
            "is maximum with model.roi_align.operation=pool",
            pooling.operation != "pool" or pooling.reduction == "maximum",
        ),
        ("model.box_head.fcs", "is at least 0", model.box_head.fcs >= 0),
        (
            "training.accumulate",
            f"divides data.batch_size={config.data.batch_size}",
            config.data.batch_size % config.training.accumulate == 0,
        ),
        ("training.base_batch", "is a number of images, or 0", config.training.base_batch >= 0),
        ("training.ema", "is at least 0 and below 1", 0 <= config.training.ema < 1),
        ("training.checkpoint_steps", "is at least 0", config.training.checkpoint_steps >= 0),
    ]


def nearest(word, choices):
    """The question whether another one was meant: the choice that is most like `word`; empty without."""
    by_leaf = [c for c in choices if c.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    close = by_leaf or difflib.get_close_matches(word, choices, n=1, cutoff=0.4)
    return f" Did you mean `{close[0]}`?" if close else ""
