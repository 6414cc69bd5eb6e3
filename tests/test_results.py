"""Detections in the source frame: scaling, clipping, masks, COCO results, files."""

import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from keras_mrcnn.geometry import masks as mask_geometry
from keras_mrcnn.results import Results


@dataclass
class Category:
    id: int
    name: str
    keypoints: tuple = ()
    skeleton: tuple = ()


CATEGORIES = [Category(2, "cell"), Category(90, "nucleus")]


def detections(boxes, scores, classes, count=None, side=28, padding=2):
    """What the model gives for one image: real rows, then padding."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    rows = len(boxes) + padding
    found = {
        "boxes": np.full((rows, 4), 7, np.float32),
        "scores": np.full(rows, 0.5, np.float32),
        "classes": np.full(rows, -1, np.int64),
        "num_detections": np.int32(len(boxes) if count is None else count),
        "masks": np.ones((rows, side, side), np.float32),
    }
    found["boxes"][: len(boxes)] = boxes
    found["scores"][: len(boxes)] = scores
    found["classes"][: len(boxes)] = classes
    return found


def three(image=None, image_id=None):
    boxes = [[20, 30, 60, 90], [0, 0, 10, 10], [100, 200, 300, 400]]
    found = detections(boxes, [0.99, 0.87, 0.5], [1, 1, 0])
    return Results.from_detections(found, (800, 1000), (400, 500), CATEGORIES, image, image_id)


def test_boxes_are_scaled_by_each_axis():
    # 100 x 300 became 200 x 599: y by 100 / 200, x by 300 / 599
    found = detections([[59.9, 20, 119.8, 40]], [0.9], [0])
    results = Results.from_detections(found, (200, 599), (100, 300), CATEGORIES)
    np.testing.assert_allclose(results.boxes, [[30, 10, 60, 20]], rtol=1e-6)
    assert results.boxes.dtype == np.float32 and results.classes.dtype == np.int32


def test_boxes_are_clipped_and_empty_ones_dropped_with_their_rows():
    boxes = [[-5, -5, 50, 30], [60, 10, 90, 20], [10, 10, 10, 20], [30, 30, 70, 60], [5, 5, 6, np.nan]]
    found = detections(boxes, [0.9, 0.8, 0.7, 0.6, 0.55], [0, 0, 1, 1, 0])
    found["masks"] *= np.arange(7)[:, None, None] / 10
    results = Results.from_detections(found, (50, 55), (50, 55), CATEGORIES)
    np.testing.assert_array_equal(results.boxes, [[0, 0, 50, 30], [30, 30, 55, 50]])
    np.testing.assert_allclose(results.scores, [0.9, 0.6])
    np.testing.assert_array_equal(results.classes, [0, 1])
    np.testing.assert_allclose(results.mask_probabilities[:, 0, 0], [0.0, 0.3])


def test_the_input_is_left_alone():
    found = detections([[-5, -5, 50, 30]], [0.9], [0])
    before = {key: np.copy(value) for key, value in found.items()}
    Results.from_detections(found, (50, 55), (500, 550), CATEGORIES)
    for key, value in before.items():
        np.testing.assert_array_equal(found[key], value)


def test_names_ids_and_representation():
    results = three()
    assert len(results) == 3
    assert results.names == ["nucleus", "nucleus", "cell"]
    assert results.category_ids == [90, 90, 2]
    assert repr(results) == "3 detections in 400x500: 2 nucleus 0.99 0.87, 1 cell 0.50"
    many = Results.from_detections(
        detections([[0, 0, 9, 9]] * 7, [0.9] * 7, [0] * 7), (10, 10), (10, 10), CATEGORIES
    )
    assert repr(many) == "7 detections in 10x10: 7 cell 0.90 0.90 0.90 0.90 0.90 ..."


def test_masks_are_pasted_into_the_scaled_box():
    results = three()
    assert results.masks.shape == (3, 400, 500) and results.masks.dtype == bool
    expected = np.zeros((400, 500), bool)
    expected[15:45, 10:30] = True  # the box [20, 30, 60, 90], halved
    np.testing.assert_array_equal(results.masks[0], expected)
    for mask, grid, box in zip(results.masks, results.mask_probabilities, results.boxes, strict=True):
        np.testing.assert_array_equal(mask, mask_geometry.paste(grid, box, 400, 500))


def test_rles_decode_to_the_masks():
    random = np.random.default_rng(0)
    boxes = np.concatenate([random.uniform(0, 40, (20, 2)), random.uniform(45, 99, (20, 2))], axis=1)
    found = detections(boxes, np.linspace(0.9, 0.1, 20), [0] * 20)
    found["masks"] = random.random((22, 28, 28)) ** 0.3
    results = Results.from_detections(found, (80, 90), (73, 61), CATEGORIES)
    assert results.masks.any(axis=(1, 2)).all()
    for rle, mask in zip(results.rles(), results.masks, strict=True):
        assert isinstance(rle["counts"], str)
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)


@pytest.mark.parametrize("image_id", ["a.png", 0, np.int64(12), None])
def test_coco_results_are_plain_and_complete(image_id):
    found = three(image_id=image_id).to_coco()
    assert json.loads(json.dumps(found)) == found
    assert found[0]["image_id"] == image_id and found[0]["category_id"] == 90
    assert found[0]["bbox"] == [10, 15, 20, 30]
    assert found[0]["score"] == pytest.approx(0.99)
    assert coco_mask.area(found[0]["segmentation"]) == 600
    assert "segmentation" not in three().to_coco(segmentations=False)[0]


def test_nothing_found():
    results = Results.from_detections(detections([], [], []), (80, 90), (40, 45), CATEGORIES)
    assert len(results) == 0 and repr(results) == "no detections in 40x45"
    assert results.masks.shape == (0, 40, 45)
    assert results.names == results.category_ids == results.rles() == results.to_coco() == []


def test_a_model_without_masks(tmp_path):
    found = detections([[1, 2, 9, 8]], [0.9], [0])
    del found["masks"]
    image = np.zeros((10, 10, 3), np.uint8)
    results = Results.from_detections(found, (10, 10), (10, 10), CATEGORIES, image)
    assert results.masks is None
    assert set(results.to_coco()[0]) == {"image_id", "category_id", "bbox", "score"}
    with pytest.raises(ValueError, match="no masks"):
        results.rles()


def test_errors_say_what_came():
    with pytest.raises(ValueError, match="from 0 to 2, image_id=5"):
        found = detections([[0, 0, 9, 9]] * 2, [0.9, 0.9], [0, 2])
        Results.from_detections(found, (10, 10), (10, 10), CATEGORIES, image_id=5)
    with pytest.raises(ValueError, match=r"image.shape=\(500, 400, 3\)"):
        three(image=np.zeros((500, 400, 3), np.uint8))
    with pytest.raises(ValueError, match="no image to draw on"):
        three().plot()
    with pytest.raises(ValueError, match="found.txt"):
        three().save("found.txt")


def test_save_coco_results(tmp_path):
    path = tmp_path / "found.json"
    three(image_id="a").save(path)
    assert json.loads(path.read_text()) == three(image_id="a").to_coco()


@pytest.mark.parametrize("name", ["found.png", "found.JPG"])
def test_save_picture(tmp_path, name):
    cv2 = pytest.importorskip("cv2")
    image = np.full((400, 500, 3), (200, 40, 40), np.uint8)
    results = three(image=image)
    results.save(tmp_path / name)
    written = cv2.imread(str(tmp_path / name))[..., ::-1]
    assert written.shape == results.plot().shape == (400, 500, 3)
    assert np.abs(written[300, 400].astype(int) - image[300, 400]).max() < 8  # RGB, and untouched there
    assert (written[30, 20] != image[30, 20]).any()


def test_drawing_without_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'pip install "keras_mrcnn\[viz\]"'):
        three(image=np.zeros((400, 500, 3), np.uint8)).plot()


class TestKeypoints:
    """100 x 300 became 200 x 599: y by 100 / 200, x by 300 / 599."""

    CATEGORIES = [Category(2, "nut"), Category(90, "fly", ("head", "tail"), ((0, 1),))]

    def results(self, image=None):
        found = detections([[59.9, 20, 119.8, 40], [0, 0, 99, 99], [5, 5, 5, 9]], [0.9, 0.8, 0.7], [1, 0, 1])
        found["keypoints"] = np.zeros((5, 3, 3), np.float32)  # the third point is of another category
        found["keypoints"][0] = [[59.9, 30, 0.25], [119.8, 40, 0.01], [0, 0, 0]]
        return Results.from_detections(found, (200, 599), (100, 300), self.CATEGORIES, image)

    def test_they_are_scaled_by_each_axis_and_dropped_with_their_rows(self):
        results = self.results()
        assert results.keypoints.shape == (2, 3, 3) and results.keypoints.dtype == np.float32
        expected = [[30, 15, 0.25], [60, 20, 0.01], [0, 0, 0]]
        np.testing.assert_allclose(results.keypoints[0], expected, rtol=1e-6)
        assert not results.keypoints[1].any()

    def test_the_input_is_left_alone(self):
        found = detections([[0, 0, 9, 9]], [0.9], [1])
        found["keypoints"] = np.ones((3, 2, 3), np.float32)
        Results.from_detections(found, (10, 10), (100, 100), self.CATEGORIES)
        assert (found["keypoints"] == 1).all()

    def test_names(self):
        assert self.results().keypoint_names == [("head", "tail"), ()]
        assert three().keypoint_names is None and three().keypoints is None

    def test_above(self):
        results = self.results().above(0.85)
        assert len(results) == 1 and results.keypoints.shape == (1, 3, 3)

    def test_coco_results_are_pixel_indices(self):
        first, second = self.results().to_coco(segmentations=False)
        np.testing.assert_allclose(first["keypoints"], [29.5, 14.5, 1, 59.5, 19.5, 1], rtol=1e-6)
        assert json.loads(json.dumps(first)) == first
        assert first["score"] == pytest.approx(0.9) and "keypoints" not in second

    def test_the_picture_has_the_sure_points(self):
        pytest.importorskip("cv2")
        image = np.full((100, 300, 3), 90, np.uint8)
        results = self.results(image)
        results.mask_probabilities = None
        assert (results.plot()[15, 30] == 255).all()
        assert (results.plot()[20, 58] == 90).all()  # score 0.01
        assert (results.plot(keypoint_threshold=0)[18:20, 45] != 90).any()  # the line between both
