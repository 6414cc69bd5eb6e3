"""COCO json and an image folder to checked records: the first station of the walk.

Comes in: files as people have them. Goes out: `CocoDataset`, whose records need no further checks, and a list
of everything that was left out.
"""

import json
import os

import numpy as np

from keras_mrcnn.data import checks, shards
from keras_mrcnn.data.records import Category, CocoDataset, Problem, Record

__all__ = ["Category", "CocoDataset", "Problem", "Record", "load_coco"]


def load_coco(annotations, images, categories=None, invalid="skip", check_images=True):
    """Reads and checks a COCO data set.

    An object may have polygons, an RLE (compressed or not) or only a box; `info`, `licenses`, `area`, and
    either of `bbox` and `segmentation` may be missing; ids may have gaps; image ids may be strings, and "7"
    and 7 are the same image. An image without `file_name` but with `coco_url`, as in LVIS, is the file of
    that name in the folder of that name: "train2017/000000000030.jpg". Boxes that leave the image are clipped
    to it. An image whose annotations are all left out stays, as an image without objects. Keypoints are read
    where the object's category names them (see `Category`); an object that has none is kept without.

    Args:
        annotations: path of the COCO json; or of TFRecords (see `shards`), a pattern such as
            `train/*.tfrecord`, which hold the images, too.
        images: folder that the `file_name`s of the json are relative to; of no meaning with TFRecords.
        categories: list of `Category`, those of a model, in the order of its class index; ids and names must
            agree, and the names of keypoints where both have any. None: those of the json, ordered by id.
        invalid: "skip": leave out what is broken and list it in `skipped`; "error": raise at the first.
        check_images: decode every image once. Otherwise the sizes in the json are believed.

    Returns:
        `CocoDataset`.

    Raises:
        ValueError: The json is not a COCO file, the folder does not exist, or, with invalid="error",
            something is broken; the message names file, image id and annotation id.
    """
    if invalid not in ("skip", "error"):
        raise ValueError(f'`invalid` must be "skip" or "error". Received: invalid={invalid!r}')
    annotations, images = os.fspath(annotations), os.fspath(images)
    content = shards.read_shards(annotations) if shards.is_shards(annotations) else _read_json(annotations)
    if not (os.path.isdir(images) or shards.is_shards(annotations)):
        raise ValueError(
            f"`images` must be the folder that holds the image files. There is no folder: {images}"
        )
    loader = _Loader(annotations, images, invalid)
    return loader.load(content, categories, check_images)


def _read_json(path):
    if not os.path.isfile(path):
        raise ValueError(f"`annotations` must be the path of a COCO json file. There is no file: {path}")
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`annotations` must be a json file. {path} is not json: {error}") from error
    expected = "`annotations` must hold a json object with the lists images, annotations and categories"
    if not isinstance(content, dict):
        raise ValueError(f"{expected}. {path} holds a {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise ValueError(f"{expected}. {path} has no {key}; it has {sorted(content)}")
        if not isinstance(content[key], list):
            raise ValueError(f"{expected}. In {path}, {key} is a {type(content[key]).__name__}")
    return content


def _key(identifier):
    """Ids are compared as text, so that "7", 7 and 7.0 are one id."""
    if isinstance(identifier, float) and identifier.is_integer():
        identifier = int(identifier)
    return str(identifier)


def _is_id(value):
    return (
        isinstance(value, int | str)
        and not isinstance(value, bool)
        or (isinstance(value, float) and value == value)
    )


def _keypoints(category):
    """Names of a category's keypoints; none of an object that only has an id and a name."""
    return getattr(category, "keypoints", ())


def _with_file_name(entry):
    """The entry of an image; LVIS names the file by its address only, .../train2017/000000000030.jpg."""
    if isinstance(entry, dict) and "file_name" not in entry and isinstance(entry.get("coco_url"), str):
        return {**entry, "file_name": "/".join(entry["coco_url"].split("/")[-2:])}
    return entry


class _Loader:
    """One reading of one data set; `problems` grows, or the first one is raised."""

    def __init__(self, json_path, folder, invalid):
        self.json_path = json_path
        self.folder = folder
        self.invalid = invalid
        self.problems = []

    def report(self, kind, what, file=None, image_id=None, annotation_id=None):
        problem = Problem(file or self.json_path, image_id, annotation_id, what, kind)
        if self.invalid == "error":
            raise ValueError(f'{problem} (invalid="skip" leaves it out and goes on.)')
        self.problems.append(problem)

    def load(self, content, model_categories, check_images):
        own_categories = self._categories(content["categories"])
        categories = sorted(own_categories.values(), key=lambda category: category.id)
        if model_categories is not None:
            categories = list(model_categories)
            self._compare_categories(own_categories, categories)
        positions = {(category.id, category.name): index for index, category in enumerate(categories)}
        class_index = {key: positions.get((own.id, own.name)) for key, own in own_categories.items()}
        self.categories = categories
        self.own_keypoints = {key: own.keypoints for key, own in own_categories.items()}

        entries = self._images(content["images"])
        of_image = self._group(content["annotations"], entries)
        paths = {key: os.path.join(self.folder, entry["file_name"]) for key, entry in entries.items()}
        decoded = checks.image_sizes(list(paths.values())) if check_images else [None] * len(entries)
        records = []
        for (key, entry), size in zip(entries.items(), decoded, strict=True):
            try:
                height, width = checks.check_size(entry, size)
            except checks.Broken as broken:
                what = f"{broken.what} Left out with its {len(of_image[key])} annotations."
                self.report(broken.kind, what, paths[key], entry["id"])
                continue
            records.append(self._record(entry["id"], paths[key], height, width, of_image[key], class_index))
        return CocoDataset(records, categories, self.problems)

    def _categories(self, entries):
        """Categories of the json by key; raises whatever `invalid` is: without them nothing has a meaning."""
        categories = {}
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or "name" not in entry:
                raise ValueError(
                    f"{self.json_path}: every entry of categories must be an object with a whole number "
                    f"as id and a name. Received: {entry!r}"
                )
            if _key(entry["id"]) in categories:
                raise ValueError(
                    f"{self.json_path}: category id {entry['id']} is there twice. Ids must be unique."
                )
            try:
                categories[_key(entry["id"])] = Category.from_dict(entry)
            except ValueError as error:
                raise ValueError(f"{self.json_path}: {error}") from error
        return categories

    def _compare_categories(self, own, model_categories):
        known = {(category.id, category.name): _keypoints(category) for category in model_categories}
        for category in own.values():
            names = known.get((category.id, category.name))
            if names and category.keypoints and names != category.keypoints:
                self.report(
                    "keypoints unlike the model's",
                    f"category {category.id} {category.name!r} must have the model's keypoints, in their "
                    f"order: {', '.join(names)}. It has {', '.join(category.keypoints)}. Its objects are "
                    "kept without keypoints.",
                )
            if names is None:
                all_known = ", ".join(f"{known_id} {name}" for known_id, name in known)
                self.report(
                    "category unknown to the model",
                    f"category {category.id} {category.name!r} is not one of the model's ({all_known}). Give "
                    "the json the model's ids and names, or build a model for these categories.",
                )

    def _images(self, entries):
        """Usable image entries by key, in the order of the json."""
        images = {}
        for position, entry in enumerate(map(_with_file_name, entries)):
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                self.report(
                    "bad image entry",
                    f"entry {position} of images must be an object with an id. Got {entry!r}.",
                )
            elif not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
                what = f"expected the name of a file as file_name, got {entry.get('file_name')!r}."
                self.report("bad image entry", what, image_id=entry["id"])
            elif _key(entry["id"]) in images:
                first = images[_key(entry["id"])]["file_name"]
                what = f"the image id must be unique, but {first} has it too; its annotations go to {first}."
                file = os.path.join(self.folder, entry["file_name"])
                self.report("duplicate image id", f"{what} This entry is left out.", file, entry["id"])
            else:
                images[_key(entry["id"])] = entry
        return images

    def _group(self, annotations, entries):
        """Annotations with their positions, by the key of their image."""
        of_image = {key: [] for key in entries}
        for position, annotation in enumerate(annotations):
            if not isinstance(annotation, dict):
                what = f"entry {position} of annotations must be an object. Got {annotation!r}."
                self.report("bad annotation entry", what, annotation_id=position)
            elif _key(annotation.get("image_id")) not in of_image:
                what = "expected an image_id that is among images. Add the image or remove the annotation."
                identifier = annotation.get("id", position)
                self.report("annotation without image", what, None, annotation.get("image_id"), identifier)
            else:
                of_image[_key(annotation["image_id"])].append((position, annotation))
        return of_image

    def _record(self, image_id, path, height, width, annotations, class_index):
        """The record of one image; what is broken among its annotations is reported."""
        boxes, classes, crowd, segmentations, ids, areas, points = [], [], [], [], [], [], []
        for position, annotation in annotations:
            identifier = annotation.get("id", position)

            def report(kind, what, identifier=identifier):
                self.report(kind, what, path, image_id, identifier)

            try:
                class_id = self._class(annotation, class_index)
                box, segmentation, area = checks.check_annotation(annotation, height, width, report)
                names = self.own_keypoints[_key(annotation["category_id"])]
                own_points = checks.check_keypoints(annotation, names, height, width, report)
            except checks.Broken as broken:
                report(broken.kind, broken.what)
                continue
            boxes.append(box)
            classes.append(class_id)
            crowd.append(bool(annotation.get("iscrowd", 0)))
            segmentations.append(segmentation)
            ids.append(identifier)
            areas.append(area)
            points.append(own_points if names == _keypoints(self.categories[class_id]) else own_points[:0])
        keypoints, mirrored = self._padded(points, classes)
        return Record(
            image_id=image_id,
            path=path,
            height=height,
            width=width,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            classes=np.array(classes, np.int32),
            crowd=np.array(crowd, bool),
            segmentations=segmentations,
            annotation_ids=ids,
            areas=np.array(areas, np.float32),
            keypoints=keypoints,
            mirrored=mirrored,
        )

    def _padded(self, points, classes):
        """Keypoints `[G, K, 3]` and partners `[G, K]` of the objects of an image; None without any names."""
        most = max((len(_keypoints(category)) for category in self.categories), default=0)
        if not most:
            return None, None
        keypoints = np.zeros((len(points), most, 3), np.float32)
        mirrored = np.tile(np.arange(most, dtype=np.int32), (len(points), 1))
        for index, (own, class_id) in enumerate(zip(points, classes, strict=True)):
            keypoints[index, : len(own)] = own
            if len(own):
                mirrored[index, : len(own)] = self.categories[class_id].mirrored()
        return keypoints, mirrored

    def _class(self, annotation, class_index):
        category_id = annotation.get("category_id")
        index = class_index.get(_key(category_id))
        if index is None:
            raise checks.Broken(
                "category unknown",
                "expected a category_id that is among the categories of the json and of the model, "
                f"got {category_id!r}.",
            )
        return index
