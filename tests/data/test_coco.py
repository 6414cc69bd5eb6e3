"""`load_coco`: what it accepts, what it leaves out, what it says."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from keras_mrcnn.data.coco import Category, load_coco

SQUARE = [4.0, 6.0, 14.0, 6.0, 14.0, 16.0, 4.0, 16.0]
NAN = math.nan


def annotation(**changes):
    """A sound annotation of the 20 x 30 image with id 1; a value of None removes the key."""
    whole = {"id": 7, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 100.0}
    whole |= {"bbox": [4.0, 6.0, 10.0, 10.0], "segmentation": [SQUARE]} | changes
    return {key: value for key, value in whole.items() if value is not None}


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(edge) for edge in encoded["size"]], "counts": encoded["counts"].decode()}


def square_mask():
    mask = np.zeros((20, 30), np.uint8)
    mask[6:16, 4:14] = 1
    return mask


def square_runs():
    # column 4, row 6 is pixel 4 * 20 + 6 = 86; ten columns of 10 with 10 between; 600 pixels in all
    return {"size": [20, 30], "counts": [86] + [10, 10] * 9 + [10, 600 - 86 - 190]}


class TestSound:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"iscrowd": None, "area": None},
            {"bbox": None, "area": None},
            {"bbox": []},
            {"segmentation": None},
            {"segmentation": [], "area": None},
            {"segmentation": [SQUARE[:4] + [14.0, 16.0], [4.0, 6.0, 14.0, 16.0, 4.0, 16.0]], "bbox": None},
            {"segmentation": rle(square_mask())},
            {"segmentation": rle(square_mask()), "bbox": None, "area": None},
            {"segmentation": square_runs(), "bbox": None, "area": None},
            {"image_id": "1"},
            {"image_id": 1.0},
            {"category_id": "3"},
            {"area": NAN},
        ],
    )
    def test_every_way_to_write_the_same_object(self, coco_folder, changes):
        dataset = load_coco(*coco_folder([annotation(**changes)]), invalid="error")
        (record,) = dataset.records
        np.testing.assert_array_equal(record.boxes, [[4, 6, 14, 16]])
        assert record.boxes.dtype == record.areas.dtype == np.float32
        assert record.classes.dtype == np.int32 and record.classes.tolist() == [0]
        assert record.crowd.tolist() == [False] and record.annotation_ids == [7]
        assert record.areas.tolist() == [100]
        assert (record.height, record.width, record.image_id) == (20, 30, 1)
        assert dataset.skipped == [] and dataset.categories == [Category(3, "thing")]

    def test_classes_are_positions_in_the_categories_by_id(self, coco_folder):
        categories = [{"id": 90, "name": "last"}, {"id": 0, "name": "first"}, {"id": 7, "name": "middle"}]
        objects = [annotation(id=i, category_id=c) for i, c in enumerate((7, 90, 0))]
        dataset = load_coco(*coco_folder(objects, categories=categories))
        assert [category.name for category in dataset.categories] == ["first", "middle", "last"]
        assert dataset.records[0].classes.tolist() == [1, 2, 0]

    def test_the_order_of_a_model_decides(self, coco_folder):
        categories = [Category(5, "other"), Category(3, "thing")]
        dataset = load_coco(*coco_folder([annotation()]), categories=categories, invalid="error")
        assert dataset.categories == categories and dataset.records[0].classes.tolist() == [1]

    def test_categories_of_another_class_will_do(self, coco_folder):
        known = [SimpleNamespace(id=3, name="thing")]
        assert (
            len(load_coco(*coco_folder([annotation()]), categories=known, invalid="error").records[0].boxes)
            == 1
        )

    def test_a_box_partly_outside_is_clipped_without_a_problem(self, coco_folder):
        # x: -5..5 becomes 0..5, y: 15..25 becomes 15..20
        dataset = load_coco(*coco_folder([annotation(bbox=[-5, 15, 10, 10])]), invalid="error")
        np.testing.assert_array_equal(dataset.records[0].boxes, [[0, 15, 5, 20]])

    def test_image_id_zero_and_string_ids_and_empty_images(self, coco_folder):
        images = [{"id": i, "file_name": "a.png", "height": 20, "width": 30} for i in (0, "x", "12")]
        objects = [annotation(image_id=0), annotation(image_id=12, id=None)]
        dataset = load_coco(*coco_folder(objects, images), invalid="error")
        assert [record.image_id for record in dataset.records] == [0, "x", "12"]
        assert [len(record.boxes) for record in dataset.records] == [1, 0, 1]
        assert dataset.records[2].annotation_ids == [1]  # its position in the json
        assert dataset.records[1].boxes.shape == (0, 4)

    def test_images_of_lvis_are_named_by_their_address(self, coco_folder):
        address = "http://images.cocodataset.org/val2017/a.png"
        images = [{"id": 1, "coco_url": address}, {"id": 2, "coco_url": address, "file_name": "b.png"}]
        files = coco_folder([annotation()], images, sizes={"val2017/a.png": (20, 30), "b.png": (20, 30)})
        dataset = load_coco(*files, invalid="error")
        paths = [str(files[1] / name) for name in ("val2017/a.png", "b.png")]
        assert [record.path for record in dataset.records] == paths

    def test_the_size_may_be_missing(self, coco_folder):
        files = coco_folder([annotation()], [{"id": 1, "file_name": "a.png"}])
        record = load_coco(*files, invalid="error").records[0]
        assert (record.height, record.width) == (20, 30)

    def test_crowds_are_kept_and_marked(self, coco_folder):
        dataset = load_coco(
            *coco_folder([annotation(iscrowd=1, segmentation=square_runs())]), invalid="error"
        )
        assert dataset.records[0].crowd.tolist() == [True]

    def test_info_and_licenses_do_not_matter(self, coco_folder):
        load_coco(*coco_folder([annotation()], info={"a": 1}, licenses=[]), invalid="error")


BROKEN_ANNOTATIONS = {
    "annotation without image": {"image_id": 99},
    "category unknown": {"category_id": 4},
    "no box": {"bbox": None, "segmentation": None},
    "bad box": {"bbox": [1, 2, 3]},
    "box not finite": {"bbox": [4, NAN, 10, 10]},
    "reversed box": {"bbox": [14, 16, -10, -10]},
    "box without area": {"bbox": [4, 6, 0, 10]},
    "box outside the image": {"bbox": [30, 6, 10, 10]},
    "bad segmentation": {"segmentation": "polygon"},
    "empty mask": {"segmentation": rle(square_mask() * 0)},
}
BAD_POLYGONS = [
    [4, 6, 14, 6],
    [4, 6, 14, 6, 14],
    [],
    4,
    [4, 6, NAN, 6, 14, 16],
    [4, 6, 5, 7, 9, 11],
    ["a"] * 6,
]
BAD_POLYGONS += [[0, 0, 1e300, 0, 1, 1]]
BAD_RLES = [
    {"counts": [600]},
    {"size": [30, 20], "counts": rle(square_mask().T)["counts"]},
    {"size": [20, 30], "counts": [10, 10]},
    {"size": [20, 30], "counts": [10, -10, 600]},
    {"size": [20, 30], "counts": 5},
    {"size": [20, 30], "counts": "\x01\x02"},
    {"size": [20, 30], "counts": "o" * 40},
    {"size": [20, 30], "counts": rle(square_mask())["counts"][:-2]},
    {"size": [20, 30], "counts": ""},
    {"size": None, "counts": []},
]
CASES = list(BROKEN_ANNOTATIONS.items())
CASES += [("bad polygon", {"segmentation": [polygon]}) for polygon in BAD_POLYGONS]
CASES += [("bad RLE", {"segmentation": bad}) for bad in BAD_RLES]


class TestBrokenAnnotation:
    @pytest.mark.parametrize(("kind", "changes"), CASES)
    def test_is_left_out_and_listed(self, coco_folder, kind, changes):
        files = coco_folder([annotation(id=1234, **changes), annotation(id=8)])
        dataset = load_coco(*files)
        assert dataset.records[0].annotation_ids == [8]
        (problem,) = dataset.skipped
        assert (problem.kind, problem.annotation_id) == (kind, 1234)
        assert problem.image_id == changes.get("image_id", 1)
        assert kind in dataset.summary() and "1234" in dataset.summary()

    @pytest.mark.parametrize(("kind", "changes"), CASES)
    def test_stops_when_asked_to(self, coco_folder, kind, changes):
        with pytest.raises(
            ValueError, match=r"(?s)(a\.png|annotations\.json).*image id.*1234.*(expected|must)"
        ):
            load_coco(*coco_folder([annotation(id=1234, **changes)]), invalid="error")

    def test_an_image_of_nothing_else_stays(self, coco_folder):
        dataset = load_coco(*coco_folder([annotation(bbox=[0, 0, 0, 0])]))
        assert len(dataset.records) == 1 and len(dataset.records[0].boxes) == 0

    def test_an_object_keeps_its_sound_polygons(self, coco_folder):
        files = coco_folder([annotation(segmentation=[[1, 2, 3, 4], SQUARE])])
        dataset = load_coco(*files)
        assert dataset.records[0].segmentations == [[SQUARE]]
        assert "polygon 1 of 2" in dataset.skipped[0].what
        with pytest.raises(ValueError, match="polygon 1 of 2"):
            load_coco(*files, invalid="error")

    def test_an_entry_that_is_no_object(self, coco_folder):
        dataset = load_coco(*coco_folder(["text", annotation()]))
        assert len(dataset.records[0].boxes) == 1 and dataset.skipped[0].annotation_id == 0

    def test_a_category_that_the_model_lacks(self, coco_folder):
        files = coco_folder([annotation()])
        for other in (Category(4, "thing"), Category(3, "something else")):
            dataset = load_coco(*files, categories=[other])
            assert [p.kind for p in dataset.skipped] == ["category unknown to the model", "category unknown"]
            assert len(dataset.records[0].boxes) == 0
            with pytest.raises(ValueError, match="category 3 'thing' is not one of the model's"):
                load_coco(*files, categories=[other], invalid="error")

    def test_the_summary_counts_and_shows_the_first(self, coco_folder):
        objects = [annotation(id=100 + i, bbox=[0, 0, 0, 1]) for i in range(5)]
        objects += [annotation(id=1), annotation(id=2, segmentation=[]), annotation(id=3, iscrowd=1)]
        text = load_coco(*coco_folder(objects)).summary()
        assert "1 images" in text and "2 objects" in text and "thing 2" in text
        assert "1 of them with a box only" in text and "1 crowd" in text
        assert "box without area: 5" in text and "and 2 more" in text
        assert "100" in text and "102" in text and "103" not in text


class TestBrokenImage:
    """Each case leaves out the image with id 2 and keeps the one with id 1."""

    SOUND = {"id": 1, "file_name": "a.png", "height": 20, "width": 30}

    def check(self, files, kind, image_id=2):
        dataset = load_coco(*files)
        assert [record.image_id for record in dataset.records] == [1]
        assert [(problem.kind, problem.image_id) for problem in dataset.skipped] == [(kind, image_id)]
        with pytest.raises(ValueError, match="image id 2" if image_id else "entry"):
            load_coco(*files, invalid="error")
        return dataset.skipped[0]

    def entry(self, **changes):
        return self.SOUND | {"id": 2, "file_name": "b.png"} | changes

    def test_missing_file(self, coco_folder):
        files = coco_folder([annotation(), annotation(image_id=2)], [self.SOUND, self.entry()])
        problem = self.check(files, "missing image file")
        assert problem.file.endswith("b.png") and "its 1 annotations" in problem.what

    @pytest.mark.parametrize("content", ["truncated png", "truncated jpeg", b"", b"not an image"])
    def test_unreadable_file(self, coco_folder, content):
        files = coco_folder([annotation()], [self.SOUND, self.entry()])
        if isinstance(content, str):
            whole = (files[1] / "a.png").read_bytes()
            if "jpeg" in content:
                whole = tf.io.encode_jpeg(tf.io.decode_png(whole)).numpy()
            content = whole[: len(whole) // 2]
        (files[1] / "b.png").write_bytes(content)
        problem = self.check(files, "unreadable image file")
        assert problem.file.endswith("b.png")

    def test_another_size_than_in_the_json(self, coco_folder):
        sizes = {"a.png": (20, 30), "b.png": (30, 20)}
        files = coco_folder([annotation()], [self.SOUND, self.entry()], sizes=sizes)
        problem = self.check(files, "image size differs from the json")
        assert "height 20, width 30" in problem.what and "height 30, width 20" in problem.what

    def test_a_size_that_is_none(self, coco_folder):
        sizes = {"a.png": (20, 30), "b.png": (30, 20)}
        for height in (0, -3, "20", NAN, 20.5):
            files = coco_folder([], [self.SOUND, self.entry(height=height)], sizes=sizes)
            self.check(files, "bad image size in the json")

    def test_no_size_anywhere(self, coco_folder):
        files = coco_folder([], [{"id": 1, "file_name": "a.png"}])
        dataset = load_coco(*files, check_images=False)
        assert dataset.records == [] and dataset.skipped[0].kind == "bad image size in the json"

    def test_duplicate_id(self, coco_folder):
        images = [self.SOUND, self.entry(id="1")]
        files = coco_folder([annotation()], images)
        dataset = load_coco(*files)
        assert len(dataset.records) == 1 and len(dataset.records[0].boxes) == 1
        assert [(p.kind, p.image_id) for p in dataset.skipped] == [("duplicate image id", "1")]
        with pytest.raises(ValueError, match="must be unique"):
            load_coco(*files, invalid="error")

    def test_entries_without_a_name_or_an_id(self, coco_folder):
        self.check(coco_folder([], [self.SOUND, self.entry(file_name=None)]), "bad image entry")
        self.check(coco_folder([], [self.SOUND, self.entry(id=None)]), "bad image entry", None)
        self.check(coco_folder([], [self.SOUND, "text"]), "bad image entry", None)

    def test_unchecked_files_are_not_opened(self, coco_folder):
        files = coco_folder([annotation()], [self.SOUND, self.entry()])
        assert len(load_coco(*files, check_images=False).records) == 2


class TestBrokenFile:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{", "is not json"),
            ("\xff", "is not json"),
            ("[1]", "holds a list"),
            ('{"images": [], "categories": []}', "has no annotations"),
            ('{"annotations": [], "categories": []}', "has no images"),
            ('{"images": [], "annotations": []}', "has no categories"),
            ('{"images": {}, "annotations": [], "categories": []}', "images is a dict"),
            ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "and a name"),
            ('{"images": [], "annotations": [], "categories": [{"id": "1", "name": ""}]}', "whole number"),
        ],
    )
    @pytest.mark.parametrize("invalid", ["skip", "error"])
    def test_raises_and_names_the_file(self, tmp_path, text, says, invalid):
        path = tmp_path / "broken.json"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=says) as error:
            load_coco(path, tmp_path, invalid=invalid)
        assert "broken.json" in str(error.value)

    def test_categories_of_the_same_id(self, coco_folder):
        with pytest.raises(ValueError, match="there twice"):
            load_coco(*coco_folder([], categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]))

    def test_missing_json_folder_and_wrong_mode(self, coco_folder, tmp_path):
        path, images = coco_folder([])
        with pytest.raises(ValueError, match="no file"):
            load_coco(tmp_path / "no.json", images)
        with pytest.raises(ValueError, match="no folder"):
            load_coco(path, tmp_path / "no")
        with pytest.raises(ValueError, match='"skip" or "error"'):
            load_coco(path, images, invalid="ignore")


class TestRealFiles:
    def test_nuclei(self, nuclei):
        assert len(nuclei.records) == 50 and nuclei.skipped == []
        assert sum(len(record.boxes) for record in nuclei.records) == 1669

    def test_coco_sample(self, coco_sample, shared_data):
        assert len(coco_sample.records) == 92 and coco_sample.skipped == []
        assert len(coco_sample.categories) == 80 and coco_sample.categories[-1] == Category(90, "toothbrush")
        assert sum(len(record.boxes) for record in coco_sample.records) == 829
        assert sum(int(record.crowd.sum()) for record in coco_sample.records) == 9
        raw = json.loads((shared_data / "coco_sample/annotations/instances_train2017.json").read_text())
        boxes = {a["id"]: a["bbox"] for a in raw["annotations"]}
        for record in coco_sample.records:
            for identifier, (x1, y1, x2, y2) in zip(record.annotation_ids, record.boxes, strict=True):
                np.testing.assert_allclose([x1, y1, x2 - x1, y2 - y1], boxes[identifier], atol=0.02)

    @pytest.mark.parametrize(
        ("name", "images", "objects", "crowds", "box_only"),
        [
            ("coco_crowd_empty_tiny", 19, 372, 15, 0),
            ("uncompressed_rle_crowd", 1, 2, 1, 0),
            ("empty_segmentation_list", 1, 1, 0, 1),
            ("keypoints_two_categories", 1, 2, 1, 0),
            ("image_info_only", 1, 0, 0, 0),
            ("ignore_flag_string_image_id", 1, 14, 1, 14),
        ],
    )
    def test_corner_cases(self, shared_data, name, images, objects, crowds, box_only):
        path = shared_data / "corner_cases" / f"{name}.json"
        dataset = load_coco(path, shared_data / "coco_sample", invalid="error", check_images=False)
        assert len(dataset.records) == images
        assert sum(len(record.boxes) for record in dataset.records) == objects
        assert sum(int(record.crowd.sum()) for record in dataset.records) == crowds
        assert sum(s is None for record in dataset.records for s in record.segmentations) == box_only
        assert isinstance(dataset.summary(), str)

    def test_corner_case_with_its_files(self, shared_data):
        path = shared_data / "corner_cases/coco_crowd_empty_tiny.json"
        assert len(load_coco(path, shared_data / "coco_sample", invalid="error").records) == 19

    def test_zero_based_ids(self, shared_data):
        path = shared_data / "corner_cases/zero_based_ids.json"
        dataset = load_coco(path, shared_data / "fruits_nuts/images", invalid="error", check_images=False)
        assert dataset.records[0].image_id == 0 and len(dataset.records[0].boxes) > 0
