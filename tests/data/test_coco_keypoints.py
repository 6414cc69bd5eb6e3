"""Keypoints of a COCO json: what is accepted, what is left out, what is said."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from keras_mrcnn.data.coco import Category, load_coco

PERSON = {"id": 3, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2]]}
POINTS = [5, 7, 2, 29, 19, 1, 0, 0, 0]  # in an image of 20 x 30


def annotation(**changes):
    whole = {"id": 7, "image_id": 1, "category_id": 3, "iscrowd": 0, "bbox": [4.0, 6.0, 10.0, 10.0]}
    whole |= {"keypoints": POINTS, "num_keypoints": 2} | changes
    return {key: value for key, value in whole.items() if value is not None}


def load(coco_folder, annotations, categories=(PERSON,), **options):
    return load_coco(*coco_folder(annotations, categories=list(categories)), **options)


class TestSound:
    def test_half_a_pixel_is_added(self, coco_folder):
        dataset = load(coco_folder, [annotation()], invalid="error")
        (record,) = dataset.records
        np.testing.assert_array_equal(record.keypoints, [[[5.5, 7.5, 2], [29.5, 19.5, 1], [0, 0, 0]]])
        np.testing.assert_array_equal(record.mirrored, [[0, 2, 1]])
        assert record.keypoints.dtype == np.float32 and record.mirrored.dtype == np.int32
        assert dataset.categories[0].keypoints == ("nose", "left_eye", "right_eye")
        assert "1 objects have keypoints, 2 in all" in dataset.summary()

    @pytest.mark.parametrize(
        "changes",
        [
            {"keypoints": None, "num_keypoints": None},
            {"keypoints": [], "num_keypoints": 0},
            {"keypoints": [0] * 9, "num_keypoints": 0},
            {"keypoints": [3, 4, 0] * 3, "num_keypoints": 0},  # not labelled: where does not matter
            {"keypoints": [900, -900, 0] * 3, "num_keypoints": 0},
        ],
    )
    def test_objects_without_labels(self, coco_folder, changes):
        record = load(coco_folder, [annotation(**changes)], invalid="error").records[0]
        np.testing.assert_array_equal(record.keypoints, np.zeros((1, 3, 3)))

    def test_num_keypoints_may_be_missing(self, coco_folder):
        record = load(coco_folder, [annotation(num_keypoints=None)], invalid="error").records[0]
        assert record.keypoints[0, :, 2].tolist() == [2, 1, 0]

    def test_the_edge_of_the_image_belongs_to_it(self, coco_folder):
        # pixel -0.5 is the left edge; 30 is what a tool writes that counts from the corners of pixels
        points = [-0.5, -0.5, 2, 30, 20, 2, 29.5, 19.5, 2]
        record = load(coco_folder, [annotation(keypoints=points, num_keypoints=3)], invalid="error").records[
            0
        ]
        np.testing.assert_array_equal(record.keypoints[0, :, :2], [[0, 0], [30, 20], [30, 20]])

    def test_categories_differ_in_their_number_of_keypoints(self, coco_folder):
        categories = [PERSON, {"id": 4, "name": "nut"}]
        categories += [{"id": 9, "name": "fly", "keypoints": ["wingR", "wingL", "eye", "tail"]}]
        objects = [annotation(category_id=4, keypoints=None, num_keypoints=None), annotation()]
        objects += [annotation(category_id=9, keypoints=[1, 2, 2] * 4, num_keypoints=4)]
        record = load(coco_folder, objects, categories, invalid="error").records[0]
        assert record.keypoints.shape == (3, 4, 3)
        np.testing.assert_array_equal(record.keypoints[..., 2], [[0] * 4, [2, 1, 0, 0], [2] * 4])
        assert record.mirrored.tolist() == [[0, 1, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3]]

    def test_without_names_there_are_none(self, coco_folder):
        plain = {"id": 3, "name": "person"}
        objects = [annotation(keypoints=None, num_keypoints=None)]
        record = load(coco_folder, objects, [plain], invalid="error").records[0]
        assert record.keypoints is None and record.mirrored is None

    def test_no_object(self, coco_folder):
        record = load(coco_folder, []).records[0]
        assert record.keypoints.shape == (0, 3, 3) and record.mirrored.shape == (0, 3)


BROKEN = [
    ("bad keypoints", {"keypoints": POINTS[:-1]}),
    ("bad keypoints", {"keypoints": POINTS + [1, 1, 1]}),
    ("bad keypoints", {"keypoints": "nose"}),
    ("bad keypoints", {"keypoints": [math.nan, *POINTS[1:]]}),
    ("bad keypoints", {"keypoints": ["5", *POINTS[1:]]}),
    ("bad visibility of a keypoint", {"keypoints": [5, 7, 3, *POINTS[3:]]}),
    ("bad visibility of a keypoint", {"keypoints": [5, 7, 0.5, *POINTS[3:]]}),
]


class TestBroken:
    @pytest.mark.parametrize(("kind", "changes"), BROKEN)
    def test_the_object_is_kept_without_keypoints(self, coco_folder, kind, changes):
        dataset = load(coco_folder, [annotation(id=1234, **changes), annotation(id=8)])
        (record,) = dataset.records
        assert record.annotation_ids == [1234, 8]
        assert not record.keypoints[0].any() and record.keypoints[1].any()
        assert [(problem.kind, problem.annotation_id) for problem in dataset.skipped] == [(kind, 1234)]
        with pytest.raises(ValueError, match=r"(?s)a\.png.*annotation id 1234.*expected"):
            load(coco_folder, [annotation(id=1234, **changes)], invalid="error")

    @pytest.mark.parametrize("point", [[30.1, 7], [5, 20.1], [-0.6, 7], [5, -1]])
    def test_a_point_outside_counts_as_not_labelled(self, coco_folder, point):
        objects = [annotation(id=1234, keypoints=[*point, 2, *POINTS[3:]])]
        dataset = load(coco_folder, objects)
        np.testing.assert_array_equal(dataset.records[0].keypoints[0, :2], [[0, 0, 0], [29.5, 19.5, 1]])
        assert dataset.skipped[0].kind == "keypoint outside the image"
        with pytest.raises(ValueError, match=r"annotation id 1234: expected keypoint 'nose' in the image"):
            load(coco_folder, objects, invalid="error")

    def test_another_number_than_it_says(self, coco_folder):
        dataset = load(coco_folder, [annotation(num_keypoints=3)])
        assert dataset.records[0].keypoints[0, :, 2].tolist() == [2, 1, 0]
        assert dataset.skipped[0].kind == "num_keypoints differs" and "got 3" in dataset.skipped[0].what

    def test_a_category_that_names_none(self, coco_folder):
        plain = {"id": 3, "name": "person"}
        dataset = load(coco_folder, [annotation(id=1234), annotation(iscrowd=1)], [plain])
        assert len(dataset.records[0].boxes) == 2 and dataset.records[0].keypoints is None
        assert [p.annotation_id for p in dataset.skipped] == [1234]  # a crowd's do not matter

    def test_a_bad_category_names_the_file(self, coco_folder):
        with pytest.raises(ValueError, match=r"annotations\.json: `keypoints` of category 3"):
            load(coco_folder, [], [{**PERSON, "keypoints": ["a", "a"]}])


class TestCategoriesOfAModel:
    def test_the_same(self, coco_folder):
        files = coco_folder([annotation()], categories=[PERSON])
        dataset = load_coco(*files, [Category.from_dict(PERSON)], "error")
        assert dataset.records[0].keypoints[0, :, 2].tolist() == [2, 1, 0]

    @pytest.mark.parametrize("known", [Category(3, "person"), SimpleNamespace(id=3, name="person")])
    def test_a_model_without_keypoints(self, coco_folder, known):
        dataset = load_coco(*coco_folder([annotation()], categories=[PERSON]), [known], "error")
        assert dataset.records[0].keypoints is None

    def test_a_file_without_keypoints(self, coco_folder):
        objects = [annotation(keypoints=None, num_keypoints=None)]
        files = coco_folder(objects, categories=[{"id": 3, "name": "person"}])
        record = load_coco(*files, [Category.from_dict(PERSON)], "error").records[0]
        np.testing.assert_array_equal(record.keypoints, np.zeros((1, 3, 3)))

    def test_other_keypoints(self, coco_folder):
        known = [Category(3, "person", ("nose", "right_eye", "left_eye"))]
        files = coco_folder([annotation()], categories=[PERSON])
        dataset = load_coco(*files, known)
        assert [problem.kind for problem in dataset.skipped] == ["keypoints unlike the model's"]
        assert not dataset.records[0].keypoints.any() and len(dataset.records[0].boxes) == 1
        with pytest.raises(ValueError, match="nose, right_eye, left_eye. It has nose, left_eye, right_eye"):
            load_coco(*files, known, "error")


class TestRealFiles:
    def test_persons(self, shared_data):
        folder = shared_data / "coco_sample"
        dataset = load_coco(
            folder / "annotations/person_keypoints_train2017.json", folder / "train2017", invalid="error"
        )
        points = np.concatenate([record.keypoints for record in dataset.records])
        assert points.shape == (87, 17, 3)
        assert [(points[..., 2] == v).sum() for v in (1, 2)] == [49, 320]
        assert (points[points[..., 2] == 0] == 0).all()

    def test_flies(self, shared_data):
        folder = shared_data / "fly_keypoints"
        dataset = load_coco(folder / "annotations/keypoints_val.json", folder / "images", invalid="error")
        names = dataset.categories[0].keypoints
        assert len(names) == 32 and len(dataset.categories[0].flip_pairs) == 14
        assert all(
            names[a].replace("L", "R") == names[b].replace("L", "R")
            for a, b in dataset.categories[0].flip_pairs
        )
        for record in dataset.records:
            (x1, y1, x2, y2), (points,) = record.boxes[0], record.keypoints
            assert (points[:, 0] > x1).all() and (points[:, 0] < x2).all()
            assert (points[:, 1] > y1).all() and (points[:, 1] < y2).all()
