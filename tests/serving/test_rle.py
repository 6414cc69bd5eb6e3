"""Masks from the graph: the same characters and pixels as `Results` and pycocotools."""

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.records import Category
from keras_mrcnn.results import Results
from keras_mrcnn.serving import rle


def traced(function, paste):
    specs = [
        tf.TensorSpec([None, 28, 28]),
        tf.TensorSpec([None, 4]),
        tf.TensorSpec([None, 2], tf.int32),
        tf.TensorSpec([None], tf.bool),
    ]
    return tf.function(lambda *given: function(*given, paste), input_signature=specs, autograph=False)


in_graph = {paste: traced(rle.run_lengths, paste) for paste in ("centres", "widened")}


def encoded(probabilities, boxes, size, paste="centres", function=None):
    sizes = np.tile(np.int32([size]), (len(boxes), 1))
    arrays = np.asarray(probabilities, np.float32), np.asarray(boxes, np.float32), sizes
    return (function or in_graph[paste])(*arrays, np.ones(len(boxes), bool)).numpy().tolist()


def results(probabilities, boxes, size, paste="centres"):
    count = len(boxes)
    probabilities, boxes = np.asarray(probabilities, np.float32), np.asarray(boxes, np.float32)
    ones = np.ones(count, np.float32), np.zeros(count, np.int32)
    return Results(boxes, *ones, probabilities, *size, [Category(1, "a")], paste=paste)


def check(probabilities, boxes, size, paste="centres"):
    """Equal to `Results.rles()` and to pycocotools' encoding of the pasted mask, which is returned."""
    found, expected = encoded(probabilities, boxes, size, paste), results(probabilities, boxes, size, paste)
    masks = expected.masks
    assert found == [rle["counts"].encode() for rle in expected.rles()]
    assert found == [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in masks]
    return masks


def random_boxes(random, count, size):
    """Inside the image, some of them without area, the first the whole image."""
    corners = np.sort(random.uniform(-0.2, 1.2, (2, count, 2)).clip(0, 1), axis=0) * size[::-1]
    boxes = np.concatenate(corners, axis=1)
    boxes[0] = 0, 0, size[1], size[0]
    return boxes


def test_by_hand():
    # 3 x 4 image, box over columns 1 and 2: 3 zeros, 6 ones down both columns, 3 zeros
    found = encoded(np.ones((1, 28, 28)), [[1, 0, 3, 3]], (3, 4))
    assert found == [coco_mask.frPyObjects({"size": [3, 4], "counts": [3, 6, 3]}, 3, 4)["counts"]]
    # the first pixel only: no zeros first
    assert encoded(np.ones((1, 28, 28)), [[0, 0, 1, 1]], (3, 4)) == [
        coco_mask.frPyObjects({"size": [3, 4], "counts": [0, 1, 11]}, 3, 4)["counts"]
    ]


@pytest.mark.parametrize("paste", ["centres", "widened"])
@pytest.mark.parametrize("size", [(50, 70), (1, 1), (300, 200), (1500, 1100)], ids=str)
def test_random_masks(size, paste):
    random = np.random.default_rng(0)
    boxes = random_boxes(random, 30, size)
    boxes[20:] = np.round(boxes[20:])
    probabilities = random.random((30, 28, 28))
    probabilities[:10] = probabilities[:10] > 0.5  # many exact ties at the threshold
    probabilities[10:20] = np.round(probabilities[10:20] * 4) / 4
    probabilities[0], probabilities[1] = 1, 0
    masks = check(probabilities, boxes, size, paste)
    assert masks[0].any() and not masks[1].any()


@pytest.mark.parametrize("paste", ["centres", "widened"])
def test_edges_and_single_pixels(paste):
    size, full = (20, 30), np.ones((28, 28))
    edges = [[0, 0, 30, 20], [0, 5, 3, 20], [27, 0, 30, 20], [5, 0, 25, 2], [5, 18, 25, 20]]
    pixels = [[x, y, x + 1, y + 1] for x, y in ((0, 0), (29, 0), (0, 19), (29, 19), (7, 8))]
    none = [[3, 3, 3, 9], [4.6, 4.6, 5.4, 5.4], [0, 0, 0, 0]]
    boxes = edges + pixels + none
    masks = check([full] * len(boxes), boxes, size, paste)
    if paste == "centres":
        assert [int(mask.sum()) for mask in masks] == [600, 45, 60, 40, 40, 1, 1, 1, 1, 1, 0, 0, 0]


def test_real_masks(shared_sample):
    """Polygons of COCO as 28 x 28 maps over their boxes, in the image's own size."""
    checked = 0
    for record in load_coco(*shared_sample).records:
        maps, boxes = [], []
        for box, segmentation in zip(record.boxes, record.segmentations, strict=True):
            if not isinstance(segmentation, list):
                continue
            polygons = coco_mask.frPyObjects(segmentation, record.height, record.width)
            bitmap = coco_mask.decode(coco_mask.merge(polygons)).astype(np.float32)
            part = [box[[1, 0, 3, 2]] / np.float32([record.height - 1, record.width - 1] * 2)]
            cells = tf.image.crop_and_resize(bitmap[None, :, :, None], part, [0], [28, 28])
            maps.append(cells[0, :, :, 0].numpy())
            boxes.append(box)
        if boxes:
            check(maps, boxes, (record.height, record.width))
            checked += len(boxes)
        if checked >= 100:
            break
    assert checked >= 100


@pytest.fixture
def shared_sample(shared):
    folder = shared / "data/coco_sample"
    if not folder.is_dir():
        pytest.skip("no sample of COCO")
    return next((folder / "annotations").glob("instances_train*.json")), folder / "train2017"


def test_large_boxes_are_done_in_parts(monkeypatch):
    monkeypatch.setattr(rle, "_CHUNK", 200)
    random = np.random.default_rng(1)
    boxes, probabilities = random_boxes(random, 8, (60, 50)), random.random((8, 28, 28))
    found = encoded(probabilities, boxes, (60, 50), function=traced(rle.run_lengths, "centres"))
    assert found == [rle["counts"].encode() for rle in results(probabilities, boxes, (60, 50)).rles()]


def test_long_runs():
    # counts of 26 bits and differences of either sign
    size = (8000, 8000)
    boxes = [[3999, 3999, 4001, 4001], [0, 0, 8000, 2], [7998, 0, 8000, 8000]]
    check_counts = [rle["counts"].encode() for rle in results(np.ones((3, 28, 28)), boxes, size).rles()]
    assert encoded(np.ones((3, 28, 28)), boxes, size) == check_counts


def test_nothing_and_not_valid():
    assert encoded(np.zeros((0, 28, 28)), np.zeros((0, 4)), (5, 5)) == []
    arrays = np.ones((2, 28, 28), np.float32), np.float32([[0, 0, 5, 5]] * 2), np.int32([[5, 5]] * 2)
    found = in_graph["centres"](*arrays, np.array([False, True])).numpy()
    assert found[0] == b"" and found[1] != b""


def test_png_files():
    random = np.random.default_rng(2)
    boxes, probabilities = random_boxes(random, 5, (40, 30)), random.random((5, 28, 28))
    found = encoded(probabilities, boxes, (40, 30), function=traced(rle.png, "centres"))
    for file, mask in zip(found, results(probabilities, boxes, (40, 30)).masks, strict=True):
        np.testing.assert_array_equal(tf.io.decode_png(file)[:, :, 0], mask * 255)
