"""A small folder in Cityscapes' own layout, and detections on it, made by rule; needs numpy and Pillow only.

Objects overlap, later ones in front; there are groups, regions under 100 pixels, void, a hidden object and an
image without objects.
"""

import json

import numpy as np
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 120, 240
CLASSES = {  # name: label id
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
OTHERS = {"unlabeled": 0, "ego vehicle": 1, "road": 7, "building": 11, "sky": 23, "caravan": 29}
CITIES = ("aachen", "bonn")


def names(count):
    """The common beginnings of the file names of `count` images, with their city."""
    return [(CITIES[n % 2], f"{CITIES[n % 2]}_{n:06d}_000019") for n in range(count)]


def outline(random, side):
    """An irregular polygon of about `side` pixels; list of [x, y]."""
    angles = np.sort(random.uniform(0, 2 * np.pi, 7))
    radius = side / 2 * random.uniform(0.7, 1.3, 7)
    x = random.randint(0, WIDTH) + radius * np.cos(angles)
    y = random.randint(0, HEIGHT) + radius * np.sin(angles)
    x, y = np.clip(x, 0, WIDTH - 1), np.clip(y, 0, HEIGHT - 1)
    return np.stack([x, y], axis=1).round().astype(int).tolist()


def scene(random, absent=()):
    """[(label, polygon)] of one image, from the back to the front."""
    objects = [
        ("road", [[0, 40], [WIDTH - 1, 40], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]]),
        ("sky", [[0, 0], [WIDTH - 1, 0], [WIDTH - 1, 20], [0, 20]]),
        ("unlabeled", outline(random, 40)),
        ("caravan", outline(random, 30)),
    ]
    for name in sorted(set(CLASSES) - set(absent)):
        if random.uniform() < 0.4:
            objects.append((f"{name}group", outline(random, random.choice([8, 50]))))
        for _ in range(random.randint(0, 4)):
            objects.append((name, outline(random, random.choice([6, 12, 25, 45]))))
    order = random.permutation(len(objects) - 2) + 2
    objects[2:] = [objects[n] for n in order]
    objects.append(("ego vehicle", [[60, 110], [180, 110], [180, HEIGHT - 1], [60, HEIGHT - 1]]))
    return objects


def paint(objects):
    """int32 `[H, W]`: the instance ids, drawn as Cityscapes draws them (Pillow, numbers within the class)."""
    image = Image.new("I", (WIDTH, HEIGHT), 0)
    numbers = dict.fromkeys(CLASSES | {"caravan": 29}, 0)
    for label, polygon in objects:
        single = label[: -len("group")] if label.endswith("group") else label
        value = (CLASSES | OTHERS)[single]
        if label in numbers:
            value = 1000 * value + numbers[label]
            numbers[label] += 1
        ImageDraw.Draw(image).polygon([tuple(point) for point in polygon], fill=value)
    return np.array(image, np.int32)


def make(folder, seed, count=6, absent=("train",)):
    """Writes the split `val`; returns {name: instance ids}."""
    random = np.random.RandomState(seed)
    images = {}
    for n, (city, name) in enumerate(names(count)):
        objects = (
            scene(random, absent) if n else [("road", [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]])]
        )
        images[name] = paint(objects)
        pictures, truths = folder / "leftImg8bit" / "val" / city, folder / "gtFine" / "val" / city
        pictures.mkdir(parents=True, exist_ok=True)
        truths.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(pictures / f"{name}_leftImg8bit.png")
        Image.fromarray(images[name].astype(np.uint16)).save(truths / f"{name}_gtFine_instanceIds.png")
        entries = [{"label": label, "polygon": polygon} for label, polygon in objects]
        content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": entries}
        (truths / f"{name}_gtFine_polygons.json").write_text(json.dumps(content))
    return images


def moved(mask, random, far):
    """The mask shifted by up to `far` pixels, with some of its columns missing."""
    down, right = random.randint(-far, far + 1, 2)
    found = np.roll(np.roll(mask, down, axis=0), right, axis=1)
    if random.uniform() < 0.3:
        found[:, random.randint(0, WIDTH) :] = False
    return found


def detections(images, seed):
    """[{"image", "label", "score", "mask"}]: good, twice, missed, of wrong classes, on groups and void."""
    random = np.random.RandomState(seed + 1000)
    labels = list(CLASSES.values())
    found = []

    def add(name, label, mask):
        score = random.randint(1, 30) / 30.0  # with ties
        found.append({"image": name, "label": int(label), "score": score, "mask": mask})

    for name, ids in images.items():
        for value in np.unique(ids):
            label = value // 1000 if value >= 1000 else value
            if label not in labels:
                continue
            for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
                other = random.choice(labels) if random.uniform() < 0.15 else label
                add(name, other, moved(ids == value, random, random.choice([0, 0, 1, 1, 2, 5])))
            if value < 1000:  # within a group
                part = ids == value
                part[:, : random.randint(0, WIDTH)] = False
                add(name, label, part)
        for _ in range(4):  # anywhere, also on void
            mask = Image.new("1", (WIDTH, HEIGHT), 0)
            ImageDraw.Draw(mask).polygon([tuple(p) for p in outline(random, 30)], fill=1)
            add(name, random.choice(labels), np.array(mask, bool))
        add(name, random.choice(labels), (ids == 0) | (ids == 1))
    return found
