"""Anchors: the boxes at every position of the pyramid that the RPN scores (FPN paper, section 4.1)."""

import keras
from keras import ops


def cell_anchors(size, aspect_ratios):
    """Anchors of one position, centred on the origin.

    Args:
        size: float, square root of the area, pixels.
        aspect_ratios: height / width of each.

    Returns:
        list of (x1, y1, x2, y2): w * h = size**2 and h = ratio * w.
    """
    anchors = []
    for ratio in aspect_ratios:
        width = size / ratio**0.5
        height = width * ratio
        anchors.append((-width / 2, -height / 2, width / 2, height / 2))
    return anchors


class Anchors(keras.layers.Layer):
    """All anchors of an image; the anchors of position (i, j) are centred on (j * stride, i * stride).

    Args:
        sizes: one float for each level, pixels.
        aspect_ratios: floats, height / width.

    Input: list of feature maps `[B, H_k, W_k, C]`, P2 (stride 4) first.
    Output: list of float32 `[H_k * W_k * A, 4]`, (x1, y1, x2, y2), pixels, positions row-major, ratios inner.
        Anchors that leave the image are among them.
    """

    def __init__(self, sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1.0, 2.0), **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.sizes = list(sizes)
        self.aspect_ratios = list(aspect_ratios)

    def call(self, pyramid):
        levels = []
        for level, (features, size) in enumerate(zip(pyramid, self.sizes, strict=True)):
            stride = 4 * 2**level
            height, width = ops.shape(features)[1:3]
            y = ops.cast(ops.arange(height), "float32") * stride
            x = ops.cast(ops.arange(width), "float32") * stride
            y, x = ops.meshgrid(y, x, indexing="ij")
            centres = ops.reshape(ops.stack([x, y, x, y], axis=-1), [-1, 1, 4])
            cell = ops.convert_to_tensor(cell_anchors(size, self.aspect_ratios), dtype="float32")
            levels.append(ops.reshape(centres + cell, [-1, 4]))
        return levels

    def get_config(self):
        return {**super().get_config(), "sizes": self.sizes, "aspect_ratios": self.aspect_ratios}
