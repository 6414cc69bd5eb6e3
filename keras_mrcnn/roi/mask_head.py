"""Mask heads (Figure 4 and Table 2e): pooled features to one mask for each class."""

import keras
from keras import ops

from keras_mrcnn.conv_norm import ConvNorm
from keras_mrcnn.roi.pooling import one_at_least, put_valid, take_valid


class MaskHead(keras.layers.Layer):
    """A small fully convolutional network on each region (section 3, "Mask Representation").

    3x3 convolutions with ReLU, a 2x2 deconvolution of stride 2 with ReLU, a 1x1 convolution.

    Args:
        maps: int, C, masks of each region: one for each class, or one in all; with a softmax between them
            one more for the background, the last.
        convs: int, number of 3x3 convolutions; none after stage 5 of C4.
        channels: int, of each.
        norm: normalisation of the 3x3 convolutions, see `ConvNorm`.

    Input shape: `[N, S, S, channels]`. Output: logits float32 `[N, 2S, 2S, C]`.
    """

    def __init__(self, maps, convs=4, channels=256, norm="none", **kwargs):
        super().__init__(**kwargs)
        self.maps = maps
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
            maps,
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
            "maps": self.maps,
            "convs": self.num_convs,
            "channels": self.channels,
            "norm": self.norm,
        }


class MLPMaskHead(keras.layers.Layer):
    """Fully connected layers with ReLU, and one that gives every pixel of every mask (Table 2e, "MLP").

    Args:
        maps: int, C, as for `MaskHead`.
        mask_size: int, M.
        fcs: int, number of hidden layers.
        units: int, of each.

    Input shape: `[N, S, S, channels]`. Output: logits float32 `[N, M, M, C]`.
    """

    def __init__(self, maps, mask_size=28, fcs=2, units=1024, **kwargs):
        super().__init__(**kwargs)
        self.maps = maps
        self.mask_size = mask_size
        self.num_fcs = fcs
        self.units = units
        self.flatten = keras.layers.Flatten(dtype=self.dtype_policy, name="flatten")
        self.fcs = [
            keras.layers.Dense(
                units,
                "relu",
                kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "uniform"),
                dtype=self.dtype_policy,
                name=f"fc{index + 1}",
            )
            for index in range(fcs)
        ]
        self.logits = keras.layers.Dense(
            maps * mask_size**2,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.001),
            dtype=self.dtype_policy,
            name="logits",
        )

    def call(self, pooled, training=None):
        hidden = self.flatten(pooled)
        for fc in self.fcs:
            hidden = fc(hidden)
        masks = ops.reshape(self.logits(hidden), [-1, self.mask_size, self.mask_size, self.maps])
        return ops.cast(masks, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "maps": self.maps,
            "mask_size": self.mask_size,
            "fcs": self.num_fcs,
            "units": self.units,
        }


def of_class(masks, classes):
    """The mask `[N, M, M]` of each region's own class, from `[N, M, M, C]` and int32 `[N]`; C = 1: of all."""
    if masks.shape[-1] == 1:
        return masks[..., 0]
    return ops.take_along_axis(masks, classes[:, None, None, None], axis=-1)[..., 0]


class RegionMasks(keras.layers.Layer):
    """The mask of each detection's own class, back in its place.

    Args:
        activation: "sigmoid": each class's mask by itself; "softmax": against the others and the background.

    Call arguments:
        logits: float32 `[N, M, M, C]`, of the valid detections of all images.
        classes: int32 `[B, D]`.
        valid: bool `[B, D]`.

    Returns:
        float32 `[B, D, M, M]`, probabilities; zeros where not valid.
    """

    def __init__(self, activation="sigmoid", **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.activation = activation

    def call(self, logits, classes, valid):
        classes = take_valid(classes, valid)
        if self.activation == "sigmoid":
            masks = ops.sigmoid(of_class(logits, classes))
        else:
            masks = of_class(ops.softmax(logits)[..., :-1], classes)
        return put_valid(masks, valid)

    def get_config(self):
        return {**super().get_config(), "activation": self.activation}
