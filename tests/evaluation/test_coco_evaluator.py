"""COCO scores: published numbers, hand-worked cases, and pycocotools against hotcoco."""

import importlib.util
import json
import math
import pathlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from keras_mrcnn.evaluation import CocoEvaluator, format_table
from keras_mrcnn.results import Results

REFERENCE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "eval_reference"
HAS_HOTCOCO = importlib.util.find_spec("hotcoco") is not None
BACKENDS = ["pycocotools"] + (["hotcoco"] if HAS_HOTCOCO else [])
ONE = pytest.approx(1)  # pycocotools adds 2e-16 to the denominator of the precision
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR", "ARs", "ARm", "ARl"]
PUBLISHED = {
    "bbox": [
        0.5045806987249628, 0.6969727247299577, 0.5729816669904824, 0.5856257209410443,
        0.5193996948036719, 0.5013978986347466, 0.38681277964578054, 0.5936795762842003,
        0.595352982877607, 0.6398109626113442, 0.5664205978994309, 0.5642905982905982,
    ],
    "segm": [
        0.3195452758576433, 0.5622883972521636, 0.29892653412086784, 0.3873740315997837,
        0.31018272403369485, 0.3269339071005138, 0.2682297225711534, 0.41544868114906375,
        0.4168394992198818, 0.4694498622754236, 0.37675922666197265, 0.3814715099715099,
    ],
}  # fmt: skip


@dataclass
class Category:
    id: int
    name: str


@dataclass
class Record:
    image_id: object
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segmentations: list = field(default_factory=list)


CATEGORIES = [Category(3, "nut"), Category(17, "fruit")]


def record(boxes, image_id="a", classes=None, crowd=None, segmentations=None, size=(100, 100)):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    polygons = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
    return Record(
        image_id=image_id,
        height=size[0],
        width=size[1],
        boxes=boxes,
        classes=np.zeros(count, np.int32) if classes is None else np.asarray(classes, np.int32),
        crowd=np.zeros(count, bool) if crowd is None else np.asarray(crowd, bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        segmentations=polygons if segmentations is None else segmentations,
    )


def results(boxes, image_id="a", classes=None, scores=None, size=(100, 100), categories=CATEGORIES):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return Results(
        boxes=boxes,
        scores=np.linspace(0.9, 0.1, count).astype(np.float32) if scores is None else np.float32(scores),
        classes=np.zeros(count, np.int32) if classes is None else np.asarray(classes, np.int32),
        mask_probabilities=np.ones((count, 28, 28), np.float32),
        height=size[0],
        width=size[1],
        categories=categories,
        image_id=image_id,
    )


def score(records, found, **options):
    evaluator = CocoEvaluator(records, CATEGORIES, **options)
    for one in found:
        evaluator.add(one)
    return evaluator.result()


def reference_records():
    truth = json.loads((REFERENCE / "instances_val2014_100.json").read_text())
    categories = [Category(c["id"], c["name"]) for c in sorted(truth["categories"], key=lambda c: c["id"])]
    index = {category.id: n for n, category in enumerate(categories)}
    records = []
    for image in truth["images"]:
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        records.append(
            Record(
                image_id=image["id"],
                height=image["height"],
                width=image["width"],
                boxes=boxes.astype(np.float32),
                classes=np.array([index[a["category_id"]] for a in objects], np.int32),
                crowd=np.array([bool(a["iscrowd"]) for a in objects]),
                areas=np.array([a["area"] for a in objects], np.float32),
                segmentations=[a["segmentation"] for a in objects],
            )
        )
    return records, categories


@pytest.mark.skipif(not REFERENCE.exists(), reason="the shared data are not here")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_numbers(iou_type, backend):
    records, categories = reference_records()
    evaluator = CocoEvaluator(records, categories, iou_types=iou_type, backend=backend)
    name = f"instances_val2014_fake{iou_type}100_results.json"
    evaluator.add_coco(json.loads((REFERENCE / name).read_text()))
    result = evaluator.result()[iou_type]
    assert list(result) == KEYS
    np.testing.assert_allclose([result[key] for key in KEYS], PUBLISHED[iou_type], rtol=0, atol=1e-9)


def random_boxes(random, count, size):
    corner = random.uniform(0, size * 0.7, (count, 2))
    side = size * 10 ** random.uniform(-1.5, -0.5, (count, 2))
    return np.concatenate([corner, np.minimum(corner + side, size)], axis=1)


@pytest.mark.skipif(not HAS_HOTCOCO, reason="hotcoco is not installed")
@pytest.mark.parametrize("max_detections", [5, 100, 200])
def test_the_backends_agree_on_random_data(max_detections):
    random = np.random.default_rng(max_detections)
    records, found = [], []
    for image_id in range(12):
        count = int(random.integers(0, 30))
        boxes = random_boxes(random, count, 300)
        classes = random.integers(0, 2, count)
        segmentations = record(boxes, size=(300, 300)).segmentations
        segmentations = [None if random.random() < 0.1 else polygons for polygons in segmentations]
        crowd = random.random(count) < 0.1
        records.append(record(boxes, image_id, classes, crowd, segmentations, (300, 300)))
        near = np.clip(np.concatenate([boxes, boxes]) + random.normal(0, 3, (2 * count, 4)), 0, 300)
        far = random_boxes(random, 8, 300)
        detected = np.concatenate([near, far])
        good = (detected[:, 2] > detected[:, 0]) & (detected[:, 3] > detected[:, 1])
        labels = np.concatenate([classes, classes, random.integers(0, 2, 8)])[good]
        scores = random.integers(1, 20, good.sum()) / 20  # with ties
        found.append(results(detected[good], image_id, labels, scores, (300, 300)))
    one, other = (
        score(records, found, max_detections=max_detections, backend=backend)
        for backend in ("pycocotools", "hotcoco")
    )
    assert json.dumps(one) == json.dumps(other)
    assert 0.05 < one["bbox"]["AP"] < 0.95 and 0.05 < one["segm"]["AP"] < 0.95


@pytest.mark.parametrize("backend", BACKENDS)
def test_perfect_detections(backend, capfd):
    boxes = [[10, 10, 30, 30], [40, 20, 90, 70]]
    records = [record(boxes, "a", classes=[0, 1]), record([], "empty")]
    result = score(records, [results(boxes, classes=[0, 1])], backend=backend)
    for iou_type in ("bbox", "segm"):
        # 20 x 20 is small, 50 x 50 is medium, nothing is large
        assert [result[iou_type][key] for key in ("AP", "AP50", "AP75", "APs", "APm", "AR")] == [ONE] * 6
        assert math.isnan(result[iou_type]["APl"]) and math.isnan(result[iou_type]["ARl"])
    assert result["per_class"]["nut"] == {
        "category_id": 3,
        "objects": 1,
        "bbox": {"AP": ONE, "AP50": ONE},
        "segm": {"AP": ONE, "AP50": ONE},
    }
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_of_the_objects_found(backend):
    # 1 of 2 objects, no false alarm: precision 1 up to recall 0.5, that is at 51 of 101 points
    boxes = [[10, 10, 30, 30], [40, 20, 90, 70]]
    result = score([record(boxes)], [results(boxes[:1])], backend=backend)
    assert result["bbox"]["AP"] == pytest.approx(51 / 101)
    assert result["segm"]["AR"] == 0.5
    assert result["bbox"]["AR1"] == 0.5


def test_iou_decides_at_which_thresholds_a_box_counts():
    # 20 wide, shifted by 4: intersection 16, union 24, IoU 2/3: found at .50 .55 .60 .65 of ten
    result = score([record([[10, 10, 30, 30]])], [results([[14, 10, 34, 30]])])
    assert result["bbox"]["AP"] == pytest.approx(0.4)
    assert (result["bbox"]["AP50"], result["bbox"]["AP75"]) == (ONE, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("found", [[], [results([])], [results([[60, 60, 80, 80]])]])
def test_nothing_right_is_zero(found, backend):
    result = score([record([[10, 10, 30, 30]])], found, backend=backend)
    for iou_type in ("bbox", "segm"):
        for key in ("AP", "AP50", "AP75", "APs", "AR1", "AR10", "AR"):
            assert result[iou_type][key] == 0
    assert result["per_class"]["nut"]["bbox"]["AP"] == 0
    assert math.isnan(result["per_class"]["fruit"]["bbox"]["AP"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_true_object_at_all(backend):
    result = score([record([])], [results([[60, 60, 80, 80]])], backend=backend)
    assert all(math.isnan(value) for value in result["bbox"].values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_a_hundred_objects_in_one_image(backend):
    boxes = [[x, y, x + 8, y + 8] for y in range(0, 150, 10) for x in range(0, 100, 10)]  # 150
    records = [record(boxes, size=(150, 100))]
    found = [results(boxes, size=(150, 100))]
    assert score(records, found, max_detections=200, backend=backend)["segm"]["AP"] == ONE
    # 100 of 150: precision 1 up to recall 0.6667, that is at the points 0.00 to 0.66
    hundred = score(records, found, max_detections=100, backend=backend)["segm"]
    assert hundred["AP"] == pytest.approx(67 / 101)
    assert hundred["AR"] == pytest.approx(100 / 150)
    assert hundred["AR10"] == pytest.approx(10 / 150)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", [("b.png", "a.png"), (0, 5), (0, "0"), (np.int64(4), 2)])
def test_image_ids_of_any_type(ids, backend):
    boxes = {ids[0]: [[10, 10, 30, 30]], ids[1]: [[40, 40, 60, 60]]}
    records = [record(box, image_id) for image_id, box in boxes.items()]
    found = [results(box, image_id) for image_id, box in boxes.items()]
    assert score(records, found, backend=backend)["bbox"]["AP"] == ONE
    swapped = [results(boxes[ids[1]], ids[0]), results(boxes[ids[0]], ids[1])]
    assert score(records, swapped, backend=backend)["bbox"]["AP"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_on_a_crowd_are_neither_right_nor_wrong(backend):
    boxes = [[10, 10, 30, 30], [40, 40, 90, 90]]
    inside = [[41, 41, 60, 60], [62, 62, 85, 85], [45, 70, 60, 85]]
    found = [results(inside + boxes[:1], scores=[0.9, 0.8, 0.7, 0.1])]
    assert score([record(boxes, crowd=[False, True])], found, backend=backend)["segm"]["AP"] == ONE
    assert score([record(boxes)], found, backend=backend)["segm"]["AP"] < 0.3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("absent", [None, []])
def test_an_object_without_mask_is_ignored_by_the_mask_score_only(absent, backend):
    boxes = [[10, 10, 30, 30], [40, 40, 90, 90]]
    with_mask = record(boxes).segmentations[:1]
    records = [record(boxes, segmentations=with_mask + [absent])]
    missed = score(records, [results(boxes[:1])], backend=backend)
    assert missed["bbox"]["AR"] == 0.5 and missed["segm"]["AR"] == ONE
    found = score(records, [results(boxes, scores=[0.1, 0.9])], backend=backend)
    assert found["bbox"]["AP"] == ONE and found["segm"]["AP"] == ONE


def test_all_forms_of_a_true_mask_score_alike():
    box = [10, 20, 30, 60]
    mask = np.zeros((100, 100), np.uint8)
    mask[20:60, 10:30] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))
    text = {**compressed, "counts": compressed["counts"].decode()}
    runs = {"size": [100, 100], "counts": [1020] + [40, 60] * 19 + [40, 10000 - 1020 - 100 * 19 - 40]}
    polygon = [[10, 20, 30, 20, 30, 60, 10, 60]]
    for segmentation in (compressed, text, runs, polygon):
        result = score([record([box], segmentations=[segmentation])], [results([box])])
        assert result["segm"]["AP"] == ONE


def test_masks_decide_the_mask_score():
    # the true mask is the left half of its box: IoU with the full box is 0.5
    left = [[10, 10, 30, 10, 30, 50, 10, 50]]
    result = score([record([[10, 10, 50, 50]], segmentations=[left])], [results([[10, 10, 50, 50]])])
    assert result["bbox"]["AP"] == ONE
    assert result["segm"]["AP"] == pytest.approx(0.1)


def test_score_does_not_depend_on_the_order_of_images_or_rounds():
    boxes = {"a": [[10, 10, 30, 30]], "b": [[40, 40, 60, 60]], "c": [[5, 5, 70, 70]]}
    records = [record(box, image_id) for image_id, box in boxes.items()]
    found = [results(np.add(box, 2), image_id) for image_id, box in boxes.items()]
    evaluator = CocoEvaluator(records, CATEGORIES)
    for one in found:
        evaluator.add(one)
    first = json.dumps(evaluator.result())
    assert json.dumps(evaluator.result()) == first
    evaluator.reset()
    assert evaluator.result()["bbox"]["AP"] == 0
    for one in found[::-1]:
        evaluator.add(one)
    assert json.dumps(evaluator.result()) == first


def test_images_not_added_count_and_a_subset_can_be_scored():
    boxes = [[10, 10, 30, 30]]
    records = [record(boxes, "a"), record(boxes, "b")]
    assert score(records, [results(boxes)])["bbox"]["AR"] == 0.5
    assert score(records[:1], [results(boxes)])["bbox"]["AR"] == ONE


def test_records_and_categories_of_a_dataset_object():
    @dataclass
    class Dataset:
        records: list
        categories: list

    dataset = Dataset([record([[10, 10, 30, 30]])], CATEGORIES)
    evaluator = CocoEvaluator(dataset, iou_types="bbox")
    evaluator.add(results([[10, 10, 30, 30]]))
    result = evaluator.result()
    assert set(result) == {"bbox", "per_class"} and result["bbox"]["AP"] == ONE
    with pytest.raises(ValueError, match="the dataset has"):
        CocoEvaluator(dataset, CATEGORIES[::-1])


def test_a_model_with_its_categories_in_another_order():
    found = results([[10, 10, 30, 30]], classes=[1], categories=CATEGORIES[::-1])
    assert score([record([[10, 10, 30, 30]])], [found])["bbox"]["AP"] == ONE


def test_classes_of_one_name_keep_apart():
    evaluator = CocoEvaluator([record([[1, 1, 9, 9]])], [Category(1, "x"), Category(2, "x")])
    assert list(evaluator.result()["per_class"]) == ["x (1)", "x (2)"]


def test_errors_say_what_came():
    records = [record([[10, 10, 30, 30]], 7)]
    evaluator = CocoEvaluator(records, CATEGORIES)
    with pytest.raises(ValueError, match="image_id='7', of type str"):
        evaluator.add(results([], "7"))
    with pytest.raises(ValueError, match="Received: 50x100"):
        evaluator.add(results([], 7, size=(50, 100)))
    box = {"image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 1}
    with pytest.raises(ValueError, match="segmentation"):
        evaluator.add_coco([box])
    with pytest.raises(ValueError, match="category_id=4"):
        evaluator.add_coco([{**box, "category_id": 4}])
    rle = {"size": [5, 5], "counts": [25]}
    with pytest.raises(ValueError, match="size=\\[5, 5\\]"):
        evaluator.add_coco([{**box, "segmentation": rle}])
    assert evaluator.result()["bbox"]["AP"] == 0
    evaluator.add(results([[10, 10, 30, 30]], 7))
    with pytest.raises(ValueError, match="reset"):
        evaluator.add(results([], 7))
    with pytest.raises(ValueError, match="occur twice"):
        CocoEvaluator(records * 2, CATEGORIES)
    with pytest.raises(ValueError, match="at least one image"):
        CocoEvaluator([], CATEGORIES)
    with pytest.raises(ValueError, match="keypoints"):
        CocoEvaluator(records, CATEGORIES, iou_types=("keypoints",))
    with pytest.raises(ValueError, match="max_detections=0"):
        CocoEvaluator(records, CATEGORIES, max_detections=0)
    with pytest.raises(ValueError, match="backend='fast'"):
        CocoEvaluator(records, CATEGORIES, backend="fast")


def test_missing_hotcoco_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    records = [record([[10, 10, 30, 30]])]
    assert CocoEvaluator(records, CATEGORIES).backend == "pycocotools"
    with pytest.raises(ImportError, match="keras_mrcnn.hotcoco."):
        CocoEvaluator(records, CATEGORIES, backend="hotcoco")


def test_table():
    boxes = [[10, 10, 30, 30], [40, 20, 90, 70]]
    text = format_table(score([record(boxes)], [results(boxes[:1])]))
    assert text.splitlines() == [
        "%       AP  AP50  AP75    APs  APm  APl    AR",
        "bbox  50.5  50.5  50.5  100.0  0.0    -  50.0",
        "segm  50.5  50.5  50.5  100.0  0.0    -  50.0",
        "",
        "class  objects  bbox AP  bbox AP50  segm AP  segm AP50",
        "nut          2     50.5       50.5     50.5       50.5",
        "fruit        0        -          -        -          -",
    ]
    assert len(format_table(score([record(boxes)], []), per_class=False).splitlines()) == 3
