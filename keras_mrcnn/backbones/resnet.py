"""ResNet (He et al. 2016): normalised images to the feature maps C2..C5 at strides 4, 8, 16, 32."""

import keras
from keras import ops

from keras_mrcnn.conv_norm import ConvNorm

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
        blocks: four ints, blocks in each of C2..C5; none for as many as `depth` says.
        stride_in_1x1: bool, where bottlenecks have their stride, see `Bottleneck`.
        epsilon: float, added to the variance of the normalisation.

    Input shape: `[B, H, W, 3]`, normalised. Output: list of four, C2 `[B, H/4, W/4, c]` ... C5
    `[B, H/32, W/32, 8c]`, sizes rounded up, c = 256 (64 without bottlenecks).
    """

    def __init__(
        self,
        depth="resnet50",
        norm="frozen",
        frozen_stages=2,
        blocks=(),
        stride_in_1x1=False,
        epsilon=1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if depth not in DEPTHS:
            raise ValueError(f"`depth` is one of {', '.join(DEPTHS)}. Received: depth={depth!r}")
        self.depth = depth
        self.norm = norm
        self.frozen_stages = frozen_stages
        self.blocks = list(blocks)
        self.stride_in_1x1 = stride_in_1x1
        self.epsilon = epsilon
        self.stem = ConvNorm(64, 7, 2, norm, relu=True, epsilon=epsilon, dtype=self.dtype_policy, name="stem")
        self.c2, self.c3, self.c4, self.c5 = (self._stage(stage) for stage in range(4))
        for layers in [[self.stem], self.c2, self.c3, self.c4, self.c5][:frozen_stages]:
            for layer in layers:
                layer.trainable = False

    def _stage(self, stage):
        blocks, bottleneck = DEPTHS[self.depth]
        block = Bottleneck if bottleneck else BasicBlock
        placed = {"stride_in_1x1": self.stride_in_1x1} if bottleneck else {}
        return [
            block(
                width=64 * 2**stage,
                strides=2 if stage > 0 and index == 0 else 1,
                project=index == 0 and (stage > 0 or bottleneck),
                norm=self.norm,
                epsilon=self.epsilon,
                **placed,
                dtype=self.dtype_policy,
                name=f"c{stage + 2}_block{index + 1}",
            )
            for index in range((self.blocks or blocks)[stage])
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
            "blocks": self.blocks,
            "stride_in_1x1": self.stride_in_1x1,
            "epsilon": self.epsilon,
        }


class _Block(keras.layers.Layer):
    """relu(residual(x) + shortcut(x)); `project` makes the shortcut a 1x1 convolution."""

    def __init__(self, width, strides=1, project=False, norm="frozen", epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.strides = strides
        self.project = project
        self.norm = norm
        self.epsilon = epsilon

    def _conv(self, filters, kernel_size, strides, relu, name):
        return ConvNorm(
            filters,
            kernel_size,
            strides,
            self.norm,
            relu,
            self.epsilon,
            dtype=self.dtype_policy,
            name=name,
        )

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
            "epsilon": self.epsilon,
        }


class BasicBlock(_Block):
    """Two 3x3 convolutions, the first with the stride (ResNet-18 and -34).

    Args:
        width: int, channels inside and out.
        strides: int.
        project: bool, whether the shortcut is a 1x1 convolution.
        norm, epsilon: normalisation, see `ConvNorm`.
    """

    def __init__(self, width, strides=1, project=False, norm="frozen", epsilon=1e-5, **kwargs):
        super().__init__(width, strides, project, norm, epsilon, **kwargs)
        self.convs = [
            self._conv(width, 3, strides, True, "conv1"),
            self._conv(width, 3, 1, False, "conv2"),
        ]
        self.shortcut = self._conv(width, 1, strides, False, "shortcut") if project else None


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 to four times the width (ResNet-50 and deeper).

    Args: as `BasicBlock`, but the output has `4 * width` channels, and
        stride_in_1x1: bool, the stride is in the first convolution (He et al. 2016), not in the second.
    """

    def __init__(
        self, width, strides=1, project=False, norm="frozen", epsilon=1e-5, stride_in_1x1=False, **kwargs
    ):
        super().__init__(width, strides, project, norm, epsilon, **kwargs)
        self.stride_in_1x1 = stride_in_1x1
        self.convs = [
            self._conv(width, 1, strides if stride_in_1x1 else 1, True, "conv1"),
            self._conv(width, 3, 1 if stride_in_1x1 else strides, True, "conv2"),
            self._conv(4 * width, 1, 1, False, "conv3"),
        ]
        self.shortcut = self._conv(4 * width, 1, strides, False, "shortcut") if project else None

    def get_config(self):
        return {**super().get_config(), "stride_in_1x1": self.stride_in_1x1}
