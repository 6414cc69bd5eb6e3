"""What the network finds to what a served model answers: the last station, inside the graph.

In come detections in the network frame; out go the outputs of a signature, in the source frame. Letters: B
images, D detections at most, M mask side, K keypoints.
"""

import tensorflow as tf

from keras_mrcnn.serving import rle
from keras_mrcnn.serving.documents import category_ids

MASKS = ("rle", "box", "png", "none")


def answer(found, network_sizes, source_sizes, categories, masks, paste):
    """The outputs of a signature, with the numbers that `Results.from_detections` gives.

    Args:
        found: dict, what `MaskRCNN` returns.
        network_sizes: int32 `[B, 2]`, height and width of each image in the network frame, without padding.
        source_sizes: int32 `[B, 2]`, of the image as decoded.
        categories: list of `Category`, in the order of the class indices.
        masks: one of `MASKS`.
        paste: how masks come to pixels, see `config.MaskHead`.

    Returns:
        dict, see `documents.OUTPUTS`.
    """
    sizes = tf.cast(source_sizes, tf.float32)
    scales = tf.cast(source_sizes, tf.float64) / tf.cast(tf.maximum(network_sizes, 1), tf.float64)
    limits = tf.gather(sizes, [1, 0, 1, 0], axis=1)[:, None]  # [B, 1, 4], of x1, y1, x2, y2
    boxes = found["boxes"] * tf.cast(tf.gather(scales, [1, 0, 1, 0], axis=1), tf.float32)[:, None]
    boxes = tf.minimum(tf.maximum(boxes, 0.0), limits)
    valid = tf.range(tf.shape(boxes)[1]) < found["num_detections"][:, None]
    valid &= (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])

    rows = tf.range(tf.shape(boxes)[1])
    order = tf.argsort(tf.where(valid, rows, rows + tf.size(rows)), axis=1)  # the dropped go to the end
    valid = tf.gather(valid, order, batch_dims=1)

    def kept(values):
        values = tf.gather(values, order, batch_dims=1)
        mask = tf.reshape(valid, tf.concat([tf.shape(valid), tf.ones(values.shape.rank - 2, tf.int32)], 0))
        return tf.where(mask, values, tf.zeros([], values.dtype))

    boxes, classes = kept(boxes), tf.gather(found["classes"], order, batch_dims=1)
    ids = tf.constant(category_ids(categories), tf.int64)
    outputs = {
        "detection_boxes": tf.gather(boxes / tf.maximum(limits, 1.0), [1, 0, 3, 2], axis=2),
        "detection_boxes_pixels": boxes,
        "detection_scores": kept(found["scores"]),
        "detection_classes": tf.where(valid, tf.gather(ids, classes), 0),
        "detection_class_names": tf.where(valid, tf.gather([c.name for c in categories], classes), ""),
        "num_detections": tf.reduce_sum(tf.cast(valid, tf.int32), axis=1),
        "image_sizes": source_sizes,
    }
    if "keypoints" in found:
        outputs |= _keypoints(kept(found["keypoints"]), scales, limits)
    if "masks" in found and masks != "none":
        # TensorFlow Serving's REST interface writes bytes (in base64) only under a name with this ending.
        name = "detection_masks_bytes" if masks == "png" else "detection_masks"
        outputs[name] = _masks(kept(found["masks"]), boxes, source_sizes, valid, masks, paste)
    return outputs


def _keypoints(keypoints, scales, limits):
    points = tf.cast(keypoints[..., :2], tf.float64) * tf.gather(scales, [1, 0], axis=1)[:, None, None]
    points = tf.cast(points, tf.float32)
    parts = points / tf.maximum(limits[:, :, None, :2], 1.0)
    return {
        "detection_keypoints": tf.gather(parts, [1, 0], axis=3),
        "detection_keypoints_pixels": points,
        "detection_keypoint_scores": keypoints[..., 2],
    }


def _masks(probabilities, boxes, sizes, valid, masks, paste):
    if masks == "box":
        return probabilities
    batch, detections, side, _ = tf.unstack(tf.shape(probabilities))
    encode = rle.png if masks == "png" else rle.run_lengths
    with tf.device("CPU"):  # strings live there, and a GPU would wait for each detection
        encoded = encode(
            tf.reshape(probabilities, [-1, side, side]),
            tf.reshape(boxes, [-1, 4]),
            tf.repeat(sizes, detections, axis=0),
            tf.reshape(valid, [-1]),
            paste,
        )
        return tf.reshape(encoded, [batch, detections])
