"""A made-up data set for keypoints: stick figures on noise, in the COCO layout.

A figure's left limbs are reddish and its right ones bluish, and it stands with its face or its back to the
viewer, so that left and right can be learnt from the colours alone.
"""

import numpy as np

from keras_mrcnn.data.made_up import annotation, write_data_set

JOINTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
KEYPOINTS = ("head", "neck", *(f"{side}_{joint}" for joint in JOINTS for side in ("left", "right")))
BONES = (("neck", "head"), ("neck", "left_hip"), ("neck", "right_hip"))
BONES += tuple(
    (start if start == "neck" else f"{side}_{start}", f"{side}_{end}")
    for side in ("left", "right")
    for start, end in (("neck", "shoulder"), *zip(JOINTS[:2], JOINTS[1:3]), *zip(JOINTS[3:5], JOINTS[4:]))
)
SKELETON = tuple((KEYPOINTS.index(start), KEYPOINTS.index(end)) for start, end in BONES)
COLOURS = {"left": (205, 60, 60), "right": (60, 90, 205), "middle": (60, 160, 80)}
THICKNESS = 0.045  # radius of a limb, in heights of the figure
SMALLEST_VISIBLE = 0.7  # share of a figure's pixels; one that would hide more of another is not drawn


def make_stick_figures(folder, images=200, val_images=50, size=(128, 128), max_figures=3, seed=0):
    """Writes PNG images and COCO annotations with masks and keypoints.

    Args:
        folder: where `images/` and `annotations/instances_{train,val}.json` are written; made if missing.
        images, val_images: number of images in the train and val splits.
        size: (height, width) of an image, pixels, each at least 48.
        max_figures: at most so many figures in an image; at least 1 is there.
        seed: integer, at least 0; the same seed writes the same files, and the first images do not depend on
            how many there are.

    Returns:
        dict of paths under the names of the fields of `config.Data`: `train_annotations`, `train_images`,
        `val_annotations`, `val_images`.

    Raises:
        ValueError: `size` is too small, or `max_figures` is less than 1.
    """
    if min(size) < 48 or max_figures < 1:
        raise ValueError(
            "`size` must be at least (48, 48) pixels and `max_figures` at least 1. "
            f"Received: size={size}, max_figures={max_figures}"
        )
    skeleton = [[start + 1, end + 1] for start, end in SKELETON]
    category = {"id": 1, "name": "figure", "keypoints": list(KEYPOINTS), "skeleton": skeleton}

    def draw(random):
        pixels, figures = draw_image(size, max_figures, random)
        return pixels, [_entry(mask, points) for mask, points in figures]

    return write_data_set(folder, {"train": images, "val": val_images}, [category], draw, seed)


def draw_image(size, max_figures, random):
    """Draws one image.

    Args:
        size: (height, width), pixels.
        max_figures: at most so many figures.
        random: `np.random.Generator`.

    Returns:
        `(image, figures)`: uint8 `[H, W, 3]` RGB, and for each figure `(mask, points)`: bool `[H, W]`, its
        visible pixels; float64 `[K, 3]`, (x, y, v), where pixel i covers [i, i + 1]. v is 1 where another
        figure or a limb of the other side covers the joint, and 0, with x and y 0, where it is outside of
        the image.
    """
    image = np.tile(random.integers(70, 190) + random.integers(-12, 13, 3), (*size, 1)).astype(np.float64)
    figures = []  # all pixels in the image, visible pixels, points with visibility
    for _ in range(random.integers(1, max_figures + 1)):
        points = _pose(size, random)
        layers = _layers(points, size)
        whole = np.any([mask for mask, _ in layers], axis=0)
        if any((visible & ~whole).sum() < SMALLEST_VISIBLE * all_.sum() for all_, visible, _ in figures):
            continue
        for _, visible, _ in figures:
            visible &= ~whole
        tone = random.uniform(-25, 25, 3)
        for mask, part in layers:
            image[mask] = np.array(COLOURS[part]) + tone
        figures.append((whole, whole.copy(), _visibility(points, layers)))
    image += random.normal(0, 8, image.shape)
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    for _, visible, points in figures:
        for point in points:
            if point[2] and not visible[int(point[1]), int(point[0])]:
                point[2] = 1
    return image, [(visible, points) for _, visible, points in figures]


def _pose(size, random):
    """float64 `[K, 2]`: the joints of a figure whose neck and hips are in the image."""
    height, width = size
    tall = random.uniform(0.55, 0.9) * min(size)
    neck = random.uniform([0.12, 0.2], [0.88, 0.45]) * [width, height]
    facing = random.choice([-1, 1])  # 1: its left is on the right of the picture
    lean = random.uniform(-0.25, 0.25)
    down, across = np.array([np.sin(lean), np.cos(lean)]), np.array([np.cos(lean), -np.sin(lean)])
    joints = {"neck": neck, "head": neck - down * 0.13 * tall}
    for side, sign in (("left", facing), ("right", -facing)):
        shoulder = neck + across * sign * 0.1 * tall + down * 0.02 * tall
        hip = neck + across * sign * 0.065 * tall + down * 0.33 * tall
        arm, leg = random.uniform(0.1, 2.4), random.uniform(0.0, 0.6)
        elbow = shoulder + _turned(down, across * sign, arm) * 0.17 * tall
        knee = hip + _turned(down, across * sign, leg) * 0.24 * tall
        joints[f"{side}_shoulder"], joints[f"{side}_elbow"] = shoulder, elbow
        bend = arm + random.uniform(-0.3, 1.4)
        joints[f"{side}_wrist"] = elbow + _turned(down, across * sign, bend) * 0.16 * tall
        joints[f"{side}_hip"], joints[f"{side}_knee"] = hip, knee
        bend = leg + random.uniform(-0.7, 0.1)
        joints[f"{side}_ankle"] = knee + _turned(down, across * sign, bend) * 0.23 * tall
    return np.array([joints[name] for name in KEYPOINTS])


def _turned(down, outwards, angle):
    """Unit vector that `angle` (radians) turns from `down` to `outwards`."""
    return np.cos(angle) * down + np.sin(angle) * outwards


def _layers(points, size):
    """list of (bool mask `[H, W]`, part of `COLOURS`), to be drawn in this order."""
    at = dict(zip(KEYPOINTS, points, strict=True))
    tall = np.linalg.norm(at["head"] - at["neck"]) / 0.13
    thick = THICKNESS * tall
    hips = (at["left_hip"] + at["right_hip"]) / 2
    layers = [(_segment(at["neck"], hips, 2 * thick, size), "middle")]
    for start, end in BONES:
        side = end.split("_")[0]
        if end == "head":
            layers.append((_segment(at["head"], at["head"], 2 * thick, size), "middle"))
        elif not (start == "neck" and end.endswith("hip")):
            layers.append((_segment(at[start], at[end], thick, size), side))
    return layers


def _segment(start, end, radius, size):
    """bool `[H, W]`: pixels whose centre is at most `radius` from a line."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    along, length = end - start, max(np.sum((end - start) ** 2), 1e-9)
    share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length, 0, 1)
    return (x - start[0] - share * along[0]) ** 2 + (y - start[1] - share * along[1]) ** 2 <= radius**2


def _visibility(points, layers):
    """float64 `[K, 3]`: the joints with COCO's visibility, as far as the figure itself decides it."""
    height, width = layers[0][0].shape
    labelled = np.zeros((len(points), 3))
    for index, (name, (x, y)) in enumerate(zip(KEYPOINTS, points, strict=True)):
        if 0 <= x < width and 0 <= y < height:
            top = [part for mask, part in layers if mask[int(y), int(x)]][-1]
            labelled[index] = x, y, 2 if top == name.split("_")[0] or "_" not in name else 1
    return labelled


def _entry(mask, points):
    """The annotation; COCO's keypoints are pixel indices, half a pixel less."""
    labelled = points[:, 2] > 0
    shifted = np.where(labelled[:, None], points - [0.5, 0.5, 0], 0)
    flat = [round(float(value), 2) for value in shifted.ravel()]
    flat[2::3] = [int(value) for value in points[:, 2]]
    return {**annotation(mask, 1), "keypoints": flat, "num_keypoints": int(labelled.sum())}
