"""The average of RoIAlign's samples from stock TensorFlow operations, regions together.

It is exact: for one number of samples per bin, `tf.image.crop_and_resize` on a map with one pixel of
symmetric padding samples at exactly RoIAlign's points and with its border rule: a sample up to one pixel
outside the map takes the border's value, one further outside counts as 0.
"""

import tensorflow as tf

from keras_mrcnn.ops.roi_regions import interpolated

_GRID_BASE = 2**15  # more than the samples of a bin along one side


def average_adaptively(features, start, extent, batch_indices, bins, samples):
    """`average` with a number of samples for each region: those with one number after those with another.

    Args:
        samples: int32 `[R, 2]`, per bin along y and x; less than 1 for a region without samples.
    """
    empty = tf.reduce_any(samples < 1, axis=1)
    samples = tf.maximum(samples, 1)
    grids, group_of = tf.unique(samples[:, 0] * _GRID_BASE + samples[:, 1])

    def pool_group(group, pooled):
        chosen = tf.where(group_of == group)[:, 0]
        regions = [tf.gather(part, chosen) for part in (start, extent, batch_indices)]
        grid = grids[group] // _GRID_BASE, grids[group] % _GRID_BASE
        return group + 1, pooled.write(group + 1, average(features, *regions, bins, grid))

    # So that there is something to put together, and a gradient, when there is no box.
    nothing = average(features, start[:0], extent[:0], batch_indices[:0], bins, (1, 1))
    pooled = tf.TensorArray(features.dtype, tf.size(grids) + 1, infer_shape=False).write(0, nothing)
    _, pooled = tf.while_loop(lambda group, _: group < tf.size(grids), pool_group, (0, pooled))
    pooled = tf.ensure_shape(pooled.concat(), [None, *bins, features.shape[-1]])
    in_groups = tf.argsort(group_of, stable=True)
    pooled = tf.gather(pooled, tf.argsort(in_groups))
    return tf.where(empty[:, tf.newaxis, tf.newaxis, tf.newaxis], tf.zeros([], features.dtype), pooled)


def average(features, start, extent, batch_indices, bins, grid):
    """The average of bilinear samples, evenly spaced within each bin.

    Args:
        features: float `[B, H, W, C]`.
        start, extent: float32 `[R, 2]`, (y, x), of the regions, feature pixels.
        batch_indices: int32 `[R]`, the image of each region.
        bins: (rows, columns).
        grid: samples per bin along y and x, int or int32.

    Returns:
        `[R, rows, columns, C]` of the features' dtype.
    """
    counts = [bins[0] * grid[0], bins[1] * grid[1]]
    axes = []
    for axis, count in enumerate(counts):
        step = extent[:, axis] / tf.cast(count, tf.float32)
        axes.append((start[:, axis] + 0.5 * step, step, count))  # the first sample

    @tf.custom_gradient
    def pool(features):
        def gradient(upstream):
            taps = [_taps(*axis, size) for axis, size in zip(axes, tf.unstack(shape[1:3]))]
            spread = _scatter(tf.cast(upstream, tf.float32), batch_indices, *taps, grid, shape)
            return tf.cast(spread, features.dtype)

        shape = tf.shape(features)
        padded = tf.pad(tf.cast(features, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        edges = []  # the first and the last sample, 1 where the map (padded by one pixel) ends
        for (first, step, count), size in zip(axes, tf.unstack(tf.cast(shape[1:3], tf.float32))):
            last = first + step * tf.cast(count - 1, tf.float32)
            edges.append(((first + 1) / (size + 1), (last + 1) / (size + 1)))
        (top, bottom), (left, right) = edges
        crops = tf.image.crop_and_resize(
            padded, tf.stack([top, left, bottom, right], axis=-1), batch_indices, tf.stack(counts)
        )
        if isinstance(grid[0], int):
            pooled = tf.nn.avg_pool2d(crops, grid, grid, "VALID")
        else:
            crops = tf.reshape(crops, [-1, bins[0], grid[0], bins[1], grid[1], features.shape[-1]])
            pooled = tf.reduce_mean(crops, axis=(2, 4))
        return tf.cast(pooled, features.dtype), gradient

    return pool(features)


def _taps(first, step, count, size):
    """The two pixels that each sample along one axis reads, and their weights.

    Returns:
        int32 and float32 `[R, 2 * count]`; weight 0 for samples more than one pixel outside the map.
    """
    position = first[:, tf.newaxis] + step[:, tf.newaxis] * tf.range(count, dtype=tf.float32)
    return [tf.reshape(part, [tf.shape(first)[0], 2 * count]) for part in interpolated(position, size)]


def _scatter(upstream, batch_indices, rows, columns, grid, shape):
    """Gradient `[B, H, W, C]` of the average over samples: every pixel's share of every bin.

    TensorFlow's own gradient of `crop_and_resize` adds from several threads at once on a CPU and loses some
    of the sums; this one does not.
    """
    (row, row_weight), (column, column_weight) = rows, columns
    weight = row_weight[:, :, tf.newaxis] * column_weight[:, tf.newaxis, :]
    weight /= tf.cast(grid[0] * grid[1], tf.float32)
    place = (batch_indices[:, tf.newaxis] * shape[1] + row)[:, :, tf.newaxis] * shape[2]
    place += column[:, tf.newaxis, :]
    shares = tf.repeat(tf.repeat(upstream, 2 * grid[0], axis=1), 2 * grid[1], axis=2)
    sums = tf.math.unsorted_segment_sum(
        tf.reshape(shares * weight[..., tf.newaxis], [-1, shape[3]]),
        tf.reshape(place, [-1]),
        shape[0] * shape[1] * shape[2],
    )
    return tf.reshape(sums, shape)
