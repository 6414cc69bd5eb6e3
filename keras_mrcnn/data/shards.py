"""TFRecords of `tf.train.Example`s, with the keys of TensorFlow Model Garden and a few of our own.

Of an image: image/encoded, format, height, width, filename, source_id. Of its objects, one value for each:
image/object/bbox/{xmin, xmax, ymin, ymax}, shares of the image; class/label, the category's id; class/text;
area; is_crowd; and mask, a PNG of the whole image, where they were asked for. Ours, since shares and PNGs do
not give back what was in the json: object/id; object/box, four floats in pixels; object/polygon/count, number
of each object's polygons; polygon/size, values of each polygon; polygon/points, x and y of all, pixels;
object/rle, COCO's compressed counts or nothing; object/keypoints, x, y and v of K keypoints as in COCO.
`categories.json` lies beside the files.

Records of Model Garden have none of ours: their masks are read from the PNGs, their categories are the labels
that occur, named by class/text.
"""

import contextlib
import glob
import json
import os
import re
import struct

import numpy as np
import tensorflow as tf
from pycocotools import mask as coco_mask

from keras_mrcnn.data.categories import Category

_PLACE = re.compile(r"(.+\.tfrecord)@(\d+)\+(\d+)")


def is_shards(annotations):
    """Whether a path, or a pattern of paths, names TFRecords."""
    return os.fspath(annotations).endswith(".tfrecord")


def write_shards(dataset, output, shards, png_masks=False):
    """Writes a data set as TFRecords, image i to file i modulo `shards`, and its categories.

    Args:
        dataset: `CocoDataset`; images are copied as they are, one at a time.
        output: folder, made where it is missing.
        shards: number of files.
        png_masks: whether to write image/object/mask, which Model Garden's decoder wants.

    Returns:
        list of the paths.
    """
    os.makedirs(output, exist_ok=True)
    paths = [os.path.join(output, f"{k:05d}-of-{shards:05d}.tfrecord") for k in range(shards)]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(tf.io.TFRecordWriter(path)) for path in paths]
        for number, record in enumerate(dataset.records):
            example = _example(record, dataset.categories, png_masks)
            writers[number % shards].write(example.SerializeToString())
    with open(os.path.join(output, "categories.json"), "w", encoding="utf-8") as file:
        json.dump([category.to_dict() for category in dataset.categories], file)
    return paths


def _example(record, categories, png_masks):
    encoded = tf.io.read_file(record.path).numpy()
    own = [categories[index] for index in record.classes]
    x1, y1, x2, y2 = record.boxes.astype(np.float64).T
    polygons = [s if isinstance(s, list) else [] for s in record.segmentations]
    flat = [polygon for one in polygons for polygon in one]
    features = {
        "image/encoded": [encoded],
        "image/format": [b"jpeg" if tf.io.is_jpeg(encoded) else b"png"],
        "image/height": [record.height],
        "image/width": [record.width],
        "image/filename": [os.path.basename(record.path).encode()],
        "image/source_id": [str(record.image_id).encode()],
        "image/object/bbox/xmin": x1 / record.width,
        "image/object/bbox/xmax": x2 / record.width,
        "image/object/bbox/ymin": y1 / record.height,
        "image/object/bbox/ymax": y2 / record.height,
        "image/object/class/label": [category.id for category in own],
        "image/object/class/text": [category.name.encode() for category in own],
        "image/object/area": record.areas,
        "image/object/is_crowd": record.crowd.astype(int),
        "image/object/id": [str(identifier).encode() for identifier in record.annotation_ids],
        "image/object/box": record.boxes.ravel(),
        "image/object/polygon/count": [len(one) for one in polygons],
        "image/object/polygon/size": [len(polygon) for polygon in flat],
        "image/object/polygon/points": [float(value) for polygon in flat for value in polygon],
        "image/object/rle": [_counts(s) for s in record.segmentations],
    }
    if record.keypoints is not None:
        points = np.where(record.keypoints[..., 2:] > 0, record.keypoints - [0.5, 0.5, 0], 0)
        features["image/object/keypoints"] = points.ravel()
    if png_masks:
        features["image/object/mask"] = [_png(s, record) for s in record.segmentations]
    features = {name: _feature(list(values)) for name, values in features.items() if len(values)}
    return tf.train.Example(features=tf.train.Features(feature=features))


def _feature(values):
    """Not of an empty list, whose type nobody could tell: a reader takes a missing entry as empty."""
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], int | np.integer):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _compressed(rle):
    return coco_mask.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle


def _counts(segmentation):
    if not isinstance(segmentation, dict):
        return b""
    counts = _compressed(segmentation)["counts"]
    return counts.encode() if isinstance(counts, str) else counts


def _png(segmentation, record):
    if isinstance(segmentation, dict):
        pixels = coco_mask.decode(_compressed(segmentation))
    elif segmentation:
        objects = coco_mask.frPyObjects(segmentation, record.height, record.width)
        pixels = coco_mask.decode(coco_mask.merge(objects))
    else:
        pixels = np.zeros((record.height, record.width), np.uint8)
    return tf.io.encode_png(pixels[..., None]).numpy()


def read_shards(pattern):
    """What a COCO json would hold of the same data, for `load_coco`; the files are read through once.

    Args:
        pattern: path of TFRecords, in which * stands for anything.

    Returns:
        dict of images, annotations and categories. A file_name is `FILE@OFFSET+LENGTH`, the place of the
        image's record, see `read_encoded`.

    Raises:
        ValueError: There is no such file, or one is damaged or compressed.
    """
    paths = sorted(glob.glob(os.fspath(pattern)))
    if not paths:
        raise ValueError(f"`annotations` must be the path of TFRecords, or a pattern. No file is {pattern}")
    content = {"images": [], "annotations": [], "categories": []}
    names = {}
    for path in paths:
        for offset, serialized in _records(path):
            _add(content, names, f"{os.path.abspath(path)}@{offset}+{len(serialized)}", serialized)
    beside = os.path.join(os.path.dirname(paths[0]), "categories.json")
    if os.path.isfile(beside):
        with open(beside, encoding="utf-8") as file:
            content["categories"] = json.load(file)
    else:
        content["categories"] = [{"id": label, "name": name} for label, name in sorted(names.items())]
    lengths = {c["id"]: 3 * len(Category.from_dict(c).keypoints) for c in content["categories"]}
    for annotation in content["annotations"]:
        if "keypoints" in annotation:
            annotation["keypoints"] = annotation["keypoints"][: lengths[annotation["category_id"]]]
    return content


def _records(path):
    """(offset, bytes) of each record of a file."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        while header := file.read(12):  # length and its checksum
            offset = file.tell()
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if offset + length + 4 > size:
                raise ValueError(
                    f"{path} is no TFRecord, or it is compressed, or it ends too early: at byte {offset}."
                )
            yield offset, file.read(length)
            file.seek(4, os.SEEK_CUR)


def _add(content, names, place, serialized):
    """One example as an image and annotations of COCO."""
    features = tf.train.Example.FromString(serialized).features.feature

    def values(name):
        feature = features[name] if name in features else tf.train.Feature()
        return list(feature.bytes_list.value or feature.int64_list.value or feature.float_list.value)

    (identifier,) = values("image/source_id") or [str(len(content["images"])).encode()]
    (height,), (width,) = values("image/height"), values("image/width")
    identifier = _identifier(identifier)
    content["images"].append({"id": identifier, "file_name": place, "height": height, "width": width})
    labels = values("image/object/class/label")
    texts = values("image/object/class/text") or [str(label).encode() for label in labels]
    names.update((label, text.decode()) for label, text in zip(labels, texts, strict=True))
    boxes = np.array(values("image/object/box"), np.float64).reshape(-1, 4)
    if not len(boxes):
        edges = [values(f"image/object/bbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        boxes = np.array(edges, np.float64).reshape(4, -1).T * [width, height, width, height]
    crowd, ids, areas = (values(f"image/object/{name}") for name in ("is_crowd", "id", "area"))
    keypoints = np.reshape(values("image/object/keypoints"), (len(labels), -1)) if labels else None
    segmentations = _segmentations(values, len(labels), height, width)
    for k, (label, segmentation) in enumerate(zip(labels, segmentations, strict=True)):
        x1, y1, x2, y2 = boxes[k].tolist()
        annotation = {
            "id": _identifier(ids[k]) if ids else len(content["annotations"]),
            "image_id": identifier,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": crowd[k] if crowd else 0,
            "segmentation": segmentation,
        }
        if areas:
            annotation["area"] = areas[k]
        if keypoints.shape[1]:
            annotation["keypoints"] = keypoints[k].tolist()
        content["annotations"].append(annotation)


def _identifier(text):
    text = text.decode()
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def _segmentations(values, count, height, width):
    """Of each object: polygons, an RLE or None."""
    found, points = [None] * count, values("image/object/polygon/points")
    sizes = values("image/object/polygon/size")
    polygons = np.split(np.array(points), np.cumsum(sizes)[:-1].astype(int)) if sizes else []
    ends = np.cumsum(values("image/object/polygon/count")).astype(int).tolist()
    for k, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
        found[k] = [polygon.tolist() for polygon in polygons[first:last]] or None
    for k, counts in enumerate(values("image/object/rle")):
        found[k] = {"size": [height, width], "counts": counts} if counts else found[k]
    if not ends:
        for k, png in enumerate(values("image/object/mask")):
            pixels = np.asfortranarray(tf.io.decode_png(png, channels=1).numpy()[..., 0] > 0)
            found[k] = coco_mask.encode(pixels.astype(np.uint8, order="F"))
    return found


def file_of(path):
    """The file in which an image is: the path itself, or that of the TFRecord."""
    place = _PLACE.fullmatch(path)
    return place[1] if place else path


def read_encoded(path, any_shards=True):
    """The encoded image at a path, which may be a place in a TFRecord.

    Args:
        path: string scalar tensor.
        any_shards: False where no path is such a place: then nothing but TensorFlow reads.

    Returns:
        string scalar tensor.
    """
    if not any_shards:
        return tf.io.read_file(path)

    def from_record():
        serialized = tf.numpy_function(_read_record, [path], tf.string, stateful=False)
        feature = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
        return tf.io.parse_single_example(tf.ensure_shape(serialized, []), feature)["image/encoded"]

    inside = tf.strings.regex_full_match(path, _PLACE.pattern)
    return tf.cond(inside, from_record, lambda: tf.io.read_file(path))


def _read_record(path):
    file, offset, length = _PLACE.fullmatch(path.decode()).groups()
    with open(file, "rb") as opened:
        opened.seek(int(offset))
        return opened.read(int(length))
