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
    padded = tf.pad(tf.cast(features, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    samples = output_size * sampling_ratio
    boxes = tf.stop_gradient(tf.cast(boxes, tf.float32)) * scale
    boxes = tf.where(tf.math.is_finite(boxes), boxes, -1e6)  # far outside: samples of 0
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    # In padded feature pixels, centres at integers. crop_and_resize wants first and last sample / (size - 1).
    shift = 0.5 if aligned else 1.0

    def sampled(low, high, size):
        length = high - low if aligned else tf.maximum(high - low, 1.0)
        step = length / samples
        first = low + shift + 0.5 * step
        last = first + step * (samples - 1)
        return first / (size - 1), last / (size - 1)

    padded_shape = tf.cast(tf.shape(padded), tf.float32)
    top, bottom = sampled(y1, y2, padded_shape[1])
    left, right = sampled(x1, x2, padded_shape[2])
    crops = tf.image.crop_and_resize(
        padded, tf.stack([top, left, bottom, right], axis=-1), batch_indices, [samples, samples]
    )
    if sampling_ratio > 1:
        crops = tf.nn.avg_pool2d(crops, sampling_ratio, sampling_ratio, "VALID")
    return tf.cast(crops, features.dtype)


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
