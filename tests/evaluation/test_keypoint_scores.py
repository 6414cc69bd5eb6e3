"""Keypoint scores: published numbers, hand-worked OKS, pycocotools itself, and hotcoco beside it."""

import contextlib
import importlib.util
import io
import json
import math
import pathlib
from dataclasses import dataclass

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keras_mrcnn.evaluation import CocoEvaluator, format_table
from keras_mrcnn.evaluation.keypoints import COCO_SIGMAS
from keras_mrcnn.results import Results

REFERENCE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "eval_reference"
BACKENDS = ["pycocotools"] + (["hotcoco"] if importlib.util.find_spec("hotcoco") else [])
ONE = pytest.approx(1)
KEYS = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
PUBLISHED = [
    0.5048844884488449, 0.7227722772277227, 0.6336633663366337, 0.46633663366336636, 0.7504950495049505,
    0.5181818181818182, 0.7272727272727273, 0.6363636363636364, 0.4666666666666666, 0.75,
]  # fmt: skip


@dataclass
class Category:
    id: int
    name: str
    keypoints: tuple = ()
    skeleton: tuple = ()


PAIR, NUT, TRIO = Category(3, "pair", ("a", "b")), Category(5, "nut"), Category(9, "trio", ("x", "y", "z"))


@dataclass
class Record:
    image_id: object
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    keypoints: np.ndarray
    height: int = 200
    width: int = 200
    segmentations: tuple = ()


def record(keypoints, image_id="a", classes=None, crowd=None, areas=None):
    """Objects with boxes of 50 x 40 at their first point, and an area of 1600 pixels."""
    keypoints = np.array(keypoints, np.float32)
    count = len(keypoints)
    corner = keypoints[:, 0, :2]
    return Record(
        image_id=image_id,
        boxes=np.concatenate([corner, corner + [50, 40]], axis=1).astype(np.float32),
        classes=np.zeros(count, np.int32) if classes is None else np.array(classes, np.int32),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd),
        areas=np.full(count, 1600, np.float32) if areas is None else np.array(areas, np.float32),
        keypoints=keypoints,
    )


def results(keypoints, image_id="a", classes=None, scores=None, categories=(PAIR,)):
    keypoints = np.array(keypoints, np.float32)
    count = len(keypoints)
    return Results(
        boxes=np.tile(np.float32([[10, 10, 60, 50]]), (count, 1)),
        scores=np.linspace(0.9, 0.1, count).astype(np.float32) if scores is None else np.float32(scores),
        classes=np.zeros(count, np.int32) if classes is None else np.array(classes, np.int32),
        mask_probabilities=None,
        height=200,
        width=200,
        categories=list(categories),
        image_id=image_id,
        keypoints=keypoints,
    )


def score(records, found, categories=(PAIR,), sigmas=0.05, backend="auto", iou_types="keypoints"):
    evaluator = CocoEvaluator(records, list(categories), iou_types=iou_types, backend=backend, sigmas=sigmas)
    for one in found:
        evaluator.add(one)
    return evaluator.result()


def reference():
    truth = json.loads((REFERENCE / "person_keypoints_139099_gt.json").read_text())
    (image,), objects = truth["images"], truth["annotations"]
    boxes = np.array([a["bbox"] for a in objects])
    boxes[:, 2:] += boxes[:, :2]
    points = np.array([a["keypoints"] for a in objects], np.float32).reshape(-1, 17, 3)
    points[..., :2] += 0.5 * (points[..., 2:] > 0)
    one = Record(
        image_id=image["id"],
        boxes=boxes.astype(np.float32),
        classes=np.zeros(len(objects), np.int32),
        crowd=np.array([bool(a["iscrowd"]) for a in objects]),
        areas=np.array([a["area"] for a in objects], np.float32),
        keypoints=points,
        height=image["height"],
        width=image["width"],
    )
    person = Category(1, "person", tuple(truth["categories"][0]["keypoints"]))
    return one, person, json.loads((REFERENCE / "person_keypoints_139099_results.json").read_text())


@pytest.mark.skipif(not REFERENCE.exists(), reason="the shared data are not here")
@pytest.mark.parametrize("backend", BACKENDS)
def test_published_numbers(backend):
    one, person, found = reference()
    evaluator = CocoEvaluator([one], [person], iou_types="keypoints", backend=backend)
    evaluator.add_coco(found)
    result = evaluator.result()
    assert list(result["keypoints"]) == KEYS
    np.testing.assert_allclose([result["keypoints"][key] for key in KEYS], PUBLISHED, rtol=0, atol=1e-9)
    assert result["per_class"]["person"]["keypoints"]["AP"] == result["keypoints"]["AP"]


@pytest.mark.skipif(not REFERENCE.exists(), reason="the shared data are not here")
def test_sigmas_of_coco():
    one, person, found = reference()
    assert list(COCO_SIGMAS) == list(person.keypoints)
    scores = []
    for sigmas in (None, list(COCO_SIGMAS.values()), {"person": 0.05}, 0.05):
        evaluator = CocoEvaluator([one], [person], iou_types="keypoints", sigmas=sigmas)
        evaluator.add_coco(found)
        scores.append(evaluator.result()["keypoints"]["AP"])
    assert scores[0] == scores[1] != scores[2] == scores[3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    # area 1600, sigma .05: 2 area (2 sigma)^2 = 32; distances 0 and 4: (1 + exp(-16 / 32)) / 2 = 0.803:
    # found at .50 to .80, seven of ten thresholds
    true, found = [[[20, 30, 2], [40, 50, 1]]], [[[20, 30, 1], [40, 54, 1]]]
    result = score([record(true)], [results(found)], backend=backend)["keypoints"]
    assert (result["AP"], result["AR"]) == (pytest.approx(0.7), pytest.approx(0.7))
    assert (result["AP50"], result["AP75"], result["APm"]) == (ONE, ONE, pytest.approx(0.7))
    assert math.isnan(result["APl"])
    # with sigmas .05 and .1 the second counts exp(-16 / 128): 0.941: nine of ten
    wider = score([record(true)], [results(found)], backend=backend, sigmas=[0.05, 0.1])["keypoints"]
    assert wider["AP"] == pytest.approx(0.9)
    # not labelled: it does not count
    unlabelled = [[[20, 30, 2], [0, 0, 0]]]
    assert score([record(unlabelled)], [results(found)], backend=backend)["keypoints"]["AP"] == ONE


@pytest.mark.parametrize("backend", BACKENDS)
def test_objects_without_labels_and_crowds_are_ignored(backend):
    true = [[[20, 30, 2], [40, 50, 2]], [[120, 130, 2], [140, 150, 2]]]
    found = [*true, [[25, 25, 1], [30, 30, 1]]]
    scores = [0.1, 0.9, 0.8]
    for ignored in ({"crowd": [False, True]}, {}):
        points = np.array(true, np.float32)
        if not ignored:
            points[1, :, 2] = 0
        result = score([record(points, **ignored)], [results(found[:2], scores=scores[:2])], backend=backend)
        assert result["keypoints"]["AP"] == ONE
    # what lies on no object does count
    assert score([record(true)], [results(found, scores=scores)], backend=backend)["keypoints"]["AP"] < 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_twenty_detections_count(backend):
    true = [[[20, 30, 2], [40, 50, 2]]]
    wrong = [[[150, 150, 1], [170, 170, 1]]]
    for before, expected in ((19, ONE), (20, 0)):
        found = results(wrong * before + true, scores=np.linspace(0.9, 0.1, before + 1))
        assert score([record(true)], [found], backend=backend)["keypoints"]["AR"] == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_category_has_its_own_keypoints(backend):
    categories = [PAIR, NUT, TRIO]
    points = [[[20, 30, 2], [40, 50, 2], [0, 0, 0]], [[0, 0, 0]] * 3, [[90, 90, 2], [99, 99, 2], [95, 90, 2]]]
    one = record(points, classes=[0, 1, 2])
    found = results(points, classes=[0, 1, 2], categories=categories)
    sigmas = {"pair": 0.05, "trio": [0.1, 0.2, 0.3]}
    result = score([one], [found], categories, sigmas, backend, ("bbox", "keypoints"))
    assert result["keypoints"]["AP"] == ONE
    assert result["per_class"]["trio"]["keypoints"] == {"AP": ONE, "AP50": ONE}
    assert math.isnan(result["per_class"]["nut"]["keypoints"]["AP"])
    missed = results(points[:1], classes=[0], categories=categories)
    result = score([one], [missed], categories, sigmas, backend)
    assert result["keypoints"]["AP"] == pytest.approx(0.5)
    assert result["per_class"]["trio"]["keypoints"]["AP"] == 0


def oracle(records, found, sigmas):
    """pycocotools as its own demonstration uses it, one category."""
    images = [{"id": n, "height": r.height, "width": r.width} for n, r in enumerate(records, 1)]
    rows = []
    for image, one in enumerate(records, 1):
        for box, crowd, area, points in zip(one.boxes, one.crowd, one.areas, one.keypoints, strict=True):
            points = np.where(points[:, 2:] > 0, points - np.float32([0.5, 0.5, 0]), 0).astype(float)
            bbox = [*map(float, box[:2]), *map(float, box[2:] - box[:2])]
            row = {"id": len(rows) + 1, "image_id": image, "category_id": 1, "bbox": bbox}
            row |= {"area": float(area), "iscrowd": int(crowd), "keypoints": points.ravel().tolist()}
            rows.append(row | {"num_keypoints": int((points[:, 2] > 0).sum())})
    coco = COCO()
    coco.dataset = {"info": {}, "images": images, "categories": [{"id": 1, "name": "x"}], "annotations": rows}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        results_of = [
            {**row, "image_id": image, "category_id": 1}
            for image, one in enumerate(found, 1)
            for row in one.to_coco()
        ]
        for row in results_of:
            del row["bbox"]  # with a box pycocotools takes them for boxes
        evaluation = COCOeval(coco, coco.loadRes(results_of), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def random_case(random, images=12):
    records, found = [], []
    for image_id in range(images):
        count = int(random.integers(0, 9))
        points = random.uniform(0, 200, (count, 1, 2)) + random.normal(0, 25, (count, 2, 2))
        seen = random.integers(0, 3, (count, 2, 1)) * (random.random((count, 1, 1)) > 0.2)
        true = np.where(seen > 0, np.concatenate([points, seen], axis=-1), 0).reshape(count, 2, 3)
        areas = 10 ** random.uniform(2.5, 4.5, count)
        records.append(record(true, image_id, crowd=random.random(count) < 0.1, areas=areas))
        near = np.concatenate([points, points]) + random.normal(0, 5, (2 * count, 2, 2))
        guessed = np.concatenate([near, random.uniform(0, 200, (15, 2, 2))])
        guessed = np.concatenate([guessed, np.ones((len(guessed), 2, 1))], axis=-1)
        scores = random.integers(1, 40, len(guessed)) / 40  # with ties
        found.append(results(guessed, image_id, scores=scores))
    return records, found


def test_the_backends_and_pycocotools_itself_agree_on_random_data():
    records, found = random_case(np.random.default_rng(0))
    scored = [score(records, found, sigmas=[0.05, 0.08], backend=backend) for backend in BACKENDS]
    expected = oracle(records, found, [0.05, 0.08])
    assert 0.05 < scored[0]["keypoints"]["AP"] < 0.95
    for one in scored:
        assert json.dumps(one) == json.dumps(scored[0])
        np.testing.assert_allclose([one["keypoints"][key] for key in KEYS], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_found_and_nothing_to_find(backend):
    true = [[[20, 30, 2], [40, 50, 2]]]
    assert score([record(true)], [], backend=backend)["keypoints"]["AP"] == 0
    nothing = record(np.zeros((0, 2, 3)))
    result = score([nothing], [results(true)], backend=backend)["keypoints"]
    assert all(math.isnan(value) for value in result.values())


def test_a_data_set_without_keypoints_in_its_records():
    one = record([[[20, 30, 2], [40, 50, 2]]])
    one.keypoints = None
    assert math.isnan(score([one], [results([[[20, 30, 2], [40, 50, 2]]])])["keypoints"]["AP"])


def test_table():
    true = [[[20, 30, 2], [40, 50, 2]]]
    text = format_table(score([record(true)], [results(true)], iou_types=("keypoints", "bbox")))
    assert text.splitlines()[1].startswith("bbox")
    assert text.splitlines()[2].split() == [
        "keypoints",
        "100.0",
        "100.0",
        "100.0",
        "-",
        "100.0",
        "-",
        "100.0",
    ]
    assert "keypoints AP50" in text.splitlines()[4]


def test_errors_say_what_came():
    one = record([[[20, 30, 2], [40, 50, 2]]])
    with pytest.raises(ValueError, match="no category has any"):
        score([one], [], [NUT])
    with pytest.raises(ValueError, match="`sigmas` must be given.*'pair' with 2 keypoints"):
        score([one], [], sigmas=None)
    with pytest.raises(ValueError, match="`sigmas` must be given.*'pair'"):
        score([one], [], sigmas={"trio": 0.1})
    for wrong in ([0.1], [0.1, 0.0], -1, [[0.1, 0.1]]):
        with pytest.raises(ValueError, match="must be 2 positive numbers"):
            score([one], [], sigmas=wrong)
    evaluator = CocoEvaluator([one], [PAIR], iou_types="keypoints", sigmas=0.05)
    entry = {"image_id": "a", "category_id": 3, "score": 1, "bbox": [1, 1, 2, 2]}
    for wrong in ({}, {"keypoints": [1, 2, 1]}, {"keypoints": [[1, 2, 1], [1, 2, 1]]}):
        with pytest.raises(ValueError, match="need `keypoints`, 3 x 2 numbers"):
            evaluator.add_coco([{**entry, **wrong}])
    assert evaluator.result()["keypoints"]["AP"] == 0
