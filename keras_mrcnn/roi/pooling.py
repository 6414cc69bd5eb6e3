"""Regions to features of one size, on the map, or the pyramid level, that fits each region."""

import keras
from keras import ops

from keras_mrcnn.ops import multilevel_roi_align


class RoIPooling(keras.layers.Layer):
    """RoIAlign, RoIWarp or RoIPool of the valid regions of all images, in one list without padding.

    Args:
        pool_size: int, S, side of the pooled features.
        strides: list of int, image pixels per feature pixel of the maps that are pooled from: P2 to P5 of an
            FPN, by the size of the region, or one map.
        sampling_ratio: int, samples per bin along each side; 0: as many as fit, see `ops.roi_align`.
        aligned: bool, see `ops.roi_align`.
        operation: `align`, `warp` or `pool` (table 2c of the paper), see `ops.roi_align`.
        reduction: `average` or `maximum`; `maximum` for `pool`.

    Call arguments:
        maps: list of `[B, H_k, W_k, C]`, the finest first; those behind the last stride are not pooled from.
        boxes: float32 `[B, R, 4]`, pixels.
        valid: bool `[B, R]`.

    Returns:
        `[N, S, S, C]`, N the number of valid regions, in row-major order of `valid`.
    """

    def __init__(
        self,
        pool_size=7,
        strides=(4, 8, 16, 32),
        sampling_ratio=2,
        aligned=True,
        operation="align",
        reduction="average",
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.pool_size = pool_size
        self.strides = list(strides)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.operation = operation
        self.reduction = reduction

    def call(self, maps, boxes, valid):
        image, place = ops.nonzero(valid)
        flat = image * ops.shape(boxes)[1] + place
        return multilevel_roi_align(
            maps[: len(self.strides)],
            ops.take(ops.reshape(boxes, [-1, 4]), flat, axis=0),
            ops.cast(image, "int32"),
            self.pool_size,
            self.strides,
            self.sampling_ratio,
            self.aligned,
            self.operation,
            self.reduction,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "pool_size": self.pool_size,
            "strides": list(self.strides),
            "sampling_ratio": self.sampling_ratio,
            "aligned": self.aligned,
            "operation": self.operation,
            "reduction": self.reduction,
        }


def take_valid(values, valid):
    """Rows `[N, ...]` of `values` `[B, R, ...]` where `valid` `[B, R]`, in the order of `RoIPooling`."""
    flat = ops.nonzero(ops.reshape(valid, [-1]))[0]
    return ops.take(ops.reshape(values, [-1, *values.shape[2:]]), flat, axis=0)


def put_valid(rows, valid):
    """The inverse of `take_valid`: `[B, R, ...]` with `rows` `[N, ...]` where valid, zeros elsewhere."""
    places = ops.stack(ops.nonzero(valid), axis=-1)
    return ops.scatter(places, rows, (*ops.shape(valid), *rows.shape[1:]))


def one_at_least(pooled):
    """`[max(N, 1), ...]`: one region of zeros when there is none.

    TensorFlow's oneDNN convolution gives nothing a wrong shape.
    """
    missing = ops.maximum(1 - ops.shape(pooled)[0], 0)
    return ops.pad(pooled, [[0, missing], [0, 0], [0, 0], [0, 0]])
