"""Geometric augmentation: image, boxes, mask crops and keypoints move together.

An example is a dict: `image` uint8 [H, W, 3]; `boxes` float32 [G, 4], (x1, y1, x2, y2), pixels of that image;
`masks` uint8 [G, M, M], crops of the boxes; and, where objects have keypoints, `keypoints` float32 [G, K, 3],
(x, y, v), pixels, and `mirrored` int32 [G, K], the partner of each in a mirror image. Every function is pure
TensorFlow and returns a new dict; entries that do not depend on geometry pass through.
"""

import tensorflow as tf

from keras_mrcnn.data import images


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
