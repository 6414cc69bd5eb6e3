"""Cityscapes' instance score: masks of eight classes, AP and AP50.

Numbers are those of the official package `cityscapesscripts` 2.3.0 (evalInstanceLevelSemanticLabeling), which
itself does not run with numpy 2.4 and writes into its own folder. Everything is in source pixels.
"""

import collections
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from keras_mrcnn.evaluation.checks import with_finite_scores
from keras_mrcnn.evaluation.coco import CocoEvaluator

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
LEAST_PIXELS = 100  # a smaller object is not looked for


class CityscapesEvaluator(CocoEvaluator):
    """Collects detections image by image and scores them by Cityscapes' rules: reset, add, result.

    As `CocoEvaluator`, except for what counts. A detection finds an object of its class when their IoU is
    above the threshold; of several that do, the best scored is right and the others are wrong. One that finds
    nothing is wrong, unless more than the threshold's share of its pixels lies on what is ignored: crowds of
    its class ("cargroup"), objects of its class under 100 pixels, and the void of the image. Detections are
    never cut off by their number. AP is the area under the precision-recall curve as it is (trapezoids, no
    interpolation), from the point of recall 0 and precision 1.

    Args:
        records: as for `CocoEvaluator`, those of `data.cityscapes.load_cityscapes`. A record may have `void`,
            the RLE of its ignored pixels; of others nothing is void. True objects without a mask are
            ignored regions of the shape of their box.
        categories: as for `CocoEvaluator`.

    Example:

    >>> dataset = load_cityscapes("cityscapes", "val", categories=model.categories)
    >>> evaluator = CityscapesEvaluator(dataset)
    >>> for results in model.detect([record.path for record in dataset.records]):
    ...     evaluator.add(results)
    >>> evaluator.result()["segm"]["AP50"]
    """

    def __init__(self, records, categories=None):
        super().__init__(records, categories, iou_types="segm", backend="pycocotools")
        self._objects = _by_image_and_category(self._truth("segm")["annotations"])

    def add_coco(self, results):
        """As `CocoEvaluator.add_coco`; raises `ValueError` also for a score that is not finite."""
        super().add_coco(with_finite_scores(results))

    def result(self):
        """Scores what was added since the last reset.

        Returns:
            dict of `segm`, a dict of the floats `AP` (mean over IoU 0.50 to 0.95 and the classes) and `AP50`,
            and `per_class`: for each category's name a dict of `category_id`, `objects` (number of true
            objects of any size, without crowds) and `segm`, its `AP` and `AP50`. NaN where there is no true
            object to find.
        """
        found = _by_image_and_category(row for row in self._found["segm"] if row["area"])
        pairs = [[] for _ in self.categories]
        for image, category in sorted(self._objects.keys() | found.keys()):
            key = image, category
            void = getattr(self.records[image - 1], "void", None)
            pairs[category - 1].append(_compare(found.get(key, []), self._objects.get(key, []), void))
        scores = np.array(
            [[_average_precision(of_class, limit) for limit in THRESHOLDS] for of_class in pairs]
        )
        per_class = self._class_rows()
        for row, of_class in zip(per_class.values(), scores, strict=True):
            row["segm"] = {"AP": float(of_class.mean()), "AP50": float(of_class[0])}
        scored = scores[~np.isnan(scores[:, 0])]
        both = (scored.mean(), scored[:, 0].mean()) if len(scored) else (np.nan, np.nan)
        return {"segm": dict(zip(("AP", "AP50"), map(float, both))), "per_class": per_class}


def _by_image_and_category(rows):
    found = collections.defaultdict(list)
    for row in rows:
        found[row["image_id"], row["category_id"]].append(row)
    return found


@dataclass
class _Pair:
    """Detections and true objects of one class in one image: D detections, G objects to be found."""

    scores: np.ndarray  # [D]
    ious: np.ndarray  # [D, G]
    ignored: np.ndarray  # [D], pixels on what is ignored, as a share of the detection's


def _compare(found, objects, void):
    masks, true_masks = [row["segmentation"] for row in found], [row["segmentation"] for row in objects]
    pixels, true_pixels = (coco_mask.area(of).astype(np.int64) for of in (masks, true_masks))
    shared = _intersections(masks, pixels, true_masks)
    crowd = np.array([bool(row["iscrowd"]) for row in objects], bool)
    small = true_pixels < LEAST_PIXELS
    # a small crowd counts twice, as officially
    ignored = shared[:, crowd].sum(axis=1) + shared[:, small].sum(axis=1)
    if void:
        ignored = ignored + _intersections(masks, pixels, [void])[:, 0]
    return _Pair(
        scores=np.array([row["score"] for row in found], np.float64),
        ious=(shared / np.maximum(pixels[:, None] + true_pixels - shared, 1))[:, ~(crowd | small)],
        ignored=ignored / np.maximum(pixels, 1),
    )


def _intersections(masks, pixels, others):
    """int64 `[D, G]`, pixels; pycocotools gives them as shares of the first mask."""
    if not masks or not others:
        return np.zeros((len(masks), len(others)), np.int64)
    shares = coco_mask.iou(masks, others, [1] * len(others))
    return np.rint(shares * pixels[:, None]).astype(np.int64)


def _average_precision(pairs, threshold):
    """AP of one class over all images; NaN without an object to be found."""
    right, wrong, objects = [], [], 0
    for pair in pairs:
        objects += pair.ious.shape[1]
        hits = pair.ious > threshold
        for of_object in hits.T:
            scores = np.sort(pair.scores[of_object])
            right.append(scores[-1:])
            wrong.append(scores[:-1])
        wrong.append(pair.scores[~hits.any(axis=1) & (pair.ignored <= threshold)])
    if not objects:
        return np.nan
    right, wrong = np.concatenate(right), np.concatenate([np.zeros(0), *wrong])
    scores = np.unique(np.concatenate([right, wrong]))[::-1]  # equal scores are one point of the curve
    if not len(scores):
        return 0.0
    found = len(right) - np.searchsorted(np.sort(right), scores)
    mistakes = len(wrong) - np.searchsorted(np.sort(wrong), scores)
    precision = np.concatenate([[1.0], found / (found + mistakes)])
    recall = np.concatenate([[0.0], found / objects])
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))
