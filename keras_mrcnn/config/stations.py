"""Every number of the walk, one dataclass per station.

The defaults are the paper's (He, Gkioxari, Dollár, Girshick, *Mask R-CNN*, arXiv 1703.06870) with a
ResNet-50-FPN backbone on COCO. A config file holds only what differs.
"""

from dataclasses import dataclass, field


def _list(*values):
    return field(default_factory=lambda: list(values))


@dataclass
class Input:
    """What the network frame is made of (section 3.1, "Inference": short edge 800)."""

    short_edge: int = 800  # pixels, at test
    long_edge: int = 1333  # pixels, at most, in training and at test
    resize: str = "pillow"  # pillow: antialiased, 8 bit | plain: bilinear, float (torchvision)
    mean: list[float] = _list(123.675, 116.28, 103.53)  # of each channel (RGB), 0-255; as many as there are
    std: list[float] = _list(58.395, 57.12, 57.375)


@dataclass
class Backbone:
    """Section 3 "Network Architecture": Table 2a."""

    # resnet18, 34, 50, 101, 152 | resnext101_32x8d | resnext101_64x4d | a function of keras.applications
    name: str = "resnet50"
    norm: str = "frozen"  # frozen: needs pretrained weights; batch; group: trains from scratch
    frozen_stages: int = 2  # 0: all trained, 1: stem frozen, 2: stem and C2, ... 5: all frozen
    blocks: list[int] = _list()  # in each of C2..C5; none: as many as the name says
    stride_in_1x1: bool = False  # of bottlenecks: True in the first 1x1 (MSRA), False in the 3x3
    norm_epsilon: float = 1e-5  # added to the variance
    features: str = "fpn"  # fpn: P2..P6 | c4: C4, stage 5 on each region | c5: C5
    dilated: bool = False  # c5 at stride 16: stage 5 without its stride, dilated (DC5)
    region_stride: int = 1  # c4: of stage 5; 1: regions of 7 x 7 (the paper) | 2: of 14 x 14 (detectron2)
    outputs: list[str] = _list()  # of keras.applications: the layers that give C2..C5


@dataclass
class FPN:
    """Feature pyramid (Lin et al. 2017)."""

    channels: int = 256
    norm: str = "none"  # none: biases; frozen; batch; group


@dataclass
class Anchors:
    """FPN paper, section 4.1."""

    # pixels; one for each of P2..P6, or all of them at every position of C4 or C5
    sizes: list[float] = _list(32.0, 64.0, 128.0, 256.0, 512.0)
    aspect_ratios: list[float] = _list(0.5, 1.0, 2.0)  # height / width
    rounded: bool = False  # corners to whole pixels (torchvision)
    fitted_strides: bool = False  # padded image size // map size, not 64 at an odd P5 (torchvision)


@dataclass
class RPN:
    """Region proposal network (Faster R-CNN, section 3.1)."""

    channels: int = 256
    convs: int = 1
    own_features: bool = False  # True: a backbone of its own, as in the paper's tables before Appendix B
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
    """Section 3, "RoIAlign": four regularly spaced samples in each bin. Tables 2c, 2d and 6."""

    operation: str = "align"  # align | warp: corners rounded first (Dai et al. 2016) | pool: RoIPool
    reduction: str = "average"  # of a bin's samples: average | maximum (RoIPool has this one)

    sampling_ratio: int = 2  # samples per bin and axis; 0: as many as the bin has feature pixels, rounded up
    aligned: bool = True  # False: half a feature pixel off, and at least one wide (torchvision)


@dataclass
class BoxHead:
    """Figure 4, right, upper branch."""

    pool_size: int = 7
    convs: int = 0  # 3x3, before the fully connected layers
    channels: int = 256  # of these
    norm: str = "none"  # of these: none, frozen, batch, group
    fcs: int = 2  # fully connected layers; 0: the average over the positions, as after stage 5 of C4
    units: int = 1024  # of each of these
    class_agnostic: bool = False  # one box for all classes
    smooth_l1_beta: float = 0.0  # 0: L1
    box_weights: list[float] = _list(10.0, 10.0, 5.0, 5.0)  # of dx, dy, dw, dh


@dataclass
class MaskHead:
    """Figure 4, right, lower branch."""

    enabled: bool = True  # False: Faster R-CNN with RoIAlign (Table 3)
    pool_size: int = 14  # the mask is twice as wide
    kind: str = "fcn"  # fcn: convolutions | mlp: fully connected layers (Table 2e)
    fcs: int = 2  # mlp: hidden layers
    units: int = 1024  # mlp: of each
    class_agnostic: bool = False  # one mask for all classes (section 4.2)
    activation: str = "sigmoid"  # sigmoid: a mask for each class | softmax: classes compete (Table 2b)
    convs: int = 4
    channels: int = 256
    norm: str = "none"  # none, frozen, batch, group
    soft_targets: bool = False  # True: true masks are not thresholded in the region (torchvision)
    paste: str = "centres"  # centres: sampled at pixels' centres | widened: to whole pixels (torchvision)


@dataclass
class KeypointHead:
    """Section 5."""

    enabled: bool = False  # needs categories with keypoints
    pool_size: int = 14  # the heat maps are four times as wide
    convs: int = 8
    channels: int = 512
    norm: str = "none"  # none, frozen, batch, group
    sigmas: list[float] = _list()  # of the score: one for all, or for each keypoint; none: those of COCO


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
    keypoint_head: KeypointHead = field(default_factory=KeypointHead)
    detections: Detections = field(default_factory=Detections)


@dataclass
class Data:
    """Where the images and labels are, and how they are fed."""

    format: str = "coco"  # coco | cityscapes: its folder as `..._images`, a split's name as `..._annotations`
    train_annotations: str = ""  # COCO json, or TFRecords with the images in them: train/*.tfrecord
    train_images: str = ""  # folder that the json's `file_name`s are relative to; none with TFRecords
    val_annotations: str = ""
    val_images: str = ""
    batch_size: int = 2  # images in a step, of all devices together
    short_edges: list[int] = _list(640, 672, 704, 736, 768, 800)  # training: one drawn per image
    flip: float = 0.5  # probability of the horizontal flip in training
    vertical_flip: float = 0.0  # probability; for pictures without an up, as under a microscope
    transpose: float = 0.0  # probability of x for y; with both flips at 0.5 every quarter turn is as likely
    # large-scale jitter, (lowest, highest) long edge as a share of `crop_size`: [0.1, 2.0]; none: short_edges
    jitter_scales: list[float] = _list()
    crop_size: int = 1024  # pixels; with jitter every image is cut or padded to a square of this side
    copy_paste: float = 0.0  # probability that objects of another image are pasted in
    brightness: float = 0.0  # largest change, as a share of the whole range
    contrast: float = 0.0  # largest change of the factor, as of the two below
    saturation: float = 0.0
    hue: float = 0.0  # largest turn, as a share of half the circle
    repeat_threshold: float = 0.0  # images of categories in a smaller share of them are repeated; LVIS: 0.001
    invalid: str = "skip"  # skip: leave out, count and say; error: stop at the first
    check_images: bool = True  # decode every image once before training


@dataclass
class Training:
    """Schedule (section 3.1: 0.02 for 16 images, scaled to the batch) and what is kept."""

    epochs: int = 12
    optimizer: str = "sgd"  # sgd: momentum 0.9 and L2 | adamw: decoupled weight decay
    learning_rate: float = 0.0025  # at the end of the warm-up
    base_batch: int = 0  # images that learning_rate is meant for; it grows with data.batch_size. 0: not
    learning_rate_factors: dict[str, float] = field(default_factory=dict)  # by how variables' paths begin
    weight_decay: float = 1e-4
    clip_norm: float = 0.0  # largest global gradient norm; 0: no clipping
    warmup_steps: int = 1000  # linear, from a thousandth of the learning rate
    decay: str = "step"  # step: a tenth after each of `decay_epochs` | cosine: to zero
    decay_epochs: list[int] = _list(8, 11)
    precision: str = "float32"  # float32 | mixed_bfloat16 | mixed_float16
    accumulate: int = 1  # parts of a batch, one after the other, for less memory
    # of the average of the weights that is scored, what a step leaves of it, less at first; 0: no average
    ema: float = 0.0
    weights: str = ""  # .weights.h5 or .keras file to start from; all of it must fit
    class_mapping: dict[str, str] = field(default_factory=dict)  # each class's name in `weights`, or ""
    backbone: str = ""  # ImageNet weights for the backbone: a published name (`mrcnn presets`) or a file
    evaluate_every: int = 1  # epochs between COCO scores on the validation set
    checkpoint_steps: int = (
        0  # from one checkpoint within an epoch to the next; 0: at the ends of epochs only
    )
    tensorboard: bool = False  # also write what TensorBoard shows; needs the extra
    seed: int = 0
    output: str = "runs/mask_rcnn"  # folder of checkpoints, logs and scores


@dataclass
class Config:
    """A whole run."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
