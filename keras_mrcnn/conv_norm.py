"""A convolution and its normalisation, as every block of the backbone and the heads have it."""

import keras
from keras import ops

NORMS = ("none", "frozen", "batch", "group")


class ConvNorm(keras.layers.Layer):
    """Convolution, then normalisation or a bias, then optionally ReLU.

    Padding is symmetric, `kernel_size // 2` on each side also at stride 2: the ResNets of which weights are
    published do so, "same" padding does not.

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
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in NORMS:
            raise ValueError(f"`norm` is one of {', '.join(NORMS)}. Received: norm={norm!r}")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.norm = norm
        self.relu = relu
        self.epsilon = epsilon
        self.kernel_initializer = kernel_initializer
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
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, input_shape[-1], self.filters),
            initializer=self.kernel_initializer
            or keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            autocast=self.norm != "frozen",
        )
        if self.norm == "none":
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")
        else:
            self.normalization.build((*input_shape[:-1], self.filters))

    def call(self, inputs, training=None):
        padding = "same"
        if self.strides > 1 and self.kernel_size > 1:
            half = self.kernel_size // 2
            inputs = ops.pad(inputs, [[0, 0], [half, half], [half, half], [0, 0]])
            padding = "valid"
        if self.norm == "frozen":
            scale, shift = self.normalization.scale_and_shift()
            kernel = ops.cast(self.kernel * scale, self.compute_dtype)
            outputs = ops.conv(inputs, kernel, self.strides, padding) + ops.cast(shift, self.compute_dtype)
        else:
            outputs = ops.conv(inputs, self.kernel, self.strides, padding)
            if self.norm == "none":
                outputs = outputs + self.bias
            else:
                outputs = self.normalization(outputs, training=training)
        return ops.relu(outputs) if self.relu else outputs

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
        }


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
