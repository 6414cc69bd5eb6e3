"""RoIAlign (Mask R-CNN, section 3): the compiled operation, or the same from stock TensorFlow operations.

`library.choice` says which; the stock one is the oracle of the other. It is exact: for one number of samples
per bin, `tf.image.crop_and_resize` on a map with one pixel of symmetric padding samples at exactly RoIAlign's
points and with its border rule: a sample up to one pixel outside the map takes the border's value, one
further outside counts as 0.
"""

import tensorflow as tf

from keras_mrcnn.ops import library

_GRID_BASE = 2**15  # more than the samples of a bin along one side


def roi_align(features, boxes, batch_indices, output_size, scale, sampling_ratio=2, aligned=True):
    """Average-pooled features of regions, bilinearly sampled at exact positions.

    Args:
        features: float `[B, H, W, C]`.
        boxes: float32 `[R, 4]`, (x1, y1, x2, y2), pixels of the image. No gradient flows to them.
        batch_indices: int32 `[R]`, the image of each box.
        output_size: bins along each side, an int, or two: (rows, columns).
        scale: float, feature pixels per image pixel.
        sampling_ratio: int, samples per bin along each side; 0: for each box and side as many as its bins
            are long in feature pixels, rounded up.
        aligned: False leaves out the half-pixel shift and widens boxes to at least one feature pixel.

    Returns:
        `[R, rows, columns, C]` of the features' dtype.

    Raises:
        tf.errors.InvalidArgumentError: an image that is not in the batch, on a CPU. On a GPU, where nothing
            waits for what the tensors hold, its region is 0.
    """
    settings = batch_indices, _rows_and_columns(output_size), sampling_ratio, aligned
    compiled = _compiled([features], boxes, [scale], *settings)
    return _from_stock(features, boxes, scale, *settings) if compiled is None else compiled


def _rows_and_columns(output_size):
    return [output_size] * 2 if isinstance(output_size, int) else list(output_size)


def _compiled(maps, boxes, scales, batch_indices, bins, sampling_ratio, aligned):
    """From the compiled library; None where it is not in use, or does not know the maps' dtype."""
    maps = [tf.convert_to_tensor(features) for features in maps]
    module = library.compiled()
    if module is None or maps[0].dtype not in library.TYPES:
        return None
    boxes, images = tf.stop_gradient(tf.cast(boxes, tf.float32)), tf.cast(batch_indices, tf.int32)
    method = "align" if aligned else "align_legacy"
    return library.pool(module, maps, boxes, images, scales, bins, sampling_ratio, method)


def _from_stock(features, boxes, scale, batch_indices, bins, sampling_ratio, aligned):
    boxes = tf.stop_gradient(tf.cast(boxes, tf.float32)) * scale
    boxes = tf.where(tf.math.is_finite(boxes), boxes, -1e6)  # far outside: samples of 0
    start, end = boxes[:, 1::-1], boxes[:, :1:-1]  # (y, x)
    extent = end - start if aligned else tf.maximum(end - start, 1.0)
    regions = start - (0.5 if aligned else 0.0), extent, batch_indices
    if sampling_ratio:
        return _pool(features, *regions, bins, (sampling_ratio, sampling_ratio))
    return _pool_adaptively(features, *regions, bins)


def _pool_adaptively(features, start, extent, batch_indices, bins):
    """`_pool` of the regions with one number of samples after those with another."""
    samples = tf.cast(tf.math.ceil(extent / bins), tf.int32)
    empty = tf.reduce_any(samples < 1, axis=1)
    samples = tf.maximum(samples, 1)
    grids, group_of = tf.unique(samples[:, 0] * _GRID_BASE + samples[:, 1])

    def pool_group(group, pooled):
        chosen = tf.where(group_of == group)[:, 0]
        regions = [tf.gather(part, chosen) for part in (start, extent, batch_indices)]
        grid = grids[group] // _GRID_BASE, grids[group] % _GRID_BASE
        return group + 1, pooled.write(group + 1, _pool(features, *regions, bins, grid))

    # So that there is something to put together, and a gradient, when there is no box.
    nothing = _pool(features, start[:0], extent[:0], batch_indices[:0], bins, (1, 1))
    pooled = tf.TensorArray(features.dtype, tf.size(grids) + 1, infer_shape=False).write(0, nothing)
    _, pooled = tf.while_loop(lambda group, _: group < tf.size(grids), pool_group, (0, pooled))
    pooled = tf.ensure_shape(pooled.concat(), [None, *bins, features.shape[-1]])
    in_groups = tf.argsort(group_of, stable=True)
    pooled = tf.gather(pooled, tf.argsort(in_groups))
    return tf.where(empty[:, tf.newaxis, tf.newaxis, tf.newaxis], tf.zeros([], features.dtype), pooled)


def _pool(features, start, extent, batch_indices, bins, grid):
    """Regions by corner and size, float32 `[R, 2]` (y, x), feature pixels; `grid` samples in every bin."""
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
    limit = tf.cast(size, tf.float32)
    position = first[:, tf.newaxis] + step[:, tf.newaxis] * tf.range(count, dtype=tf.float32)
    inside = tf.cast((position >= -1) & (position <= limit), tf.float32)
    position = tf.clip_by_value(position, 0.0, limit - 1)
    low = tf.floor(position)
    weight = position - low
    pixels = tf.stack([low, tf.minimum(low + 1, limit - 1)], axis=-1)
    weights = tf.stack([(1 - weight) * inside, weight * inside], axis=-1)
    flat = [tf.shape(first)[0], 2 * count]
    return tf.cast(tf.reshape(pixels, flat), tf.int32), tf.reshape(weights, flat)


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


def roi_levels(boxes, levels):
    """Pyramid level of each region (FPN paper, eq. 1, with k0 = 4 at 224 pixels).

    Args:
        boxes: float32 `[..., 4]`, pixels.
        levels: int, number of levels, P2 first.

    Returns:
        int32 `[...]`, 0 for P2.
    """
    width = tf.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    height = tf.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    level = tf.floor(4.0 + tf.math.log(tf.sqrt(width * height) / 224.0 + 1e-8) / tf.math.log(2.0))
    level = tf.where(tf.math.is_nan(level), 2.0, level)
    return tf.cast(tf.clip_by_value(level, 2.0, levels + 1.0), tf.int32) - 2


def multilevel_roi_align(pyramid, boxes, batch_indices, output_size, sampling_ratio=2, aligned=True):
    """`roi_align` of each region on the level that fits its size.

    Args:
        pyramid: list of float `[B, H_k, W_k, C]`, P2 (stride 4) first, each half the size of the one before.
        boxes, batch_indices, output_size, sampling_ratio, aligned: as in `roi_align`.

    Returns:
        `[R, output_size, output_size, C]`, in the order of `boxes`.
    """
    settings = batch_indices, _rows_and_columns(output_size), sampling_ratio, aligned
    scales = [1.0 / 2 ** (level + 2) for level in range(len(pyramid))]
    compiled = _compiled(pyramid, boxes, scales, *settings)
    return _by_level(pyramid, boxes, scales, *settings) if compiled is None else compiled


def _by_level(pyramid, boxes, scales, batch_indices, *settings):
    level_of = roi_levels(boxes, len(pyramid))
    places, pooled = [], []
    for level, (features, scale) in enumerate(zip(pyramid, scales)):
        place = tf.cast(tf.where(level_of == level)[:, 0], tf.int32)
        places.append(place)
        images = tf.gather(batch_indices, place)
        pooled.append(_from_stock(features, tf.gather(boxes, place), scale, images, *settings))
    return tf.gather(tf.concat(pooled, 0), tf.argsort(tf.concat(places, 0)))
