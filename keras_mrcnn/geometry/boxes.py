"""Boxes: THE coordinate convention, and the pure functions on it.

A box is (x1, y1, x2, y2), float, in pixels; pixel i covers [i, i + 1], so an image of width W spans [0, W]
and a width is x2 - x1. All functions take and return `[..., 4]` tensors of `keras.ops`.
"""

import math

from keras import ops

MAX_LOG_SCALE = math.log(1000.0 / 16)


def area(boxes):
    """Area `[...]` of boxes `[..., 4]`; 0 for reversed ones."""
    width = ops.maximum(boxes[..., 2] - boxes[..., 0], 0)
    height = ops.maximum(boxes[..., 3] - boxes[..., 1], 0)
    return width * height


def shorter_edge(boxes):
    """The smaller of width and height `[...]` of boxes `[..., 4]`; not above 0 for one without area."""
    return ops.minimum(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def iou(a, b):
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a: float `[..., N, 4]`.
        b: float `[..., M, 4]`.

    Returns:
        float `[..., N, M]`; 0 where the union is empty.
    """
    a, b = ops.expand_dims(a, -2), ops.expand_dims(b, -3)
    left, top = ops.maximum(a[..., 0], b[..., 0]), ops.maximum(a[..., 1], b[..., 1])
    right, bottom = ops.minimum(a[..., 2], b[..., 2]), ops.minimum(a[..., 3], b[..., 3])
    intersection = ops.maximum(right - left, 0) * ops.maximum(bottom - top, 0)
    union = area(a) + area(b) - intersection
    return ops.where(union > 0, intersection / ops.where(union > 0, union, 1.0), 0.0)


def clip(boxes, height, width):
    """Boxes cut to the image.

    Args:
        boxes: float `[..., 4]`.
        height, width: floats, or tensors that broadcast against `[...]`, pixels.
    """
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return ops.stack(
        [
            ops.clip(x1, 0.0, width),
            ops.clip(y1, 0.0, height),
            ops.clip(x2, 0.0, width),
            ops.clip(y2, 0.0, height),
        ],
        axis=-1,
    )


def encode(boxes, anchors, weights=(1.0, 1.0, 1.0, 1.0)):
    """Deltas that carry anchors to boxes (Faster R-CNN, eq. 2); the inverse of `decode`.

    Args:
        boxes: float `[..., 4]`, of positive area.
        anchors: float `[..., 4]`, of positive area.
        weights: factors of dx, dy, dw, dh.

    Returns:
        float `[..., 4]`: (dx, dy) in anchor widths and heights, (dw, dh) in natural logarithms, weighted.
        Boxes or anchors of no width or height count as a thousandth of a pixel, so that nothing is infinite.
    """
    ax, ay, aw, ah = _centre_and_size(anchors)
    bx, by, bw, bh = _centre_and_size(boxes)
    aw, ah, bw, bh = (ops.maximum(size, 1e-3) for size in (aw, ah, bw, bh))
    deltas = [(bx - ax) / aw, (by - ay) / ah, ops.log(bw / aw), ops.log(bh / ah)]
    return ops.stack([w * d for w, d in zip(weights, deltas, strict=True)], axis=-1)


def decode(deltas, anchors, weights=(1.0, 1.0, 1.0, 1.0), max_log_scale=MAX_LOG_SCALE):
    """Boxes from anchors and predicted deltas (Faster R-CNN, eq. 2).

    Args:
        deltas: float `[..., 4]`, (dx, dy, dw, dh) as `encode` gives them.
        anchors: float `[..., 4]`, pixels.
        weights: factors that `encode` used.
        max_log_scale: upper bound of dw and dh before `exp`; log(1000 / 16) lets 16 px grow to 1000 px.

    Returns:
        float32 `[..., 4]`, not clipped to the image. For boxes of positive area,
        `decode(encode(boxes, anchors), anchors) == boxes`.
    """
    deltas, anchors = ops.cast(deltas, "float32"), ops.cast(anchors, "float32")
    ax, ay, aw, ah = _centre_and_size(anchors)
    dx, dy, dw, dh = (deltas[..., i] / weights[i] for i in range(4))
    dw, dh = ops.minimum(dw, max_log_scale), ops.minimum(dh, max_log_scale)
    x, y = ax + dx * aw, ay + dy * ah
    half_width, half_height = 0.5 * aw * ops.exp(dw), 0.5 * ah * ops.exp(dh)
    return ops.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def _centre_and_size(boxes):
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height
