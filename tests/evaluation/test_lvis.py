"""LVIS's score: the official package's numbers on made annotations, and its rules one by one."""

import copy
import importlib.util
import json
import math

import numpy as np
import pytest

from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.evaluation import CocoEvaluator, LvisEvaluator, format_table
from keras_mrcnn.results import Results
from tests.evaluation import federated, official_lvis

GOLDEN = json.loads(official_lvis.GOLDEN.read_text())
HAS_HOTCOCO = importlib.util.find_spec("hotcoco") is not None
BACKENDS = ["pycocotools"] + (["hotcoco"] if HAS_HOTCOCO else [])
KEYS = [
    "AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR", "ARs", "ARm", "ARl",
]  # fmt: skip
ONE = pytest.approx(1)


def read(content, tmp_path):
    """The data set of a json, by the package's own reader, and the path of the json."""
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    return load_coco(path, tmp_path, invalid="error", check_images=False), path


def compare(result, scores):
    for iou_type, row in scores.items():
        assert list(result[iou_type]) == KEYS
        for key, value in row.items():
            expected = np.nan if value == -1 else value
            given = result[iou_type][key.removesuffix("@300")]
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-9, err_msg=f"{iou_type} {key}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", sorted(GOLDEN, key=int))
def test_numbers_of_the_official_package(seed, backend, tmp_path):
    golden = GOLDEN[seed]
    content = federated.make(int(seed))
    found = federated.detections(content, int(seed))
    check = [len(found), sum(one["bbox"][0] for one in found)]
    assert check == pytest.approx(golden["check"]), "not the annotations of the golden file: make it anew"
    dataset, path = read(content, tmp_path)
    evaluator = LvisEvaluator(dataset, path, backend=backend)
    evaluator.add_coco(found)
    compare(evaluator.result(), golden["scores"])


@pytest.mark.skipif(importlib.util.find_spec("lvis") is None, reason="lvis is not installed")
@pytest.mark.parametrize("seed", range(100, 104))
def test_beside_the_official_package(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)  # gone since numpy 1.24
    content = federated.make(seed)
    found = federated.detections(content, seed)
    evaluator = LvisEvaluator(read(content, tmp_path)[0], content)
    evaluator.add_coco(found)
    official = {kind: official_lvis.official(content, found, kind) for kind in ("bbox", "segm")}
    compare(evaluator.result(), official)


BOXES = {"one": [10, 10, 30, 30], "two": [60, 10, 30, 30]}
CAT, DOG, COW = 5, 2, 9


def annotations(objects, absent=(), unmarked=()):
    """An LVIS json of one image; `objects`: (box, category)."""
    frequencies = {DOG: "c", CAT: "r", COW: "f"}
    names = {DOG: "dog", CAT: "cat", COW: "cow"}
    return {
        "images": [
            {
                "id": 1,
                "height": 100,
                "width": 100,
                "coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg",
                "neg_category_ids": list(absent),
                "not_exhaustive_category_ids": list(unmarked),
            }
        ],
        "categories": [{"id": n, "name": names[n], "frequency": frequencies[n]} for n in frequencies],
        "annotations": [
            {
                "id": n,
                "image_id": 1,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": [outline(box)],
            }
            for n, (box, category) in enumerate(objects, 1)
        ],
    }


def outline(box):
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def score(content, found, tmp_path, backend="pycocotools", **options):
    """`found`: (box, category, score)."""
    evaluator = LvisEvaluator(read(content, tmp_path)[0], content, backend=backend, **options)
    rows = [
        {"image_id": 1, "category_id": category, "bbox": box, "segmentation": [outline(box)], "score": points}
        for box, category, points in found
    ]
    evaluator.add_coco(rows)
    return evaluator.result()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_wrong_detections_count_where_the_category_was_looked_for(kind, backend, tmp_path):
    right, wrong = (BOXES["one"], CAT, 0.5), (BOXES["two"], DOG, 0.9)
    objects = [(BOXES["one"], CAT)]
    options = {"backend": backend, "tmp_path": tmp_path}
    # dogs were not looked for here: nothing is known
    assert score(annotations(objects), [right, wrong], **options)[kind]["AP"] == ONE
    # cats were: a false alarm before the right one leaves half of the precision
    found = [right, (BOXES["two"], CAT, 0.9)]
    assert score(annotations(objects), found, **options)[kind]["AP"] == pytest.approx(0.5)
    # not all cats are marked: a further one may be there
    assert score(annotations(objects, unmarked=[CAT]), found, **options)[kind]["AP"] == ONE
    # but a marked one that is missed is missed
    missed = score(annotations(objects, unmarked=[CAT]), found[1:], **options)[kind]
    assert (missed["AP"], missed["AR"]) == (0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_category_known_to_be_absent(backend, tmp_path):
    # two images: a dog in the second; dogs are absent from the first
    content = annotations([(BOXES["one"], CAT)], absent=[DOG])
    content["images"].append({**content["images"][0], "id": 2, "neg_category_ids": []})
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 2, "category_id": DOG})
    evaluator = LvisEvaluator(read(content, tmp_path)[0], content, backend=backend, iou_types="bbox")
    dog = {"category_id": DOG, "bbox": BOXES["one"]}
    evaluator.add_coco([{**dog, "image_id": 2, "score": 0.5}, {**dog, "image_id": 1, "score": 0.9}])
    assert evaluator.result()["per_class"]["dog"]["bbox"]["AP"] == pytest.approx(0.5)
    content["images"][0]["neg_category_ids"] = []
    evaluator = LvisEvaluator(read(content, tmp_path)[0], content, backend=backend, iou_types="bbox")
    evaluator.add_coco([{**dog, "image_id": 2, "score": 0.5}, {**dog, "image_id": 1, "score": 0.9}])
    assert evaluator.result()["per_class"]["dog"]["bbox"]["AP"] == ONE


def test_the_limit_is_of_an_image_not_of_a_category(tmp_path):
    content = annotations([(BOXES["one"], CAT), (BOXES["two"], DOG)])
    found = [(BOXES["one"], CAT, 0.5), (BOXES["two"], DOG, 0.9)]
    assert score(content, found, tmp_path, max_detections=2)["bbox"]["AR"] == ONE
    one = score(content, found, tmp_path, max_detections=1)
    assert one["per_class"]["dog"]["bbox"]["AP"] == ONE and one["per_class"]["cat"]["bbox"]["AP"] == 0


def test_by_frequency_and_by_class(tmp_path):
    content = annotations([(BOXES["one"], CAT), (BOXES["two"], DOG)])
    result = score(content, [(BOXES["one"], CAT, 0.5)], tmp_path)
    for kind in ("bbox", "segm"):
        assert (result[kind]["APr"], result[kind]["APc"]) == (ONE, 0)
        assert math.isnan(result[kind]["APf"])
        assert result[kind]["AP"] == pytest.approx(0.5)
    assert list(result["per_class"]) == ["dog", "cat", "cow"]  # by id
    assert result["per_class"]["cat"] == {
        "category_id": CAT,
        "objects": 1,
        "frequency": "r",
        "bbox": {"AP": ONE, "AP50": ONE},
        "segm": {"AP": ONE, "AP50": ONE},
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_federation_it_is_the_score_of_coco(backend, tmp_path):
    content = federated.make(3)
    found = federated.detections(content, 3)
    ids = [category["id"] for category in content["categories"]]
    for image in content["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = ids, []
    dataset, _ = read(content, tmp_path)
    scores = []
    for evaluator in (
        LvisEvaluator(dataset, content, max_detections=1000, backend=backend),
        CocoEvaluator(dataset, max_detections=1000, backend=backend),
    ):
        evaluator.add_coco(found)
        scores.append(evaluator.result())
    for kind in ("bbox", "segm"):
        for key in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl"):
            assert scores[0][kind][key] == scores[1][kind][key]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_no_area_is_not_there(backend, tmp_path):
    thin = [50, 50, 0, 20]
    right = (BOXES["one"], CAT, 0.5)
    content = annotations([(BOXES["one"], CAT)])
    result = score(content, [(thin, CAT, 0.9), right], tmp_path, backend=backend)
    assert result["bbox"]["AP"] == result["segm"]["AP"] == ONE
    content = annotations([(BOXES["one"], CAT), (BOXES["two"], CAT)])
    content["annotations"][1]["area"] = 0
    assert score(content, [right], tmp_path, backend=backend)["bbox"]["AR"] == ONE


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_found_and_nothing_to_find(backend, tmp_path):
    options = {"backend": backend, "tmp_path": tmp_path}
    result = score(annotations([(BOXES["one"], CAT)], unmarked=[COW]), [], **options)
    assert (result["bbox"]["AP"], result["segm"]["AR"]) == (0, 0)
    result = score(annotations([], absent=[CAT]), [(BOXES["one"], CAT, 0.9)], **options)
    assert all(math.isnan(value) for value in result["bbox"].values())


def test_results_of_a_model_and_rounds(tmp_path):
    dataset, path = read(annotations([(BOXES["one"], CAT)]), tmp_path)
    evaluator = LvisEvaluator(dataset, str(path))
    results = Results(
        boxes=np.array([[10, 10, 40, 40]], np.float32),
        scores=np.array([0.9], np.float32),
        classes=np.array([1], np.int32),
        mask_probabilities=np.ones((1, 28, 28), np.float32),
        height=100,
        width=100,
        categories=dataset.categories,
        image_id=1,
    )
    evaluator.add(results)
    assert evaluator.result()["segm"]["AP"] == ONE
    with pytest.raises(ValueError, match="reset"):
        evaluator.add(results)
    evaluator.reset()
    assert evaluator.result()["segm"]["AP"] == 0


def test_errors_say_what_came(tmp_path):
    content = annotations([(BOXES["one"], CAT)])
    dataset, _ = read(content, tmp_path)
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        other = copy.deepcopy(content)
        del other["images"][0][key]
        with pytest.raises(ValueError, match=f"images have {key}. Received none for image 1"):
            LvisEvaluator(dataset, other)
    with pytest.raises(ValueError, match="Received none for image 1"):
        LvisEvaluator(dataset, {**content, "images": []})
    other = copy.deepcopy(content)
    other["categories"][0]["frequency"] = "often"
    with pytest.raises(ValueError, match="Received: 'often' for category 2 'dog'"):
        LvisEvaluator(dataset, other)
    with pytest.raises(FileNotFoundError):
        LvisEvaluator(dataset, tmp_path / "no.json")
    evaluator = LvisEvaluator(dataset, content, iou_types="bbox")
    box = {"image_id": 1, "category_id": CAT, "bbox": BOXES["one"], "score": 0.5}
    for change, words in (
        ({"score": math.nan}, "score=nan"),
        ({"category_id": 77}, "category_id=77"),
        ({"image_id": 8}, "image_id=8"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluator.add_coco([box, {**box, **change}])
    assert evaluator.result()["bbox"]["AP"] == 0


def test_table(tmp_path):
    content = annotations([(BOXES["one"], CAT), (BOXES["two"], DOG)])
    text = format_table(score(content, [(BOXES["one"], CAT, 0.5)], tmp_path))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["%", *KEYS[:10]]
    assert lines[1] == ["bbox", "50.0", "50.0", "50.0", "50.0", "-", "-", "100.0", "0.0", "-", "50.0"]
    assert lines[4] == ["class", "objects", "bbox", "AP", "bbox", "AP50", "segm", "AP", "segm", "AP50"]
