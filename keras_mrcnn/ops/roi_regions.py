"""Pooling of regions one after the other, from stock TensorFlow operations.

For RoIWarp, RoIPool and the largest sample of RoIAlign, where it matters that a position is exactly that of
the compiled kernels: rounded corners put samples on the border of the map and on whole pixels, and the
gradient goes to the first of equal samples. The memory is that of a few regions, besides the output.
"""

from typing import NamedTuple

import tensorflow as tf


class Axis(NamedTuple):
    """What the bins of one region read along one axis: samples, each a weighted sum of pixels, its taps.

    Attributes:
        pixels: int32 `[bins, samples, taps]`, all on the map.
        weights: float32 `[bins, samples, taps]`; 0 for what is outside the map.
        present: bool `[bins, samples]`; False for samples that a bin does not have.
    """

    pixels: tf.Tensor
    weights: tf.Tensor
    present: tf.Tensor


def divided(dividend, divisor):
    """float32, a true division: in a graph, TensorFlow multiplies by the reciprocal of a constant divisor."""
    return tf.math.divide_no_nan(dividend, tf.cast(divisor, tf.float32))


def interpolated(position, size):
    """The two pixels between which a position along one axis lies.

    Args:
        position: float32, feature pixels, finite.
        size: int32, length of the map.

    Returns:
        pixels int32 and weights float32, `[..., 2]`; weights 0 more than one pixel outside the map.
    """
    limit = tf.cast(size, tf.float32)
    inside = tf.cast((position >= -1) & (position <= limit), tf.float32)
    position = tf.clip_by_value(position, 0.0, limit - 1)
    low = tf.floor(position)
    fraction = position - low
    pixels = tf.stack([low, tf.minimum(low + 1, limit - 1)], axis=-1)
    weights = tf.stack([(1 - fraction) * inside, fraction * inside], axis=-1)
    return tf.cast(pixels, tf.int32), weights


def sampled_axis(start, extent, samples, bins, size):
    """The `Axis` of bilinear samples, evenly spaced within each bin.

    Args:
        start, extent: float32, of the region, feature pixels.
        samples: int32, per bin; less than 1 for a region without samples.
        bins: int.
        size: int32, length of the map.
    """
    count = tf.maximum(samples, 1)
    length = divided(extent, bins)
    middle = tf.range(tf.cast(count, tf.float32)) + 0.5
    edge = start + tf.range(float(bins)) * length
    pixels, weights = interpolated(edge[:, tf.newaxis] + divided(middle * length, count), size)
    return Axis(pixels, weights, tf.fill([bins, count], samples > 0))


def pool_regions(features, images, axis, bins, reduction):
    """Reads every region's samples, bin by bin, and takes their average or the first of the largest.

    Args:
        features: float `[B, H, W, C]`.
        images: int32 `[R]`, the image of each region.
        axis: function of the number of a region and 0 or 1: the `Axis` of its rows, of its columns.
        bins: (rows, columns).
        reduction: `average`, over bins that have all their samples or none, or `maximum`.

    Returns:
        `[R, rows, columns, C]` of the features' dtype, 0 in bins without samples.
    """
    count = tf.shape(images)[0]

    @tf.custom_gradient
    def pool(features):
        def gradient(upstream):
            def add(region, sums):
                rows, columns = axis(region, 0), axis(region, 1)
                shares = _shares(_read(features, images[region], rows, columns), upstream[region], reduction)
                return region + 1, _scatter(sums, shares, images[region], rows, columns, shape)

            upstream = tf.cast(tf.convert_to_tensor(upstream), tf.float32)  # which may be of tf.gather
            sums = tf.zeros([shape[0] * shape[1] * shape[2], shape[3]])
            _, sums = tf.while_loop(lambda region, _: region < count, add, (0, sums))
            return tf.cast(tf.reshape(sums, shape), features.dtype)

        def write(region, pooled):
            samples = _read(features, images[region], axis(region, 0), axis(region, 1))
            return region + 1, pooled.write(region, tf.cast(_reduced(samples, reduction), features.dtype))

        shape = tf.shape(features)
        pooled = tf.TensorArray(features.dtype, count, element_shape=[*bins, features.shape[-1]])
        _, pooled = tf.while_loop(lambda region, _: region < count, write, (0, pooled))
        return pooled.stack(), gradient

    return pool(features)


def _read(features, image, rows, columns):
    """Samples float32 `[rows, n, columns, m, C]` of n x m in a bin, and which are present `[..., 1]`."""
    top, left = tf.reduce_min(rows.pixels), tf.reduce_min(columns.pixels)
    height, width = tf.reduce_max(rows.pixels) - top + 1, tf.reduce_max(columns.pixels) - left + 1
    part = tf.slice(features, tf.stack([image, top, left, 0]), tf.stack([1, height, width, -1]))
    values = tf.cast(part[0], tf.float32)
    for axis, taps, first in ((0, rows, top), (2, columns, left)):
        pixels, weights = tf.unstack(taps.pixels - first, axis=-1), tf.unstack(taps.weights, axis=-1)
        further = [tf.newaxis] * (2 if axis == 0 else 1)
        values = sum(
            tf.gather(values, pixel, axis=axis) * weight[:, :, *further]
            for pixel, weight in zip(pixels, weights)
        )
    return values, rows.present[:, :, tf.newaxis, tf.newaxis, tf.newaxis] & columns.present[:, :, tf.newaxis]


def _reduced(samples_and_present, reduction):
    samples, present = samples_and_present
    if reduction == "average":
        return tf.reduce_mean(tf.where(present, samples, 0.0), axis=(1, 3))
    largest = tf.reduce_max(tf.where(present, samples, -float("inf")), axis=(1, 3))
    return tf.where(tf.reduce_any(present, axis=(1, 3)), largest, 0.0)


def _shares(samples_and_present, upstream, reduction):
    """The part of each bin's gradient `[rows, columns, C]` that each of its samples gets."""
    samples, present = samples_and_present
    upstream = upstream[:, tf.newaxis, :, tf.newaxis]
    n, m = tf.shape(samples)[1], tf.shape(samples)[3]
    if reduction == "average":
        return tf.where(present, upstream / tf.cast(n * m, tf.float32), 0.0)
    largest = tf.reduce_max(tf.where(present, samples, -float("inf")), axis=(1, 3), keepdims=True)
    number = tf.reshape(tf.range(n * m), [n, 1, m, 1])
    first = tf.where(present & (samples == largest), number, n * m)
    return tf.where(number == tf.reduce_min(first, axis=(1, 3), keepdims=True), upstream, 0.0)


def _scatter(sums, shares, image, rows, columns, shape):
    """`sums` `[B * H * W, C]` with the shares of a region's samples added to the pixels that these read."""
    taps = rows.pixels.shape[-1]
    row, row_weight, column, column_weight = (
        tf.reshape(part, [-1]) for axis in (rows, columns) for part in (axis.pixels, axis.weights)
    )
    shares = tf.reshape(shares, [tf.size(row) // taps, tf.size(column) // taps, shape[3]])
    shares = tf.repeat(tf.repeat(shares, taps, axis=0), taps, axis=1)
    shares *= (row_weight[:, tf.newaxis] * column_weight)[:, :, tf.newaxis]
    place = ((image * shape[1] + row) * shape[2])[:, tf.newaxis] + column
    # tf.tensor_scatter_nd_add copies all of `sums` in every turn of the loop; this works in place.
    return tf.raw_ops.ScatterNdNonAliasingAdd(
        input=sums, indices=tf.reshape(place, [-1, 1]), updates=tf.reshape(shares, [-1, shape[3]])
    )
