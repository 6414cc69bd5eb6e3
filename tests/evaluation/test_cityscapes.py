"""Cityscapes' score: the official package's numbers on made streets, and cases worked by hand."""

import importlib.util
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from keras_mrcnn.data.cityscapes import CATEGORIES, load_cityscapes
from keras_mrcnn.evaluation import CityscapesEvaluator, format_table
from keras_mrcnn.results import Results
from tests.evaluation import official_cityscapes, streets

GOLDEN = json.loads(official_cityscapes.GOLDEN.read_text())
ONE = pytest.approx(1)
CAR = 26
NAMES = [category.name for category in CATEGORIES]


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {**encoded, "counts": encoded["counts"].decode()}


def as_coco(found):
    return [
        {
            "image_id": one["image"],
            "category_id": one["label"],
            "score": one["score"],
            "segmentation": rle(one["mask"]),
        }
        for one in found
    ]


def compare(result, scores):
    for key, value in scores[""].items():
        np.testing.assert_allclose(result["segm"][key], value, rtol=0, atol=1e-9)
    for name in NAMES:
        for key, value in scores[name].items():
            given = result["per_class"][name]["segm"][key]
            np.testing.assert_allclose(given, value, rtol=0, atol=1e-9, err_msg=f"{name} {key}")


@pytest.mark.parametrize("seed", sorted(GOLDEN, key=int))
def test_numbers_of_the_official_package(seed, tmp_path):
    golden = GOLDEN[seed]
    images = streets.make(tmp_path, int(seed))
    found = streets.detections(images, int(seed))
    pixels = int(sum(ids.sum() for ids in images.values()))
    check = [pixels, len(found), int(sum(one["mask"].sum() for one in found))]
    assert check == golden["check"], "these are not the images of the golden file: make it anew"
    evaluator = CityscapesEvaluator(load_cityscapes(tmp_path, "val", invalid="error"))
    evaluator.add_coco(as_coco(found))
    compare(evaluator.result(), golden["scores"])


@pytest.mark.skipif(
    importlib.util.find_spec("cityscapesscripts") is None, reason="cityscapesscripts is not installed"
)
@pytest.mark.parametrize("seed", range(100, 106))
def test_beside_the_official_package(seed, tmp_path, monkeypatch):
    evaluation = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # gone since numpy 2.4
    monkeypatch.setattr(f"{evaluation}.writeDict2JSON", lambda *written: None)  # fails with numpy 2
    images = streets.make(tmp_path, seed)
    found = streets.detections(images, seed)
    evaluator = CityscapesEvaluator(load_cityscapes(tmp_path, "val", invalid="error"))
    evaluator.add_coco(as_coco(found))
    compare(evaluator.result(), official_cityscapes.official(tmp_path, images, found))


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
    void: dict | None = None


def rectangle(x1, y1, x2, y2, size=(60, 100)):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def record(*masks, crowd=(), label=CAR, image_id="a", void=None):
    """A record of one class; `crowd`: positions of the crowds."""
    ys_xs = [np.nonzero(mask) for mask in masks]
    boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in ys_xs]
    index = [category.id for category in CATEGORIES].index(label)
    return Record(
        image_id=image_id,
        height=60,
        width=100,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        classes=np.full(len(masks), index, np.int32),
        crowd=np.array([n in crowd for n in range(len(masks))], bool),
        areas=np.array([mask.sum() for mask in masks], np.float32),
        segmentations=[rle(mask) for mask in masks],
        void=None if void is None else rle(void),
    )


def score(records, found):
    """`found`: (mask, score), or with label and image id."""
    evaluator = CityscapesEvaluator(records, CATEGORIES)
    rows = [dict(zip(("mask", "score", "label", "image"), one)) for one in found]
    evaluator.add_coco(as_coco([{"label": CAR, "image": "a", **row} for row in rows]))
    return evaluator.result()


A, B = rectangle(0, 0, 20, 10), rectangle(30, 0, 50, 10)  # 200 pixels each
FAR = rectangle(60, 30, 80, 50)


def test_all_found():
    result = score([record(A, B)], [(A, 0.9), (B, 0.3)])
    assert result["segm"] == {"AP": ONE, "AP50": ONE}
    assert result["per_class"]["car"] == {
        "category_id": CAR,
        "objects": 2,
        "segm": {"AP": ONE, "AP50": ONE},
    }
    assert math.isnan(result["per_class"]["person"]["segm"]["AP"])
    assert list(result["per_class"]) == NAMES


def test_precision_is_not_interpolated():
    # the false alarm first: points (recall, precision) (0, 1), (0, 0), (0.5, 0.5), (1, 2/3)
    # trapezoids: 0.5 * (0 + 0.5) / 2 + 0.5 * (0.5 + 2/3) / 2 = 0.125 + 0.291667
    result = score([record(A, B)], [(FAR, 0.9), (A, 0.8), (B, 0.7)])
    assert result["segm"]["AP50"] == pytest.approx(0.125 + 7 / 24)


def test_equal_scores_are_one_point():
    # (0, 1) and (1, 2/3): (1 + 2/3) / 2
    result = score([record(A, B)], [(FAR, 0.5), (A, 0.5), (B, 0.5)])
    assert result["segm"]["AP50"] == pytest.approx(5 / 6)


def test_the_overlap_must_be_above_the_threshold():
    half = rectangle(0, 0, 10, 10)  # IoU 100 / 200
    assert score([record(A)], [(half, 0.9)])["segm"]["AP50"] == 0
    more = rectangle(0, 0, 11, 10)  # IoU 0.55, a bit less than the second threshold as a float
    assert score([record(A)], [(more, 0.9)])["segm"]["AP50"] == ONE
    assert score([record(A)], [(more, 0.9)])["segm"]["AP"] == pytest.approx(0.1)


def test_of_two_on_one_object_the_better_scored_is_right():
    # 2 of 2 found at 0.9 and 0.8, then a duplicate below: no area lost
    assert score([record(A, B)], [(A, 0.9), (B, 0.8), (A, 0.7)])["segm"]["AP"] == ONE
    # the duplicate of 0.85 between: points (0, 1), (0.5, 1), (0.5, 0.5), (1, 2/3)
    result = score([record(A, B)], [(A, 0.9), (A, 0.85), (B, 0.8)])
    assert result["segm"]["AP50"] == pytest.approx(0.5 + 0.5 * (0.5 + 2 / 3) / 2)


@pytest.mark.parametrize("ignore", ["crowd", "small", "void"])
def test_what_lies_on_the_ignored_is_neither_right_nor_wrong(ignore):
    small = rectangle(60, 30, 69, 41)  # 99 pixels
    records = {
        "crowd": [record(A, FAR, crowd=[1])],
        "small": [record(A, small)],
        "void": [record(A, void=FAR)],
    }[ignore]
    assert score(records, [(small, 0.9), (A, 0.8)])["segm"]["AP"] == ONE
    # wrong: points (0, 1), (0, 0), (1, 1/2)
    assert score([record(A)], [(small, 0.9), (A, 0.8)])["segm"]["AP"] == pytest.approx(0.25)
    # 60 of 100 pixels on the ignored are more than the thresholds 0.50 and 0.55: (2 + 8 * 0.25) / 10
    partly = rectangle(63, 30, 73, 40) if ignore == "small" else rectangle(56, 30, 66, 40)
    shares = score(records, [(partly, 0.9), (A, 0.8)])["segm"]
    assert shares == {"AP": pytest.approx(0.4), "AP50": ONE}


def test_a_crowd_of_another_class_ignores_nothing():
    records = [record(A), record(FAR, crowd=[0], label=24, image_id="b")]
    assert score(records, [(FAR, 0.9, CAR, "b"), (A, 0.8)])["segm"]["AP"] == pytest.approx(0.25)


def test_objects_are_looked_for_from_100_pixels_on():
    hundred, less = rectangle(60, 30, 70, 40), rectangle(60, 30, 69, 41)
    assert score([record(A, hundred)], [(A, 0.9)])["segm"]["AP"] == pytest.approx(0.5)
    result = score([record(A, less)], [(A, 0.9)])
    assert result["segm"]["AP"] == ONE
    assert result["per_class"]["car"]["objects"] == 2


def test_all_images_are_ranked_together():
    records = [record(A), record(A, image_id="b")]
    apart = [(A, 0.5), (FAR, 0.9, CAR, "b"), (A, 0.8, CAR, "b")]
    # (0, 1), (0, 0), (0.5, 0.5), (1, 2/3)
    assert score(records, apart)["segm"]["AP50"] == pytest.approx(0.125 + 7 / 24)


@pytest.mark.parametrize("found", [[], [(FAR, 0.9)], [(A, 0.9, 24)], [(A & False, 0.9)]])
def test_nothing_right_is_zero(found):
    result = score([record(A)], found)
    assert result["per_class"]["car"]["segm"] == {"AP": 0, "AP50": 0}
    assert result["segm"] == {"AP": 0, "AP50": 0}


def test_all_detections_ignored_is_zero():
    assert score([record(A, void=FAR)], [(FAR, 0.9)])["segm"]["AP"] == 0


@pytest.mark.parametrize("objects", [[], [rectangle(0, 0, 5, 5)]])
def test_no_object_to_be_found(objects):
    result = score([record(*objects)], [(A, 0.9)])
    assert math.isnan(result["segm"]["AP"]) and math.isnan(result["segm"]["AP50"])


def results(masks, scores, image_id="a", categories=CATEGORIES):
    """Boxes with full masks, as a model gives them; all of the class `car`."""
    found = record(*masks, image_id=image_id)
    return Results(
        boxes=found.boxes,
        scores=np.float32(scores),
        classes=np.full(len(masks), [category.id for category in categories].index(CAR), np.int32),
        mask_probabilities=np.ones((len(masks), 28, 28), np.float32),
        height=60,
        width=100,
        categories=categories,
        image_id=image_id,
    )


def test_results_of_a_model_and_rounds():
    evaluator = CityscapesEvaluator([record(A, B)], CATEGORIES)
    evaluator.add(results([A, B], [0.9, 0.8], categories=CATEGORIES[::-1]))
    assert evaluator.result()["segm"]["AP"] == ONE
    evaluator.reset()
    assert evaluator.result()["segm"]["AP"] == 0
    evaluator.add(results([A], [0.9]))
    assert evaluator.result()["segm"]["AP"] == pytest.approx(0.5)


def test_errors_say_what_came():
    evaluator = CityscapesEvaluator([record(A)], CATEGORIES)
    with pytest.raises(ValueError, match="image_id='missing'"):
        evaluator.add(results([A], [0.9], "missing"))
    with pytest.raises(ValueError, match="category_id=29"):
        evaluator.add_coco(as_coco([{"image": "a", "label": 29, "score": 1, "mask": A}]))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"finite numbers. Received: score={bad}"):
            evaluator.add(results([A], [bad]))
    with pytest.raises(ValueError, match="size="):
        evaluator.add_coco(as_coco([{"image": "a", "label": CAR, "score": 1, "mask": A[:30]}]))
    assert evaluator.result()["segm"]["AP"] == 0
    evaluator.add(results([A], [0.9]))  # the refused ones left nothing behind
    assert evaluator.result()["segm"]["AP"] == ONE


def test_table():
    text = format_table(score([record(A, B)], [(A, 0.9)]))
    assert text.splitlines()[:4] == [
        "%       AP  AP50",
        "segm  50.0  50.0",
        "",
        "class       objects  segm AP  segm AP50",
    ]
    assert text.splitlines()[6] == "car               2     50.0       50.0"
