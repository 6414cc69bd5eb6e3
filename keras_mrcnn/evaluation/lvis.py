"""LVIS's score: COCO's, where each image was searched for a part of the categories only.

Numbers are those of the official package `lvis` 0.5.3, which itself does not run with numpy 1.24 and later.
Rules: A. Gupta, P. Dollar and R. Girshick, LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR
2019. The matching is pycocotools' or hotcoco's (see `backends`).
"""

import collections
import json

import numpy as np
from pycocotools import mask as coco_mask

from keras_mrcnn.evaluation import backends
from keras_mrcnn.evaluation.checks import with_finite_scores
from keras_mrcnn.evaluation.coco import CocoEvaluator

_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}  # all, under 32^2, 32^2 to 96^2, over 96^2 pixels
_FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
_FAR = 1e5  # pixels; beyond every image


class LvisEvaluator(CocoEvaluator):
    """Collects detections image by image and scores them by LVIS's rules: reset, add, result.

    As `CocoEvaluator`, except that of each image only the best `max_detections` of all categories count; that
    detections of a category which the image neither holds nor is known not to hold are left out; and that a
    category of which an image may hold more objects than are marked has no wrong detections there.

    Args:
        records: as for `CocoEvaluator`.
        annotations: the LVIS json that the records were read from: its path, or what it holds. It says
            of each image what was searched for (`neg_category_ids`, `not_exhaustive_category_ids`), and of
            each category how frequent it is (`frequency`).
        categories, iou_types, backend: as for `CocoEvaluator`.
        max_detections: how many detections count, the best first, per image.

    Raises:
        ValueError: the json lacks one of these for an image or a category.

    Example:

    >>> dataset = load_coco("lvis_v1_val.json", "coco")
    >>> evaluator = LvisEvaluator(dataset, "lvis_v1_val.json")
    >>> for results in model.detect([record.path for record in dataset.records]):
    ...     evaluator.add(results)
    >>> evaluator.result()["segm"]["APr"]
    """

    def __init__(
        self,
        records,
        annotations,
        categories=None,
        max_detections=300,
        iou_types=("bbox", "segm"),
        backend="auto",
    ):
        super().__init__(records, categories, max_detections, iou_types, backend)
        if not isinstance(annotations, dict):
            with open(annotations, "rb") as file:
                annotations = json.load(file)
        self._frequencies = self._read_frequencies(annotations)
        self._absent = self._read_of_images(annotations, "neg_category_ids")
        self._open = self._read_of_images(annotations, "not_exhaustive_category_ids")
        rows = {iou_type: self._truth_of_lvis(iou_type) for iou_type in self.iou_types}
        present = {(row["image_id"], row["category_id"]) for of_type in rows.values() for row in of_type}
        self._searched = present | self._absent
        self._truths = {
            iou_type: backends.load(self.backend, self._dataset(self._with_open(of_type, iou_type)))
            for iou_type, of_type in rows.items()
        }

    def _read_frequencies(self, annotations):
        given = {entry.get("id"): entry.get("frequency") for entry in annotations.get("categories", [])}
        found = [given.get(category.id) for category in self.categories]
        for category, frequency in zip(self.categories, found, strict=True):
            if frequency not in _FREQUENCIES:
                raise ValueError(
                    "`annotations` must be the LVIS json of the dataset, whose categories have a frequency: "
                    f"{', '.join(map(repr, _FREQUENCIES))}. Received: {frequency!r} for category "
                    f"{category.id} {category.name!r}"
                )
        return np.array(found)

    def _read_of_images(self, annotations, key):
        """Set of (image, category) in the numbers used here."""
        given = {entry.get("id"): entry.get(key) for entry in annotations.get("images", [])}
        pairs = set()
        for image_id, (image, _) in self._record_of.items():
            if given.get(image_id) is None:
                raise ValueError(
                    f"`annotations` must be the LVIS json of the dataset, whose images have {key}. "
                    f"Received none for image {image_id!r}"
                )
            known = [self._category_of[n] for n in given[image_id] if n in self._category_of]
            pairs.update((image, category) for category in known)
        return pairs

    def _truth_of_lvis(self, iou_type):
        return [row for row in self._truth(iou_type)["annotations"] if row["area"] > 0]

    def _with_open(self, rows, iou_type):
        """The true objects, and what makes wrong detections ignored ones: a crowd over the whole image."""
        rows = list(rows)
        for image, category in sorted(self._open):
            record = self.records[image - 1]
            everywhere = {
                "image_id": image,
                "category_id": category,
                "bbox": [-_FAR, -_FAR, 3 * _FAR, 3 * _FAR],
                "area": float(record.height * record.width),
                "iscrowd": 1,
            }
            if iou_type == "segm":
                mask = coco_mask.encode(np.ones((record.height, record.width), np.uint8, order="F"))
                everywhere["segmentation"] = {**mask, "counts": mask["counts"].decode("ascii")}
            rows.append(everywhere)
        return [{**row, "id": n} for n, row in enumerate(rows, 1)]

    def add_coco(self, results):
        """As `CocoEvaluator.add_coco`; raises `ValueError` also for a score that is not finite."""
        super().add_coco(with_finite_scores(results))

    def result(self):
        """Scores what was added since the last reset.

        Returns:
            dict with an entry for each of `iou_types`, a dict of floats in 0..1: `AP` (mean over IoU 0.50
            to 0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (small, medium, large objects; of detections
            the box or the mask), `APr`, `APc`, `APf` (rare, common, frequent categories), `AR`, `ARs`, `ARm`,
            `ARl`. And `per_class` as `CocoEvaluator.result`, with `frequency`. NaN where there is no true
            object to find.
        """
        result, per_class = {}, self._class_rows()
        for row, frequency in zip(per_class.values(), self._frequencies.tolist(), strict=True):
            row["frequency"] = frequency
        for iou_type in self.iou_types:
            rows = [{**row, "id": n} for n, row in enumerate(self._counting(iou_type), 1)]
            found = backends.load(self.backend, self._dataset(rows))
            limits = [self.max_detections]
            precision, recall = backends.match(self.backend, self._truths[iou_type], found, iou_type, limits)
            precision, recall = precision[..., 0], recall[..., 0]
            result[iou_type] = self._summary(precision, recall)
            for index, row in enumerate(per_class.values()):
                of_class = precision[:, :, index, 0]
                row[iou_type] = {"AP": _mean(of_class), "AP50": _mean(of_class[0])}
        return {**result, "per_class": per_class}

    def _counting(self, iou_type):
        """The detections that count, image by image."""
        of_image = collections.defaultdict(list)
        for row in self._found[iou_type]:
            of_image[row["image_id"]].append(row)
        for rows in of_image.values():
            for row in sorted(rows, key=lambda row: -row["score"])[: self.max_detections]:
                if row["area"] > 0 and (row["image_id"], row["category_id"]) in self._searched:
                    yield row

    def _summary(self, precision, recall):
        summary = {"AP": _mean(precision[:, :, :, 0])}
        summary |= {"AP50": _mean(precision[0, :, :, 0]), "AP75": _mean(precision[5, :, :, 0])}
        summary |= {f"AP{name}": _mean(precision[..., area]) for name, area in _AREAS.items() if name}
        for letter in _FREQUENCIES:
            summary[f"AP{letter}"] = _mean(precision[:, :, self._frequencies == letter, 0])
        return summary | {f"AR{name}": _mean(recall[..., area]) for name, area in _AREAS.items()}


def _mean(values):
    """Mean over what exists; -1 marks the settings without a true object."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else float("nan")
