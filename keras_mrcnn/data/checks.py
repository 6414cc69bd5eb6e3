"""What may enter the walk: checks of one annotation and of the image files, with words for what is wrong."""

import math
import os

import numpy as np
import tensorflow as tf

from keras_mrcnn.data import images, masks, shards


class Broken(Exception):
    """An annotation or an image that cannot be used: `kind` in a few words, `what` in a sentence."""

    def __init__(self, kind, what):
        super().__init__(what)
        self.kind = kind
        self.what = what


def image_sizes(paths):
    """Decodes every file once, in parallel, with the decoder that training uses.

    Args:
        paths: list of image paths.

    Returns:
        list of the same length: `(height, width)` in pixels, or a `Broken` that says what is wrong.
    """
    results = [None if os.path.isfile(shards.file_of(path)) else _missing(path) for path in paths]
    present = [index for index, result in enumerate(results) if result is None]
    if not present:
        return results

    any_shards = any(path != shards.file_of(path) for path in paths)

    def size(index, path):
        return index, tf.shape(images.decode(shards.read_encoded(path, any_shards)))[:2]

    dataset = tf.data.Dataset.from_tensor_slices((present, [paths[index] for index in present]))
    dataset = dataset.map(size, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    for index, shape in dataset.ignore_errors(log_warning=False).prefetch(16).as_numpy_iterator():
        results[index] = (int(shape[0]), int(shape[1]))
    return [
        _unreadable(path) if result is None else result for path, result in zip(paths, results, strict=True)
    ]


def _missing(path):
    what = "there is no such file" if not os.path.exists(path) else "this is not a file"
    return Broken(
        "missing image file", f"expected an image file, but {what}. Check `images` and the file_name."
    )


def _unreadable(path):
    try:
        tf.shape(images.decode(shards.read_encoded(path)))
    except tf.errors.OpError as error:
        reason = images.first_line(error.message)
    else:
        reason = "it could not be read at the first attempt"
    size = os.path.getsize(shards.file_of(path))
    return Broken(
        "unreadable image file",
        f"expected a complete JPEG, PNG, BMP or GIF image, but the file of {size} bytes "
        f"cannot be decoded: {reason}. Replace the file.",
    )


def check_size(entry, decoded):
    """Size of an image: the file's when it was decoded, else the json's.

    Args:
        entry: dict of the image in the json.
        decoded: `(height, width)` of the file, a `Broken`, or None when the file was not looked at.

    Returns:
        `(height, width)`, pixels.

    Raises:
        Broken: The file is unusable, the json has no size and the file was not decoded, or the two differ.
    """
    if isinstance(decoded, Broken):
        raise decoded
    written = entry.get("height"), entry.get("width")
    if written == (None, None) and decoded is not None:
        return decoded
    if not all(_is_number(edge) and edge >= 1 and edge == int(edge) for edge in written):
        raise Broken(
            "bad image size in the json",
            f"expected whole numbers of at least 1 for height and width, got {written}. Correct them, or "
            "remove them and load with check_images=True: then the file's size is taken.",
        )
    written = int(written[0]), int(written[1])
    if decoded not in (None, written):
        raise Broken(
            "image size differs from the json",
            f"the json says height {written[0]}, width {written[1]}, the file has height {decoded[0]}, width "
            f"{decoded[1]}, so the annotations may belong to another version of the image. Restore that "
            "version; if the annotations do fit the file, correct or remove height and width in the json.",
        )
    return written


def check_annotation(annotation, height, width, report):
    """Box, segmentation and area of one annotation.

    Args:
        annotation: dict of the json.
        height, width: of the image, pixels.
        report: called as `report(kind, what)` when a part is left out and the object is kept.

    Returns:
        `(box, segmentation, area)`: float32 `[4]` (x1, y1, x2, y2) clipped to the image; list of polygons,
        RLE dict or None; pixels.

    Raises:
        Broken: The annotation cannot be used.
    """
    segmentation = annotation.get("segmentation")
    mask_box = mask_area = None
    if isinstance(segmentation, dict):
        mask_box, mask_area = _check_rle(segmentation, height, width)
    elif isinstance(segmentation, list) and segmentation:
        segmentation = _check_polygons(segmentation, report)
        points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation])
        mask_box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    elif segmentation is None or segmentation == []:
        segmentation = None
    else:
        raise Broken(
            "bad segmentation",
            "expected a list of polygons, an RLE object or nothing as segmentation, "
            f"got {_short(segmentation)}.",
        )
    box = _check_box(annotation.get("bbox"), mask_box, height, width)
    area = annotation.get("area")
    if not _is_number(area) or not 0 <= area < math.inf:
        if mask_area is None:
            mask_area = (box[2] - box[0]) * (box[3] - box[1])
            if segmentation is not None:
                mask_area = masks.polygon_area(_clamp(segmentation, height, width), height, width)
        area = mask_area
    return box, segmentation, float(area)


def check_keypoints(annotation, names, height, width, report):
    """Keypoints of one annotation; what cannot be used counts as not labelled.

    Args:
        annotation: dict of the json; `keypoints` is COCO's flat list [x, y, v, ...] of pixel indices, or not
            there.
        names: names of the category's K keypoints.
        height, width: of the image, pixels.
        report: called as `report(kind, what)` for what is left out.

    Returns:
        float32 `[K, 3]`, (x, y, v), see `records.Record`.
    """
    given = annotation.get("keypoints")
    points = np.zeros((len(names), 3), np.float32)
    if given is None or given == []:
        return points
    problem = _keypoints_problem(given, names)
    if problem:
        if names or not annotation.get("iscrowd"):
            report(problem[0], f"{problem[1]}. The object is kept without keypoints.")
        return points
    points[:] = np.reshape(given, (-1, 3))
    labelled = points[:, 2] > 0
    counted = annotation.get("num_keypoints", labelled.sum())
    if counted != labelled.sum():
        report(
            "num_keypoints differs",
            f"expected num_keypoints {labelled.sum()}, as many as keypoints with a visibility above 0, got "
            f"{_short(counted)}. The keypoints are kept; correct or remove num_keypoints.",
        )
    points[:, :2] += 0.5
    # half a pixel of grace for tools that do not count from the centres of pixels
    inside = (points[:, :2] >= 0).all(axis=1) & (points[:, :2] <= [width + 0.5, height + 0.5]).all(axis=1)
    for index in np.flatnonzero(labelled & ~inside):
        report(
            "keypoint outside the image",
            f"expected keypoint {names[index]!r} in the image of height {height}, width {width}, got "
            f"x {given[3 * index]}, y {given[3 * index + 1]}. It counts as not labelled.",
        )
    points[~(labelled & inside)] = 0
    points[:, :2] = np.minimum(points[:, :2], [width, height])
    return points


def _keypoints_problem(given, names):
    """None, or the kind and the words of what makes the list unusable as a whole."""
    if not names:
        what = "expected no keypoints, because the category names none; give the category its `keypoints`"
        return "keypoints of a category without", what
    if not isinstance(given, list) or len(given) != 3 * len(names):
        came = f"{len(given)} numbers" if isinstance(given, list) else _short(given)
        what = f"expected keypoints as a list of 3 x {len(names)} numbers [x1, y1, v1, ...], got {came}"
        return "bad keypoints", what
    if not all(_is_number(value) and math.isfinite(value) for value in given):
        return "bad keypoints", f"expected finite numbers as keypoints, got {_short(given)}"
    strange = sorted(set(given[2::3]) - {0, 1, 2})
    if strange:
        what = f"expected 0, 1 or 2 as every third number of keypoints, got {_short(strange)}"
        return "bad visibility of a keypoint", what
    return None


def _check_box(bbox, mask_box, height, width):
    """float32 `[4]`, clipped; `bbox`: COCO's [x, y, width, height], or absent: `mask_box` stands in."""
    if bbox is None or bbox == []:
        if mask_box is None:
            raise Broken(
                "no box", "expected a bbox or a segmentation, found neither. Add one or remove this entry."
            )
        box = np.asarray(mask_box, np.float64)
        bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(value) for value in bbox)):
        raise Broken("bad box", f"expected bbox as four numbers [x, y, width, height], got {_short(bbox)}.")
    if not all(math.isfinite(value) for value in bbox):
        raise Broken("box not finite", f"expected finite numbers as bbox [x, y, width, height], got {bbox}.")
    x, y, box_width, box_height = (float(value) for value in bbox)
    if box_width < 0 or box_height < 0:
        raise Broken(
            "reversed box", f"expected bbox [x, y, width, height] with positive width and height, got {bbox}."
        )
    if box_width == 0 or box_height == 0:
        raise Broken("box without area", f"expected a bbox of positive width and height, got {bbox}.")
    box = np.array([x, y, x + box_width, y + box_height], np.float64)
    box = np.clip(box, 0, [width, height, width, height]).astype(np.float32)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise Broken(
            "box outside the image",
            f"expected a bbox [x, y, width, height] that meets the image of height {height}, width {width}, "
            f"got {bbox}.",
        )
    return box


def _check_polygons(polygons, report):
    """The usable polygons of an object; the others are reported, and `Broken` is raised when none is left."""
    kept, problems = [], []
    for index, polygon in enumerate(polygons):
        problem = _polygon_problem(polygon)
        if problem:
            problems.append(f"polygon {index + 1} of {len(polygons)}: {problem}")
        else:
            kept.append(polygon)
    if not kept:
        raise Broken("bad polygon", "; ".join(problems[:3]) + ". Correct it, or remove the segmentation.")
    for problem in problems:
        report("bad polygon of several", f"{problem}. The object is kept with its other polygons.")
    return kept


def _polygon_problem(polygon):
    expected = "expected a list [x1, y1, x2, y2, ...] of at least 3 points"
    if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
        return f"{expected}, got {_short(polygon)}"
    if len(polygon) < 6 or len(polygon) % 2:
        return f"{expected}, got {len(polygon)} numbers"
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    if not (np.abs(points) < 1e6).all():  # false for NaN too
        return f"{expected}, all finite and less than a million pixels away, got {_short(polygon)}"
    offsets = points - points[0]
    far = offsets[np.abs(offsets).sum(axis=1).argmax()]
    if not np.any(offsets[:, 0] * far[1] - offsets[:, 1] * far[0]):
        return f"expected a polygon that covers an area, but its {len(points)} points lie on one line"
    return None


def _check_rle(rle, height, width):
    """Tight box and area of an RLE; raises `Broken` unless it fits the image and is not empty."""
    size = rle.get("size")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(edge) is int for edge in size)):
        raise Broken("bad RLE", f"expected RLE size [height, width], got {_short(size)}.")
    if tuple(size) != (height, width):
        raise Broken(
            "bad RLE",
            f"expected an RLE of the image's size [height, width] = [{height}, {width}], got {list(size)}.",
        )
    try:
        total = int(masks.rle_runs(rle.get("counts")).sum())
    except ValueError as error:
        raise Broken("bad RLE", f"expected RLE counts that can be read: {error}.") from error
    if total != height * width:
        raise Broken("bad RLE", f"expected run lengths that add up to {height} x {width}, got {total}.")
    box, area = masks.rle_box_and_area(rle)
    if box is None:
        raise Broken("empty mask", "expected a mask of at least one pixel, got an RLE without any.")
    return box, area


def _clamp(polygons, height, width):
    """Polygons with every point moved into the image, which is what the rasteriser needs to stay quick."""
    limits = np.array([width, height])
    return [np.clip(np.asarray(p, np.float64).reshape(-1, 2), 0, limits).ravel().tolist() for p in polygons]


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value, length=60):
    text = repr(value)
    return text if len(text) <= length else text[:length] + "..."
