"""Anchors: the boxes at every position of the pyramid that the RPN scores (FPN paper, section 4.1)."""

import keras
from keras import ops


def cell_anchors(size, aspect_ratios, rounded=False):
    """Anchors of one position, centred on the origin.

    Args:
        size: float, square root of the area, pixels.
        aspect_ratios: height / width of each.
        rounded: bool, corners to whole pixels, as torchvision does.

    Returns:
        list of (x1, y1, x2, y2): w * h = size**2 and h = ratio * w.
    """
    anchors = []
    for ratio in aspect_ratios:
        width = size / ratio**0.5
        height = width * ratio
        anchor = (-width / 2, -height / 2, width / 2, height / 2)
        anchors.append(tuple(float(round(corner)) for corner in anchor) if rounded else anchor)
    return anchors


class Anchors(keras.layers.Layer):
    """All anchors of an image; the anchors of position (i, j) are centred on (j * stride, i * stride).

    Args:
        sizes: for each level a list of floats, pixels.
        strides: for each level an int, image pixels per feature pixel.
        aspect_ratios: floats, height / width.
        rounded: bool, corners of the anchor at the origin to whole pixels.
        fitted_strides: bool, the stride is the padded image's size divided by the map's, rounded down: less
            than 64 at P6 of an odd P5.

    Input: list of feature maps `[B, H_k, W_k, C]`.
    Output: list of float32 `[H_k * W_k * A, 4]`, (x1, y1, x2, y2), pixels, positions row-major, then sizes,
        ratios inner.
        Anchors that leave the image are among them.
    """

    def __init__(
        self,
        sizes=((32,), (64,), (128,), (256,), (512,)),
        strides=(4, 8, 16, 32, 64),
        aspect_ratios=(0.5, 1.0, 2.0),
        rounded=False,
        fitted_strides=False,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.sizes = [list(of_level) for of_level in sizes]
        self.strides = list(strides)
        self.aspect_ratios = list(aspect_ratios)
        self.rounded = rounded
        self.fitted_strides = fitted_strides

    def call(self, pyramid):
        levels = []
        image_size = [self.strides[0] * side for side in ops.shape(pyramid[0])[1:3]]
        for features, sizes, stride in zip(pyramid, self.sizes, self.strides, strict=True):
            height, width = ops.shape(features)[1:3]
            strides = [stride] * 2
            if self.fitted_strides:
                strides = image_size[0] // height, image_size[1] // width
            y = ops.cast(ops.arange(height) * strides[0], "float32")
            x = ops.cast(ops.arange(width) * strides[1], "float32")
            y, x = ops.meshgrid(y, x, indexing="ij")
            centres = ops.reshape(ops.stack([x, y, x, y], axis=-1), [-1, 1, 4])
            cells = [cell_anchors(size, self.aspect_ratios, self.rounded) for size in sizes]
            cell = ops.convert_to_tensor(sum(cells, []), dtype="float32")
            levels.append(ops.reshape(centres + cell, [-1, 4]))
        return levels

    def get_config(self):
        return {
            **super().get_config(),
            "sizes": self.sizes,
            "strides": self.strides,
            "aspect_ratios": self.aspect_ratios,
            "rounded": self.rounded,
            "fitted_strides": self.fitted_strides,
        }
