"""RoIAlign (Mask R-CNN, section 3) from stock TensorFlow operations.

For a fixed number of samples per bin, `tf.image.crop_and_resize` on a map with one pixel of symmetric
padding samples at exactly RoIAlign's points and with its border rule: a sample up to one pixel outside the
map takes the border's value, one further outside counts as 0.
"""

import tensorflow as tf


def roi_align(features, boxes, batch_indices, output_size, scale, sampling_ratio=2, aligned=True):
    """Average-pooled features of regions, bilinearly sampled at exact positions.

    Args:
        features: float `[B, H, W, C]`.
        boxes: float32 `[R, 4]`, (x1, y1, x2, y2), pixels of the image. No gradient flows to them.
        batch_indices: int32 `[R]`, the image of each box.
        output_size: int, bins along each side.
        scale: float, feature pixels per image pixel.
        sampling_ratio: int >= 1, samples per bin along each side.
        aligned: False leaves out the half-pixel shift and widens boxes to at least one feature pixel.

    Returns:
        `[R, output_size, output_size, C]` of the features' dtype.
    """
    boxes = tf.stop_gradient(tf.cast(boxes, tf.float32)) * scale
    boxes = tf.where(tf.math.is_finite(boxes), boxes, -1e6)  # far outside: samples of 0
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    samples = output_size * sampling_ratio

    def first_and_step(low, high):
        length = high - low if aligned else tf.maximum(high - low, 1.0)
        step = length / samples
        return low + 0.5 * step - (0.5 if aligned else 0.0), step

    rows, columns = first_and_step(y1, y2), first_and_step(x1, x2)

    @tf.custom_gradient
    def pool(features):
        def gradient(upstream):
            taps = [
                _taps(*axis, samples, size) for axis, size in zip((rows, columns), tf.unstack(shape[1:3]))
            ]
            spread = _scatter(tf.cast(upstream, tf.float32), batch_indices, *taps, shape)
            return tf.cast(spread, features.dtype)

        shape = tf.shape(features)
        padded = tf.pad(tf.cast(features, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        edges = []  # the first and the last sample, 1 where the map (padded by one pixel) ends
        for (first, step), size in zip((rows, columns), tf.unstack(tf.cast(shape[1:3], tf.float32))):
            edges.append(((first + 1) / (size + 1), (first + 1 + step * (samples - 1)) / (size + 1)))
        (top, bottom), (left, right) = edges
        crops = tf.image.crop_and_resize(
            padded, tf.stack([top, left, bottom, right], axis=-1), batch_indices, [samples, samples]
        )
        if sampling_ratio > 1:
            crops = tf.nn.avg_pool2d(crops, sampling_ratio, sampling_ratio, "VALID")
        return tf.cast(crops, features.dtype), gradient

    return pool(features)


def _taps(first, step, samples, size):
    """The two pixels that each sample along one axis reads, and their weights.

    Returns:
        int32 and float32 `[R, 2 * samples]`; weight 0 for samples more than one pixel outside the map.
    """
    limit = tf.cast(size, tf.float32)
    position = first[:, tf.newaxis] + step[:, tf.newaxis] * tf.range(samples, dtype=tf.float32)
    inside = tf.cast((position >= -1) & (position <= limit), tf.float32)
    position = tf.clip_by_value(position, 0.0, limit - 1)
    low = tf.floor(position)
    weight = position - low
    pixels = tf.stack([low, tf.minimum(low + 1, limit - 1)], axis=-1)
    weights = tf.stack([(1 - weight) * inside, weight * inside], axis=-1)
    flat = [tf.shape(first)[0], 2 * samples]
    return tf.cast(tf.reshape(pixels, flat), tf.int32), tf.reshape(weights, flat)


def _scatter(upstream, batch_indices, rows, columns, shape):
    """Gradient `[B, H, W, C]` of the average over samples: every pixel's share of every bin.

    TensorFlow's own gradient of `crop_and_resize` adds from several threads at once on a CPU and loses some
    of the sums; this one does not.
    """
    (row, row_weight), (column, column_weight) = rows, columns
    each = tf.shape(row)[1] // tf.shape(upstream)[1]  # taps per bin
    weight = row_weight[:, :, tf.newaxis] * column_weight[:, tf.newaxis, :]
    weight *= 4.0 / tf.cast(each * each, tf.float32)  # two taps per sample and axis: the mean over samples
    place = (batch_indices[:, tf.newaxis] * shape[1] + row)[:, :, tf.newaxis] * shape[2]
    place += column[:, tf.newaxis, :]
    shares = tf.repeat(tf.repeat(upstream, each, axis=1), each, axis=2) * weight[..., tf.newaxis]
    sums = tf.math.unsorted_segment_sum(
        tf.reshape(shares, [-1, shape[3]]), tf.reshape(place, [-1]), shape[0] * shape[1] * shape[2]
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


def multilevel_roi_align(pyramid, boxes, batch_indices, output_size, sampling_ratio=2):
    """`roi_align` of each region on the level that fits its size.

    Args:
        pyramid: list of float `[B, H_k, W_k, C]`, P2 (stride 4) first, each half the size of the one before.
        boxes, batch_indices, output_size, sampling_ratio: as in `roi_align`.

    Returns:
        `[R, output_size, output_size, C]`, in the order of `boxes`.
    """
    level_of = roi_levels(boxes, len(pyramid))
    places, pooled = [], []
    for level, features in enumerate(pyramid):
        place = tf.cast(tf.where(level_of == level)[:, 0], tf.int32)
        places.append(place)
        pooled.append(
            roi_align(
                features,
                tf.gather(boxes, place),
                tf.gather(batch_indices, place),
                output_size,
                1.0 / 2 ** (level + 2),
                sampling_ratio,
            )
        )
    return tf.gather(tf.concat(pooled, 0), tf.argsort(tf.concat(places, 0)))
