"""Proposals: the RPN's scores and deltas to a fixed number of regions per image (FPN paper, section 5.1)."""

import keras
from keras import ops

from keras_mrcnn.geometry import boxes as box_ops
from keras_mrcnn.ops import nms


class Proposals(keras.layers.Layer):
    """The best boxes of every level, moved, clipped, freed of duplicates; then the best of all levels.

    a. Of each level, the anchors with the highest scores (`pre_nms`).
    b. Decode, clip to the image, drop what is not finite or has no area.
    c. Non-maximum suppression within each level, best `post_nms` of all levels together.

    No gradient flows through.

    Args:
        pre_nms_train, pre_nms_test: int, anchors kept per level before suppression.
        post_nms_train, post_nms_test: int, P, proposals per image.
        nms_iou: float; a box is suppressed by a better one with a greater IoU.
        min_size: float, pixels; boxes of less width or height are dropped.

    Call arguments:
        logits, deltas, anchors: lists over levels of `[B, A_k]`, `[B, A_k, 4]`, `[A_k, 4]`.
        image_sizes: int32 `[B, 2]`, valid height and width in pixels.
        training: bool, which of the limits hold.

    Returns:
        boxes: float32 `[B, P, 4]`, pixels, by descending score, padded with zeros.
        scores: float32 `[B, P]`, logits, padded with zeros.
        valid: bool `[B, P]`.
    """

    def __init__(
        self,
        pre_nms_train=2000,
        pre_nms_test=1000,
        post_nms_train=1000,
        post_nms_test=1000,
        nms_iou=0.7,
        min_size=0.0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.pre_nms_train = pre_nms_train
        self.pre_nms_test = pre_nms_test
        self.post_nms_train = post_nms_train
        self.post_nms_test = post_nms_test
        self.nms_iou = nms_iou
        self.min_size = min_size

    def call(self, logits, deltas, anchors, image_sizes, training=False):
        pre_nms = self.pre_nms_train if training else self.pre_nms_test
        post_nms = self.post_nms_train if training else self.post_nms_test
        scores, boxes, levels = [], [], []
        for level in range(len(logits)):
            score, index = ops.top_k(
                ops.stop_gradient(logits[level]), ops.minimum(pre_nms, ops.shape(logits[level])[1])
            )
            delta = ops.take_along_axis(ops.stop_gradient(deltas[level]), index[..., None], axis=1)
            boxes.append(box_ops.decode(delta, ops.take(anchors[level], index, axis=0)))
            scores.append(score)
            levels.append(ops.full(ops.shape(score), level, dtype="int32"))
        boxes, scores, levels = (ops.concatenate(x, axis=1) for x in (boxes, scores, levels))
        sizes = ops.cast(image_sizes, "float32")[:, None, :]
        finite = ops.all(ops.isfinite(boxes), axis=-1) & ops.isfinite(scores)
        boxes = box_ops.clip(ops.where(finite[..., None], boxes, 0.0), sizes[..., 0], sizes[..., 1])
        edge = box_ops.shorter_edge(boxes)
        valid = finite & (edge > 0) & (edge >= self.min_size)

        kept, valid = nms(boxes, scores, levels, valid, post_nms, self.nms_iou)
        boxes = ops.where(valid[..., None], ops.take_along_axis(boxes, kept[..., None], axis=1), 0.0)
        scores = ops.where(valid, ops.take_along_axis(scores, kept, axis=1), 0.0)
        return boxes, scores, valid

    def get_config(self):
        return {
            **super().get_config(),
            "pre_nms_train": self.pre_nms_train,
            "pre_nms_test": self.pre_nms_test,
            "post_nms_train": self.post_nms_train,
            "post_nms_test": self.post_nms_test,
            "nms_iou": self.nms_iou,
            "min_size": self.min_size,
        }
