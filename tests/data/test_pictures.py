"""The picture of true and predicted objects."""

import numpy as np
import tensorflow as tf

from keras_mrcnn.data.pictures import true_and_predicted
from keras_mrcnn.data.records import Category, Record
from keras_mrcnn.results import Results


def record(segmentations, crowd):
    boxes = np.array([[4, 4, 24, 24], [30, 30, 40, 40]], np.float32)[: len(segmentations)]
    count = len(boxes)
    return Record(
        image_id=3,
        path="none.png",
        height=50,
        width=60,
        boxes=boxes,
        classes=np.zeros(count, np.int32),
        crowd=np.array(crowd, bool),
        segmentations=segmentations,
        annotation_ids=list(range(count)),
        areas=np.ones(count, np.float32),
    )


def nothing(image):
    none = np.zeros((0, 28, 28), np.float32)
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), none
    return Results(*empty, *image.shape[:2], [Category(1, "thing")], image, image_id=3)


def halves(record):
    image = np.full((50, 60, 3), 90, np.uint8)
    picture = tf.io.decode_png(true_and_predicted(record, nothing(image))).numpy()
    return picture[:, :60], picture[:, 60:], image


def test_true_on_the_left_and_nothing_found_on_the_right():
    left, right, image = halves(
        record([[[4, 4, 24, 4, 24, 24, 4, 24]], [[30, 30, 40, 30, 40, 40]]], [False, True])
    )
    np.testing.assert_array_equal(right, image)
    assert (left[8:20, 8:20] != 90).any(axis=-1).all()  # tinted
    assert (left[28:, 28:] == 90).all()  # a crowd is not an object


def test_an_image_without_objects():
    left, right, image = halves(record([], []))
    np.testing.assert_array_equal(left, image)
    np.testing.assert_array_equal(right, image)
