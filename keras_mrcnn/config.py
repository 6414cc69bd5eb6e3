"""Every number of the walk, one dataclass per station; YAML in and out.

The defaults are the paper's (He, Gkioxari, Dollár, Girshick, *Mask R-CNN*, arXiv 1703.06870) with a
ResNet-50-FPN backbone on COCO. A config file holds only what differs.
"""

import dataclasses
import difflib
import os
import pathlib
from dataclasses import dataclass, field

import omegaconf
import yaml
from omegaconf import OmegaConf


def _list(*values):
    return field(default_factory=lambda: list(values))


@dataclass
class Input:
    """What the network frame is made of (section 3.1, "Inference": short edge 800)."""

    short_edge: int = 800  # pixels, at test
    long_edge: int = 1333  # pixels, at most, in training and at test
    resize: str = "pillow"  # pillow: antialiased, 8 bit | plain: bilinear, float (torchvision)
    mean: list[float] = _list(123.675, 116.28, 103.53)  # RGB, 0-255
    std: list[float] = _list(58.395, 57.12, 57.375)


@dataclass
class Backbone:
    """ResNet (He et al. 2016), section 3 "Network Architecture"."""

    name: str = "resnet50"  # resnet18 | resnet34 | resnet50 | resnet101
    norm: str = "frozen"  # frozen: needs pretrained weights; batch; group: trains from scratch
    frozen_stages: int = 2  # 0: all trained, 1: stem frozen, 2: stem and C2, ... 5: all frozen
    blocks: list[int] = _list()  # in each of C2..C5; none: as many as the name says
    stride_in_1x1: bool = False  # of bottlenecks: True in the first 1x1 (MSRA), False in the 3x3
    norm_epsilon: float = 1e-5  # added to the variance


@dataclass
class FPN:
    """Feature pyramid (Lin et al. 2017)."""

    channels: int = 256
    norm: str = "none"  # none: biases; frozen; batch; group


@dataclass
class Anchors:
    """FPN paper, section 4.1."""

    sizes: list[float] = _list(32.0, 64.0, 128.0, 256.0, 512.0)  # pixels, one for each of P2..P6
    aspect_ratios: list[float] = _list(0.5, 1.0, 2.0)  # height / width
    rounded: bool = False  # corners to whole pixels (torchvision)
    fitted_strides: bool = False  # padded image size // map size, not 64 at an odd P5 (torchvision)


@dataclass
class RPN:
    """Region proposal network (Faster R-CNN, section 3.1)."""

    channels: int = 256
    convs: int = 1
    smooth_l1_beta: float = 0.0  # 0: L1
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    samples: int = 256  # anchors per image that enter the loss
    positive_fraction: float = 0.5


@dataclass
class Proposals:
    """From RPN outputs to regions (FPN paper, section 5.1)."""

    pre_nms_train: int = 2000  # per level
    pre_nms_test: int = 1000  # per level
    post_nms_train: int = 1000  # per image, over all levels
    post_nms_test: int = 1000
    nms_iou: float = 0.7
    min_size: float = 0.0  # pixels; narrower or lower boxes are dropped


@dataclass
class Sampling:
    """Regions that the heads learn from (section 3.1, "Training")."""

    rois: int = 512  # per image
    foreground_fraction: float = 0.25
    foreground_iou: float = 0.5


@dataclass
class RoIAlign:
    """Section 3, "RoIAlign": four regularly spaced samples in each bin."""

    sampling_ratio: int = 2  # samples per bin and axis; 0: as many as the bin has feature pixels, rounded up
    aligned: bool = True  # False: half a feature pixel off, and at least one wide (torchvision)


@dataclass
class BoxHead:
    """Figure 4, right, upper branch."""

    pool_size: int = 7
    convs: int = 0  # 3x3, before the fully connected layers
    channels: int = 256  # of these
    norm: str = "none"  # of these: none, frozen, batch, group
    fcs: int = 2  # fully connected layers
    units: int = 1024  # of each of these
    smooth_l1_beta: float = 0.0  # 0: L1
    box_weights: list[float] = _list(10.0, 10.0, 5.0, 5.0)  # of dx, dy, dw, dh


@dataclass
class MaskHead:
    """Figure 4, right, lower branch."""

    pool_size: int = 14  # the mask is twice as wide
    convs: int = 4
    channels: int = 256
    norm: str = "none"  # none, frozen, batch, group
    soft_targets: bool = False  # True: true masks are not thresholded in the region (torchvision)
    paste: str = "centres"  # centres: sampled at pixels' centres | widened: to whole pixels (torchvision)


@dataclass
class Detections:
    """Section 3.1, "Inference"."""

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    min_size: float = 0.0  # pixels; narrower or lower boxes are dropped
    max_detections: int = 100  # per image


@dataclass
class Model:
    """What a `MaskRCNN` is built from; saved with it."""

    input: Input = field(default_factory=Input)
    backbone: Backbone = field(default_factory=Backbone)
    fpn: FPN = field(default_factory=FPN)
    anchors: Anchors = field(default_factory=Anchors)
    rpn: RPN = field(default_factory=RPN)
    proposals: Proposals = field(default_factory=Proposals)
    sampling: Sampling = field(default_factory=Sampling)
    roi_align: RoIAlign = field(default_factory=RoIAlign)
    box_head: BoxHead = field(default_factory=BoxHead)
    mask_head: MaskHead = field(default_factory=MaskHead)
    detections: Detections = field(default_factory=Detections)


@dataclass
class Data:
    """Where the images and labels are, and how they are fed."""

    train_annotations: str = ""  # COCO json
    train_images: str = ""  # folder that its `file_name`s are relative to
    val_annotations: str = ""
    val_images: str = ""
    batch_size: int = 2
    short_edges: list[int] = _list(640, 672, 704, 736, 768, 800)  # training: one drawn per image
    flip: float = 0.5  # probability of the horizontal flip in training
    vertical_flip: float = 0.0  # probability; for pictures without an up, as under a microscope
    invalid: str = "skip"  # skip: leave out, count and say; error: stop at the first
    check_images: bool = True  # decode every image once before training


@dataclass
class Training:
    """Schedule (section 3.1: 0.02 for 16 images, scaled to the batch) and what is kept."""

    epochs: int = 12
    optimizer: str = "sgd"  # sgd: momentum 0.9 and L2 | adamw: decoupled weight decay
    learning_rate: float = 0.0025  # at the end of the warm-up
    learning_rate_factors: dict[str, float] = field(default_factory=dict)  # by how variables' paths begin
    weight_decay: float = 1e-4
    clip_norm: float = 0.0  # largest global gradient norm; 0: no clipping
    warmup_steps: int = 1000  # linear, from a thousandth of the learning rate
    decay: str = "step"  # step: a tenth after each of `decay_epochs` | cosine: to zero
    decay_epochs: list[int] = _list(8, 11)
    precision: str = "float32"  # float32 | mixed_bfloat16 | mixed_float16
    weights: str = ""  # .weights.h5 or .keras file to start from; all of it must fit
    backbone: str = ""  # ImageNet weights for the backbone: a published name (`mrcnn presets`) or a file
    evaluate_every: int = 1  # epochs between COCO scores on the validation set
    seed: int = 0
    output: str = "runs/mask_rcnn"  # folder of checkpoints, logs and scores


@dataclass
class Config:
    """A whole run."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)


CHOICES = {
    "model.backbone.name": ("resnet18", "resnet34", "resnet50", "resnet101"),
    "model.backbone.norm": ("frozen", "batch", "group"),
    "model.input.resize": ("pillow", "plain"),
    "model.fpn.norm": ("none", "frozen", "batch", "group"),
    "model.box_head.norm": ("none", "frozen", "batch", "group"),
    "model.mask_head.norm": ("none", "frozen", "batch", "group"),
    "model.mask_head.paste": ("centres", "widened"),
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
    "model.box_head.fcs",
    "data.batch_size",
    "training.epochs",
    "training.evaluate_every",
)


def load(source, overrides=()):
    """Read a whole run's config.

    Args:
        source: path of a YAML file, or the name of one in `configs/` (with or without `.yaml`).
        overrides: strings `section.key=value`, the value in YAML's notation.

    Returns:
        A `Config`.

    Raises:
        FileNotFoundError: no such file; the message lists the named configs.
        ValueError: an unknown key (with the nearest right one), a value of the wrong type, or not one of
            the choices.
    """
    path = find(source)
    merged = OmegaConf.structured(Config)
    try:
        content = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    merged = _merge(merged, content, str(path))
    config = OmegaConf.to_object(_override(merged, overrides))
    check(config)
    return config


def save(config, path):
    """Write `config` as YAML, every key."""
    pathlib.Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def to_dict(config):
    """Plain dictionaries and lists, for JSON."""
    return dataclasses.asdict(config)


def model_from_dict(values):
    """The `Model` config that `to_dict` was given.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    model = OmegaConf.to_object(_merge(OmegaConf.structured(Model), OmegaConf.create(values), "model config"))
    check(Config(model=model))
    return model


def override(model, overrides):
    """A `Model` config with changes.

    Args:
        model: `Model`; stays as it is.
        overrides: strings `section.key=value`, as `backbone.frozen_stages=3`.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or not one of the choices.
    """
    model = OmegaConf.to_object(_override(OmegaConf.structured(model), overrides))
    check(Config(model=model))
    return model


def folder(name):
    """`configs/` or `custom_ops/`: inside the installed package, or beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parent
    for candidate in (package / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"The folder {name}/ did not come with this installation of keras_mrcnn ({package})."
    )


def find(source):
    """Path of a config given by path or by the name of a file in `configs/`."""
    given = pathlib.Path(source)
    if given.is_file():
        return given
    named = sorted(folder("configs").glob("*.yaml"))
    for path in named:
        if source in (path.name, path.stem):
            return path
    names = [path.stem for path in named]
    raise FileNotFoundError(
        f"No config file {str(source)!r}, here ({os.getcwd()}) or among the named ones: {', '.join(names)}."
        + _nearest(str(source), names)
    )


def check(config):
    """Raise a ValueError at the first value that is not one of its choices or out of range."""
    for key, choices in CHOICES.items():
        value = OmegaConf.select(OmegaConf.structured(config), key)
        if value not in choices:
            raise ValueError(
                f"`{key}` is one of {', '.join(choices)}. Received: {value!r}."
                + _nearest(str(value), choices)
            )
    for key in POSITIVE:
        value = OmegaConf.select(OmegaConf.structured(config), key)
        if value < 1:
            raise ValueError(f"`{key}` is at least 1. Received: {value}")
    if not config.data.short_edges or min(config.data.short_edges) < 1:
        raise ValueError(
            "`data.short_edges` are the lengths, in pixels, that one is drawn from for each training image. "
            f"Received: {list(config.data.short_edges)}"
        )
    model = config.model
    if len(model.anchors.sizes) != 5:
        raise ValueError(
            "`model.anchors.sizes` has five entries, one for each of P2..P6. "
            f"Received: {list(model.anchors.sizes)}"
        )
    if model.roi_align.sampling_ratio < 0:
        raise ValueError(
            "`model.roi_align.sampling_ratio` is the samples per bin and axis, or 0 for as many as fit. "
            f"Received: {model.roi_align.sampling_ratio}"
        )
    if model.backbone.blocks and (len(model.backbone.blocks) != 4 or min(model.backbone.blocks) < 1):
        raise ValueError(
            "`model.backbone.blocks` has four entries, the blocks in each of C2..C5, or none. "
            f"Received: {list(model.backbone.blocks)}"
        )
    ratios = model.anchors.aspect_ratios
    if not ratios or min(ratios) <= 0 or min(model.anchors.sizes) <= 0:
        raise ValueError(
            "`model.anchors` sizes (pixels) and aspect_ratios (height / width) must be positive. "
            f"Received: sizes={list(model.anchors.sizes)}, aspect_ratios={list(ratios)}"
        )
    if not 0 <= model.backbone.frozen_stages <= 5:
        raise ValueError(
            "`model.backbone.frozen_stages` is 0 (none), 1 (stem), 2 (stem and C2) ... 5 (all). "
            f"Received: {model.backbone.frozen_stages}"
        )


def _merge(base, new, where):
    try:
        return OmegaConf.merge(base, new)
    except omegaconf.errors.ConfigKeyError as error:
        key = error.full_key or str(error.key)
        known = _keys(base)
        raise ValueError(f"Unknown key `{key}` in {where}." + _nearest(key, known)) from None
    except omegaconf.errors.OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"Wrong value for `{error.full_key}` in {where}: {message}") from None


def _override(node, overrides):
    for given in overrides:
        if "=" not in given:
            raise ValueError(f"An override has the form section.key=value. Received: {given!r}")
        node = _merge(node, OmegaConf.from_dotlist([given]), f"override {given!r}")
    return node


def _keys(node, prefix=""):
    names = []
    for key in node:
        names.append(prefix + key)
        if OmegaConf.is_dict(node[key]):
            names += _keys(node[key], f"{prefix}{key}.")
    return names


def _nearest(word, choices):
    by_leaf = [c for c in choices if c.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    close = by_leaf or difflib.get_close_matches(word, choices, n=1, cutoff=0.4)
    return f" Did you mean `{close[0]}`?" if close else ""
