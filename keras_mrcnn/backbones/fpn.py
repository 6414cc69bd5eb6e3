"""Feature pyramid network (Lin et al. 2017, Figure 3): C2..C5 to P2..P6, all of one width."""

import keras
from keras import ops

from keras_mrcnn.conv_norm import ConvNorm


class FPN(keras.layers.Layer):
    """1x1 lateral convolutions, nearest upsampling and addition from the top down, 3x3 output convolutions.

    P6, which only the RPN sees, is every second pixel of P5.

    Args:
        channels: int, of every output.
        norm: "none" (biases), or a normalisation after every convolution, see `ConvNorm`.

    Input: list of four `[B, H/4, W/4, c]` ... `[B, H/32, W/32, 8c]`.
    Output: list of five `[B, H/4, W/4, channels]` ... `[B, H/64, W/64, channels]`, sizes rounded up.
    """

    def __init__(self, channels=256, norm="none", **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.norm = norm
        self.laterals = [self._conv(1, f"lateral{level}") for level in range(2, 6)]
        self.outputs = [self._conv(3, f"output{level}") for level in range(2, 6)]

    def _conv(self, kernel_size, name):
        return ConvNorm(
            self.channels,
            kernel_size,
            norm=self.norm,
            kernel_initializer="lecun_uniform",
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, features, training=None):
        merged = [lateral(c, training=training) for lateral, c in zip(self.laterals, features, strict=True)]
        for level in (2, 1, 0):
            merged[level] = merged[level] + _upsample_to(merged[level + 1], merged[level])
        pyramid = [output(m, training=training) for output, m in zip(self.outputs, merged, strict=True)]
        return [*pyramid, pyramid[-1][:, ::2, ::2]]

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "norm": self.norm}


def _upsample_to(small, large):
    """Every pixel of `small` twice in both directions, cut to the size of `large`."""
    twice = ops.repeat(ops.repeat(small, 2, axis=1), 2, axis=2)
    return twice[:, : ops.shape(large)[1], : ops.shape(large)[2]]
