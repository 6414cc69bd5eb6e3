"""Mask head (Figure 4, right): pooled features to one mask for each class."""

import keras
from keras import ops

from keras_mrcnn.conv_norm import ConvNorm
from keras_mrcnn.roi.pooling import one_at_least, put_valid, take_valid


class MaskHead(keras.layers.Layer):
    """A small fully convolutional network on each region (section 3, "Mask Representation").

    3x3 convolutions with ReLU, a 2x2 deconvolution of stride 2 with ReLU, a 1x1 convolution.

    Args:
        num_classes: int, C, without background.
        convs: int, number of 3x3 convolutions.
        channels: int, of each.
        norm: normalisation of the 3x3 convolutions, see `ConvNorm`.

    Input shape: `[N, S, S, channels]`. Output: logits float32 `[N, 2S, 2S, C]`.
    """

    def __init__(self, num_classes, convs=4, channels=256, norm="none", **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_convs = convs
        self.channels = channels
        self.norm = norm
        self.convs = [
            ConvNorm(channels, 3, norm=norm, relu=True, dtype=self.dtype_policy, name=f"conv{index + 1}")
            for index in range(convs)
        ]
        self.upsample = keras.layers.Conv2DTranspose(
            channels,
            2,
            2,
            activation="relu",
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            dtype=self.dtype_policy,
            name="upsample",
        )
        self.logits = keras.layers.Conv2D(
            num_classes,
            1,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.001),
            dtype=self.dtype_policy,
            name="logits",
        )

    def call(self, pooled, training=None):
        hidden = one_at_least(pooled)
        for conv in self.convs:
            hidden = conv(hidden, training=training)
        return ops.cast(self.logits(self.upsample(hidden)), "float32")[: ops.shape(pooled)[0]]

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "convs": self.num_convs,
            "channels": self.channels,
            "norm": self.norm,
        }


def of_class(masks, classes):
    """The mask `[N, M, M]` of each region's own class, from `[N, M, M, C]` and int32 `[N]`."""
    return ops.take_along_axis(masks, classes[:, None, None, None], axis=-1)[..., 0]


class RegionMasks(keras.layers.Layer):
    """The mask of each detection's own class, back in its place.

    Call arguments:
        logits: float32 `[N, M, M, C]`, of the valid detections of all images.
        classes: int32 `[B, D]`.
        valid: bool `[B, D]`.

    Returns:
        float32 `[B, D, M, M]`, probabilities; zeros where not valid.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False

    def call(self, logits, classes, valid):
        masks = ops.sigmoid(of_class(logits, take_valid(classes, valid)))
        return put_valid(masks, valid)
