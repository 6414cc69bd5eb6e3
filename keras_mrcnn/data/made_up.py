"""Made-up data sets as files: drawn images and what is in them, in the COCO layout."""

import json
import os

import numpy as np
import tensorflow as tf
from pycocotools import mask as coco_mask


def write_data_set(folder, counts, categories, draw, seed):
    """Draws images and writes them as PNG, with COCO annotations.

    Args:
        folder: where `images/` and `annotations/instances_{split}.json` are written; made if missing.
        counts: dict of the number of images of each split, "train" and "val".
        categories: list of dict, the categories of the json.
        draw: function of a `np.random.Generator` that gives `(image, annotations)`: uint8 `[H, W, 3]` RGB and
            a list of dict (see `annotation`).
        seed: integer, at least 0; every image has numbers of its own, whatever is drawn besides it.

    Returns:
        dict of paths under the names of the fields of `config.Data`.
    """
    image_folder, json_folder = os.path.join(folder, "images"), os.path.join(folder, "annotations")
    os.makedirs(image_folder, exist_ok=True)
    os.makedirs(json_folder, exist_ok=True)
    paths = {}
    for split, (name, count) in enumerate(counts.items()):
        content = {"images": [], "annotations": [], "categories": categories}
        for number in range(count):
            pixels, objects = draw(np.random.default_rng([seed, split, number]))
            file_name = f"{name}_{number:05d}.png"
            tf.io.write_file(os.path.join(image_folder, file_name), tf.io.encode_png(pixels))
            height, width = pixels.shape[:2]
            content["images"].append(
                {"id": number + 1, "file_name": file_name, "height": height, "width": width}
            )
            for entry in objects:
                identifier = len(content["annotations"]) + 1
                content["annotations"].append({"id": identifier, "image_id": number + 1, **entry})
        paths[f"{name}_annotations"] = os.path.join(json_folder, f"instances_{name}.json")
        paths[f"{name}_images"] = image_folder
        with open(paths[f"{name}_annotations"], "w", encoding="utf-8") as file:
            json.dump(content, file)
    return paths


def annotation(mask, category):
    """The COCO annotation of a bool mask `[H, W]` with at least one pixel, without ids of its own."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "category_id": category,
        "iscrowd": 0,
        "area": float(coco_mask.area(rle)),
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }
