"""What stands in the `assets` of an export: the outputs in words, the categories, a label map."""

import json

OUTPUTS = {
    "detection_boxes": "ymin, xmin, ymax, xmax as parts (0..1) of the source image's height and width",
    "detection_boxes_pixels": "x1, y1, x2, y2 in pixels of the source image; pixel i covers [i, i + 1]",
    "detection_scores": "0..1, best first",
    "detection_classes": "ids of the categories, see `categories.json`",
    "detection_class_names": "names of the categories",
    "num_detections": "how many of the D rows are detections; the others are 0, or empty strings",
    "image_sizes": "height and width of the source image in pixels, EXIF's orientation not applied",
    "detection_keypoints": "y, x as parts (0..1) of the source image's height and width",
    "detection_keypoints_pixels": "x, y in pixels of the source image",
    "detection_keypoint_scores": "0..1; 0 behind the last keypoint of a category that has fewer than K",
    "error": "why an image has no detections; empty of an image that was read",
}
MASKS = {
    "box": "probabilities (0..1) on a grid of M x M cells over the box, first axis from the top down",
    "rle": (
        "COCO's compressed run lengths of the mask at source size: with `image_sizes` as `size` and this as "
        "`counts`, `pycocotools.mask.decode` gives it"
    ),
    "png": "a PNG file of the mask at source size, 0 and 255",
}
INPUTS = {
    "image_bytes": "JPEG, PNG, GIF (first frame), BMP or WebP files, of any sizes",
    "images": "pixels of source images of one size; RGB when there are 3 channels",
    "examples": "serialised `tf.Example`s with a file as in `image_bytes` in the feature `image/encoded`",
}
_LETTERS = "`B` images, `D` detections at most, `M` cells of a mask's side, `K` keypoints."


def category_ids(categories):
    """The integers that `detection_classes` holds: the data set's ids; 1, 2, ... where one is no integer."""
    ids = [category.id for category in categories]
    if all(isinstance(given, int) and abs(given) < 2**63 for given in ids):
        return ids
    return list(range(1, len(ids) + 1))


def write(folder, signatures, categories, masks, limits):
    """Write README.md, categories.json and label_map.pbtxt.

    Args:
        folder: pathlib.Path, `assets` of the export.
        signatures: {name: concrete function}.
        categories: list of `Category`.
        masks: as for `export_saved_model`.
        limits: str, a sentence on what is refused and how.
    """
    folder.mkdir(exist_ok=True)
    ids = category_ids(categories)
    entries = [category.to_dict() for category in categories]
    if ids != [category.id for category in categories]:
        entries = [{**entry, "served_id": number} for entry, number in zip(entries, ids, strict=True)]
    (folder / "categories.json").write_text(json.dumps(entries), encoding="utf-8")
    items = (
        f"item {{\n  id: {number}\n  name: {json.dumps(category.name)}\n}}\n"
        for number, category in zip(ids, categories, strict=True)
    )
    (folder / "label_map.pbtxt").write_text("".join(items), encoding="utf-8")
    (folder / "README.md").write_text(_readme(signatures, masks, limits), encoding="utf-8")


def _readme(signatures, masks, limits):
    lines = ["# Signatures", "", "| signature | input | type | shape | |", "| --- | --- | --- | --- | --- |"]
    for name, function in signatures.items():
        spec = function.structured_input_signature[0][0]
        shape = _shape(spec, "B", "H", "W")
        lines.append(f"| `{name}` | `{spec.name}` | {spec.dtype.name} | {shape} | {INPUTS[spec.name]} |")
    meanings = {**OUTPUTS, **dict.fromkeys(("detection_masks", "detection_masks_bytes"), MASKS.get(masks))}
    lines += ["", f"{limits} All signatures answer with:", ""]
    lines += ["| output | type | shape | |", "| --- | --- | --- | --- |"]
    for name, spec in sorted(function.structured_outputs.items()):
        lines.append(f"| `{name}` | {spec.dtype.name} | {_shape(spec, 'B')} | {meanings[name]} |")
    return "\n".join([*lines, "", _LETTERS, ""])


def _shape(spec, *letters):
    letters = iter(letters)
    return "[" + ", ".join(str(size or next(letters)) for size in spec.shape) + "]"
