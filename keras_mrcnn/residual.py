"""The blocks that ResNets consist of (He et al. 2016; Xie et al. 2017), and how many of which.

The backbone has them on the image, `roi.stage5` on each region.
"""

from typing import NamedTuple

import keras
from keras import ops

from keras_mrcnn.conv_norm import ConvNorm


class Architecture(NamedTuple):
    """A row of Table 1 of either paper."""

    blocks: tuple  # in each of C2..C5
    bottlenecks: bool
    groups: int = 1  # of the 3x3 convolutions of bottlenecks
    width: int = 64  # channels of the 3x3 convolutions of C2; ResNeXt: groups * channels of each


DEPTHS = {
    "resnet18": Architecture((2, 2, 2, 2), False),
    "resnet34": Architecture((3, 4, 6, 3), False),
    "resnet50": Architecture((3, 4, 6, 3), True),
    "resnet101": Architecture((3, 4, 23, 3), True),
    "resnet152": Architecture((3, 8, 36, 3), True),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), True, 32, 32 * 8),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), True, 64, 64 * 4),
}


def build_blocks(blocks, input_shape):
    """Make the variables of blocks that follow each other, without tracing them first, as Keras would.

    Args:
        blocks: list of `Bottleneck` or `BasicBlock`.
        input_shape: `[B, H, W, C]`, of which the channels count.

    Returns:
        The shape of what leaves the last of them, but for height and width, which stay.
    """
    for block in blocks:
        block.build(input_shape)
        input_shape = (*input_shape[:-1], block.convs[-1].filters)
    return input_shape


def check_depth(depth):
    """Raise a ValueError when there is no network of this name."""
    if depth not in DEPTHS:
        raise ValueError(f"`depth` is one of {', '.join(DEPTHS)}. Received: depth={depth!r}")


def stage_blocks(depth, stage, blocks, strides, stride_in_1x1, **settings):
    """Layers of one stage, in the order of the data: `c5_block1`, `c5_block2`, ...

    Args:
        depth: string, a name in `DEPTHS`.
        stage: int, 2..5.
        blocks: four ints, blocks in each of C2..C5; none for as many as `depth` says.
        strides: int, of the first block.
        stride_in_1x1: bool, where bottlenecks have it, see `Bottleneck`.
        settings: `norm`, `epsilon` and `dtype` of every block.

    Returns:
        List of `Bottleneck` or `BasicBlock`.
    """
    network, scale = DEPTHS[depth], 2 ** (stage - 2)
    if network.bottlenecks:
        block = Bottleneck
        settings["stride_in_1x1"] = stride_in_1x1
        settings["groups"] = network.groups
        settings["expansion"] = 256 // network.width
    else:
        block = BasicBlock
    return [
        block(
            width=network.width * scale,
            strides=strides if index == 0 else 1,
            project=index == 0 and (stage > 2 or network.bottlenecks),
            **settings,
            name=f"c{stage}_block{index + 1}",
        )
        for index in range((blocks or network.blocks)[stage - 2])
    ]


class _Block(keras.layers.Layer):
    """relu(residual(x) + shortcut(x)); `project` makes the shortcut a 1x1 convolution."""

    def __init__(self, width, strides=1, project=False, norm="frozen", epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.strides = strides
        self.project = project
        self.norm = norm
        self.epsilon = epsilon

    def _conv(self, filters, kernel_size, strides, relu, name, groups=1):
        return ConvNorm(
            filters,
            kernel_size,
            strides,
            self.norm,
            relu,
            self.epsilon,
            groups=groups,
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape):
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], conv.filters)
        if self.project:
            self.shortcut.build(input_shape)

    def call(self, inputs, training=None, dilation=1):
        outputs = inputs
        for conv in self.convs:
            outputs = conv(outputs, training=training, dilation=dilation)
        shortcut = self.shortcut(inputs, training=training) if self.project else inputs
        return ops.relu(outputs + shortcut)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "strides": self.strides,
            "project": self.project,
            "norm": self.norm,
            "epsilon": self.epsilon,
        }


class BasicBlock(_Block):
    """Two 3x3 convolutions, the first with the stride (ResNet-18 and -34).

    Args:
        width: int, channels inside and out.
        strides: int.
        project: bool, whether the shortcut is a 1x1 convolution.
        norm, epsilon: normalisation, see `ConvNorm`.

    Call arguments:
        inputs: `[B, H, W, C]`.
        dilation: int, of the 3x3 convolutions; above 1 with `strides=1` only.
    """

    def __init__(self, width, strides=1, project=False, norm="frozen", epsilon=1e-5, **kwargs):
        super().__init__(width, strides, project, norm, epsilon, **kwargs)
        self.convs = [
            self._conv(width, 3, strides, True, "conv1"),
            self._conv(width, 3, 1, False, "conv2"),
        ]
        self.shortcut = self._conv(width, 1, strides, False, "shortcut") if project else None


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolution (ResNet-50 and deeper, ResNeXt).

    Args: as `BasicBlock`, where `width` is that of the first two, and
        stride_in_1x1: bool, the stride is in the first convolution (He et al. 2016), not in the second.
        groups: int, of the 3x3 convolution (Xie et al. 2017, Figure 3c).
        expansion: int, output channels for each channel of `width`.
    """

    def __init__(
        self,
        width,
        strides=1,
        project=False,
        norm="frozen",
        epsilon=1e-5,
        stride_in_1x1=False,
        groups=1,
        expansion=4,
        **kwargs,
    ):
        super().__init__(width, strides, project, norm, epsilon, **kwargs)
        self.stride_in_1x1 = stride_in_1x1
        self.groups = groups
        self.expansion = expansion
        first, second = (strides, 1) if stride_in_1x1 else (1, strides)
        self.convs = [
            self._conv(width, 1, first, True, "conv1"),
            self._conv(width, 3, second, True, "conv2", groups),
            self._conv(expansion * width, 1, 1, False, "conv3"),
        ]
        self.shortcut = self._conv(expansion * width, 1, strides, False, "shortcut") if project else None

    def get_config(self):
        return {
            **super().get_config(),
            "stride_in_1x1": self.stride_in_1x1,
            "groups": self.groups,
            "expansion": self.expansion,
        }
