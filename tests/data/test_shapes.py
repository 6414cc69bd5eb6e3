"""The made-up data set."""

import numpy as np
import pytest

from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.masks import decode_columns
from keras_mrcnn.data.shapes import draw_image, make_shapes


def test_it_is_a_sound_coco_data_set(tmp_path):
    paths = make_shapes(tmp_path / "shapes", images=12, val_images=3, size=(96, 128), seed=1)
    train = load_coco(paths["train_annotations"], paths["train_images"], invalid="error")
    val = load_coco(paths["val_annotations"], paths["val_images"], invalid="error")
    assert len(train.records) == 12 and len(val.records) == 3
    assert [category.name for category in train.categories] == ["circle", "triangle", "square"]
    for record in train.records + val.records:
        assert (record.height, record.width) == (96, 128) and len(record.boxes) >= 1
        assert record.areas.min() >= 30
        masks = [decode_columns(segmentation, 0, 128) for segmentation in record.segmentations]
        assert np.sum(masks, axis=0).max() <= 1
        for mask, area in zip(masks, record.areas, strict=True):
            assert mask.sum() == area


def test_the_seed_decides(tmp_path):
    def content(name, **arguments):
        paths = make_shapes(tmp_path / name, **arguments)
        files = sorted((tmp_path / name / "images").iterdir())
        return open(paths["train_annotations"]).read(), [file.read_bytes() for file in files]

    first = content("a", images=3, val_images=1, seed=5)
    assert content("b", images=3, val_images=1, seed=5) == first
    assert content("c", images=3, val_images=1, seed=6) != first
    assert content("d", images=4, val_images=0, seed=5)[1][:3] == first[1][:3]


def test_all_classes_and_overlaps_come_up():
    seen, hidden = set(), 0
    for seed in range(60):
        image, objects = draw_image((128, 128), 5, np.random.default_rng(seed))
        assert image.dtype == np.uint8 and image.shape == (128, 128, 3)
        seen |= {category for category, _ in objects}
        hidden += len(objects) > 3
    assert seen == {1, 2, 3} and hidden > 5


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="size"):
        make_shapes(tmp_path, size=(4, 4))
    with pytest.raises(ValueError, match="max_objects"):
        make_shapes(tmp_path, max_objects=0)
