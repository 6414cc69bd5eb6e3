"""Box head (Figure 4, right): pooled features to class scores and box deltas."""

import keras
from keras import ops


class BoxHead(keras.layers.Layer):
    """Two fully connected layers with ReLU, then a classifier and a box regressor for each class.

    Args:
        num_classes: int, C, without background.
        units: int, of each fully connected layer.

    Input shape: `[N, S, S, channels]`.
    Output: class logits float32 `[N, C + 1]`, background last, and deltas float32 `[N, C, 4]`, weighted
        as `geometry.boxes.encode` gives them.
    """

    def __init__(self, num_classes, units=1024, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.units = units
        xavier = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
        self.flatten = keras.layers.Flatten(dtype=self.dtype_policy, name="flatten")
        self.fc1 = self._dense(units, xavier, "relu", "fc1")
        self.fc2 = self._dense(units, xavier, "relu", "fc2")
        self.classes = self._dense(
            num_classes + 1, keras.initializers.RandomNormal(stddev=0.01), None, "classes"
        )
        self.deltas = self._dense(
            4 * num_classes, keras.initializers.RandomNormal(stddev=0.001), None, "deltas"
        )

    def _dense(self, units, initializer, activation, name):
        return keras.layers.Dense(
            units, activation, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
        )

    def call(self, pooled):
        hidden = self.fc2(self.fc1(self.flatten(pooled)))
        deltas = ops.reshape(self.deltas(hidden), [-1, self.num_classes, 4])
        return ops.cast(self.classes(hidden), "float32"), ops.cast(deltas, "float32")

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "units": self.units}
