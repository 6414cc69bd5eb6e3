"""Copy-paste: objects of one image on another (Ghiasi et al. 2021, *Simple Copy-Paste is a Strong Data
Augmentation Method for Instance Segmentation*, arXiv 2012.07177).

Examples are those of `transforms`.
"""

import tensorflow as tf

from keras_mrcnn.data import transforms

LEAST_AREA = 300  # pixels; objects with less are not pasted, and dropped where something covers them


def copy_paste(example, other, seed):
    """Pastes about half of the objects of `other` at the places where they are.

    What they cover is taken away from the masks below, whose boxes become tight again; of a mask that was
    covered and has less than `LEAST_AREA` left, the object is dropped. Boxes without a mask stay as they are
    and are not pasted. Keypoints below are hidden. There is no blending: the paper found it of no use.

    Args:
        example, other: dict, see `transforms`; `other` is cut where it is larger.
        seed: integer tensor `[2]`.

    Returns:
        The example with the pasted objects behind its own.
    """
    size = tf.shape(example["image"])[:2]
    overlap = tf.minimum(size, tf.shape(other["image"])[:2])
    other = transforms.crop(other, tf.stack([0, 0, overlap[1], overlap[0]]))
    chosen = tf.random.stateless_uniform(tf.shape(other["boxes"])[:1], seed) < 0.5
    other = transforms.keep_objects(other, chosen & (_areas(other["boxes"], other["masks"]) >= LEAST_AREA))

    cover = _cover(other, overlap)
    missing = [[0, size[0] - overlap[0]], [0, size[1] - overlap[1]]]
    cover, pasted = tf.pad(cover, missing), tf.pad(other["image"], [*missing, [0, 0]])
    example = _hide(example, cover)
    example["image"] = tf.where(cover[..., None], pasted, example["image"])
    for name in transforms.OBJECT_ENTRIES:
        if name in example:
            example[name] = tf.concat([example[name], other[name]], axis=0)
    return example


def _areas(boxes, masks):
    """Pixels that masks cover; float32 `[G]`."""
    edges = boxes[:, 2:] - boxes[:, :2]
    return edges[:, 0] * edges[:, 1] * tf.reduce_mean(tf.cast(masks, tf.float32), axis=[1, 2])


def _cover(example, size):
    """bool `[H, W]`: whether one of the objects is at a pixel's centre; one object after the other, since all
    at once would take as much memory as there are objects times pixels."""

    def paste(cover, one):
        box, mask = one
        rows, in_rows = _cells(size[0], box[1], box[3], tf.shape(mask)[0])
        columns, in_columns = _cells(size[1], box[0], box[2], tf.shape(mask)[1])
        there = tf.gather(tf.gather(mask, rows), columns, axis=1) > 0
        return cover | (there & in_rows[:, None] & in_columns)

    return tf.foldl(paste, (example["boxes"], example["masks"]), tf.zeros(size, tf.bool))


def _cells(pixels, low, high, cells):
    """The cell of a crop from `low` to `high` in which the centre of each pixel lies, and whether in any."""
    centres = tf.cast(tf.range(pixels), tf.float32) + 0.5
    cell = tf.cast(tf.floor((centres - low) / (high - low) * tf.cast(cells, tf.float32)), tf.int32)
    return tf.clip_by_value(cell, 0, cells - 1), (cell >= 0) & (cell < cells)


def _hide(example, cover):
    """The example without what `cover`, bool `[H, W]`, hides of its masks and keypoints."""
    boxes, masks = example["boxes"], example["masks"]
    side = tf.shape(masks)[-1]
    centres = (tf.cast(tf.range(side), tf.float32) + 0.5) / tf.cast(side, tf.float32)
    places = boxes[:, None, :2] + centres[:, None] * (boxes[:, None, 2:] - boxes[:, None, :2])  # [G, M, 2]
    rows = tf.broadcast_to(places[:, :, None, 1], tf.shape(masks))
    columns = tf.broadcast_to(places[:, None, :, 0], tf.shape(masks))
    left = tf.where(_at(cover, columns, rows), tf.zeros_like(masks), masks)
    covered = tf.reduce_any(left != masks, axis=[1, 2])
    tight, anew, _ = transforms.recrop(boxes, left, boxes)
    hidden = dict(example)
    hidden["boxes"] = tf.where(covered[:, None], tight, boxes)
    hidden["masks"] = tf.where(covered[:, None, None], anew, masks)
    if "keypoints" in example:
        x, y, visibility = tf.unstack(example["keypoints"], axis=-1)
        visibility = tf.where(_at(cover, x, y), tf.minimum(visibility, 1.0), visibility)
        hidden["keypoints"] = tf.stack([x, y, visibility], axis=-1)
    return transforms.keep_objects(hidden, ~covered | (_areas(boxes, left) >= LEAST_AREA))


def _at(cover, x, y):
    """Values of `cover` at the pixels of the points (x, y); a point on the far edge is of the last pixel."""
    size = tf.shape(cover)
    rows = tf.clip_by_value(tf.cast(y, tf.int32), 0, size[0] - 1)
    columns = tf.clip_by_value(tf.cast(x, tf.int32), 0, size[1] - 1)
    return tf.gather(tf.reshape(cover, [-1]), rows * size[1] + columns)
