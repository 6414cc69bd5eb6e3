"""ResNet (He et al. 2016): normalised images to the feature maps C2..C5 at strides 4, 8, 16, 32."""

import keras
from keras import ops

from keras_mrcnn.backbones.conv_norm import ConvNorm

DEPTHS = {  # blocks in each of C2..C5, and whether they are bottlenecks
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


class ResNet(keras.layers.Layer):
    """The networks of Table 1 in the ResNet paper, without the classifier.

    Args:
        depth: "resnet18", "resnet34", "resnet50" or "resnet101".
        norm: normalisation, see `ConvNorm`.
        frozen_stages: int, 0: all trained, 1: stem not trained, 2: stem and C2 not trained, ... 5: none.

    Input shape: `[B, H, W, 3]`, normalised. Output: list of four, C2 `[B, H/4, W/4, c]` ... C5
    `[B, H/32, W/32, 8c]`, sizes rounded up, c = 256 (64 without bottlenecks).
    """

    def __init__(self, depth="resnet50", norm="frozen", frozen_stages=2, **kwargs):
        super().__init__(**kwargs)
        if depth not in DEPTHS:
            raise ValueError(f"`depth` is one of {', '.join(DEPTHS)}. Received: depth={depth!r}")
        self.depth = depth
        self.norm = norm
        self.frozen_stages = frozen_stages
        self.stem = ConvNorm(64, 7, 2, norm, relu=True, dtype=self.dtype_policy, name="stem")
        self.c2, self.c3, self.c4, self.c5 = (self._stage(stage) for stage in range(4))
        for layers in [[self.stem], self.c2, self.c3, self.c4, self.c5][:frozen_stages]:
            for layer in layers:
                layer.trainable = False

    def _stage(self, stage):
        blocks, bottleneck = DEPTHS[self.depth]
        block = Bottleneck if bottleneck else BasicBlock
        return [
            block(
                width=64 * 2**stage,
                strides=2 if stage > 0 and index == 0 else 1,
                project=index == 0 and (stage > 0 or bottleneck),
                norm=self.norm,
                dtype=self.dtype_policy,
                name=f"c{stage + 2}_block{index + 1}",
            )
            for index in range(blocks[stage])
        ]

    def call(self, images, training=None):
        features = self.stem(images, training=training)
        # Zeros never win against a ReLU's outputs: max pooling with symmetric padding of 1.
        features = ops.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]])
        features = ops.max_pool(features, 3, 2, "valid")
        outputs = []
        for stage in (self.c2, self.c3, self.c4, self.c5):
            for block in stage:
                features = block(features, training=training)
            outputs.append(features)
        return outputs

    def get_config(self):
        return {
            **super().get_config(),
            "depth": self.depth,
            "norm": self.norm,
            "frozen_stages": self.frozen_stages,
        }


class _Block(keras.layers.Layer):
    """relu(residual(x) + shortcut(x)); `project` makes the shortcut a 1x1 convolution."""

    def __init__(self, width, strides=1, project=False, norm="frozen", **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.strides = strides
        self.project = project
        self.norm = norm

    def _conv(self, filters, kernel_size, strides, relu, name):
        return ConvNorm(filters, kernel_size, strides, self.norm, relu, dtype=self.dtype_policy, name=name)

    def call(self, inputs, training=None):
        outputs = inputs
        for conv in self.convs:
            outputs = conv(outputs, training=training)
        shortcut = self.shortcut(inputs, training=training) if self.project else inputs
        return ops.relu(outputs + shortcut)

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "strides": self.strides,
            "project": self.project,
            "norm": self.norm,
        }


class BasicBlock(_Block):
    """Two 3x3 convolutions, the first with the stride (ResNet-18 and -34).

    Args:
        width: int, channels inside and out.
        strides: int.
        project: bool, whether the shortcut is a 1x1 convolution.
        norm: normalisation, see `ConvNorm`.
    """

    def __init__(self, width, strides=1, project=False, norm="frozen", **kwargs):
        super().__init__(width, strides, project, norm, **kwargs)
        self.convs = [
            self._conv(width, 3, strides, True, "conv1"),
            self._conv(width, 3, 1, False, "conv2"),
        ]
        self.shortcut = self._conv(width, 1, strides, False, "shortcut") if project else None


class Bottleneck(_Block):
    """1x1, 3x3 with the stride, 1x1 to four times the width (ResNet-50 and deeper).

    Args: as `BasicBlock`, but the output has `4 * width` channels.
    """

    def __init__(self, width, strides=1, project=False, norm="frozen", **kwargs):
        super().__init__(width, strides, project, norm, **kwargs)
        self.convs = [
            self._conv(width, 1, 1, True, "conv1"),
            self._conv(width, 3, strides, True, "conv2"),
            self._conv(4 * width, 1, 1, False, "conv3"),
        ]
        self.shortcut = self._conv(4 * width, 1, strides, False, "shortcut") if project else None
