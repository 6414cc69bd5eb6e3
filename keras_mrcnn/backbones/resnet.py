"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017): normalised images to the feature maps C2..C5."""

import keras
from keras import ops

from keras_mrcnn.conv_norm import ConvNorm
from keras_mrcnn.residual import build_blocks, check_depth, stage_blocks


class ResNet(keras.layers.Layer):
    """The networks of Table 1 in the two papers, without the classifier.

    Args:
        depth: string, a name in `residual.DEPTHS`: "resnet50", "resnext101_32x8d", ...
        norm: normalisation, see `ConvNorm`.
        frozen_stages: int, 0: all trained, 1: stem not trained, 2: stem and C2 not trained, ... 5: none.
        blocks: four ints, blocks in each of C2..C5; none for as many as `depth` says.
        stride_in_1x1: bool, where bottlenecks have their stride, see `residual.Bottleneck`.
        epsilon: float, added to the variance of the normalisation.
        last_stage: int, 2..5, the stage to stop at; 4 where `roi.stage5` goes on with each region.
        dilated: bool, stage 5, where it is built, stays at stride 16; all of its 3x3 convolutions have
            dilation 2 instead.

    Input shape: `[B, H, W, channels]`, normalised; any number of channels. Output: list, C2
    `[B, H/4, W/4, c]` ... C5 `[B, H/32, W/32, 8c]` (dilated: `[B, H/16, W/16, 8c]`), sizes rounded up,
    c = 256 (64 without bottlenecks).
    """

    def __init__(
        self,
        depth="resnet50",
        norm="frozen",
        frozen_stages=2,
        blocks=(),
        stride_in_1x1=False,
        epsilon=1e-5,
        last_stage=5,
        dilated=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_depth(depth)
        if last_stage not in range(2, 6):
            raise ValueError(f"`last_stage` is 2, 3, 4 or 5. Received: last_stage={last_stage!r}")
        self.depth = depth
        self.norm = norm
        self.frozen_stages = frozen_stages
        self.blocks = list(blocks)
        self.stride_in_1x1 = stride_in_1x1
        self.epsilon = epsilon
        self.last_stage = last_stage
        self.dilated = dilated
        self.stem = ConvNorm(64, 7, 2, norm, relu=True, epsilon=epsilon, dtype=self.dtype_policy, name="stem")
        self.c2, self.c3, self.c4, self.c5 = (self._stage(stage) for stage in range(2, 6))
        for layers in [[self.stem], self.c2, self.c3, self.c4, self.c5][:frozen_stages]:
            for layer in layers:
                layer.trainable = False

    def _stage(self, stage):
        if stage > self.last_stage:
            return []
        return stage_blocks(
            self.depth,
            stage,
            self.blocks,
            strides=1 if stage == 2 or (stage == 5 and self.dilated) else 2,
            stride_in_1x1=self.stride_in_1x1,
            norm=self.norm,
            epsilon=self.epsilon,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape):
        self.stem.build(input_shape)
        build_blocks(self.c2 + self.c3 + self.c4 + self.c5, (*input_shape[:-1], self.stem.filters))

    def call(self, images, training=None):
        features = self.stem(images, training=training)
        # Zeros never win against a ReLU's outputs: max pooling with symmetric padding of 1.
        features = ops.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]])
        features = ops.max_pool(features, 3, 2, "valid")
        outputs = []
        for stage in (self.c2, self.c3, self.c4, self.c5)[: self.last_stage - 1]:
            dilation = 2 if self.dilated and stage is self.c5 else 1
            for block in stage:
                features = block(features, training=training, dilation=dilation)
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
            "last_stage": self.last_stage,
            "dilated": self.dilated,
        }
