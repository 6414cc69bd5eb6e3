"""A made-up data set to try things on: circles, triangles and squares on noise, in the COCO layout.

The masks are exact: what a later shape covers belongs to the later shape.
"""

import numpy as np

from keras_mrcnn.data.made_up import annotation, write_data_set

NAMES = ("circle", "triangle", "square")  # category ids 1, 2, 3
SMALLEST_VISIBLE = 0.3  # share of a shape's pixels; a new shape that would hide more of another is not drawn


def make_shapes(folder, images=200, val_images=50, size=(96, 96), max_objects=5, seed=0):
    """Writes PNG images and COCO annotations with RLE masks.

    Args:
        folder: where `images/` and `annotations/instances_{train,val}.json` are written; made if missing.
        images, val_images: number of images in the train and val splits.
        size: (height, width) of an image, pixels, each at least 16.
        max_objects: at most so many shapes in an image; at least 1 is there.
        seed: integer, at least 0; the same seed writes the same files, and the first images do not depend on
            how many there are.

    Returns:
        dict of paths under the names of the fields of `config.Data`: `train_annotations`, `train_images`,
        `val_annotations`, `val_images`.

    Raises:
        ValueError: `size` is too small, or `max_objects` is less than 1.
    """
    if min(size) < 16 or max_objects < 1:
        raise ValueError(
            "`size` must be at least (16, 16) pixels and `max_objects` at least 1. "
            f"Received: size={size}, max_objects={max_objects}"
        )
    categories = [{"id": index + 1, "name": shape} for index, shape in enumerate(NAMES)]

    def draw(random):
        pixels, objects = draw_image(size, max_objects, random)
        return pixels, [annotation(mask, category) for category, mask in objects]

    return write_data_set(folder, {"train": images, "val": val_images}, categories, draw, seed)


def draw_image(size, max_objects, random):
    """Draws one image.

    Args:
        size: (height, width), pixels.
        max_objects: at most so many shapes.
        random: `np.random.Generator`.

    Returns:
        `(image, objects)`: uint8 `[H, W, 3]` RGB, and a list of (category id, bool mask `[H, W]` of the
        visible pixels), at least one; the masks do not overlap.
    """
    background = random.integers(0, 256, 3)
    image = np.tile(background, (*size, 1)).astype(np.float64)
    objects = []  # category, whole area, visible mask
    for _ in range(random.integers(1, max_objects + 1)):
        category = int(random.integers(1, len(NAMES) + 1))
        mask = _shape_mask(category, size, random)
        colour = _other_colour(background, random)
        if any((visible & ~mask).sum() < SMALLEST_VISIBLE * area for _, area, visible in objects):
            continue
        for _, _, visible in objects:
            visible &= ~mask
        objects.append((category, mask.sum(), mask))
        image[mask] = colour
    image += random.normal(0, 10, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), [
        (category, mask) for category, _, mask in objects
    ]


def _shape_mask(category, size, random):
    """bool `[H, W]`: a shape with its centre in the inner part of the image, turned at random."""
    height, width = size
    radius = random.uniform(0.12, 0.28) * min(size)
    centre_y, centre_x = random.uniform(0.15, 0.85, 2) * size
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width] + 0.5
    y, x = y - centre_y, x - centre_x
    if NAMES[category - 1] == "circle":
        return x**2 + y**2 <= radius**2
    sides = 3 if NAMES[category - 1] == "triangle" else 4
    inner_radius = radius * np.cos(np.pi / sides) * 1.2  # so that all shapes are about as large
    directions = angle + 2 * np.pi * np.arange(sides) / sides
    return np.all([x * np.cos(d) + y * np.sin(d) <= inner_radius for d in directions], axis=0)


def _other_colour(background, random):
    """A colour that can be told from the background."""
    while True:
        colour = random.integers(0, 256, 3)
        if np.abs(colour - background).max() > 70:
            return colour
