"""The made-up data set for keypoints."""

import numpy as np
import pytest

from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.masks import decode_columns
from keras_mrcnn.data.stick_figures import KEYPOINTS, SKELETON, draw_image, make_stick_figures


def drawn(count=60, size=(96, 128), figures=3):
    return [draw_image(size, figures, np.random.default_rng(seed)) for seed in range(count)]


def test_it_is_a_sound_coco_data_set(tmp_path):
    paths = make_stick_figures(tmp_path / "figures", images=12, val_images=3, size=(96, 128), seed=1)
    train = load_coco(paths["train_annotations"], paths["train_images"], invalid="error")
    val = load_coco(paths["val_annotations"], paths["val_images"], invalid="error")
    assert len(train.records) == 12 and len(val.records) == 3
    (category,) = train.categories
    assert category.keypoints == KEYPOINTS and category.skeleton == SKELETON
    assert len(category.flip_pairs) == 6
    for record in train.records + val.records:
        assert (record.height, record.width) == (96, 128) and len(record.boxes) >= 1
        masks = [decode_columns(segmentation, 0, 128) for segmentation in record.segmentations]
        assert np.sum(masks, axis=0).max() <= 1
        for mask, area, points in zip(masks, record.areas, record.keypoints, strict=True):
            assert mask.sum() == area > 100
            for x, y, visibility in points:
                assert visibility < 2 or mask[int(y), int(x)]


def test_the_files_hold_what_was_drawn(tmp_path):
    paths = make_stick_figures(tmp_path, images=3, val_images=0, size=(96, 128), seed=4)
    dataset = load_coco(paths["train_annotations"], paths["train_images"], invalid="error")
    for number, record in enumerate(dataset.records):
        _, figures = draw_image((96, 128), 3, np.random.default_rng([4, 0, number]))
        np.testing.assert_allclose(record.keypoints, [points for _, points in figures], atol=0.006)


def test_joints_lie_where_they_were_drawn():
    for image, figures in drawn():
        for mask, points in figures:
            for name, (x, y, visibility) in zip(KEYPOINTS, points, strict=True):
                if visibility < 2 or not name.endswith(("wrist", "ankle")):
                    continue
                assert mask[int(y), int(x)]
                red, _, blue = image[int(y), int(x)]
                assert (red > blue) == name.startswith("left")


def test_a_covered_joint_is_hidden():
    hidden = 0
    for _, figures in drawn():
        for mask, points in figures:
            for x, y, visibility in points:
                if visibility and not mask[int(y), int(x)]:
                    assert visibility == 1
                    assert any(other[int(y), int(x)] for other, _ in figures)
                    hidden += 1
    assert hidden > 10


def test_all_kinds_of_joints_and_both_sides_come_up():
    visibility, facing, numbers = [], [], []
    for _, figures in drawn():
        numbers.append(len(figures))
        for _, points in figures:
            visibility += list(points[:, 2])
            left, right = (points[KEYPOINTS.index(f"{side}_shoulder")] for side in ("left", "right"))
            facing += [left[0] > right[0]] if left[2] and right[2] else []
            assert (points[points[:, 2] == 0] == 0).all()
    shares = [np.mean(np.equal(visibility, v)) for v in (0, 1, 2)]
    assert shares[0] > 0.01 and shares[1] > 0.02 and shares[2] > 0.7
    assert 0.3 < np.mean(facing) < 0.7 and set(numbers) == {1, 2, 3}


def test_the_seed_decides(tmp_path):
    def content(name, **arguments):
        paths = make_stick_figures(tmp_path / name, size=(48, 64), **arguments)
        files = sorted((tmp_path / name / "images").iterdir())
        return open(paths["train_annotations"]).read(), [file.read_bytes() for file in files]

    first = content("a", images=3, val_images=1, seed=5)
    assert content("b", images=3, val_images=1, seed=5) == first
    assert content("c", images=3, val_images=1, seed=6) != first
    assert content("d", images=4, val_images=0, seed=5)[1][:3] == first[1][:3]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="size"):
        make_stick_figures(tmp_path, size=(47, 48))
    with pytest.raises(ValueError, match="max_figures"):
        make_stick_figures(tmp_path, max_figures=0)
