"""The first station inside the model: pixels 0-255 to what the backbone's weights expect."""

import keras
from keras import ops

MULTIPLE = 32  # stride of C5: sizes that halve without a remainder


class Normalize(keras.layers.Layer):
    """(pixel - mean) / std inside the valid part of each image, 0 outside, padded to a multiple of 32.

    Whatever stands in the padding of a batch has no influence.

    Args:
        mean, std: a float for each of the C channels, in units of 0-255.

    Call arguments:
        images: uint8 or float `[B, H, W, C]`, 0-255.
        image_sizes: int `[B, 2]`, valid height and width in pixels.

    Returns:
        `[B, H', W', C]` in the layer's compute dtype, H' and W' multiples of 32.
    """

    def __init__(self, mean, std, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.mean = [float(value) for value in mean]
        self.std = [float(value) for value in std]

    def call(self, images, image_sizes):
        height, width = ops.shape(images)[1:3]
        images = (ops.cast(images, "float32") - ops.array(self.mean)) / ops.array(self.std)
        rows = ops.arange(height)[None, :] < ops.cast(image_sizes[:, :1], "int32")
        columns = ops.arange(width)[None, :] < ops.cast(image_sizes[:, 1:], "int32")
        images = ops.where(rows[:, :, None, None] & columns[:, None, :, None], images, 0.0)
        padding = [[0, 0], [0, -height % MULTIPLE], [0, -width % MULTIPLE], [0, 0]]
        return ops.cast(ops.pad(images, padding), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "std": self.std}
