"""What the RPN learns: a label and a target box for a sample of the anchors (Faster R-CNN, section 3.1.2)."""

import keras
from keras import ops

from keras_mrcnn.geometry import boxes as box_ops
from keras_mrcnn.ops import RandomSubset


class RPNTargets(keras.layers.Layer):
    """Labels anchors by their overlap with the true boxes, and samples some of them.

    An anchor is positive (i) when its IoU with a true box is the highest that box has, ties included, or
    (ii) when its IoU with any true box is at least `positive_iou`; negative when its highest IoU is below
    `negative_iou` and (i) does not hold. The others are ignored. Its target is the true box that it overlaps
    most. Padded true boxes match nothing; without true boxes every anchor is negative.

    Args:
        positive_iou, negative_iou: floats.
        samples: int, S, anchors per image.
        positive_fraction: float, at most so much of the sample is positive; negatives fill up.
        seed: int or None.

    Call arguments:
        anchors: float32 `[A, 4]`, pixels.
        true_boxes: float32 `[B, G, 4]`, pixels.
        true_valid: bool `[B, G]`.

    Returns:
        indices: int32 `[B, S']`, sampled anchors, S' = S + S * positive_fraction (or less when A is small).
        labels: float32 `[B, S']`, 1 positive, 0 negative.
        weights: float32 `[B, S']`, 1 for sampled anchors, 0 for padding; at most S ones.
        deltas: float32 `[B, S', 4]`, targets; meaningful where positive.
    """

    def __init__(
        self, positive_iou=0.7, negative_iou=0.3, samples=256, positive_fraction=0.5, seed=None, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.samples = samples
        self.positive_fraction = positive_fraction
        self.seed = seed
        self.choose = RandomSubset(seed, name="choose")

    def call(self, anchors, true_boxes, true_valid):
        labels, matched = label_anchors(anchors, true_boxes, true_valid, self.positive_iou, self.negative_iou)
        most = int(self.samples * self.positive_fraction)
        positive, is_positive = self.choose(labels == 1, size=most)
        negative, is_negative = self.choose(labels == 0, size=self.samples)
        room = self.samples - ops.sum(ops.cast(is_positive, "int32"), axis=1, keepdims=True)
        is_negative = is_negative & (ops.arange(ops.shape(negative)[1])[None] < room)

        indices = ops.concatenate([positive, negative], axis=1)
        weights = ops.cast(ops.concatenate([is_positive, is_negative], axis=1), "float32")
        labels = ops.concatenate([ops.ones_like(positive), ops.zeros_like(negative)], axis=1)
        matched = ops.take_along_axis(matched, indices, axis=1)
        boxes = ops.take_along_axis(true_boxes, matched[..., None], axis=1)
        deltas = box_ops.encode(boxes, ops.take(anchors, indices, axis=0))
        return indices, ops.cast(labels, "float32"), weights, deltas

    def get_config(self):
        return {
            **super().get_config(),
            "positive_iou": self.positive_iou,
            "negative_iou": self.negative_iou,
            "samples": self.samples,
            "positive_fraction": self.positive_fraction,
            "seed": self.seed,
        }


def label_anchors(anchors, true_boxes, true_valid, positive_iou=0.7, negative_iou=0.3):
    """Label of every anchor and the true box that it overlaps most.

    Args:
        anchors: float32 `[A, 4]`.
        true_boxes: float32 `[B, G, 4]`, G >= 1.
        true_valid: bool `[B, G]`.

    Returns:
        labels: int32 `[B, A]`: 1 positive, 0 negative, -1 ignored.
        matched: int32 `[B, A]`, index into the G.
    """
    overlap = box_ops.iou(true_boxes, anchors[None])
    overlap = ops.where(true_valid[..., None], overlap, -1.0)  # [B, G, A]
    best, matched = ops.max(overlap, axis=1), ops.argmax(overlap, axis=1)
    labels = ops.where(best < negative_iou, 0, -1)
    labels = ops.where(best >= positive_iou, 1, labels)
    # Case (i): also the best anchors of a true box that no anchor covers well; never of a padded one.
    highest = ops.max(overlap, axis=2, keepdims=True)
    is_best = (overlap == highest) & (highest > 0)
    return ops.where(ops.any(is_best, axis=1), 1, labels), ops.cast(matched, "int32")
