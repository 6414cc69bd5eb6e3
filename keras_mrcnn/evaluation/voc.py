"""Pascal VOC's average precision at IoU 0.5, of boxes and, by the same rule, of masks.

Rules: M. Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010, and the development
kit of VOC 2012; masks as B. Hariharan et al., Simultaneous Detection and Segmentation, ECCV 2014 (AP^r).
Everything is in source pixels.
"""

import collections

import numpy as np
from pycocotools import mask as coco_mask

from keras_mrcnn.evaluation.checks import with_finite_scores
from keras_mrcnn.evaluation.coco import CocoEvaluator

THRESHOLD = 0.5
RULES = ("2010", "2007")


class VocEvaluator(CocoEvaluator):
    """Collects detections image by image and scores them by VOC's rules: reset, add, result.

    The detections of a class are taken from the best score on, over all images. Each goes to the true object
    with which its IoU is greatest. From 0.5 on, the first that goes to an object is right and the later ones
    are wrong; below, it is wrong. A detection that goes to a difficult object is ignored, and such objects
    need not be found. True objects without a mask are, in the "segm" score, difficult and of the shape of
    their box.

    The development kit's boxes name the first and the last pixel, so that a box is `xmax - xmin + 1` wide.
    Here a box ends where its last pixel ends: `x1 = xmin - 1`, `x2 = xmax` of the kit's numbers, and
    `x2 - x1` is the same width. The scores are the same.

    Args:
        records: as for `CocoEvaluator`; `crowd` marks the difficult objects (`iscrowd` in a COCO json).
        categories, iou_types: as for `CocoEvaluator`.
        rule: "2010": area under the curve of the greatest precision from each recall on; "2007": mean of this
            precision at the recalls 0, 0.1 ... 1, which are compared exactly (programs that step by 0.1 in
            floats take a recall of exactly 0.3 for less).

    Raises:
        ValueError: no such rule.

    Example:

    >>> evaluator = VocEvaluator(dataset, rule="2007")
    >>> for results in model.detect(paths):
    ...     evaluator.add(results)
    >>> evaluator.result()["bbox"]["AP50"]
    """

    def __init__(self, records, categories=None, iou_types=("bbox", "segm"), rule="2010"):
        super().__init__(records, categories, iou_types=iou_types, backend="pycocotools")
        if rule not in RULES:
            raise ValueError(f"`rule` must be one of {RULES}. Received: rule={rule!r}")
        self.rule = rule
        self._objects = {
            iou_type: _by_category_and_image(self._truth(iou_type)["annotations"])
            for iou_type in self.iou_types
        }

    def add_coco(self, results):
        """As `CocoEvaluator.add_coco`; raises `ValueError` also for a score that is not finite."""
        super().add_coco(with_finite_scores(results))

    def result(self):
        """Scores what was added since the last reset.

        Returns:
            dict with an entry for each of `iou_types`, a dict of the float `AP50`, in 0..1, mean over the
            classes. And `per_class`: for each category's name a dict of `category_id`, `objects` (number of
            true objects that are not difficult) and, for each of `iou_types`, its `AP50`. NaN where there is
            no true object to find.
        """
        result, per_class = {}, self._class_rows()
        for iou_type in self.iou_types:
            found = _by_category_and_image(self._found[iou_type])
            scores = []
            for category, row in enumerate(per_class.values(), 1):
                scores.append(self._score(found[category], self._objects[iou_type][category], iou_type))
                row[iou_type] = {"AP50": scores[-1]}
            scores = np.array(scores)[~np.isnan(scores)]
            result[iou_type] = {"AP50": float(scores.mean()) if scores.size else float("nan")}
        return {**result, "per_class": per_class}

    def _score(self, found, objects, iou_type):
        """AP of one class; `found`, `objects`: {image: rows}."""
        key = "bbox" if iou_type == "bbox" else "segmentation"
        wanted = sum(not row["iscrowd"] for rows in objects.values() for row in rows)
        if not wanted:
            return float("nan")
        scores, right, ignored = [], [], []
        for image in sorted(found):
            rows = sorted(found[image], key=lambda row: -row["score"])
            difficult = np.array([row["iscrowd"] for row in objects[image]], bool)
            scores += [row["score"] for row in rows]
            outcomes = _match([row[key] for row in rows], [row[key] for row in objects[image]], difficult)
            right += outcomes[0]
            ignored += outcomes[1]
        order = np.argsort(-np.array(scores), kind="stable")
        right = np.array(right, bool)[order][~np.array(ignored, bool)[order]]
        hits = np.cumsum(right)
        precision = hits / np.arange(1, len(hits) + 1)
        # from each recall on, the greatest precision
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        if self.rule == "2010":
            return float(precision[right].sum() / wanted)
        # in whole numbers: the tenths are no exact floats
        first = np.searchsorted(10 * hits, np.arange(11) * wanted)
        return float(np.append(precision, 0.0)[first].mean())


def _by_category_and_image(rows):
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        found[row["category_id"]][row["image_id"]].append(row)
    return found


def _match(shapes, true_shapes, difficult):
    """Lists of bool, which of the detections of one image, best first, are right and which ignored."""
    if not true_shapes:
        return [False] * len(shapes), [False] * len(shapes)
    ious = np.asarray(coco_mask.iou(shapes, true_shapes, [0] * len(true_shapes)))
    right, ignored, taken = [], [], set()
    for of_detection in ious:
        best = int(of_detection.argmax())
        hit = bool(of_detection[best] >= THRESHOLD)
        ignored.append(hit and bool(difficult[best]))
        right.append(hit and not difficult[best] and best not in taken)
        if hit:
            taken.add(best)
    return right, ignored
