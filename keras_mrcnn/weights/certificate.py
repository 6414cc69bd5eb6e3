"""Proof that a model computes what the implementation that it has its weights from computes.

A golden file (`golden`) holds what the reference computed for some images at every station of the walk. Each
station is given the reference's own input where that is stored (its proposals to the box head, its boxes to
the mask head), so that one difference does not hide the next; then the detections are compared end to end.

Reference arrays are in the order N, C, H, W; ours are N, H, W, C.
"""

from typing import NamedTuple

import numpy as np
from keras import ops
from pycocotools import mask as coco_mask

from keras_mrcnn import assembly, config
from keras_mrcnn.data.images import network_frame
from keras_mrcnn.geometry import boxes as box_ops
from keras_mrcnn.geometry import keypoints as keypoint_ops
from keras_mrcnn.results import Results
from keras_mrcnn.roi.mask_head import of_class
from keras_mrcnn.weights.golden import HEATMAPS

INPUT = 1e-4  # largest difference of the normalised pixels
MAPS, RESIZED_MAPS, HEADS = 2e-4, 1e-3, 1e-3  # largest difference / standard deviation
DECODED, BOXES, SCORES = 0.05, 0.1, 2e-3  # pixels, pixels, probability
NEAR, KEYPOINTS_MOVED = 0.5, 0.03  # pixels; part of the keypoints that may be further away
OWN_BOX, STORED_BOX = 1e-2, 2e-3  # keypoints' scores, relative: how far their logits are, on which boxes
SPREAD = "of the standard deviation"
SAME_BOX = 0.98  # IoU
PROPOSALS_MISSED, DETECTIONS_MISSED, MASK_DIFFERENCE = 0.01, 0.02, 0.02  # parts of all; 1 - IoU
IN_ORDER = 20  # the classes of the first detections stand in the same order


class Station(NamedTuple):
    """One comparison."""

    name: str
    error: float
    limit: float
    unit: str  # of both

    @property
    def passed(self):
        return self.error <= self.limit

    def __str__(self):
        verdict = "" if self.passed else "  DIFFERS"
        return f"{self.name:24} {self.error:9.2e}  (limit {self.limit:.0e}) {self.unit}{verdict}"


def certify(model, golden):
    """Compares every station of every case.

    Args:
        model: `MaskRCNN`, with the rules of the reference in its config.
        golden: `golden.Golden`.

    Returns:
        dictionary of lists of `Station`, in the order of the walk, by the name of the case.

    Raises:
        ValueError: the golden file has no case, or a case without images or without anything to compare.
    """
    compared = {case: _Comparison(model, golden, case).stations for case in golden.about["cases"]}
    if not compared or not all(compared.values()):
        raise ValueError(f"The golden file has nothing to compare. Received: cases {list(compared)}")
    return compared


class _Comparison:
    """One case: goes through the stations and notes each in `stations`."""

    def __init__(self, model, golden, case):
        self.model, self.golden, self.case = model, golden, case
        self.about = golden.about["cases"][case]
        self.images = golden.each(f"{case}/images")
        if not self.images:
            raise ValueError(f"The golden file has no image of case {case!r}: `{case}/images/0`.")
        self.stations = []
        edges = (self.about["short_edge"], self.about["long_edge"]) if "short_edge" in self.about else None
        self.inputs = network_inputs(self.images, edges, model.config.input.resize)
        sizes = [image.shape[:2] for image in self.images]
        self.output_sizes = self.about.get("output_sizes", sizes)
        resized = not np.array_equal(sizes, self.inputs["image_sizes"])
        maps = self._features(RESIZED_MAPS if resized else MAPS)
        self._proposals()
        self._box_head(maps)
        if model.mask_head:
            self._mask_head(maps)
        if model.keypoint_head:
            self._keypoint_head(maps)
        self._detections()

    def note(self, name, error, limit, unit):
        self.stations.append(Station(name, float(error), limit, unit))

    def compare(self, key, ours, limit, absolute=None, columns=slice(None)):
        """Notes the error of an array: relative to the spread, or in an absolute unit."""
        if f"{self.case}/{key}" in self.golden:
            difference, spread = self.golden.difference(f"{self.case}/{key}", ours, columns)
            self.note(key, difference / (1 if absolute else spread), limit, absolute or SPREAD)

    def _features(self, limit):
        model = self.model
        pixels = model.normalize(self.inputs["images"], self.inputs["image_sizes"])
        in_their_order = pixels[..., ::-1] if self.golden.about["channels"] == "BGR" else pixels
        self.compare("input/tensor", _channels_first(in_their_order), INPUT, "absolute")
        stages = model.backbone(pixels, training=False)
        for level, stage in enumerate(stages, 2):
            self.compare(f"body/c{level}", _channels_first(stage), limit)
        maps, rpn_maps = assembly.feature_maps(model, pixels, training=False)
        levels = [f"p{level}" for level in range(2, 2 + len(maps))] if model.fpn else [f"res{level}"]
        if model.fpn:
            for level, features in zip(levels, maps, strict=True):
                self.compare(f"fpn/{level}", _channels_first(features), limit)
        self.logits, self.deltas = model.rpn_head(rpn_maps)
        self.level_anchors = model.anchors(rpn_maps)
        for level, features, logits, deltas, anchors in zip(
            levels, rpn_maps, self.logits, self.deltas, self.level_anchors, strict=True
        ):
            grid = [*features.shape[:3], -1]
            self.compare(f"rpn/objectness/{level}", _channels_first(np.reshape(logits, grid)), limit)
            self.compare(f"rpn/deltas/{level}", _channels_first(np.reshape(deltas, grid)), limit)
            self.compare(f"rpn/decoded/{level}", box_ops.decode(deltas, anchors), DECODED, "pixels")
        return maps

    def _proposals(self):
        theirs = self.golden.each(f"{self.case}/rpn/proposals")
        if not theirs:
            return
        sizes = self.inputs["image_sizes"]
        boxes, _, valid = self.model.proposals(self.logits, self.deltas, self.level_anchors, sizes)
        missed = total = 0
        for ours, found, expected in zip(np.array(boxes), np.array(valid), theirs, strict=True):
            overlap = np.array(box_ops.iou(ours[found], expected)) > SAME_BOX
            missed += (~overlap.any(axis=0)).sum() + (~overlap.any(axis=1)).sum()
            total += sum(overlap.shape)
        self.note("rpn/proposals", missed / max(total, 1), PROPOSALS_MISSED, "without a match")

    def _box_head(self, maps):
        proposals = self.golden.each(f"{self.case}/rpn/proposals")
        if not proposals:
            return
        boxes, valid = _padded(proposals)
        features = assembly.box_features(self.model, maps, boxes, valid, training=False)
        pooled = self.model.box_pooling(maps, boxes, valid) if self.model.stage5 else features
        self.compare("box/pooled", _channels_first(pooled), HEADS)
        self.compare("box/head", self.model.box_head.hidden(features), HEADS)
        logits, deltas = (np.array(x) for x in self.model.box_head(features))
        columns = slice(None)
        if self.golden.about["background_first"]:
            logits = np.roll(logits, 1, axis=1)
            deltas = np.pad(deltas, [[0, 0], [1, 0], [0, 0]])
            columns = slice(4, None)  # nobody reads their deltas of the background, and we have none
        self.compare("box/class_logits", logits, HEADS)
        self.compare(
            "box/box_regression", deltas.reshape(len(deltas), 4 * deltas.shape[1]), HEADS, columns=columns
        )

    def _mask_head(self, maps):
        boxes = self.golden.each(f"{self.case}/det/boxes_input")
        logits = self.golden.each(f"{self.case}/mask/logits")
        if not logits:
            return
        padded, valid = _padded(boxes)
        features = assembly.mask_features(self.model, maps, padded, valid, training=False)
        pooled = self.model.box_pooling(maps, padded, valid) if self.model.stage5 else features
        self.compare("mask/pooled", _channels_first(pooled), HEADS)
        ours = np.array(self.model.mask_head(features))
        classes = np.concatenate(self._true_classes())
        known = classes < ours.shape[-1]
        own = np.array(of_class(ours, np.where(known, classes, 0)))
        own[~known] = np.nan  # a class that we do not have
        own = np.split(own, np.cumsum([len(b) for b in boxes])[:-1])
        for image, (masks, theirs) in enumerate(zip(own, logits, strict=True)):
            self.compare(f"mask/logits/{image}", masks[: len(theirs)], HEADS)

    def _keypoint_head(self, maps):
        boxes = self.golden.each(f"{self.case}/det/boxes_input")
        theirs = self.golden.each(f"{self.case}/keypoint/keypoints")
        if not theirs:
            return
        pooled = self.model.keypoint_pooling(maps, *_padded(boxes))
        self.compare("keypoint/pooled", _channels_first(pooled), HEADS)
        logits = self.model.keypoint_head(pooled)
        found = np.array(keypoint_ops.decode(logits, np.concatenate(boxes)))
        logits = _channels_first(logits)
        self.compare("keypoint/heatmap_first", logits[0] if len(logits) else logits, HEADS)
        ends = np.cumsum([len(b) for b in boxes])[:-1]
        each = zip(np.split(logits, ends), np.split(found, ends), theirs, strict=True)
        for image, (heatmaps, points, expected) in enumerate(each):
            self.compare(f"keypoint/heatmaps_sample/{image}", heatmaps[HEATMAPS], HEADS)
            self.compare(f"keypoint/scores/{image}", points[..., 2], HEADS)
            scale = np.divide(self.output_sizes[image], self.inputs["image_sizes"][image])[::-1]
            points = np.concatenate([points[..., :2] * scale, points[..., 3:]], axis=-1)
            self._keypoints(f"keypoint/{{}}/{image}", points, expected, STORED_BOX)

    def _keypoints(self, name, ours, theirs, limit):
        """Compares keypoints (x, y, score) in the pixels of the output; `limit` is for the scores."""
        if ours.shape != theirs.shape:
            ours = np.full_like(theirs, np.inf)
        distance = np.linalg.norm(ours[..., :2] - theirs[..., :2], axis=-1)
        moved = np.sum(~(distance <= NEAR)) / max(distance.size, 1)
        self.note(name.format("keypoints"), moved, KEYPOINTS_MOVED, f"moved by more than {NEAR} pixels")
        if f"{self.case}/keypoint/scores/0" not in self.golden:  # which are logits
            difference = np.abs(ours[..., 2] - theirs[..., 2]) / np.maximum(theirs[..., 2], 1e-12)
            self.note(name.format("keypoint_scores"), np.max(difference, initial=0), limit, "relative")

    def _true_classes(self):
        first = 1 if self.golden.about["background_first"] else 0
        return [labels.astype(np.int32) - first for labels in self.golden.each(f"{self.case}/det/labels")]

    def _detections(self):
        outputs = self.model(self.inputs, training=False)
        classes = self._true_classes()
        keypoints = self.golden.each(f"{self.case}/keypoint/keypoints") if self.model.keypoint_head else []
        boxes, scores = (self.golden.each(f"{self.case}/det/{name}") for name in ("boxes", "scores"))
        if not boxes:
            return
        pasted = self.golden.about.get("rle", {}).get(self.case)
        for image, size in enumerate(self.output_sizes):
            ours = Results.from_detections(
                {name: np.array(value[image]) for name, value in outputs.items()},
                self.inputs["image_sizes"][image],
                size,
                self.model.categories,
                paste=self.model.config.mask_head.paste,
            )
            pairs = _matches(ours, boxes[image], classes[image], scores[image])
            most = max(len(ours), len(classes[image]))
            name = f"det/{{}}/{image}"
            self.note(
                name.format("unmatched"), (most - len(pairs)) / max(most, 1), DETECTIONS_MISSED, "of all"
            )
            first = min(IN_ORDER, len(classes[image]))
            moved = np.sum(ours.classes[:first] != classes[image][:first]) if len(ours) >= first else first
            self.note(name.format("order"), moved, 0, f"of the first {first} classes elsewhere")
            mine, their = np.array(pairs, int).reshape(-1, 2).T
            self.note(
                name.format("boxes"),
                np.max(np.abs(ours.boxes[mine] - boxes[image][their]), initial=0),
                BOXES,
                "pixels",
            )
            self.note(
                name.format("scores"),
                np.max(np.abs(ours.scores[mine] - scores[image][their]), initial=0),
                SCORES,
                "absolute",
            )
            if keypoints:
                self._keypoints(name, ours.keypoints[mine], keypoints[image][their], OWN_BOX)
            if pasted and self.model.mask_head:
                rles = ours.rles()
                worst = _worst_mask([rles[i] for i in mine], [pasted[image][j] for j in their])
                self.note(name.format("masks"), worst, MASK_DIFFERENCE, "1 - IoU")


def network_inputs(images, edges, rule):
    """The model's inputs: images resized to (short edge, long edge), or as they are when `edges` is None."""
    if edges:
        return network_frame(images, config.Input(*edges, resize=rule))
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    frame = np.zeros([len(sizes), *sizes.max(axis=0), 3], np.uint8)
    for row, image in zip(frame, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return {"images": frame, "image_sizes": sizes}


def _channels_first(features):
    return np.moveaxis(np.array(features), -1, 1)


def _padded(boxes):
    """Boxes of each image as one array, and which rows are no padding."""
    count = [len(of_image) for of_image in boxes]
    padded = np.zeros([len(boxes), max(max(count), 1), 4], np.float32)
    for row, of_image in zip(padded, boxes, strict=True):
        row[: len(of_image)] = of_image
    return padded, np.arange(padded.shape[1])[None] < np.array(count)[:, None]


def _matches(ours, boxes, classes, scores):
    """Pairs (index of ours, index of theirs): same class, almost the same box and score, each used once."""
    if not len(ours) or not len(boxes):
        return []
    same = np.array(ops.convert_to_numpy(box_ops.iou(ours.boxes, boxes))) > SAME_BOX
    same &= ours.classes[:, None] == classes[None]
    same &= np.abs(ours.scores[:, None] - scores[None]) <= SCORES
    pairs, used = [], set()
    for index, row in enumerate(same):
        free = [candidate for candidate in np.flatnonzero(row) if candidate not in used]
        if free:
            best = min(free, key=lambda c: np.abs(ours.boxes[index] - boxes[c]).max())
            used.add(best)
            pairs.append((index, best))
    return pairs


def _worst_mask(ours, theirs):
    """1 - IoU of the pair that differs most; two empty masks are equal."""
    worst = 0.0
    for own, their in zip(ours, theirs, strict=True):
        either = coco_mask.area(coco_mask.merge([own, their]))
        if either:
            worst = max(worst, 1 - coco_mask.area(coco_mask.merge([own, their], True)) / either)
    return worst
