"""The rows of the paper's tables trained side by side, at a scale of minutes instead of days.

A trend is what can be shown so, not a number: small images, a ResNet-18, few steps.
"""

import pathlib
import statistics
from typing import NamedTuple

import keras

from keras_mrcnn import config as configs
from keras_mrcnn.train import run


class Row(NamedTuple):
    """One line of a table of the paper."""

    label: str
    config: str  # name in `configs/`
    paper: tuple  # AP, AP50, AP75 as published, COCO, percent; None where it is not
    change: tuple = ()  # overrides that the config's body needs at this scale


class Table(NamedTuple):
    """A table of the paper: what is compared, and by which score."""

    title: str
    iou_type: str  # bbox or segm
    rows: tuple


DEEPER = ("model.backbone.blocks=[2,2,2,1]",)
C4 = (  # stage 5 on every region is most of the work: fewer regions, and 4 x 4 of each
    "model.backbone.region_stride=2",
    "model.sampling.rois=16",
    "model.proposals.post_nms_test=50",
)
C5 = (  # at stride 32 a shape is a few positions wide only when it is seen larger
    "model.input.short_edge=160",
    "model.input.long_edge=160",
    "model.anchors.sizes=[20,40,80,160,320]",
    "model.mask_head.pool_size=7",
    "model.box_head.units=64",
    "data.short_edges=[160]",
)
TABLES = {
    "2a": Table(
        "Backbone",
        "segm",
        (
            Row("ResNet-50-C4", "paper/r50_c4", (30.3, 51.2, 31.5), C4),
            Row("ResNet-101-C4", "paper/r101_c4", (32.7, 54.2, 34.3), (*C4, *DEEPER)),
            Row("ResNet-50-FPN", "paper/r50_fpn", (33.6, 55.2, 35.3)),
            Row("ResNet-101-FPN", "paper/r101_fpn", (35.4, 57.3, 37.5), DEEPER),
        ),
    ),
    "2b": Table(
        "Multinomial or independent masks, C4",
        "segm",
        (
            Row("softmax", "paper/r50_c4_softmax", (24.8, 44.1, 25.1), C4),
            Row("sigmoid", "paper/r50_c4", (30.3, 51.2, 31.5), C4),
            Row("sigmoid, class-agnostic", "paper/r50_c4_class_agnostic", (29.7, None, None), C4),
        ),
    ),
    "2c": Table(
        "Pooling, C4",
        "segm",
        (
            Row("RoIPool, max", "paper/r50_c4_roipool_max", (26.9, 48.8, 26.4), C4),
            Row("RoIWarp, max", "paper/r50_c4_roiwarp_max", (27.2, 49.2, 27.1), C4),
            Row("RoIWarp, average", "paper/r50_c4_roiwarp_average", (27.1, 48.9, 27.1), C4),
            Row("RoIAlign, max", "paper/r50_c4_roialign_max", (30.2, 51.0, 31.8), C4),
            Row("RoIAlign, average", "paper/r50_c4", (30.3, 51.2, 31.5), C4),
        ),
    ),
    "2d": Table(
        "Pooling, C5 at stride 32",
        "segm",
        (
            Row("RoIPool", "paper/r50_c5_roipool", (23.6, 46.5, 21.6), C5),
            Row(
                "RoIWarp",
                "paper/r50_c5_roialign",
                (None, None, None),
                ("model.roi_align.operation=warp", *C5),
            ),
            Row("RoIAlign", "paper/r50_c5_roialign", (30.9, 51.8, 32.1), C5),
        ),
    ),
    "2e": Table(
        "Mask head, FPN",
        "segm",
        (
            Row("MLP, 2 hidden layers", "paper/r50_fpn_mlp", (31.5, 53.7, 32.8)),
            Row("MLP, 3 hidden layers", "paper/r50_fpn_mlp3", (31.5, 54.0, 32.6)),
            Row("FCN", "paper/r50_fpn", (33.6, 55.2, 35.3)),
        ),
    ),
    "3": Table(
        "Boxes with and without masks, FPN",
        "bbox",
        (
            Row("Faster R-CNN, RoIAlign", "paper/faster_r101_fpn", (37.3, 59.6, 40.3)),
            Row("Mask R-CNN", "paper/r101_fpn", (38.2, 60.3, 41.7)),
        ),
    ),
}
# What is laid over a row: 96-pixel images, a small body, and the RPN on its features.
SMALL = (
    "model.backbone.name=resnet18",
    "model.rpn.own_features=false",
    "model.input.short_edge=96",
    "model.input.long_edge=96",
    "model.fpn.channels=64",
    "model.rpn.channels=64",
    "model.anchors.sizes=[12,24,48,96,192]",
    "model.proposals.pre_nms_train=500",
    "model.proposals.pre_nms_test=500",
    "model.proposals.post_nms_train=200",
    "model.proposals.post_nms_test=200",
    "model.sampling.rois=32",
    "model.box_head.units=256",
    "model.mask_head.channels=32",
    "model.mask_head.units=256",
    "data.batch_size=4",
    "data.short_edges=[96]",
    "data.vertical_flip=0.5",
    "training.optimizer=adamw",
    "training.learning_rate=0.002",
    "training.weight_decay=0.0001",
    "training.clip_norm=10",
    "training.warmup_steps=50",
    "training.decay=cosine",
    "training.epochs=2",
)
SCRATCH = (
    "model.backbone.norm=batch",
    "model.backbone.frozen_stages=0",
    "model.backbone.blocks=[1,1,1,1]",
    'training.backbone=""',
)
PRETRAINED = (  # ImageNet's stem to C4 as they are
    "model.backbone.norm=frozen",
    "model.backbone.frozen_stages=4",
    "model.backbone.stride_in_1x1=false",
    "model.input.std=[58.395,57.12,57.375]",
)
SCORES = ("AP", "AP50", "AP75")


def ablate(name, data, seeds=1, output="runs/ablation", overrides=(), backbone=None):
    """Train every row of a table with every seed, and score each on the validation images.

    A row that was trained before with the same settings is not trained again: its scores are read.

    Args:
        name: of the table, a key of `TABLES`.
        data: dictionary of paths under the names of `config.Data`: training and validation.
        seeds: int, runs of each row; the seeds are 0, 1, ...
        output: folder; each run goes to `TABLE/ROW/SEED` in it.
        overrides: strings `section.key=value` that hold for all rows.
        backbone: ImageNet weights of a ResNet-18, a name or a file; None: all is learnt from scratch, which
            takes more `training.epochs` before rows differ by more than chance.

    Returns:
        For each row a list over the seeds of its (AP, AP50, AP75), percent.

    Raises:
        ValueError: no such table; it compares depths, and weights of one depth are given; or `output` holds a
            run of other settings.
    """
    if name not in TABLES:
        raise ValueError(f"`table` is one of {', '.join(TABLES)}. Received: {name!r}")
    table = TABLES[name]
    if backbone and any(set(DEEPER) <= set(row.change) for row in table.rows):
        raise ValueError(f"Table {name} compares depths, and `backbone` is of one: train it from scratch.")
    body = (*PRETRAINED, f"training.backbone={backbone}") if backbone else SCRATCH
    places = [f"data.{key}={path}" for key, path in data.items()]
    found = []
    for row in table.rows:
        folder = pathlib.Path(output, name, row.label.replace(", ", "_").replace(" ", "_"))
        found.append(
            [
                _scores(
                    [row.config, *SMALL, *body, *row.change, *places, *overrides],
                    table.iou_type,
                    folder / str(seed),
                    seed,
                )
                for seed in range(seeds)
            ]
        )
    return found


def _scores(settings, iou_type, folder, seed):
    noted = folder / "scores.txt"
    own = [f"training.seed={seed}", f"training.output={folder}", "training.evaluate_every=1000"]
    name, *overrides = settings
    config = configs.load(name, [*overrides, *own])
    if noted.is_file():
        if configs.load(folder / "config.yaml") != config:
            raise ValueError(
                f"{folder} holds a run of other settings. Choose another --output, or remove it."
            )
    else:
        logs = {}
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, given: logs.update(given))
        run(config, callbacks=[keep])
        keras.backend.clear_session()
        noted.write_text(" ".join(f"{100 * logs[f'val_{iou_type}_{score}']:.2f}" for score in SCORES))
    return tuple(float(value) for value in noted.read_text().split())


def format_table(name, found):
    """What `ablate` found beside what the paper has, as a Markdown table.

    Args:
        name: of the table.
        found: what `ablate` returned.

    Returns:
        str; mean ± standard deviation where a row has several seeds.
    """
    table = TABLES[name]
    kind = "mask" if table.iou_type == "segm" else "box"
    lines = [
        f"Table {name}, {table.title}: {kind} AP, here at toy scale and in the paper (COCO)",
        "",
        "| | AP | AP50 | AP75 | paper AP | AP50 | AP75 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, runs in zip(table.rows, found, strict=True):
        ours = [_spread(values) for values in zip(*runs, strict=True)]
        theirs = ["-" if value is None else f"{value}" for value in row.paper]
        lines.append(f"| {row.label} | {' | '.join(ours + theirs)} |")
    return "\n".join(lines)


def _spread(values):
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"
