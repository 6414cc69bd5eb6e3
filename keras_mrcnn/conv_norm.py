"""A convolution and its normalisation, as every block of the backbone and the heads have it."""

import math

import keras
import numpy as np
from keras import ops

NORMS = ("none", "frozen", "batch", "group")
MERGED_CHANNELS = 32  # of a convolution's input, up to which groups are computed together


class ConvNorm(keras.layers.Layer):
    """Convolution, then normalisation or a bias, then optionally ReLU.

    Padding is symmetric, `dilation * (kernel_size // 2)` on each side also at stride 2: the ResNets of which
    weights are published do so, "same" padding does not.

    With `norm="frozen"` the normalisation is an affine map by constants, folded into the kernel:
    `conv(x, kernel * scale) + shift`, scale = gamma / sqrt(variance + epsilon) and
    shift = beta - mean * scale. The kernel is still trained. The variables are those of "batch", so weights
    go from one to the other.

    Args:
        filters: int, output channels.
        kernel_size: int, odd.
        strides: int.
        norm: "frozen", "batch" (batch statistics in training), "group" (32 groups; Wu and He 2018) or "none"
            (a bias in its place).
        relu: bool.
        epsilon: float, added to the variance.
        kernel_initializer: name of one of Keras, or None for N(0, 2 / fan_out) (He et al. 2015).
        groups: int, parts of the channels that do not see each other (ResNeXt); divides both numbers of
            channels. The kernel is `[kernel_size, kernel_size, C / groups, filters]`.

    Call arguments:
        inputs: `[B, H, W, C]`.
        dilation: int, distance of the pixels under the kernel, which changes no variable; above 1 with
            `strides=1` only.

    Input shape: `[B, H, W, C]`. Output shape: `[B, ceil(H / strides), ceil(W / strides), filters]`.

    Example:
        >>> ConvNorm(8, 3, strides=2)(np.zeros([1, 32, 32, 3])).shape
        TensorShape([1, 16, 16, 8])
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        norm="frozen",
        relu=False,
        epsilon=1e-5,
        kernel_initializer=None,
        groups=1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in NORMS:
            raise ValueError(f"`norm` is one of {', '.join(NORMS)}. Received: norm={norm!r}")
        if groups < 1 or filters % groups:
            raise ValueError(
                f"`groups` is at least 1 and divides `filters`. Received: groups={groups}, filters={filters}"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.norm = norm
        self.relu = relu
        self.epsilon = epsilon
        self.kernel_initializer = kernel_initializer
        self.groups = groups
        if norm == "batch":
            self.normalization = keras.layers.BatchNormalization(
                momentum=0.9, epsilon=epsilon, dtype=self.dtype_policy, name="normalization"
            )
        elif norm == "group":
            self.normalization = keras.layers.GroupNormalization(
                32, epsilon=epsilon, dtype=self.dtype_policy, name="normalization"
            )
        elif norm == "frozen":
            self.normalization = FrozenNormalization(epsilon, dtype=self.dtype_policy, name="normalization")

    def build(self, input_shape):
        if input_shape[-1] % self.groups:
            raise ValueError(
                f"The channels of the input are a multiple of `groups`. Received: groups={self.groups}, "
                f"input shape {tuple(input_shape)}"
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, input_shape[-1] // self.groups, self.filters),
            initializer=self.kernel_initializer
            or keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            autocast=self.norm != "frozen",
        )
        if self.norm == "none":
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")
        else:
            self.normalization.build((*input_shape[:-1], self.filters))

    def call(self, inputs, training=None, dilation=1):
        if self.norm == "frozen":
            scale, shift = self.normalization.scale_and_shift()
            kernel = ops.cast(self.kernel * scale, self.compute_dtype)
            outputs = self._convolve(inputs, kernel, dilation) + ops.cast(shift, self.compute_dtype)
        else:
            outputs = self._convolve(inputs, self.kernel, dilation)
            if self.norm == "none":
                outputs = outputs + self.bias
            else:
                outputs = self.normalization(outputs, training=training)
        return ops.relu(outputs) if self.relu else outputs

    def _convolve(self, inputs, kernel, dilation):
        padding = "same"  # symmetric at stride 1
        if self.strides > 1 and self.kernel_size > 1:
            half = self.kernel_size // 2
            inputs = ops.pad(inputs, [[0, 0], [half, half], [half, half], [0, 0]])
            padding = "valid"
        dilation = dilation if self.kernel_size > 1 else 1
        if self.groups > 1:
            return grouped_conv(inputs, kernel, self.groups, self.strides, padding, dilation)
        return ops.conv(inputs, kernel, self.strides, padding, dilation_rate=dilation)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "norm": self.norm,
            "relu": self.relu,
            "epsilon": self.epsilon,
            "kernel_initializer": self.kernel_initializer,
            "groups": self.groups,
        }


def grouped_conv(inputs, kernel, groups, strides=1, padding="valid", dilation=1):
    """Convolution in which each group of channels sees its own part of the input only.

    It is written as several dense convolutions, side by side. Keras gives a grouped one to XLA, which
    compiles it for every image size and whose gradient on a CPU is hundreds of times slower; TensorFlow's own
    has a gradient on a CPU only where oneDNN is in use, and none in float16. Narrow groups are computed
    together with zeros between them until a convolution has `MERGED_CHANNELS` inputs: those products are
    wasted, and still it is faster. Milliseconds on two CPU cores with AVX-512 (3x3, one map, median of 5,
    forward and forward with gradient, TensorFlow 2.21):

    | channels, groups, map | one per group | merged | ops.conv (XLA) |
    | --- | --- | --- | --- |
    | 256, 32, 100 x 136, float32 | 7.8, 20 | 7.3, 20 | 20, 9600 |
    | 256, 32, 100 x 136, bfloat16 | 12, 27 | 8.6, 24 | |
    | 256, 64, 100 x 136, float32 | 11, 27 | 8.0, 21 | 85, 14400 |
    | 256, 64, 100 x 136, bfloat16 | 8.3, 25 | 4.1, 12 | |
    | 1024, 32, 25 x 34, float32 | 4.1, 16 | the same | 5.2, 2700 |

    Args:
        inputs: `[B, H, W, C]`.
        kernel: `[rows, columns, C / groups, filters]`, the outputs of the first group first.
        groups: int, divides C and filters.
        strides, padding, dilation: as in `keras.ops.conv`.

    Returns:
        `[B, H', W', filters]`.
    """
    depth, filters = kernel.shape[2], kernel.shape[3] // groups
    merged = math.gcd(groups, max(1, MERGED_CHANNELS // depth))
    pieces = groups // merged
    if merged > 1:
        own = np.tile(np.kron(np.eye(merged), np.ones([depth, filters])), [1, pieces])
        kernel = ops.tile(kernel, [1, 1, merged, 1]) * ops.cast(own, kernel.dtype)
    outputs = [
        ops.conv(part, its_kernel, strides, padding, dilation_rate=dilation)
        for part, its_kernel in zip(ops.split(inputs, pieces, -1), ops.split(kernel, pieces, -1))
    ]
    return ops.concatenate(outputs, -1)


class FrozenNormalization(keras.layers.Layer):
    """The four constants of a batch normalisation that is not trained, always float32.

    Args:
        epsilon: float, added to the variance.
    """

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        def constant(name, initializer):
            return self.add_weight(
                name=name, shape=input_shape[-1:], initializer=initializer, trainable=False, autocast=False
            )

        self.gamma = constant("gamma", "ones")
        self.beta = constant("beta", "zeros")
        self.moving_mean = constant("moving_mean", "zeros")
        self.moving_variance = constant("moving_variance", "ones")

    def scale_and_shift(self):
        """float32 `[C]` each: the normalisation of x is `x * scale + shift`."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale

    def call(self, inputs):
        scale, shift = self.scale_and_shift()
        return inputs * ops.cast(scale, inputs.dtype) + ops.cast(shift, inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}
