"""COCO's scores of a set of images: detections and true objects in, AP and AR out.

Everything is in source pixels. The matching itself is pycocotools' or hotcoco's (see `backends`).
"""

import numpy as np
from pycocotools import mask as coco_mask

from keras_mrcnn.evaluation import backends
from keras_mrcnn.evaluation import keypoints as keypoint_scores

IOU_TYPES = ("bbox", "segm", "keypoints")
# of true boxes, in pixels: gives back the annotated numbers from float32 corners, on which the equality
# of an IoU with a threshold can depend
_DECIMALS = 3
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}  # all, under 32^2, 32^2 to 96^2, over 96^2 pixels


class CocoEvaluator:
    """Collects detections image by image and scores them by COCO's rules: reset, add, result.

    An image that is never added counts as one without detections; to score a subset of a dataset, give
    only its records. Crowds are ignored regions: any number of detections may lie on them. True objects
    without a mask are, in the "segm" score, ignored regions of the shape of their box; those without a
    labelled keypoint are ignored in the "keypoints" score, and so are categories without keypoints.

    Args:
        records: the images with their true objects, a list or an object with `.records` (and
            `.categories`). Each has `image_id` (of any hashable type), `height`, `width`, `boxes` `[G, 4]`
            (x1, y1, x2, y2), `classes` `[G]` (index into `categories`), `crowd` `[G]`, `areas` `[G]`
            (pixels, they decide small, medium and large), `segmentations` (polygons, RLE or None) and, for
            "keypoints", `keypoints` `[G, K, 3]` (x, y, v) or None.
        categories: objects with `.id` (any, with any gaps), `.name` and, for "keypoints", `.keypoints`
            (their names), in the order of the records' class indices; None takes those of `records`.
        max_detections: how many detections count, the best first, per image and category. Of keypoints
            always 20, as COCO has it.
        iou_types: any of "bbox", "segm", "keypoints" (where the OKS takes the place of the IoU).
        backend: "pycocotools", "hotcoco" (the same numbers, faster), or "auto": hotcoco if installed.
        sigmas: of the keypoints, see `keypoints.category_sigmas`; None: COCO's for COCO's persons.

    Example:

    >>> evaluator = CocoEvaluator(dataset)
    >>> for results in model.detect(paths):
    ...     evaluator.add(results)
    >>> evaluator.result()["segm"]["AP50"]
    """

    def __init__(
        self,
        records,
        categories=None,
        max_detections=100,
        iou_types=("bbox", "segm"),
        backend="auto",
        sigmas=None,
    ):
        own_categories = getattr(records, "categories", None)
        self.records = _in_order(getattr(records, "records", records))
        self.categories = list(own_categories if categories is None else categories)
        self.max_detections = max_detections
        self.iou_types = (iou_types,) if isinstance(iou_types, str) else tuple(iou_types)
        self.backend = backends.choose(backend)
        self._check(own_categories)
        if "keypoints" in self.iou_types:
            self.sigmas = keypoint_scores.category_sigmas(self.categories, sigmas)
        # both programs need integer ids, and pycocotools takes the id 0 for "no match": count from 1
        self._record_of = {record.image_id: (n, record) for n, record in enumerate(self.records, 1)}
        if len(self._record_of) < len(self.records):
            raise ValueError("`records` must have different image ids; some occur twice.")
        self._category_of = {category.id: n for n, category in enumerate(self.categories, 1)}
        self._truths = {}
        self.reset()

    def _check(self, own_categories):
        if not self.records:
            raise ValueError("`records` must hold at least one image. Received none.")
        if not self.categories:
            raise ValueError("`categories` must hold at least one category. Received none.")
        if own_categories is not None and [c.id for c in own_categories] != [c.id for c in self.categories]:
            raise ValueError(
                "`categories` must be those of the dataset, in its order, because the records' class indices "
                f"point into them. Received: ids {[c.id for c in self.categories]}, the dataset has "
                f"{[c.id for c in own_categories]}"
            )
        if not self.iou_types or set(self.iou_types) - set(IOU_TYPES):
            raise ValueError(f"`iou_types` must be of {IOU_TYPES}. Received: iou_types={self.iou_types}")
        if self.max_detections < 1:
            raise ValueError(
                f"`max_detections` must be at least 1. Received: max_detections={self.max_detections}"
            )

    def reset(self):
        """Forgets all detections; the true objects stay."""
        self._found = {iou_type: [] for iou_type in self.iou_types}
        self._added = set()

    def add(self, results):
        """Adds the detections of one image.

        Args:
            results: `keras_mrcnn.results.Results` with the `image_id` of a record.

        Raises:
            ValueError: the image id or a category is not of this evaluation, the image was added before,
                its size is not the record's, or masks are to be scored and there are none.
        """
        image_id = results.image_id
        _, record = self._record(image_id)
        if image_id in self._added:
            raise ValueError(f"Image {image_id!r} was added before. Call `reset()` to start again.")
        if (results.height, results.width) != (record.height, record.width):
            raise ValueError(
                f"The results of image {image_id!r} must be in source pixels, {record.height}x{record.width} "
                f"(height x width). Received: {results.height}x{results.width}"
            )
        self.add_coco(results.to_coco(segmentations="segm" in self.iou_types))
        self._added.add(image_id)

    def add_coco(self, results):
        """Adds detections of any images in COCO's result format.

        Args:
            results: list of dict with `image_id`, `category_id`, `score`, `bbox` (x, y, width, height)
                and, for "segm", `segmentation` (RLE or polygons), for "keypoints" and a category that has
                any, `keypoints` (x, y, v, ... with pixel indices; v does not matter). Without `bbox` the
                box of the segmentation is taken.

        Raises:
            ValueError: an image id or category id is not of this evaluation, a mask is missing or not
                of the image's size, or keypoints are missing. Nothing is added then.
        """
        found = {iou_type: [] for iou_type in self.iou_types}
        for result in results:
            image, record = self._record(result["image_id"])
            if result["category_id"] not in self._category_of:
                raise ValueError(
                    f"The category ids of results must be those of the dataset, {list(self._category_of)}. "
                    f"Received: category_id={result['category_id']!r}, image_id={result['image_id']!r}"
                )
            common = {
                "image_id": image,
                "category_id": self._category_of[result["category_id"]],
                "score": float(result["score"]),
                "iscrowd": 0,
            }
            if "keypoints" in found and self.sigmas[common["category_id"] - 1] is not None:
                count = len(self.sigmas[common["category_id"] - 1])
                found["keypoints"].append({**common, **keypoint_scores.result_row(result, count)})
            if not {"bbox", "segm"} & set(found):
                continue
            mask = _result_mask(result, record) if "segm" in found or "bbox" not in result else None
            box = result["bbox"] if "bbox" in result else coco_mask.toBbox(mask)
            box = [float(value) for value in box]
            if "bbox" in found:
                found["bbox"].append({**common, "bbox": box, "area": box[2] * box[3]})
            if "segm" in found:
                area = float(coco_mask.area(mask))
                found["segm"].append({**common, "bbox": box, "segmentation": mask, "area": area})
        for iou_type, rows in found.items():
            self._found[iou_type].extend(rows)

    def result(self):
        """Scores what was added since the last reset.

        Returns:
            dict with an entry for each of `iou_types`, a dict of twelve floats in 0..1: `AP` (mean over
            IoU 0.50 to 0.95), `AP50`, `AP75`, `APs`, `APm`, `APl` (small, medium, large objects), `AR1`,
            `AR10` (recall with at most 1 and 10 detections per image and category), `AR`, `ARs`, `ARm`,
            `ARl` (with at most `max_detections`, as the AP). Of keypoints ten: `AP`, `AP50`, `AP75`, `APm`,
            `APl`, `AR`, `AR50`, `AR75`, `ARm`, `ARl`. And `per_class`: for each category's name a
            dict of `category_id`, `objects` (number of true objects, without crowds) and, for each of
            `iou_types`, a dict of `AP` and `AP50`. NaN where there is no true object to find.
        """
        result = {}
        per_class = self._class_rows()
        for iou_type in self.iou_types:
            if iou_type not in self._truths:
                self._truths[iou_type] = backends.load(self.backend, self._truth(iou_type))
            rows = [{**row, "id": n} for n, row in enumerate(self._found[iou_type], 1)]
            found = backends.load(self.backend, self._dataset(rows))
            if iou_type == "keypoints":
                precision, recall = self._match_keypoints(found)
                result[iou_type] = keypoint_scores.summary(precision, recall)
            else:
                limits = sorted({1, 10, self.max_detections})
                precision, recall = backends.match(
                    self.backend, self._truths[iou_type], found, iou_type, limits
                )
                result[iou_type] = _summary(precision, recall, limits, self.max_detections)
                precision = precision[..., limits.index(self.max_detections)]
            for index, row in enumerate(per_class.values()):
                of_class = precision[:, :, index, 0]
                row[iou_type] = {"AP": backends.mean(of_class), "AP50": backends.mean(of_class[0])}
        result["per_class"] = per_class
        return result

    def _match_keypoints(self, found):
        """Precision `[10, 101, categories, 3 areas]` and recall `[10, categories, 3]`, one by one."""
        limits = [keypoint_scores.MAX_DETECTIONS]
        precision, recall = [], []
        for category, sigmas in enumerate(self.sigmas, 1):
            if sigmas is None:
                precision.append(np.full((10, 101, 1, 3), -1.0))
                recall.append(np.full((10, 1, 3), -1.0))
                continue
            truth = self._truths["keypoints"]
            of_one = backends.match(self.backend, truth, found, "keypoints", limits, category, sigmas)
            precision.append(of_one[0][..., 0])
            recall.append(of_one[1][..., 0])
        return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)

    def _record(self, image_id):
        if image_id not in self._record_of:
            some = ", ".join(repr(known) for known in list(self._record_of)[:5])
            raise ValueError(
                f"`image_id` must be that of one of the {len(self.records)} records ({some}, ...). "
                f"Received: image_id={image_id!r}, of type {type(image_id).__name__}"
            )
        return self._record_of[image_id]

    def _class_rows(self):
        counts = np.zeros(len(self.categories), int)
        for record in self.records:
            np.add.at(counts, np.asarray(record.classes)[~np.asarray(record.crowd, bool)], 1)
        names = [category.name for category in self.categories]
        rows = {}
        for category, count in zip(self.categories, counts.tolist(), strict=True):
            key = category.name if names.count(category.name) == 1 else f"{category.name} ({category.id})"
            rows[key] = {"category_id": category.id, "objects": count}
        return rows

    def _dataset(self, annotations):
        images = [
            {"id": n, "height": int(record.height), "width": int(record.width)}
            for n, record in enumerate(self.records, 1)
        ]
        categories = [{"id": n, "name": str(c.name)} for n, c in enumerate(self.categories, 1)]
        return {"info": {}, "images": images, "categories": categories, "annotations": annotations}

    def _truth(self, iou_type):
        rows = []
        for image, record in enumerate(self.records, 1):
            for index in range(len(record.boxes)):
                x1, y1, x2, y2 = (round(float(value), _DECIMALS) for value in record.boxes[index])
                row = {
                    "id": len(rows) + 1,
                    "image_id": image,
                    "category_id": int(record.classes[index]) + 1,
                    "bbox": [x1, y1, round(x2 - x1, _DECIMALS), round(y2 - y1, _DECIMALS)],
                    "area": float(record.areas[index]),
                    "iscrowd": int(record.crowd[index]),
                }
                if iou_type == "segm":
                    segmentation = record.segmentations[index]
                    if not segmentation:
                        row["iscrowd"] = 1
                        segmentation = [[x1, y1, x1, y2, x2, y2, x2, y1]]
                    row["segmentation"] = _rle(segmentation, record.height, record.width)
                if iou_type == "keypoints":
                    sigmas = self.sigmas[record.classes[index]]
                    if sigmas is None:
                        continue
                    points = np.zeros((len(sigmas), 3))
                    if record.keypoints is not None:
                        points = record.keypoints[index, : len(sigmas)]
                    row |= keypoint_scores.truth_row(points)
                rows.append(row)
        return self._dataset(rows)


def _in_order(records):
    """Records by image id: equal scores of different images are taken in this order, as in pycocotools."""
    try:
        return sorted(records, key=lambda record: record.image_id)
    except TypeError:  # ids of several types
        return list(records)


def _rle(segmentation, height, width):
    """COCO's compressed RLE (counts as str) of polygons or of any RLE."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    counts = segmentation["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(size) for size in segmentation["size"]], "counts": counts}


def _result_mask(result, record):
    if not result.get("segmentation"):
        raise ValueError(
            f"Results need a `segmentation` to be scored as masks (`iou_types` has 'segm'); "
            f"image {record.image_id!r} has one without. Received the keys: {sorted(result)}"
        )
    mask = _rle(result["segmentation"], record.height, record.width)
    if mask["size"] != [record.height, record.width]:
        raise ValueError(
            f"The masks of image {record.image_id!r} must have its size, "
            f"{[record.height, record.width]} (height, width). Received: size={mask['size']}"
        )
    return mask


def _summary(precision, recall, limits, max_detections):
    last = limits.index(max_detections)
    summary = {}
    for suffix, area in _AREAS.items():
        summary["AP" + suffix] = backends.mean(precision[:, :, :, area, last])
        if not suffix:
            summary["AP50"] = backends.mean(precision[0, :, :, area, last])
            summary["AP75"] = backends.mean(precision[5, :, :, area, last])
    for limit in (1, 10):
        summary[f"AR{limit}"] = backends.mean(recall[:, :, 0, limits.index(limit)])
    for suffix, area in _AREAS.items():
        summary["AR" + suffix] = backends.mean(recall[:, :, area, last])
    return summary
