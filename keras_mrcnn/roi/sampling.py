"""Regions that the heads learn from: a sample of the proposals, matched (section 3.1, "Training")."""

import keras
from keras import ops

from keras_mrcnn.geometry import boxes as box_ops
from keras_mrcnn.ops import RandomSubset


class RoISampling(keras.layers.Layer):
    """Chooses regions per image, at most `foreground_fraction` of them on objects.

    The true boxes join the proposals, so that there is foreground from the first step. A region is foreground
    when its IoU with a true box is at least `foreground_iou`, else background.

    Args:
        rois: int, R, regions per image.
        foreground_fraction: float, F = R * foreground_fraction.
        foreground_iou: float.
        seed: int or None.

    Call arguments:
        proposals: float32 `[B, P, 4]`, pixels; `valid`: bool `[B, P]`.
        true_boxes: float32 `[B, G, 4]`, G >= 1; `true_valid`: bool `[B, G]`.

    Returns:
        boxes: float32 `[B, F + R, 4]`: F places for foreground, then R for background.
        matched: int32 `[B, F + R]`, index of the true box of each; meaningful for foreground.
        foreground, background: bool `[B, F + R]`; where neither, the place is empty. At most R are filled.
    """

    def __init__(self, rois=512, foreground_fraction=0.25, foreground_iou=0.5, seed=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.rois = rois
        self.foreground_fraction = foreground_fraction
        self.foreground_iou = foreground_iou
        self.seed = seed
        self.choose = RandomSubset(seed, name="choose")

    def call(self, proposals, valid, true_boxes, true_valid):
        boxes = ops.stop_gradient(ops.concatenate([proposals, true_boxes], axis=1))
        valid = ops.concatenate([valid, true_valid], axis=1)
        overlap = ops.where(true_valid[:, None, :], box_ops.iou(boxes, true_boxes), -1.0)
        best, matched = ops.max(overlap, axis=2), ops.cast(ops.argmax(overlap, axis=2), "int32")
        on_object = best >= self.foreground_iou

        most = int(self.rois * self.foreground_fraction)
        front, is_front = self.choose(valid & on_object, size=most)
        back, is_back = self.choose(valid & ~on_object, size=self.rois)
        room = self.rois - ops.sum(ops.cast(is_front, "int32"), axis=1, keepdims=True)
        is_back = is_back & (ops.arange(ops.shape(back)[1])[None] < room)

        indices = ops.concatenate([front, back], axis=1)
        return (
            ops.take_along_axis(boxes, indices[..., None], axis=1),
            ops.take_along_axis(matched, indices, axis=1),
            ops.concatenate([is_front, ops.zeros_like(is_back)], axis=1),
            ops.concatenate([ops.zeros_like(is_front), is_back], axis=1),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "rois": self.rois,
            "foreground_fraction": self.foreground_fraction,
            "foreground_iou": self.foreground_iou,
            "seed": self.seed,
        }
