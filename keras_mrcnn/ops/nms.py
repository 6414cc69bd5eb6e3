"""Greedy non-maximum suppression within groups (levels, classes), from stock TensorFlow."""

import tensorflow as tf

from keras_mrcnn.ops import library


def nms(boxes, scores, groups, valid, max_outputs, iou_threshold):
    """Boxes of each image that survive greedy non-maximum suppression, best first.

    A box is suppressed when its IoU with a kept box of the same group is strictly greater than the threshold.

    Args:
        boxes: float32 `[B, N, 4]`, (x1, y1, x2, y2), pixels, finite where valid.
        scores: float32 `[B, N]`.
        groups: int32 `[B, N]`; boxes of different groups never suppress each other.
        valid: bool `[B, N]`; the others take no part.
        max_outputs: int, the most boxes of one image to keep, over all groups.
        iou_threshold: float.

    Returns:
        indices: int32 `[B, max_outputs]`, into the N, by descending score, ties by index; padded with 0.
        kept: bool `[B, max_outputs]`, False for the padding.
    """

    module = library.asked()
    if hasattr(module, "keras_mrcnn_nms"):  # not the compiled library, which has none
        return module.keras_mrcnn_nms(_apart(boxes, groups), scores, valid, max_outputs, iou_threshold)

    def one_image(image):
        boxes, scores, groups, valid = image
        candidates = tf.where(valid)[:, 0]
        shifted = _apart(tf.gather(boxes, candidates), tf.gather(groups, candidates))
        kept = tf.image.non_max_suppression(
            shifted, tf.gather(scores, candidates), max_outputs, iou_threshold
        )
        indices = tf.cast(tf.gather(candidates, kept), tf.int32)
        padding = max_outputs - tf.size(indices)
        return (
            tf.ensure_shape(tf.pad(indices, [[0, padding]]), [max_outputs]),
            tf.range(max_outputs) < tf.size(indices),
        )

    return tf.map_fn(
        one_image,
        (boxes, scores, groups, valid),
        fn_output_signature=(tf.TensorSpec([max_outputs], tf.int32), tf.TensorSpec([max_outputs], tf.bool)),
    )


def _apart(boxes, groups):
    """The boxes `[..., N, 4]`, moved so that those of different groups cannot touch.

    Every group in a cell of its own, wider than all boxes of the image. A square of cells keeps the
    coordinates small, so that float32 still resolves them.
    """
    extent = tf.reduce_max(boxes, [-2, -1], True) - tf.reduce_min(boxes, [-2, -1], True) + 1
    count = tf.cast(tf.maximum(tf.reduce_max(groups, -1, True), 0) + 1, tf.float32)
    columns = tf.cast(tf.math.ceil(tf.sqrt(count)), tf.int32)
    cell = tf.cast(tf.stack([groups % columns, groups // columns], axis=-1), tf.float32)
    return boxes + tf.concat([cell, cell], -1) * extent
