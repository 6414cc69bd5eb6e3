"""Geometric augmentation: image, boxes, mask crops and keypoints move together.

An example is a dict: `image` uint8 [H, W, 3]; `boxes` float32 [G, 4], (x1, y1, x2, y2), pixels of that image;
`classes` int32 [G]; `masks` uint8 [G, M, M], crops of the boxes, all 0 of an object with a box only; and,
where objects have keypoints, `keypoints` float32 [G, K, 3], (x, y, v), pixels, and `mirrored` int32 [G, K],
the partner of each in a mirror image. Every function is pure TensorFlow and returns a new dict; entries that
do not depend on geometry pass through.
"""

import tensorflow as tf

from keras_mrcnn.data import images

OBJECT_ENTRIES = ("boxes", "classes", "masks", "keypoints", "mirrored")  # those with an axis of objects
LEAST_EDGE = 1.0  # pixels; what a cut leaves of a box that is narrower or lower is dropped


def horizontal_flip(example):
    """Mirrors left and right: x becomes W - x; left and right keypoints change places."""
    width = tf.cast(tf.shape(example["image"])[1], tf.float32)
    x1, y1, x2, y2 = tf.unstack(example["boxes"], axis=-1)
    return {
        **example,
        "image": tf.reverse(example["image"], axis=[1]),
        "boxes": tf.stack([width - x2, y1, width - x1, y2], axis=-1),
        "masks": tf.reverse(example["masks"], axis=[2]),
        **_points(example, lambda x, y: (width - x, y), mirror=True),
    }


def vertical_flip(example):
    """Mirrors top and bottom: y becomes H - y; left and right keypoints change places here too."""
    height = tf.cast(tf.shape(example["image"])[0], tf.float32)
    x1, y1, x2, y2 = tf.unstack(example["boxes"], axis=-1)
    return {
        **example,
        "image": tf.reverse(example["image"], axis=[0]),
        "boxes": tf.stack([x1, height - y2, x2, height - y1], axis=-1),
        "masks": tf.reverse(example["masks"], axis=[1]),
        **_points(example, lambda x, y: (x, height - y), mirror=True),
    }


def transpose(example):
    """Mirrors about the diagonal: x and y change places, and so do left and right keypoints."""
    x1, y1, x2, y2 = tf.unstack(example["boxes"], axis=-1)
    return {
        **example,
        "image": tf.transpose(example["image"], [1, 0, 2]),
        "boxes": tf.stack([y1, x1, y2, x2], axis=-1),
        "masks": tf.transpose(example["masks"], [0, 2, 1]),
        **_points(example, lambda x, y: (y, x), mirror=True),
    }


def _points(example, move, mirror=False):
    """The keypoints, if there are any, after `move(x, y)`; those that are not labelled stay (0, 0, 0).

    In a mirror image, about any axis, a left hand looks like a right one: partners change their places.
    """
    if "keypoints" not in example:
        return {}
    points = example["keypoints"]
    if mirror:
        points = tf.gather(points, example["mirrored"], batch_dims=1)
    x, y, visibility = tf.unstack(points, axis=-1)
    moved = tf.stack([*move(x, y), visibility], axis=-1)
    return {"keypoints": tf.where(visibility[..., None] > 0, moved, 0.0)}


def resize(example, short_edge, long_edge, rule="pillow"):
    """Scales to the network frame; the crops of the masks stay, they have no scale.

    Args:
        example: dict, see the module.
        short_edge, long_edge: pixels, see `images.network_size`.
        rule: "pillow" or "plain", see `images.resize`.

    Returns:
        The example, of size `network_size(H, W, short_edge, long_edge, rule)`.
    """
    shape = tf.shape(example["image"])
    size = images.network_size(shape[0], shape[1], short_edge, long_edge, rule)
    y_scale, x_scale = tf.unstack(tf.cast(size, tf.float32) / tf.cast(shape[:2], tf.float32))
    return {
        **example,
        "image": images.resize(example["image"], size, rule),
        "boxes": example["boxes"] * tf.stack([x_scale, y_scale, x_scale, y_scale]),
        **_points(example, lambda x, y: (x * x_scale, y * y_scale)),
    }


def randomly(transform, example, probability, seed):
    """Applies `transform` with a probability that a stateless seed decides.

    Args:
        transform: function of an example that keeps all shapes' ranks and types.
        example: dict, see the module.
        probability: 0 to 1.
        seed: integer tensor `[2]`; the same seed gives the same decision.

    Returns:
        The transformed or the same example.
    """
    chosen = tf.random.stateless_uniform([], seed) < probability
    return tf.cond(chosen, lambda: transform(example), lambda: dict(example))


def random_resize(example, short_edges, long_edge, seed, rule="pillow"):
    """`resize` to one of `short_edges` (list of pixels), drawn by a stateless seed, each as likely."""
    index = tf.random.stateless_uniform([], seed, maxval=len(short_edges), dtype=tf.int32)
    return resize(example, tf.constant(short_edges)[index], long_edge, rule)


def crop(example, window):
    """Cuts a window out of the image, and the objects with it.

    An object that the window cuts gets the tight box of what is left of its mask, which is cropped anew to
    it; a box without a mask is clipped. Objects of which nothing is left are dropped, keypoints outside are
    not labelled any more.

    Args:
        example: dict, see the module.
        window: int32 `[4]`, (x1, y1, x2, y2), pixels, inside the image and not empty.

    Returns:
        The example, of the window's size.
    """
    x1, y1, x2, y2 = tf.unstack(window)
    left, top, width, height = (tf.cast(value, tf.float32) for value in (x1, y1, x2 - x1, y2 - y1))
    moved = example["boxes"] - tf.stack([left, top, left, top])
    inside = tf.clip_by_value(moved, 0.0, tf.stack([width, height, width, height]))
    boxes, masks, keep = recrop(moved, example["masks"], inside)
    cut = tf.reduce_any(inside != moved, axis=-1)
    keep &= tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= LEAST_EDGE, axis=-1)
    points = _points(example, lambda x, y: (x - left, y - top))
    if points:
        x, y, _ = tf.unstack(points["keypoints"], axis=-1)
        outside = (x < 0) | (x > width) | (y < 0) | (y > height)
        points["keypoints"] = tf.where(outside[..., None], 0.0, points["keypoints"])
    example = {
        **example,
        "image": example["image"][y1:y2, x1:x2],
        "boxes": tf.where(cut[:, None], boxes, moved),
        "masks": tf.where(cut[:, None, None], masks, example["masks"]),
        **points,
    }
    return keep_objects(example, keep | ~cut)


def recrop(boxes, masks, parts):
    """Tight boxes of parts of masks, and the masks cropped anew to them.

    Args:
        boxes: float32 `[G, 4]`.
        masks: uint8 `[G, M, M]`, crops of `boxes`.
        parts: float32 `[G, 4]`, the part of each box that is looked at, inside of it; it may be empty.

    Returns:
        `(boxes, masks, keep)`: of each part; bool `[G]`, False where nothing of a mask is in it. The box of
        an object without a mask is the part itself.
    """
    side = tf.shape(masks)[-1]
    start, edge = boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]) / tf.cast(side, tf.float32)
    corner = start[:, None] + tf.cast(tf.range(side), tf.float32)[:, None] * edge[:, None]  # [G, M, 2]
    seen = (corner < parts[:, None, 2:]) & (corner + edge[:, None] > parts[:, None, :2])
    left = (masks > 0) & seen[:, None, :, 0] & seen[:, :, None, 1]
    filled = tf.stack([tf.reduce_any(left, axis=1), tf.reduce_any(left, axis=2)], axis=-1)  # [G, M, (x, y)]
    first = tf.argmax(filled, axis=1, output_type=tf.int32)
    last = side - 1 - tf.argmax(tf.reverse(filled, axis=[1]), axis=1, output_type=tf.int32)
    low = tf.maximum(parts[:, :2], start + tf.cast(first, tf.float32) * edge)
    high = tf.minimum(parts[:, 2:], start + tf.cast(last + 1, tf.float32) * edge)

    centres = (tf.cast(tf.range(side), tf.float32) + 0.5) / tf.cast(side, tf.float32)
    centres = low[:, None] + centres[:, None] * (high - low)[:, None]
    cells = tf.cast(tf.floor((centres - start[:, None]) / edge[:, None]), tf.int32)
    cells = tf.clip_by_value(cells, first[:, None], last[:, None])
    anew = tf.gather(tf.gather(masks, cells[..., 1], batch_dims=1), cells[..., 0], axis=2, batch_dims=1)
    has_mask = tf.reduce_any(masks > 0, axis=[1, 2])
    tight = tf.where(has_mask[:, None], tf.concat([low, high], axis=-1), parts)
    return tight, tf.where(has_mask[:, None, None], anew, masks), ~has_mask | tf.reduce_any(left, axis=[1, 2])


def keep_objects(example, keep):
    """The example with the objects where `keep`, bool `[G]`, is True."""
    kept = {name: tf.boolean_mask(example[name], keep) for name in OBJECT_ENTRIES if name in example}
    return {**example, **kept}


def large_scale_jitter(example, scales, side, seed, rule="pillow"):
    """Scales by far and cuts or pads to a square (Ghiasi et al. 2021, "Large scale jittering").

    Args:
        example: dict, see the module.
        scales: (lowest, highest) length of the long edge, as a share of `side`; one is drawn evenly.
        side: pixels; what is longer is cut, at a place that is drawn evenly, what is shorter is padded right
            and below with the grey of 128, as detectron2 does.
        seed: integer tensor `[2]`.
        rule: "pillow" or "plain", see `images.resize`.

    Returns:
        The example, of `side` x `side`.
    """
    draw = tf.random.stateless_uniform([3], seed)
    edge = side * (scales[0] + draw[0] * (scales[1] - scales[0]))
    example = resize(example, edge, edge, rule)
    size = tf.shape(example["image"])[1::-1]  # (x, y)
    spare = tf.maximum(size - side, 0)
    corner = tf.cast(draw[1:] * tf.cast(spare + 1, tf.float32), tf.int32)
    example = crop(example, tf.concat([corner, corner + tf.minimum(size, side)], axis=0))
    missing = side - tf.shape(example["image"])[:2]
    padding = [[0, missing[0]], [0, missing[1]], [0, 0]]
    image = tf.pad(example["image"], padding, constant_values=tf.cast(128, example["image"].dtype))
    return {**example, "image": image}
