"""Cityscapes' own folders to checked records: eight classes, masks of the visible pixels.

    FOLDER/leftImg8bit/SPLIT/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
    FOLDER/gtFine/SPLIT/CITY/CITY_SEQUENCE_FRAME_gtFine_instanceIds.png, ..._gtFine_polygons.json

In an instance id image a pixel holds `1000 * label + number` of its object, or the bare label where objects
are not told apart: a street, or a group of cars. Labels: M. Cordts et al., The Cityscapes Dataset for
Semantic Urban Scene Understanding, CVPR 2016, https://www.cityscapes-dataset.com.
"""

import json
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
from pycocotools import mask as coco_mask

from keras_mrcnn.data import checks
from keras_mrcnn.data.records import Category, CocoDataset, Problem, Record

# By label id.
LABELS = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road",
    "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel",
    "pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider",
    "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
NOT_DRAWN = "license plate"  # its polygons lie on vehicles and stay part of them
IDS = {name: label for label, name in enumerate(LABELS)}
CATEGORIES = [Category(label, LABELS[label]) for label in (24, 25, 26, 27, 28, 31, 32, 33)]
WITH_INSTANCES = range(24, 34)  # the eight, caravan and trailer
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)  # pixels of these ids count in no score
FROM_COCO = {  # of each class, COCO's: for `weights.class_mapping.map_classes`
    "person": "person",
    "rider": None,  # COCO has none: learned from random numbers (the paper, appendix A)
    "car": "car",
    "truck": "truck",
    "bus": "bus",
    "train": "train",
    "motorcycle": "motorcycle",
    "bicycle": "bicycle",
}

_IMAGE, _IDS, _POLYGONS = "_leftImg8bit.png", "_gtFine_instanceIds.png", "_gtFine_polygons.json"


@dataclass(frozen=True, eq=False)
class CityscapesRecord(Record):
    """A `Record` that also knows where nothing is scored.

    Attributes:
        void: compressed RLE dict of the pixels that Cityscapes leaves out of its evaluation.
    """

    void: dict = field(kw_only=True)


def load_cityscapes(folder, split, categories=None, invalid="skip", check_images=True):
    """Reads one split of Cityscapes.

    Masks are the visible pixels, exact, as RLE. The pixels of a class that are not told apart ("cargroup")
    are one crowd. Where there is no `instanceIds.png` the polygons of `polygons.json` are painted instead, in
    the order of the file, later ones in front; that differs from Cityscapes' own images in single pixels of
    outlines. Where there are both, `instanceIds.png` wins. Images without objects stay. An image id is the
    common beginning of the file names, CITY_SEQUENCE_FRAME; an annotation id is the id in the instance image.

    Args:
        folder: the folder that holds `leftImg8bit` and `gtFine`.
        split: "train", "val" or another folder in these.
        categories: list of `Category`, those of a model: the eight of `CATEGORIES` in any order. None: they.
        invalid: "skip": leave out images that are broken and list them in `skipped`; "error": raise at the
            first.
        check_images: decode every image once. Otherwise the size of its ground truth is believed.

    Returns:
        `CocoDataset` whose records are `CityscapesRecord`s, ordered by city and file name.

    Raises:
        ValueError: There is no such folder or it holds no images, the categories are not Cityscapes', or,
            with invalid="error", an image is broken.
    """
    if invalid not in ("skip", "error"):
        raise ValueError(f'`invalid` must be "skip" or "error". Received: invalid={invalid!r}')
    categories = _checked_categories(categories)
    frames = _frames(pathlib.Path(folder), split)
    paths = [str(image) for image, _ in frames.values()]
    sizes = checks.image_sizes(paths) if check_images else [None] * len(frames)
    with ThreadPoolExecutor() as pool:
        truths = pool.map(lambda frame: _truth(frame[1]), frames.values())
        records, problems = [], []
        for (name, (path, truth_path)), size, truth in zip(frames.items(), sizes, truths, strict=True):
            broken = size if isinstance(size, checks.Broken) else truth
            if not isinstance(broken, checks.Broken) and size not in (None, truth.size):
                broken = checks.Broken(
                    "image size differs from the ground truth",
                    f"the image has height {size[0]}, width {size[1]}, {truth_path} has height "
                    f"{truth.size[0]}, width {truth.size[1]}. Restore the files that belong together.",
                )
            if isinstance(broken, checks.Broken):
                problem = Problem(str(path), name, None, broken.what, broken.kind)
                if invalid == "error":
                    raise ValueError(f'{problem} (invalid="skip" leaves it out and goes on.)')
                problems.append(problem)
            else:
                records.append(_record(name, str(path), truth, categories))
    return CocoDataset(records, categories, problems)


def _checked_categories(categories):
    if categories is None:
        return list(CATEGORIES)
    given = [(category.id, category.name) for category in categories]
    expected = [(category.id, category.name) for category in CATEGORIES]
    if sorted(given, key=str) != sorted(expected, key=str):
        raise ValueError(
            "`categories` must be the eight of Cityscapes, ids and names, in any order: "
            f"{', '.join(f'{label} {name}' for label, name in expected)}. Received: "
            f"{', '.join(f'{label} {name}' for label, name in given) or 'none'}. Build a model for these "
            "categories (`weights.class_mapping.map_classes` brings it what a COCO model knows)."
        )
    return list(categories)


def _frames(folder, split):
    """{name: (path of the image, path of its ground truth without the ending)}, also where one is missing."""
    images, truths = folder / "leftImg8bit" / split, folder / "gtFine" / split
    for path in (images, truths):
        if not path.is_dir():
            raise ValueError(
                "`folder` must hold Cityscapes' folders leftImg8bit and gtFine, and in them a folder for "
                f"`split`. There is no folder: {path}"
            )
    found = {path.name.removesuffix(_IMAGE): path.parent.name for path in images.glob(f"*/*{_IMAGE}")}
    for ending in (_IDS, _POLYGONS):
        found |= {path.name.removesuffix(ending): path.parent.name for path in truths.glob(f"*/*{ending}")}
    if not found:
        raise ValueError(f"Expected images CITY/*{_IMAGE} in the split. There is none in: {images}")
    ordered = sorted(found.items(), key=lambda item: (item[1], item[0]))
    return {name: (images / city / f"{name}{_IMAGE}", truths / city / name) for name, city in ordered}


class _Runs:
    """An instance id image, column by column, as runs of equal pixels."""

    def __init__(self, ids):
        self.size = ids.shape
        columns = ids.T.ravel()
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        self.ids = columns[starts]
        self.starts = starts
        self.ends = np.append(starts[1:], columns.size)

    def mask(self, ids):
        """Compressed RLE, box (x1, y1, x2, y2) and area of the pixels that have one of `ids`."""
        chosen = np.isin(self.ids, ids)
        starts, ends = self.starts[chosen], self.ends[chosen]
        joined = ends[:-1] == starts[1:]  # neighbours of two ids
        starts, ends = np.delete(starts, np.flatnonzero(joined) + 1), np.delete(ends, np.flatnonzero(joined))
        height, width = self.size
        borders = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [height * width]])
        rle = {"size": [height, width], "counts": np.diff(borders).tolist()}
        counts = coco_mask.frPyObjects(rle, height, width)["counts"].decode("ascii")
        if not len(starts):
            return {"size": [height, width], "counts": counts}, None, 0
        left, right = starts // height, (ends - 1) // height
        over_columns = left < right  # such a run holds a last and a first row
        top = np.where(over_columns, 0, starts % height)
        bottom = np.where(over_columns, height - 1, (ends - 1) % height)
        box = [left[0], top.min(), right[-1] + 1, bottom.max() + 1]
        return {"size": [height, width], "counts": counts}, box, int((ends - starts).sum())


def _truth(path):
    """The `_Runs` of an image; `path`: of its files, without their ending; or a `Broken`."""
    ids, polygons = f"{path}{_IDS}", f"{path}{_POLYGONS}"
    try:
        if os.path.isfile(ids):
            return _Runs(_known(_read_ids(ids), ids))
        if os.path.isfile(polygons):
            return _Runs(_paint(polygons))
    except checks.Broken as broken:
        return broken
    return checks.Broken(
        "missing ground truth", f"expected {ids} or, in its place, {os.path.basename(polygons)}. Add it."
    )


def _read_ids(path):
    """int32 `[H, W]`."""
    encoded = tf.io.read_file(path)
    eight_bit = encoded.numpy()[24:25] == b"\x08"  # TensorFlow would stretch 8 bits to 16
    try:
        ids = tf.io.decode_png(encoded, channels=1, dtype=tf.uint8 if eight_bit else tf.uint16)
    except tf.errors.OpError as error:
        raise checks.Broken(
            "unreadable ground truth",
            f"expected a grey PNG of 16 bits, but {path} cannot be decoded: {error.message.splitlines()[0]}. "
            "Replace the file.",
        ) from error
    return ids.numpy()[:, :, 0].astype(np.int32)


def _known(ids, path):
    present = np.flatnonzero(np.bincount(ids.ravel()))
    labels = np.where(present < 1000, present, present // 1000)
    wrong = present[(labels >= len(LABELS)) | ((present >= 1000) & ~np.isin(labels, WITH_INSTANCES))]
    if len(wrong):
        raise checks.Broken(
            "unknown label",
            f"expected ids of Cityscapes' labels (0 to 33, with objects 24000 to 33999) in {path}, "
            f"got {wrong[:5].tolist()}. Are these train ids? The regular ones are needed.",
        )
    return ids


def _paint(path):
    """int32 `[H, W]`: the ids of a `polygons.json`, objects numbered within their class."""
    try:
        with open(path, "rb") as file:
            content = json.load(file)
        height, width, objects = content["imgHeight"], content["imgWidth"], content["objects"]
        drawn = [(str(entry["label"]), entry["polygon"]) for entry in objects if not entry.get("deleted")]
        outlines = [np.asarray(polygon, np.float64).reshape(-1, 2) for _, polygon in drawn]
        ids = np.zeros((height, width), np.int32)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checks.Broken(
            "unreadable ground truth",
            "expected a json object with imgHeight, imgWidth and objects of a label and a polygon in "
            f"{path}. {type(error).__name__}: {error}",
        ) from error
    numbers = dict.fromkeys(WITH_INSTANCES, 0)
    for (label, _), outline in zip(drawn, outlines, strict=True):
        if label == NOT_DRAWN:
            continue
        single = label if label in IDS else label.removesuffix("group")
        if single not in IDS:
            raise checks.Broken("unknown label", f"expected a label of Cityscapes in {path}, got {label!r}.")
        value = IDS[single]
        if value in WITH_INSTANCES and single == label:
            numbers[value] += 1
            value = 1000 * value + numbers[value] - 1
        if len(outline) >= 3 and np.isfinite(outline).all():
            ids[_fill(outline, height, width)] = value
    return ids


def _fill(outline, height, width):
    """bool `[H, W]`: the pixels in a polygon and, as in Cityscapes' own images, those it runs through."""
    points = np.clip(outline, 0, [width - 1, height - 1])
    rle = coco_mask.frPyObjects([(points + 0.5).ravel().tolist()], height, width)
    inside = coco_mask.decode(rle)[:, :, 0].astype(bool)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        steps = np.linspace(0, 1, int(np.abs(end - start).max()) + 1)
        x, y = np.floor(start + (end - start) * steps[:, None] + 0.5).astype(int).T
        inside[y, x] = True
    return inside


def _record(name, path, truth, categories):
    index = {category.id: position for position, category in enumerate(categories)}
    boxes, classes, crowd, segmentations, ids, areas = [], [], [], [], [], []
    for value in np.unique(truth.ids).tolist():
        label = value if value < 1000 else value // 1000
        if label not in index:
            continue
        rle, box, area = truth.mask([value])
        boxes.append(box)
        classes.append(index[label])
        crowd.append(value < 1000)
        segmentations.append(rle)
        ids.append(value)
        areas.append(area)
    return CityscapesRecord(
        image_id=name,
        path=path,
        height=truth.size[0],
        width=truth.size[1],
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.array(classes, np.int32),
        crowd=np.array(crowd, bool),
        segmentations=segmentations,
        annotation_ids=ids,
        areas=np.array(areas, np.float32),
        void=truth.mask(VOID)[0],
    )
