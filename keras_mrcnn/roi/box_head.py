"""Box head (Figure 4, right): pooled features to class scores and box deltas."""

import keras
from keras import ops

from keras_mrcnn.conv_norm import ConvNorm
from keras_mrcnn.roi.pooling import one_at_least


class BoxHead(keras.layers.Layer):
    """Fully connected layers with ReLU, then a classifier and a box regressor for each class.

    Two fully connected layers in the paper; four 3x3 convolutions and one of them in Wu and He 2018.

    Args:
        num_classes: int, C, without background.
        convs: int, number of 3x3 convolutions with ReLU before them.
        channels: int, of each convolution.
        norm: normalisation of the convolutions, see `ConvNorm`.
        fcs: int, number of fully connected layers; 0: the average over positions (Figure 4, left).
        units: int, of each.
        class_agnostic: bool, one box for all classes.

    Input shape: `[N, S, S, channels]`.
    Output: class logits float32 `[N, C + 1]`, background last, and deltas float32 `[N, C, 4]` (`[N, 1, 4]`
        when class-agnostic), weighted as `geometry.boxes.encode` gives them.
    """

    def __init__(
        self,
        num_classes,
        convs=0,
        channels=256,
        norm="none",
        fcs=2,
        units=1024,
        class_agnostic=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_convs = convs
        self.channels = channels
        self.norm = norm
        self.num_fcs = fcs
        self.units = units
        self.class_agnostic = class_agnostic
        self.convs = [
            ConvNorm(channels, 3, norm=norm, relu=True, dtype=self.dtype_policy, name=f"conv{index + 1}")
            for index in range(convs)
        ]
        xavier = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
        self.flatten = keras.layers.Flatten(dtype=self.dtype_policy, name="flatten") if fcs else None
        self.fcs = [self._dense(units, xavier, "relu", f"fc{index + 1}") for index in range(fcs)]
        self.classes = self._dense(
            num_classes + 1, keras.initializers.RandomNormal(stddev=0.01), None, "classes"
        )
        self.deltas = self._dense(
            4 if class_agnostic else 4 * num_classes,
            keras.initializers.RandomNormal(stddev=0.001),
            None,
            "deltas",
        )

    def _dense(self, units, initializer, activation, name):
        return keras.layers.Dense(
            units, activation, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
        )

    def hidden(self, pooled, training=None):
        """What the classifier and the regressor see: `[N, units]`, or `[N, channels]` without `fcs`."""
        hidden = pooled
        if self.convs:
            hidden = one_at_least(pooled)
            for conv in self.convs:
                hidden = conv(hidden, training=training)
            hidden = hidden[: ops.shape(pooled)[0]]
        hidden = self.flatten(hidden) if self.fcs else ops.mean(hidden, axis=(1, 2))
        for fc in self.fcs:
            hidden = fc(hidden)
        return hidden

    def call(self, pooled, training=None):
        hidden = self.hidden(pooled, training)
        deltas = ops.reshape(self.deltas(hidden), [-1, 1 if self.class_agnostic else self.num_classes, 4])
        return ops.cast(self.classes(hidden), "float32"), ops.cast(deltas, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "convs": self.num_convs,
            "channels": self.channels,
            "norm": self.norm,
            "fcs": self.num_fcs,
            "units": self.units,
            "class_agnostic": self.class_agnostic,
        }
