"""RPN head (Faster R-CNN, section 3.1; shared by all levels, FPN paper, section 4.1)."""

import keras
from keras import ops


class RPNHead(keras.layers.Layer):
    """3x3 convolutions with ReLU (one in the papers), then 1x1 convolutions for objectness and box deltas.

    Args:
        anchors_per_position: int, A.
        channels: int, of the 3x3 convolutions.
        convs: int, number of these.

    Input: list of feature maps `[B, H_k, W_k, C]`.
    Output: (logits, deltas), lists of float32 `[B, H_k * W_k * A]` and `[B, H_k * W_k * A, 4]`, in the order
        of `Anchors`.
    """

    def __init__(self, anchors_per_position=3, channels=256, convs=1, **kwargs):
        super().__init__(**kwargs)
        self.anchors_per_position = anchors_per_position
        self.channels = channels
        self.num_convs = convs
        names = ["conv"] if convs == 1 else [f"conv{index + 1}" for index in range(convs)]
        self.convs = [self._conv(channels, 3, "relu", name) for name in names]
        self.objectness = self._conv(anchors_per_position, 1, None, "objectness")
        self.deltas = self._conv(4 * anchors_per_position, 1, None, "deltas")

    def _conv(self, filters, kernel_size, activation, name):
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            activation=activation,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, pyramid):
        logits, deltas = [], []
        for features in pyramid:
            hidden = features
            for conv in self.convs:
                hidden = conv(hidden)
            batch = ops.shape(features)[0]
            logits.append(ops.reshape(ops.cast(self.objectness(hidden), "float32"), [batch, -1]))
            deltas.append(ops.reshape(ops.cast(self.deltas(hidden), "float32"), [batch, -1, 4]))
        return logits, deltas

    def get_config(self):
        return {
            **super().get_config(),
            "anchors_per_position": self.anchors_per_position,
            "channels": self.channels,
            "convs": self.num_convs,
        }
