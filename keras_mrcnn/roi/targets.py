"""What the heads learn from the sampled regions (section 3.1, "Training")."""

from keras import ops

from keras_mrcnn.geometry import boxes as box_ops
from keras_mrcnn.geometry import keypoints as keypoint_ops
from keras_mrcnn.ops import roi_align
from keras_mrcnn.roi.pooling import take_valid


def box_targets(regions, targets, num_classes, box_weights):
    """Class and deltas of every sampled region.

    Args:
        regions: what `RoISampling` returns: boxes, matched, foreground, background.
        targets: dictionary with boxes `[B, G, 4]` and classes `[B, G]`.
        num_classes: int, C, without background.
        box_weights: factors of dx, dy, dw, dh.

    Returns:
        classes: int32 `[N]`, C for background; deltas: float32 `[N, 4]`; foreground: bool `[N]`. N and its
        order are those of `RoIPooling` on foreground | background.
    """
    boxes, matched, foreground, background = regions
    sampled = foreground | background
    classes = ops.take_along_axis(ops.cast(targets["classes"], "int32"), matched, axis=1)
    classes = ops.where(foreground, classes, num_classes)
    true_boxes = ops.take_along_axis(targets["boxes"], matched[..., None], axis=1)
    deltas = box_ops.encode(true_boxes, boxes, box_weights)
    return take_valid(classes, sampled), take_valid(deltas, sampled), take_valid(foreground, sampled)


def mask_targets(regions, targets, mask_size, soft=False):
    """Class and mask of every foreground region.

    Args:
        regions: what `RoISampling` returns: boxes, matched, foreground, background.
        targets: dictionary with boxes `[B, G, 4]`, classes `[B, G]`, masks `[B, G, S, S]`, has_mask `[B, G]`.
        mask_size: int, M.
        soft: bool, see `crop_masks`.

    Returns:
        classes: int32 `[F]`; masks: float32 `[F, M, M]`; has_mask: bool `[F]`. F and its order are
        those of `RoIPooling` on foreground.
    """
    boxes, matched, foreground, _ = regions
    image = ops.nonzero(foreground)[0]
    flat = ops.cast(image, "int32") * ops.shape(targets["boxes"])[1] + take_valid(matched, foreground)

    def of_matched(values):
        return ops.take(ops.reshape(values, [-1, *values.shape[2:]]), flat, axis=0)

    masks = crop_masks(
        of_matched(targets["masks"]),
        of_matched(targets["boxes"]),
        take_valid(boxes, foreground),
        mask_size,
        soft,
    )
    return ops.cast(of_matched(targets["classes"]), "int32"), masks, of_matched(targets["has_mask"])


def crop_masks(crops, true_boxes, rois, mask_size, soft=False):
    """The part of each region's true mask that lies in the region.

    Args:
        crops: `[N, S, S]`, 0 or 1, the true mask cut to its own true box.
        true_boxes: float32 `[N, 4]`, pixels.
        rois: float32 `[N, 4]`, pixels.
        mask_size: int, M.
        soft: bool, keep fractions, and look half a pixel to the right and below, both as torchvision does.

    Returns:
        float32 `[N, M, M]`, RoIAlign of the mask; unless `soft`, 1 where that is at least one half, else 0.
    """
    size = crops.shape[-1]
    # A border of zeros: nothing of the object lies outside of its box.
    crops = ops.pad(ops.cast(crops, "float32"), [[0, 0], [1, 1], [1, 1]])[..., None]
    corner = ops.concatenate([true_boxes[:, :2], true_boxes[:, :2]], axis=1)
    extent = ops.concatenate([true_boxes[:, 2:], true_boxes[:, 2:]], axis=1) - corner
    rois = (rois + 0.5 * soft - corner) / ops.maximum(extent, 1e-3) * size + 1
    pooled = roi_align(crops, rois, ops.arange(ops.shape(crops)[0], dtype="int32"), mask_size, 1.0)
    return pooled[..., 0] if soft else ops.cast(pooled[..., 0] >= 0.5, "float32")


def keypoint_targets(regions, targets, heatmap_size):
    """Where the keypoints of the foreground regions lie (section 5).

    Only regions with a labelled keypoint inside teach the keypoint head. Objects without labels, also those
    of classes without keypoints, have none, and so add nothing to the loss.

    Args:
        regions: what `RoISampling` returns: boxes, matched, foreground, background.
        targets: dictionary with keypoints `[B, G, K, 3]`, (x, y, v), pixels; v 0: not labelled.
        heatmap_size: int, side of the heat maps.

    Returns:
        chosen: bool `[B, R]`, the regions to pool; indices: int32 `[F, K]`, row * heatmap_size + column;
        valid: bool `[F, K]`, False where there is nothing to learn. F and its order are those of
        `RoIPooling` on chosen.
    """
    boxes, matched, foreground, _ = regions
    true = ops.take_along_axis(targets["keypoints"], matched[..., None, None], axis=1)  # [B, R, K, 3]
    points = true.shape[2]
    indices, valid = keypoint_ops.encode(
        ops.reshape(true, [-1, points, 3]), ops.reshape(boxes, [-1, 4]), heatmap_size
    )
    shape = ops.shape(matched)[0], ops.shape(matched)[1], points
    valid = ops.reshape(valid, shape)
    chosen = foreground & ops.any(valid, axis=-1)
    return chosen, take_valid(ops.reshape(indices, shape), chosen), take_valid(valid, chosen)
