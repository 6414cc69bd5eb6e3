"""What a name table is, and the conversions between array layouts.

A table says, for one family of files, which array of the file becomes which variable of the model. It is
written out from the config and never guessed by likeness of names.

A conversion is a function of one array of the file that returns ours, float32. It raises a ValueError for an
array that cannot be of that kind.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_mrcnn.residual import DEPTHS

CLASSIFIER = "roi_heads.box_predictor.cls_score.weight"
HEATMAPS = (  # the layer that makes them, of torchvision and of detectron2
    "roi_heads.keypoint_predictor.kps_score_lowres.weight",
    "roi_heads.keypoint_head.score_lowres.weight",
)


class Row(NamedTuple):
    """One variable of the model."""

    ours: str  # its path, "backbone/c2_block1/conv1/kernel"
    theirs: str | None  # name in the file; None: a constant, which `convert` makes of None
    convert: Callable  # array of the file -> array of ours, float32


class Table(NamedTuple):
    """All variables of a model, and what else the file may hold."""

    rows: list[Row]
    ignored: tuple[str, ...]  # names in the file that carry no weight of ours (`fnmatch` patterns)


class Conv(NamedTuple):
    """One convolution with its normalisation, of a ResNet."""

    stage: int  # 1: the stem, 2..5: C2..C5
    block: int  # from 0
    part: str  # "conv1", "conv2", "conv3" or "shortcut"; "stem"
    filters: int  # output channels
    station: str = "backbone"  # where the model has it; stage 5 of the C4 models: "stage5"

    @property
    def ours(self):
        """Path of the layer in the model, "backbone/c2_block1/conv1"."""
        if self.part == "stem":
            return f"{self.station}/stem"
        return f"{self.station}/c{self.stage}_block{self.block + 1}/{self.part}"


def resnet_convs(backbone, last_stage=5):
    """Every convolution of a ResNet or ResNeXt, in the order of the data.

    Args:
        backbone: a `config.Backbone` whose name stands in `residual.DEPTHS`; with `features` c4 its stage 5
            is a station of its own, which sees each region.
        last_stage: int, 2..5: where to stop.

    Returns:
        List of `Conv`.
    """
    network = DEPTHS[backbone.name]
    bottlenecks = network.bottlenecks
    convs = [Conv(1, 0, "stem", 64)]
    for stage, depth in zip(range(2, last_stage + 1), backbone.blocks or network.blocks):
        inner, outer = network.width * 2 ** (stage - 2), (256 if bottlenecks else 64) * 2 ** (stage - 2)
        widths = (inner, inner, outer) if bottlenecks else (outer, outer)
        station = "stage5" if stage == 5 and backbone.features == "c4" else "backbone"
        for block in range(depth):
            convs += [Conv(stage, block, f"conv{n}", filters, station) for n, filters in enumerate(widths, 1)]
            if block == 0 and (stage > 2 or bottlenecks):
                convs.append(Conv(stage, block, "shortcut", outer, station))
    return convs


def check_batch_norm(backbone):
    """Raise a ValueError when the model's backbone cannot hold the statistics of a batch normalisation."""
    if backbone.norm == "group":
        raise ValueError(
            "These weights were trained with batch normalisation and fit `backbone.norm` frozen or batch. "
            "Received: backbone.norm='group'"
        )


def norm_rows(ours, theirs, norm):
    """Rows of a normalisation with PyTorch's names.

    Args:
        ours: path of the layer that holds it, "fpn/lateral2".
        theirs: prefix in the file, "backbone.fpn_lateral2.norm".
        norm: "frozen", "batch" or "group" (without statistics).
    """
    names = {"gamma": "weight", "beta": "bias"}
    if norm != "group":
        names |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    return [Row(f"{ours}/normalization/{name}", f"{theirs}.{their}", same) for name, their in names.items()]


def conv_rows(ours, conv, bias, norm, norm_prefix):
    """Rows of a convolution with PyTorch's layout: its kernel, and a bias or a normalisation.

    Args:
        ours: path of the layer, "fpn/lateral2".
        conv, bias: names in the file of the kernel and of the bias, which exists with `norm="none"` only.
        norm: "none", "frozen", "batch" or "group".
        norm_prefix: prefix in the file of the normalisation.
    """
    rows = [Row(f"{ours}/kernel", conv, kernel)]
    if norm == "none":
        return [*rows, Row(f"{ours}/bias", bias, same)]
    return rows + norm_rows(ours, norm_prefix, norm)


def same(array):
    """The array itself: biases, and what a normalisation consists of."""
    return np.asarray(array, np.float32)


def kernel(array):
    """PyTorch's convolution to Keras's.

    `(out, in / groups, rows, columns)` to `(rows, columns, in / groups, out)`. A transposed convolution has
    `(in, out, rows, columns)` and becomes `(rows, columns, out, in)`: the same permutation, and no flip.
    """
    _check_axes(array, 4, "a convolution's kernel (out, in, rows, columns)")
    return same(array).transpose(2, 3, 1, 0)


def bgr_kernel(array):
    """The first convolution of a network that takes BGR: as `kernel`, for RGB."""
    return kernel(array)[:, :, ::-1]


def dense(array):
    """A linear layer, `(out, in)` to `(in, out)`."""
    _check_axes(array, 2, "a linear layer's matrix (out, in)")
    return same(array).T


def flattened_dense(side):
    """Conversion of the linear layer that takes a flattened map: PyTorch flattens (channels, rows, columns).

    Args:
        side: int, rows and columns of the map; its channels follow from the array.

    Returns:
        Function of `(out, channels * side * side)` that gives `(side * side * channels, out)`.
    """

    def convert(array):
        _check_axes(array, 2, "a linear layer's matrix (out, in)")
        out, inputs = array.shape
        if inputs % (side * side):
            raise ValueError(
                f"Expected a linear layer on maps of {side}x{side}, a multiple of {side * side} inputs. "
                f"Received: shape {array.shape}"
            )
        maps = same(array).reshape(out, -1, side, side)
        return maps.transpose(2, 3, 1, 0).reshape(inputs, out)

    return convert


def outputs(count, convert):
    """Conversion of a layer with exactly `count` outputs, the first axis; `convert` does the rest."""

    def checked(array):
        if np.ndim(array) < 1 or len(array) != count:
            raise ValueError(
                f"Expected {count} outputs, the first axis. Received: shape {np.shape(array)}. A table's "
                "`num_classes` is that of the file, without background (`number_of_classes` tells)."
            )
        return convert(array)

    return checked


def background_last(num_classes, convert):
    """Conversion of a classifier whose background comes first: it goes to the end.

    Args:
        num_classes: int, without background.
        convert: conversion of the array after that, `dense` or `same`.
    """
    return outputs(num_classes + 1, lambda array: convert(np.concatenate([array[1:], array[:1]])))


def without_background(num_classes, convert, values=1):
    """Conversion of a layer with `values` outputs for each class, background first: these are dropped.

    Args:
        num_classes: int, without background.
        convert: conversion of the array after that, `dense`, `kernel` or `same`.
        values: int, 4 for box deltas, 1 for masks.
    """
    return outputs((num_classes + 1) * values, lambda array: convert(array[values:]))


def number_of_classes(weights):
    """Classes, without background, of a torchvision or detectron2 detector.

    Args:
        weights: {name in the file: array}.

    Raises:
        ValueError: there is no box classifier under the name that both have.
    """
    if CLASSIFIER not in weights:
        raise ValueError(
            f"Expected `{CLASSIFIER}` among the names of a torchvision or detectron2 detector. "
            f"Received: {len(weights)} names, {', '.join(list(weights)[:3])} ..."
        )
    return len(weights[CLASSIFIER]) - 1


def constant(value, size):
    """Conversion of nothing: `size` times `value`, for what the file does not say."""
    return lambda _: np.full([size], value, np.float32)


def _check_axes(array, axes, what):
    if np.ndim(array) != axes:
        raise ValueError(f"Expected {what}. Received: shape {np.shape(array)}")
