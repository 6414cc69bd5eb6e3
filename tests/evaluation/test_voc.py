"""VOC's average precision: a slow reference in the development kit's own terms, and cases worked by hand."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from keras_mrcnn.evaluation import VocEvaluator, format_table
from keras_mrcnn.results import Results

ONE = pytest.approx(1)


@dataclass
class Category:
    id: int
    name: str


CATEGORIES = [Category(1, "aeroplane"), Category(2, "bicycle"), Category(7, "car")]


@dataclass
class Record:
    image_id: object
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segmentations: list


def rectangle(box):
    x1, y1, x2, y2 = (float(value) for value in box)
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def record(boxes, image_id="a", classes=None, difficult=(), segmentations=None, size=(100, 100)):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Record(
        image_id=image_id,
        height=size[0],
        width=size[1],
        boxes=boxes,
        classes=np.zeros(len(boxes), np.int32) if classes is None else np.asarray(classes, np.int32),
        crowd=np.array([n in difficult for n in range(len(boxes))], bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        segmentations=[rectangle(box) for box in boxes] if segmentations is None else segmentations,
    )


def as_coco(boxes, scores, image_id="a", classes=None, categories=CATEGORIES):
    classes = [0] * len(boxes) if classes is None else classes
    return [
        {
            "image_id": image_id,
            "category_id": categories[index].id,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "segmentation": rectangle((x1, y1, x2, y2)),
            "score": float(score),
        }
        for (x1, y1, x2, y2), score, index in zip(boxes, scores, classes, strict=True)
    ]


def score(records, found, **options):
    evaluator = VocEvaluator(records, CATEGORIES, **options)
    evaluator.add_coco(found)
    return evaluator.result()


def devkit(objects, found, rule):
    """AP of one class as the development kit of VOC computes it, box by box.

    Args:
        objects: list of (image, (xmin, ymin, xmax, ymax), difficult); first and last pixels, counted from 1.
        found: list of (image, box, score).
        rule: "2007" or "2010".
    """
    wanted = sum(not difficult for *_, difficult in objects)
    if not wanted:
        return math.nan
    used, outcomes = set(), []
    for image, box, _ in sorted(found, key=lambda one: -one[2]):
        best, chosen = -math.inf, None
        for index, (of_image, other, _) in enumerate(objects):
            if of_image != image:
                continue
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width <= 0 or height <= 0:
                continue
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
            overlap = Fraction(width * height, sum(areas) - width * height)
            if overlap > best:
                best, chosen = overlap, index
        if best < Fraction(1, 2):
            outcomes.append(False)
        elif not objects[chosen][2]:
            outcomes.append(chosen not in used)
            used.add(chosen)
    points, right = [], 0
    for rank, outcome in enumerate(outcomes, 1):
        right += outcome
        points.append((Fraction(right, wanted), Fraction(right, rank)))

    def best_from(recall):
        return max((precision for at, precision in points if at >= recall), default=Fraction(0))

    if rule == "2007":
        return float(sum(best_from(Fraction(tenth, 10)) for tenth in range(11)) / 11)
    area, before = Fraction(0), Fraction(0)
    for recall in sorted({at for at, _ in points}):
        area += (recall - before) * best_from(recall)
        before = recall
    return float(area)


def made(seed, images=8):
    """Objects and detections on whole pixels: twice, missed, moved, of wrong classes, of equal scores."""
    random = np.random.default_rng(seed)
    truths, found = [], []
    for image in range(images):
        boxes, classes, difficult = [], [], []
        for _ in range(random.integers(0, 7)):
            x, y = random.integers(0, 70, 2)
            width, height = random.integers(4, 30, 2)
            boxes.append((x, y, x + width, y + height))
            classes.append(int(random.integers(0, 2)))  # the third has none
            difficult.append(bool(random.random() < 0.2))
        truths.append((image, boxes, classes, difficult))
        for box, index in zip(boxes, classes, strict=True):
            for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
                moved = np.clip(np.array(box) + random.integers(-2, 3, 4), 0, 100)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                other = int(random.integers(0, 3)) if random.random() < 0.15 else index
                found.append((image, tuple(moved.tolist()), other, int(random.integers(1, 20)) / 20))
        for _ in range(3):
            x, y = random.integers(0, 80, 2)
            box = (int(x), int(y), int(x) + 12, int(y) + 9)
            found.append((image, box, int(random.integers(0, 3)), int(random.integers(1, 20)) / 20))
    return truths, found


@pytest.mark.parametrize("rule", ["2007", "2010"])
@pytest.mark.parametrize("seed", range(8))
def test_slow_reference_with_first_and_last_pixels(seed, rule):
    truths, found = made(seed)
    records = [
        record(boxes, image, classes, [n for n, hard in enumerate(difficult) if hard])
        for image, boxes, classes, difficult in truths
    ]
    rows = [row for image, box, index, s in found for row in as_coco([box], [s], image, [index])]
    result = score(records, rows, rule=rule)

    def pixels(box):  # first and last, counted from 1
        return box[0] + 1, box[1] + 1, box[2], box[3]

    expected = []
    for index, category in enumerate(CATEGORIES):
        objects = [
            (image, pixels(box), hard)
            for image, boxes, classes, difficult in truths
            for box, of_class, hard in zip(boxes, classes, difficult, strict=True)
            if of_class == index
        ]
        of_class = [(image, pixels(box), s) for image, box, label, s in found if label == index]
        expected.append(devkit(objects, of_class, rule))
        for iou_type in ("bbox", "segm"):  # the masks are the boxes
            given = result["per_class"][category.name][iou_type]["AP50"]
            np.testing.assert_allclose(given, expected[-1], rtol=0, atol=1e-12)
    assert math.isnan(expected[2]) and 0.1 < min(expected[:2])
    for iou_type in ("bbox", "segm"):
        assert result[iou_type]["AP50"] == pytest.approx(np.mean(expected[:2]), abs=1e-12)


BOXES = [[10, 10, 30, 30], [40, 20, 90, 70]]
FAR = [5, 80, 25, 95]


@pytest.mark.parametrize("rule", ["2007", "2010"])
def test_perfect_detections(rule):
    result = score([record(BOXES)], as_coco(BOXES, [0.9, 0.8]), rule=rule)
    assert result["bbox"] == result["segm"] == {"AP50": ONE}
    car = result["per_class"]["aeroplane"]
    assert car == {"category_id": 1, "objects": 2, "bbox": {"AP50": ONE}, "segm": {"AP50": ONE}}
    assert math.isnan(result["per_class"]["car"]["bbox"]["AP50"])


def test_the_two_rules():
    # right, wrong, right of 2: recalls 1/2, 1/2, 1 and precisions 1, 1/2, 2/3
    found = as_coco([BOXES[0], FAR, BOXES[1]], [0.9, 0.8, 0.7])
    records = [record(BOXES)]
    assert score(records, found)["bbox"]["AP50"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    # 0, 0.1 ... 0.5 at precision 1, the five others at 2/3
    assert score(records, found, rule="2007")["bbox"]["AP50"] == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_tenth_is_reached_exactly():
    # 3 of 10 found: the recalls 0, 0.1, 0.2 and 0.3
    boxes = [[10 * n, 0, 10 * n + 9, 9] for n in range(10)]
    found = as_coco(boxes[:3], [0.9, 0.8, 0.7])
    assert score([record(boxes)], found, rule="2007")["bbox"]["AP50"] == pytest.approx(4 / 11)


def test_the_second_detection_of_an_object_is_wrong():
    found = as_coco([BOXES[0], BOXES[0], BOXES[1]], [0.9, 0.8, 0.7])
    assert score([record(BOXES)], found)["bbox"]["AP50"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_detection_goes_to_its_greatest_overlap_only():
    # both overlap the wide box most: the second is wrong though the narrow one is free and would do
    wide, narrow = [0, 0, 20, 10], [0, 0, 12, 10]
    found = as_coco([wide, [0, 0, 17, 10]], [0.9, 0.8])
    assert score([record([wide, narrow])], found, iou_types="bbox")["bbox"]["AP50"] == pytest.approx(0.5)


def test_half_of_the_union_is_enough():
    assert score([record([[0, 0, 20, 10]])], as_coco([[0, 0, 10, 10]], [0.9]))["bbox"]["AP50"] == ONE
    assert score([record([[0, 0, 21, 10]])], as_coco([[0, 0, 10, 10]], [0.9]))["bbox"]["AP50"] == 0


def test_difficult_objects_are_neither_wanted_nor_wrong():
    records = [record(BOXES, difficult=[1])]
    easy = as_coco(BOXES[:1], [0.5])
    assert score(records, easy)["bbox"]["AP50"] == ONE
    twice = as_coco([BOXES[1], BOXES[1]], [0.9, 0.8])
    result = score(records, easy + twice)
    assert result["bbox"]["AP50"] == result["segm"]["AP50"] == ONE
    assert result["per_class"]["aeroplane"]["objects"] == 1
    # a part of it is no detection of it: it has the IoU of any object
    part = as_coco([[40, 20, 60, 40]], [0.9])
    assert score(records, easy + part)["bbox"]["AP50"] == pytest.approx(0.5)


def test_masks_decide_the_score_of_masks():
    left = [[10, 10, 19, 10, 19, 30, 10, 30]]  # less than half of its box
    records = [record(BOXES[:1], segmentations=[left])]
    result = score(records, as_coco(BOXES[:1], [0.9]))
    assert (result["bbox"]["AP50"], result["segm"]["AP50"]) == (ONE, 0)
    mask = coco_mask.merge(coco_mask.frPyObjects(left, 100, 100))
    found = [{**as_coco(BOXES[:1], [0.9])[0], "segmentation": mask}]
    assert score(records, found)["segm"]["AP50"] == ONE


def test_an_object_without_a_mask_is_difficult_in_the_score_of_masks():
    records = [record(BOXES, segmentations=[rectangle(BOXES[0]), None])]
    result = score(records, as_coco(BOXES, [0.5, 0.9]))
    assert result["segm"]["AP50"] == result["bbox"]["AP50"] == ONE
    result = score(records, as_coco(BOXES[:1], [0.5]))
    assert (result["bbox"]["AP50"], result["segm"]["AP50"]) == (pytest.approx(0.5), ONE)


@pytest.mark.parametrize("rule", ["2007", "2010"])
@pytest.mark.parametrize("found", [[], as_coco([FAR], [0.9]), as_coco(BOXES, [0.9, 0.8], classes=[1, 2])])
def test_nothing_right_is_zero(found, rule):
    result = score([record(BOXES)], found, rule=rule)
    assert result["bbox"]["AP50"] == result["segm"]["AP50"] == 0


@pytest.mark.parametrize("difficult", [(), (0, 1)])
def test_nothing_to_find(difficult):
    records = [record(BOXES if difficult else [], difficult=difficult)]
    result = score(records, as_coco(BOXES, [0.9, 0.8]))
    assert math.isnan(result["bbox"]["AP50"]) and math.isnan(result["segm"]["AP50"])


def test_results_of_a_model_and_rounds():
    evaluator = VocEvaluator([record(BOXES)], CATEGORIES)
    results = Results(
        boxes=np.array(BOXES, np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        classes=np.array([2, 2], np.int32),
        mask_probabilities=np.ones((2, 28, 28), np.float32),
        height=100,
        width=100,
        categories=CATEGORIES[::-1],
        image_id="a",
    )
    evaluator.add(results)
    assert evaluator.result()["segm"]["AP50"] == ONE
    with pytest.raises(ValueError, match="reset"):
        evaluator.add(results)
    evaluator.reset()
    assert evaluator.result()["segm"]["AP50"] == 0


def test_errors_say_what_came():
    with pytest.raises(ValueError, match="rule='2012'"):
        VocEvaluator([record(BOXES)], CATEGORIES, rule="2012")
    evaluator = VocEvaluator([record(BOXES)], CATEGORIES)
    row = as_coco(BOXES[:1], [0.9])[0]
    for change, words in (
        ({"score": math.nan}, "score=nan"),
        ({"category_id": 77}, "category_id=77"),
        ({"image_id": "b"}, "image_id='b'"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluator.add_coco([row, {**row, **change}])
    assert evaluator.result()["bbox"]["AP50"] == 0


def test_table():
    text = format_table(score([record(BOXES)], as_coco(BOXES[:1], [0.9])))
    assert text.splitlines() == [
        "%     AP50",
        "bbox  50.0",
        "segm  50.0",
        "",
        "class      objects  bbox AP50  segm AP50",
        "aeroplane        2       50.0       50.0",
        "bicycle          0          -          -",
        "car              0          -          -",
    ]
