"""The losses L = L_cls + L_box + L_mask (section 3), the keypoints' and the RPN's, one pure function each.

All sums are float32. Where there is nothing to learn from, a loss is 0 and still depends on its inputs, so
that gradients exist.
"""

from keras import ops


def sigmoid_cross_entropy(logits, labels):
    """Elementwise binary cross-entropy of logits, stable for large ones."""
    return ops.softplus(logits) - logits * labels


def smooth_l1(difference, beta):
    """Elementwise smooth L1 (Fast R-CNN, eq. 3): 0.5 d^2 / beta below `beta`, |d| - beta / 2 above; 0: L1."""
    size = ops.abs(difference)
    if not beta:
        return size
    return ops.where(size < beta, 0.5 * difference * difference / beta, size - 0.5 * beta)


def rpn_objectness(logits, indices, labels, weights, deltas, samples):
    """Objectness of the sampled anchors (Faster R-CNN, eq. 1, first term).

    Args:
        logits: list over levels of float32 `[B, A_k]`.
        indices, labels, weights, deltas: the sample that `RPNTargets` returns.
        samples: int, anchors per image in a full sample.

    Returns:
        float32 scalar: sum of cross-entropies / (B * samples).
    """
    logits = ops.take_along_axis(ops.concatenate(logits, axis=1), indices, axis=1)
    total = ops.sum(sigmoid_cross_entropy(logits, labels) * weights)
    return total / (samples * ops.cast(ops.shape(logits)[0], "float32"))


def rpn_box(deltas, indices, labels, weights, targets, samples, beta=0.0):
    """Smooth L1 of the positive anchors' deltas (Faster R-CNN, eq. 1, second term).

    Args:
        deltas: list over levels of float32 `[B, A_k, 4]`.
        indices, labels, weights, targets: the sample that `RPNTargets` returns.
        samples: int, anchors per image in a full sample.
        beta: float, see `smooth_l1`.

    Returns:
        float32 scalar: sum / (B * samples).
    """
    deltas = ops.take_along_axis(ops.concatenate(deltas, axis=1), indices[..., None], axis=1)
    positive = labels * weights > 0
    distance = ops.where(positive[..., None], smooth_l1(deltas - targets, beta), 0.0)
    return ops.sum(distance) / (samples * ops.cast(ops.shape(deltas)[0], "float32"))


def classification(logits, classes):
    """Softmax cross-entropy, mean over all sampled regions (Fast R-CNN, eq. 1, first term).

    Args:
        logits: float32 `[N, C + 1]`.
        classes: int32 `[N]`, C for background.
    """
    log_probabilities = ops.log_softmax(logits)
    own = ops.take_along_axis(log_probabilities, classes[:, None], axis=1)
    return -ops.sum(own) / _at_least_one(classes)


def box(deltas, targets, classes, foreground, beta=0.0):
    """Smooth L1 of the true class's deltas over foreground regions, divided by the number of all regions.

    Args:
        deltas: float32 `[N, C, 4]`, or `[N, 1, 4]` for all classes.
        targets: float32 `[N, 4]`.
        classes: int32 `[N]`; read for foreground only.
        foreground: bool `[N]`.
        beta: float, see `smooth_l1`.
    """
    if deltas.shape[1] == 1:
        deltas = deltas[:, 0]
    else:
        own = ops.where(foreground, classes, 0)
        deltas = ops.take_along_axis(deltas, own[:, None, None], axis=1)[:, 0]
    distance = ops.where(foreground[:, None], smooth_l1(deltas - targets, beta), 0.0)
    return ops.sum(distance) / _at_least_one(classes)


def mask(logits, targets, has_mask):
    """Mean binary cross-entropy of the true class's mask (section 3, "L_mask").

    Args:
        logits: float32 `[F, M, M]`, of the true class of each foreground region.
        targets: float32 `[F, M, M]`, 0..1.
        has_mask: bool `[F]`; regions of objects that are labelled with a box only do not count.
    """
    return _mean_over_pixels(sigmoid_cross_entropy(logits, targets), has_mask)


def softmax_mask(logits, classes, targets, has_mask):
    """Mean multinomial cross-entropy: every pixel is of the true class or background (Table 2b, "softmax").

    Args:
        logits: float32 `[F, M, M, C + 1]`, background last; C = 1: one mask for all classes.
        classes: int32 `[F]`, the true class of each foreground region.
        targets, has_mask: as for `mask`.
    """
    shares = ops.log_softmax(logits)
    place = ops.minimum(classes, logits.shape[-1] - 2)[:, None, None, None]
    own = ops.take_along_axis(shares, place, axis=-1)[..., 0]
    return _mean_over_pixels(-targets * own - (1.0 - targets) * shares[..., -1], has_mask)


def _mean_over_pixels(losses, has_mask):
    counted = ops.cast(has_mask, "float32")
    return ops.sum(ops.mean(losses, axis=(1, 2)) * counted) / ops.maximum(ops.sum(counted), 1.0)


def keypoint(logits, indices, valid):
    """Cross-entropy over the positions of each heat map, mean over the labelled keypoints (section 5).

    Args:
        logits: float32 `[F, S, S, K]`.
        indices: int32 `[F, K]`, row * S + column of each keypoint.
        valid: bool `[F, K]`; the others do not count.
    """
    side, points = logits.shape[1], logits.shape[3]
    logits = ops.reshape(ops.cast(logits, "float32"), [-1, side * side, points])
    own = ops.take_along_axis(logits, indices[:, None], axis=1)[:, 0]
    counted = ops.cast(valid, "float32")
    of_keypoint = ops.logsumexp(logits, axis=1) - own
    return ops.sum(of_keypoint * counted) / ops.maximum(ops.sum(counted), 1.0)


def _at_least_one(rows):
    return ops.maximum(ops.cast(ops.shape(rows)[0], "float32"), 1.0)
