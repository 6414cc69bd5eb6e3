"""RoIPool (Fast R-CNN, section 2.1) from stock TensorFlow operations."""

import tensorflow as tf

from keras_mrcnn.ops.roi_regions import Axis, divided, pool_regions


def roi_pool(features, start, extent, batch_indices, bins):
    """The largest pixel of each bin; the gradient goes to the first of equal ones.

    A bin is widened to whole pixels, so neighbouring bins share some.

    Args:
        features: float `[B, H, W, C]`.
        start, extent: float32 `[R, 2]`, (y, x), whole feature pixels; the last pixel of a region is included.
        batch_indices: int32 `[R]`, the image of each region.
        bins: (rows, columns).

    Returns:
        `[R, rows, columns, C]` of the features' dtype, 0 in bins without a pixel of the map.
    """
    shape = tf.shape(features)

    def axis(region, k):
        return _pixels(start[region, k], extent[region, k], bins[k], shape[k + 1])

    return pool_regions(features, batch_indices, axis, bins, "maximum")


def _pixels(start, extent, bins, size):
    """The `Axis` of whole pixels."""
    edges = tf.range(bins + 1.0) * divided(extent, bins)
    begin = _on_map(start + tf.floor(edges[:-1]), size)[:, tf.newaxis]
    end = _on_map(start + tf.math.ceil(edges[1:]), size)[:, tf.newaxis]
    pixels = begin + tf.range(tf.maximum(tf.reduce_max(end - begin), 1))
    weights = tf.ones_like(pixels, tf.float32)[:, :, tf.newaxis]
    return Axis(tf.minimum(pixels, size - 1)[:, :, tf.newaxis], weights, pixels < end)


def _on_map(position, size):
    return tf.cast(tf.clip_by_value(position, 0.0, tf.cast(size, tf.float32)), tf.int32)
