"""Stage 5 of a ResNet on each region: what comes before the heads of the C4 models (Figure 4, left)."""

import keras
from keras import ops

from keras_mrcnn.residual import build_blocks, check_depth, stage_blocks
from keras_mrcnn.roi.pooling import one_at_least


class Stage5(keras.layers.Layer):
    """The last stage of the backbone, which ended with C4 (`backbones.resnet`, `last_stage=4`).

    Its variables are named as in a whole backbone: "c5_block1/conv1/kernel". `trainable=False` freezes them
    and the statistics of their normalisation.

    Args:
        depth: string, a name in `residual.DEPTHS`, that of the backbone.
        norm: normalisation, see `ConvNorm`.
        strides: int, of the first block: 1 for regions of 7x7, as the paper draws it, 2 for those of 14x14,
            as detectron2 has them.
        blocks: four ints, blocks in each of C2..C5, of which the last counts; none for as many as `depth`
            says.
        stride_in_1x1: bool, where bottlenecks have their stride, see `residual.Bottleneck`.
        epsilon: float, added to the variance of the normalisation.

    Input shape: `[N, S, S, C4's channels]`, N regions, which may be none.
    Output shape: `[N, ceil(S / strides), ceil(S / strides), C5's channels]`: 2048 (512 without bottlenecks).

    Example:
        >>> Stage5("resnet50")(np.zeros([3, 7, 7, 1024])).shape
        TensorShape([3, 7, 7, 2048])
    """

    def __init__(
        self,
        depth="resnet50",
        norm="frozen",
        strides=1,
        blocks=(),
        stride_in_1x1=False,
        epsilon=1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_depth(depth)
        self.depth = depth
        self.norm = norm
        self.strides = strides
        self.blocks = list(blocks)
        self.stride_in_1x1 = stride_in_1x1
        self.epsilon = epsilon
        self.stage = stage_blocks(
            depth, 5, blocks, strides, stride_in_1x1, norm=norm, epsilon=epsilon, dtype=self.dtype_policy
        )
        for block in self.stage:
            block.trainable = self.trainable

    def build(self, input_shape):
        build_blocks(self.stage, input_shape)

    def call(self, pooled, training=None):
        features = one_at_least(pooled)
        for block in self.stage:
            features = block(features, training=training)
        return features[: ops.shape(pooled)[0]]

    def get_config(self):
        return {
            **super().get_config(),
            "depth": self.depth,
            "norm": self.norm,
            "strides": self.strides,
            "blocks": self.blocks,
            "stride_in_1x1": self.stride_in_1x1,
            "epsilon": self.epsilon,
        }
