"""Detections: scored and refined regions to the few that are reported (section 3.1, "Inference")."""

import keras
from keras import ops

from keras_mrcnn.geometry import boxes as box_ops
from keras_mrcnn.ops import nms
from keras_mrcnn.roi.pooling import put_valid


class Detections(keras.layers.Layer):
    """Softmax, box refinement, score threshold, suppression within each class, the best of all classes.

    Args:
        score_threshold: float; only scores above it count.
        nms_iou: float; a box is suppressed by a better one of its class with a greater IoU.
        max_detections: int, D, per image.
        box_weights: factors of dx, dy, dw, dh that the box head learnt with.
        min_size: float, pixels; boxes of less width or height are dropped.

    Call arguments:
        proposals: float32 `[B, P, 4]`, pixels; `valid`: bool `[B, P]`.
        class_logits: float32 `[N, C + 1]`, background last, of the valid proposals of all images.
        deltas: float32 `[N, C, 4]`, or `[N, 1, 4]` for all classes, likewise.
        image_sizes: int32 `[B, 2]`, valid height and width in pixels.

    Returns:
        boxes: float32 `[B, D, 4]`, pixels, clipped to the image, by descending score, padded with zeros.
        scores: float32 `[B, D]`, padded with zeros.
        classes: int32 `[B, D]`, 0 .. C - 1, padded with zeros.
        valid: bool `[B, D]`.
    """

    def __init__(
        self,
        score_threshold=0.05,
        nms_iou=0.5,
        max_detections=100,
        box_weights=(10.0, 10.0, 5.0, 5.0),
        min_size=0.0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections
        self.min_size = min_size
        self.box_weights = list(box_weights)

    def call(self, proposals, valid, class_logits, deltas, image_sizes):
        num_classes = class_logits.shape[1] - 1
        scores = put_valid(ops.softmax(class_logits)[:, :num_classes], valid)
        boxes = box_ops.decode(put_valid(deltas, valid), proposals[:, :, None], self.box_weights)
        sizes = ops.cast(image_sizes, "float32")[:, None, None, :]
        finite = ops.all(ops.isfinite(boxes), axis=-1) & ops.isfinite(scores)
        boxes = box_ops.clip(ops.where(finite[..., None], boxes, 0.0), sizes[..., 0], sizes[..., 1])
        candidate = finite & valid[..., None] & (scores > self.score_threshold)
        candidate = candidate & (box_ops.shorter_edge(boxes) >= self.min_size)

        batch = ops.shape(boxes)[0]
        boxes = ops.reshape(boxes, [batch, -1, 4])
        scores = ops.reshape(scores, [batch, -1])
        classes = ops.reshape(
            ops.broadcast_to(ops.arange(num_classes, dtype="int32"), ops.shape(candidate)), [batch, -1]
        )
        candidate = ops.reshape(candidate, [batch, -1])
        kept, valid = nms(boxes, scores, classes, candidate, self.max_detections, self.nms_iou)
        boxes = ops.where(valid[..., None], ops.take_along_axis(boxes, kept[..., None], axis=1), 0.0)
        scores = ops.where(valid, ops.take_along_axis(scores, kept, axis=1), 0.0)
        classes = ops.where(valid, ops.take_along_axis(classes, kept, axis=1), 0)
        return boxes, scores, classes, valid

    def get_config(self):
        return {
            **super().get_config(),
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
            "max_detections": self.max_detections,
            "min_size": self.min_size,
            "box_weights": self.box_weights,
        }
