"""Cityscapes' folders: exact masks, groups, void, polygons in place of ids, and what may be broken."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from keras_mrcnn import config
from keras_mrcnn.data.cityscapes import CATEGORIES, FROM_COCO, IDS, VOID, load_cityscapes
from keras_mrcnn.data.pipeline import training_dataset
from keras_mrcnn.data.records import Category
from keras_mrcnn.weights.presets import preset_model
from tests.evaluation import streets

NAMES = [name for _, name in streets.names(6)]
CLASSES = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28}
CLASSES |= {"train": 31, "motorcycle": 32, "bicycle": 33}


@pytest.fixture
def folder(tmp_path):
    streets.make(tmp_path, 0)
    return tmp_path


def path_of(folder, name, ending):
    city = name.split("_")[0]
    if ending.startswith("leftImg8bit"):
        return folder / "leftImg8bit" / "val" / city / f"{name}_{ending}"
    return folder / "gtFine" / "val" / city / f"{name}_{ending}"


def write(folder, ids=None, objects=None, name="aachen_000000_000019", size=(20, 30), kind=np.uint16):
    """A split `val` of one image: instance ids, polygons, or both."""
    for ending in ("leftImg8bit.png", "gtFine_x"):
        path_of(folder, name, ending).parent.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((*size, 3), np.uint8)
    Image.fromarray(picture).save(path_of(folder, name, "leftImg8bit.png"))
    if ids is not None:
        Image.fromarray(np.asarray(ids).astype(kind)).save(path_of(folder, name, "gtFine_instanceIds.png"))
    if objects is not None:
        content = {"imgHeight": size[0], "imgWidth": size[1], "objects": objects}
        path_of(folder, name, "gtFine_polygons.json").write_text(json.dumps(content))


def read_one(folder, **options):
    dataset = load_cityscapes(folder, "val", invalid="error", **options)
    assert len(dataset.records) == 1
    return dataset.records[0]


@pytest.mark.parametrize("seed", range(3))
def test_every_object_is_its_own_pixels(tmp_path, seed):
    images = streets.make(tmp_path, seed)
    dataset = load_cityscapes(tmp_path, "val", invalid="error")
    assert dataset.skipped == [] and dataset.categories == CATEGORIES
    assert [record.image_id for record in dataset.records] == sorted(images)
    for record in dataset.records:
        ids = images[record.image_id]
        assert (record.height, record.width) == ids.shape
        assert record.path == str(path_of(tmp_path, record.image_id, "leftImg8bit.png"))
        labels = np.where(ids < 1000, ids, ids // 1000)
        expected = [value for value in np.unique(ids) if labels[ids == value][0] in CLASSES.values()]
        assert record.annotation_ids == expected
        for index, value in enumerate(expected):
            mask = ids == value
            np.testing.assert_array_equal(coco_mask.decode(record.segmentations[index]), mask)
            y, x = np.nonzero(mask)
            assert record.boxes[index].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert record.areas[index] == mask.sum()
            assert record.crowd[index] == (value < 1000)
            category = dataset.categories[record.classes[index]]
            assert category.id == labels[mask][0] == CLASSES[category.name]
        void = coco_mask.encode(np.asfortranarray(np.isin(ids, VOID), np.uint8))
        assert record.void == {**void, "counts": void["counts"].decode()}


def test_images_without_objects_stay(folder):
    record = load_cityscapes(folder, "val").records[0]
    assert record.image_id == NAMES[0] and record.boxes.shape == (0, 4)
    assert record.classes.dtype == np.int32 and record.segmentations == []
    assert coco_mask.area(record.void) == 0


@pytest.mark.parametrize("corner", [(0, 0), (0, 29), (19, 0), (19, 29)])
def test_a_single_pixel(tmp_path, corner):
    ids = np.full((20, 30), 7)
    ids[corner] = 26000
    write(tmp_path, ids)
    record = read_one(tmp_path)
    y, x = corner
    assert record.boxes.tolist() == [[x, y, x + 1, y + 1]] and record.areas.tolist() == [1]
    np.testing.assert_array_equal(coco_mask.decode(record.segmentations[0]), ids == 26000)


def test_one_object_everywhere(tmp_path):
    write(tmp_path, np.full((20, 30), 33007))
    record = read_one(tmp_path)
    assert record.boxes.tolist() == [[0, 0, 30, 20]] and record.annotation_ids == [33007]
    assert coco_mask.decode(record.segmentations[0]).all()


def test_an_object_that_goes_on_at_the_top_of_the_next_column(tmp_path):
    ids = np.full((20, 30), 7)
    ids[19, 4] = ids[0, 5] = 24000
    write(tmp_path, ids)
    record = read_one(tmp_path)
    assert record.boxes.tolist() == [[4, 0, 6, 20]] and record.areas.tolist() == [2]


def test_neighbours_of_two_void_labels_are_one_void(tmp_path):
    ids = np.full((20, 30), 7)
    ids[3:6, 4], ids[6:9, 4], ids[12:, 9], ids[:5, 10] = 1, 4, 29, 16
    ids[0, 0] = 29000  # a caravan of its own is no void: it is scored as a street is
    write(tmp_path, ids)
    np.testing.assert_array_equal(coco_mask.decode(read_one(tmp_path).void), np.isin(ids, [1, 4, 16, 29]))


def test_polygons_stand_in_for_ids_nearly(folder, tmp_path):
    exact = load_cityscapes(folder, "val").records
    for path in folder.glob("gtFine/val/*/*_instanceIds.png"):
        path.unlink()
    painted = load_cityscapes(folder, "val", invalid="error").records
    overlaps = []
    for one, other in zip(exact, painted, strict=True):
        assert set(other.annotation_ids) - set(one.annotation_ids) == set()
        for value, mask in zip(other.annotation_ids, other.segmentations, strict=True):
            truth = one.segmentations[one.annotation_ids.index(value)]
            overlaps.append(coco_mask.iou([mask], [truth], [0])[0, 0])
    assert len(overlaps) > 50 and np.median(overlaps) > 0.95 and min(overlaps) > 0.5


def square(label, x, y, side, **other):
    corners = [[x, y], [x + side - 1, y], [x + side - 1, y + side - 1], [x, y + side - 1]]
    return {"label": label, "polygon": corners, **other}


def test_later_polygons_are_in_front_and_numbered_within_their_class(tmp_path):
    objects = [
        square("road", 0, 0, 20),
        square("car", 2, 2, 10),
        square("person", 5, 5, 3),
        square("car", 4, 4, 10),
        square("license plate", 5, 5, 3),
        square("truck", 1, 1, 18, deleted=1),
        square("cargroup", 15, 0, 4),
        {"label": "car", "polygon": [[1, 1], [5, 5]]},
        square("car", 0, 16, 2),
        square("polegroup", 25, 10, 3),
    ]
    write(tmp_path, objects=objects)
    record = read_one(tmp_path)
    # the person is hidden by the second car; the third car is no area, and has its number
    assert record.annotation_ids == [26, 26000, 26001, 26003]
    assert record.crowd.tolist() == [True, False, False, False]
    assert record.areas.tolist() == [16, 100 - 64, 100, 4]
    assert record.boxes.tolist() == [[15, 0, 19, 4], [2, 2, 12, 12], [4, 4, 14, 14], [0, 16, 2, 18]]
    assert coco_mask.area(record.void) == 600 - 400  # all but the road and what is on it


def test_ids_win_over_polygons(tmp_path):
    ids = np.full((20, 30), 7)
    ids[5:8, 5:9] = 24000
    write(tmp_path, ids, [square("car", 2, 2, 10)])
    assert read_one(tmp_path).annotation_ids == [24000]


def test_groups_only_in_a_file_of_eight_bits(tmp_path):
    ids = np.full((20, 30), 7)
    ids[5:8, 5:9] = 24
    write(tmp_path, ids, kind=np.uint8)
    record = read_one(tmp_path)
    assert record.annotation_ids == [24] and record.areas.tolist() == [12]


def test_categories_of_a_model_in_another_order(folder):
    dataset = load_cityscapes(folder, "val", categories=CATEGORIES[::-1])
    assert dataset.categories == CATEGORIES[::-1]
    for record in dataset.records:
        for index, value in zip(record.classes, record.annotation_ids, strict=True):
            assert dataset.categories[index].id == (value if value < 1000 else value // 1000)
    for wrong in (CATEGORIES[:7], [*CATEGORIES[:7], Category(33, "bike")], []):
        with pytest.raises(ValueError, match="the eight of Cityscapes"):
            load_cityscapes(folder, "val", categories=wrong)


def test_what_is_broken_is_left_out_and_named(folder):
    def damage(name, ending, change):
        change(path_of(folder, name, ending))

    damage(NAMES[0], "leftImg8bit.png", lambda path: path.unlink())
    damage(NAMES[1], "gtFine_instanceIds.png", lambda path: path.write_bytes(path.read_bytes()[:60]))
    for ending in ("gtFine_instanceIds.png", "gtFine_polygons.json"):
        damage(NAMES[2], ending, lambda path: path.unlink())
    small = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    damage(NAMES[3], "leftImg8bit.png", small.save)
    unknown = Image.fromarray(np.full((streets.HEIGHT, streets.WIDTH), 255, np.uint16))
    damage(NAMES[4], "gtFine_instanceIds.png", unknown.save)
    damage(NAMES[5], "leftImg8bit.png", lambda path: path.write_bytes(b"no picture"))
    expected = {
        NAMES[0]: ("missing image file", "leftImg8bit.png"),
        NAMES[1]: ("unreadable ground truth", "instanceIds.png cannot be decoded"),
        NAMES[2]: ("missing ground truth", "instanceIds.png or, in its place"),
        NAMES[3]: ("image size differs from the ground truth", "height 9, width 9"),
        NAMES[4]: ("unknown label", r"got [255]. Are these train ids?"),
        NAMES[5]: ("unreadable image file", "cannot be decoded"),
    }
    dataset = load_cityscapes(folder, "val")
    assert dataset.records == []
    assert {problem.image_id: problem.kind for problem in dataset.skipped} == {
        name: kind for name, (kind, _) in expected.items()
    }
    for problem in dataset.skipped:
        assert expected[problem.image_id][1] in str(problem) and str(folder) in str(problem)
    with pytest.raises(ValueError, match="leaves it out and goes on"):
        load_cityscapes(folder, "val", invalid="error")


@pytest.mark.parametrize(
    "content, words",
    [
        ("not json", "polygons.json"),
        ("[]", "TypeError"),
        ('{"imgHeight": 20, "imgWidth": 30}', "KeyError: 'objects'"),
        ('{"imgHeight": -2, "imgWidth": 30, "objects": []}', "negative"),
        ('{"imgHeight": 20, "imgWidth": 30, "objects": [{"label": "car"}]}', "KeyError: 'polygon'"),
        (
            '{"imgHeight": 20, "imgWidth": 30, "objects": [{"label": "car", "polygon": [[1, 2], [3]]}]}',
            "Value",
        ),
        ('{"imgHeight": 20, "imgWidth": 30, "objects": [{"label": "cat", "polygon": []}]}', "'cat'"),
        (
            '{"imgHeight": 20, "imgWidth": 30, "objects": [{"label": "catgroup", "polygon": []}]}',
            "'catgroup'",
        ),
    ],
)
def test_broken_polygon_files(tmp_path, content, words):
    write(tmp_path, objects=[])
    path_of(tmp_path, "aachen_000000_000019", "gtFine_polygons.json").write_text(content)
    (problem,) = load_cityscapes(tmp_path, "val").skipped
    assert words in problem.what and "polygons.json" in problem.what


def test_polygons_that_leave_the_image(tmp_path):
    objects = [
        {"label": "car", "polygon": [[-9, 5], [1e9, 5], [40, 99], [-9, 99]]},
        {"label": "bus", "polygon": [[1, 1], [np.nan, 9], [9, 9]]},
    ]
    write(tmp_path, objects=objects)
    record = read_one(tmp_path)
    assert record.boxes.tolist() == [[0, 5, 30, 20]] and record.areas.tolist() == [30 * 15]


def test_wrong_folders(tmp_path, folder):
    with pytest.raises(ValueError, match="no folder: .*nowhere.leftImg8bit.val"):
        load_cityscapes(folder / "nowhere", "val")
    with pytest.raises(ValueError, match="no folder: .*leftImg8bit.test"):
        load_cityscapes(folder, "test")
    for name in ("leftImg8bit", "gtFine"):
        (folder / name / "empty").mkdir()
    with pytest.raises(ValueError, match=r"CITY/\*_leftImg8bit.png"):
        load_cityscapes(folder, "empty")
    with pytest.raises(ValueError, match="invalid='ignore'"):
        load_cityscapes(folder, "val", invalid="ignore")


def test_without_a_look_at_the_images(folder):
    path_of(folder, NAMES[2], "leftImg8bit.png").write_bytes(b"no picture")
    dataset = load_cityscapes(folder, "val", check_images=False)
    assert len(dataset.records) == 6 and dataset.skipped == []


def test_it_trains(folder):
    dataset = load_cityscapes(folder, "val")
    small = config.Input(short_edge=64, long_edge=128)
    batches = training_dataset(dataset.records, config.Data(batch_size=2), small, 0)
    inputs, targets = next(iter(batches))
    assert inputs["images"].shape[0] == 2 and targets["masks"].numpy().any()
    assert "6 images" in dataset.summary() and "objects in 8 categories (person " in dataset.summary()


def test_the_classes_of_coco_have_these_names():
    coco = {category["name"] for category in preset_model("torchvision/mask_rcnn_r50_fpn")[1]}
    assert list(FROM_COCO) == list(CLASSES) == [category.name for category in CATEGORIES]
    assert {name for name in FROM_COCO.values() if name} <= coco
    assert [name for name, of_coco in FROM_COCO.items() if of_coco is None] == ["rider"]


def test_labels():
    assert len(IDS) == 34 and {name: IDS[name] for name in CLASSES} == CLASSES
    assert sorted(IDS[name] for name in (
        "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground",
        "parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer",
    )) == sorted(VOID)  # fmt: skip
