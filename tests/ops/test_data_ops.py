"""The compiled operations of the input pipeline have the bits of what stands in for them."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.data import images, masks
from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.objects import Objects, object_crops
from keras_mrcnn.ops import library


@pytest.fixture
def module(native):
    return library.choice().module


def stock_resize(image, size):
    with library.stock_operations():
        return images.resize(image, size).numpy()


class TestResize:
    def test_by_hand(self, module):
        # two pixels to four: a quarter and three quarters; 0.25 * 10 = 2.5 is rounded to the even 2
        image = np.array([[[0], [10]]], np.uint8)
        np.testing.assert_array_equal(images.resize(image, (1, 4))[0, :, 0], [0, 2, 8, 10])

    def test_random_sizes(self, module):
        random = np.random.default_rng(0)
        for _ in range(60):
            height, width, *size = (int(edge) for edge in np.exp(random.uniform(0, 5.5, 4)))
            image = random.integers(0, 256, (height, width, random.integers(1, 5)), np.uint8)
            np.testing.assert_array_equal(images.resize(image, size), stock_resize(image, size))

    def test_ties_and_graphs(self, module):
        """480 to 800: weights are tenths, so many sums end in a half."""
        image = np.random.default_rng(0).integers(0, 256, (480, 64, 3), np.uint8)
        run = tf.function(lambda image, size: images.resize(image, size))
        found = run(tf.constant(image), tf.constant([800, 107]))
        np.testing.assert_array_equal(found, stock_resize(image, (800, 107)))
        graph = run.get_concrete_function(
            tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([2], tf.int32)
        )
        assert graph.output_shapes.as_list() == [None, None, 3]

    @pytest.mark.parametrize(
        ("shape", "size", "expected"),
        [
            ((0, 4, 3), (2, 2), "not empty"),
            ((4, 4, 3), (0, 2), "at least 1"),
            ((4, 4, 3), (2,), "rank 2|shape"),
        ],
    )
    def test_what_it_refuses(self, module, shape, size, expected):
        with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
            module.keras_mrcnn_resize(image=np.zeros(shape, np.uint8), size=np.array(size, np.int32))


def compiled_crops(module, objects, boxes, size):
    """`objects`: of each object its polygons."""
    polygons = [polygon for one in objects for polygon in one]
    return module.keras_mrcnn_polygon_crops(
        points=np.concatenate([np.zeros(0), *polygons]).reshape(-1, 2).astype(np.float32),
        polygon_ends=np.cumsum([len(polygon) // 2 for polygon in polygons], dtype=np.int64),
        object_ends=np.cumsum([len(one) for one in objects], dtype=np.int64),
        boxes=np.reshape(boxes, (-1, 4)).astype(np.float32),
        size=size,
    ).numpy()


class TestPolygonCrops:
    def test_by_hand(self, module):
        # the left half of a box of 4 x 4, in a crop of 4 x 4; and an object without polygons
        half = [[10, 10, 12, 10, 12, 14, 10, 14]]
        left, none = compiled_crops(module, [half, []], [[10, 10, 14, 14]] * 2, 4)
        np.testing.assert_array_equal(left, [[1, 1, 0, 0]] * 4)
        assert not none.any()
        assert compiled_crops(module, [], [], 4).shape == (0, 4, 4)

    def test_random_polygons(self, module):
        """Corners inside, outside and far away, on whole numbers, twice the same, and edges that cross."""
        random = np.random.default_rng(0)
        for case in range(300):
            x, y = np.sort(random.uniform(0, 300, (2, 2)), axis=1)
            objects = []
            for _ in range(random.integers(1, 4)):
                corners = random.uniform(
                    *((-100, 400) if case % 2 else (0, 300)), (random.integers(3, 12), 2)
                )
                corners = np.round(corners) if case % 3 == 0 else corners
                corners = np.repeat(corners, 2, axis=0) if case % 5 == 0 else corners
                objects.append(list((corners * (30 if case % 7 == 0 else 1)).ravel()))
            box, size = np.float32([x[0], y[0], x[1], y[1]]), int(random.choice([112, 28, 7]))
            expected = masks.polygon_crop(objects, box, size)
            np.testing.assert_array_equal(compiled_crops(module, [objects], box, size)[0], expected)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_real_objects(self, module, shared, split):
        folder = shared / "data" / "coco_sample"
        files = folder / f"annotations/instances_{split}2017.json", folder / f"{split}2017"
        records = load_coco(*files, check_images=False).records
        objects = Objects(records)
        assert objects.only_polygons.numpy().all()  # RLE is for crowds, which are left out
        for index, record in enumerate(records):
            np.testing.assert_array_equal(objects.of(tf.constant(index))["masks"], object_crops(record))

    @pytest.mark.parametrize(
        ("polygon_ends", "object_ends"), [([3, 2, 4], [3]), ([4], [2]), ([5], [1]), ([], []), ([-1, 4], [2])]
    )
    def test_what_it_refuses(self, module, polygon_ends, object_ends):
        with pytest.raises(tf.errors.InvalidArgumentError, match="in ascending order"):
            module.keras_mrcnn_polygon_crops(
                points=np.zeros((4, 2), np.float32),
                polygon_ends=np.array(polygon_ends, np.int64),
                object_ends=np.array(object_ends, np.int64),
                boxes=np.ones((1, 4), np.float32),
                size=4,
            )
