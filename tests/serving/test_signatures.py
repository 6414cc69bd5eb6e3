"""Requests and answers: batches of different images, the three inputs, and images that cannot be read."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.data.records import Category
from keras_mrcnn.results import Results
from keras_mrcnn.serving import rest, signatures
from keras_mrcnn.serving.answers import answer


@pytest.fixture(scope="module")
def served(exported):
    """{signature: function of one input that gives numpy arrays}."""
    loaded = tf.saved_model.load(exported)

    def call(name, given):
        signature = loaded.signatures[name]
        (argument,) = signature.structured_input_signature[1]
        return {key: value.numpy() for key, value in signature(**{argument: tf.constant(given)}).items()}

    return call


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        if name.startswith("detection_boxes_p"):
            np.testing.assert_allclose(found[name], value, atol=1e-3, err_msg=name)
        elif value.dtype == np.float32:
            np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def example(encoded):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def test_a_batch_of_eight_sizes_and_formats_is_eight_requests(served, files):
    batch = served("serving_default", files)
    assert len(np.unique(batch["image_sizes"], axis=0)) == 8 and batch["num_detections"].min() > 0
    for row, file in enumerate(files):
        alone = served("serving_default", [file])
        assert_same({name: value[row : row + 1] for name, value in batch.items()}, alone)


def test_neighbours_of_images_that_cannot_be_read(served, files):
    given = [b"", files[0], files[1][:200], b"<html>", files[1]]
    found, expected = served("serving_default", given), served("serving_default", files[:2])
    assert_same({name: value[[1, 4]] for name, value in found.items()}, expected)
    for row, says in ((0, b"no bytes"), (2, b"PNG data end too early"), (3, b"none of JPEG, PNG")):
        assert says in found["error"][row]
        for name in set(found) - {"error"}:
            assert not np.any(found[name][row].astype(bool)), name


def test_nothing_but_images_that_cannot_be_read(served):
    found = served("serving_default", [b"x", b"y"])
    assert found["num_detections"].tolist() == [0, 0] and all(found["error"])


def test_the_three_inputs_answer_alike(served, files):
    expected = served("serving_default", files[1:2])
    assert_same(served("tf_example", [example(files[1])]), expected)
    pixels = tf.io.decode_png(files[1]).numpy()[None]
    assert_same(served("image_tensor", pixels), expected)
    assert_same(
        served("image_tensor", np.repeat(pixels, 2, axis=0)), served("serving_default", files[1:2] * 2)
    )


def test_what_is_no_example(served, files):
    found = served("tf_example", [b"\xff", tf.train.Example().SerializeToString(), example(files[1])])
    assert found["num_detections"][:2].tolist() == [0, 0] and found["num_detections"][2] > 0
    assert b"image/encoded" in found["error"][0] and b"image/encoded" in found["error"][1]


def test_pixels_that_are_none(served):
    with pytest.raises(tf.errors.InvalidArgumentError, match="no pixels"):
        served("image_tensor", np.zeros((1, 0, 5, 3), np.uint8))


def test_an_error_names_the_image():
    @tf.function
    def checked(reasons):
        with tf.control_dependencies([signatures._assert_none(reasons)]):
            return tf.size(reasons)

    assert checked(tf.constant(["", "", ""])) == 3
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 1: torn; image 2: burnt"):
        checked(tf.constant(["", "torn", "burnt"]))


@pytest.mark.parametrize("masks", ["box", "none", "rle", "png"])
def test_answers_are_those_of_results(masks):
    random = np.random.default_rng(0)
    corners = np.sort(random.uniform(-10, 110, (2, 3, 6, 2)), axis=0)
    found = {
        "boxes": np.concatenate(corners, axis=-1).astype(np.float32),
        "scores": random.random((3, 6), np.float32),
        "classes": random.integers(0, 2, (3, 6)).astype(np.int32),
        "num_detections": np.int32([6, 0, 3]),
        "masks": random.random((3, 6, 28, 28), np.float32),
        "keypoints": random.random((3, 6, 5, 3), np.float32) * 100,
    }
    found["boxes"][0, 1] = 120, 5, 130, 9  # right of the image
    found["boxes"][0, 3] = 7, 7, 7, 9  # no width
    network, source = np.int32([[100, 90], [80, 100], [100, 100]]), np.int32([[333, 300], [20, 25], [47, 46]])
    categories = [Category(5, "a", tuple("vwxyz")), Category(9, "b")]
    tensors = {name: tf.constant(value) for name, value in found.items()}
    answers = answer(tensors, tf.constant(network), tf.constant(source), categories, masks, "centres")
    answers = {name: value.numpy() for name, value in answers.items()}
    for row in range(3):
        rows = {name: value[row] for name, value in found.items()}
        expected = Results.from_detections(rows, network[row], source[row], categories)
        count, size = answers["num_detections"][row], source[row].astype(np.float32)
        assert count == len(expected)
        part = {name: value[row, :count] for name, value in answers.items() if name.startswith("detection")}
        rest = [value[row, count:] for name, value in answers.items() if name.startswith("detection")]
        assert not any(np.any(value.astype(bool)) for value in rest)
        np.testing.assert_array_equal(part["detection_boxes_pixels"], expected.boxes)
        swapped = expected.boxes[:, [1, 0, 3, 2]] / np.tile(size, 2)
        np.testing.assert_allclose(part["detection_boxes"], swapped, rtol=1e-6)
        np.testing.assert_array_equal(part["detection_scores"], expected.scores)
        assert part["detection_classes"].tolist() == expected.category_ids
        np.testing.assert_array_equal(part["detection_keypoints_pixels"], expected.keypoints[..., :2])
        np.testing.assert_array_equal(part["detection_keypoint_scores"], expected.keypoints[..., 2])
        points = expected.keypoints[..., [1, 0]] / size
        np.testing.assert_allclose(part["detection_keypoints"], points, rtol=1e-6)
        if masks == "box":
            np.testing.assert_array_equal(part["detection_masks"], expected.mask_probabilities)
        elif masks == "rle":
            rles = [rle["counts"].encode() for rle in expected.rles()]
            assert part["detection_masks"].tolist() == rles
        elif masks == "png":
            files = part["detection_masks_bytes"].tolist()
            found_masks = np.reshape([tf.io.decode_png(file) for file in files], expected.masks.shape)
            np.testing.assert_array_equal(found_masks, expected.masks * 255)
        assert ("detection_masks" in part) == (masks in ("box", "rle"))


def test_a_hundred_detections_are_a_small_answer():
    # ellipses of all sizes in 800 x 1333, as the REST interface writes them
    random = np.random.default_rng(3)
    centres = random.uniform([100, 100], [1233, 700], (100, 2))
    halves = random.uniform(10, 100, (100, 2))
    grid = (np.arange(28) - 13.5) / 14
    ellipse = np.clip(3 * (1 - np.hypot(*np.meshgrid(grid, grid))) + 0.5, 0, 1)
    found = {
        "boxes": np.concatenate([centres - halves, centres + halves], axis=1)[None].astype(np.float32),
        "scores": random.random((1, 100), np.float32),
        "classes": np.zeros((1, 100), np.int32),
        "num_detections": np.int32([100]),
        "masks": np.tile(ellipse, (1, 100, 1, 1)).astype(np.float32),
    }
    tensors = {name: tf.constant(value) for name, value in found.items()}
    size = tf.constant([[800, 1333]])
    answers = answer(tensors, size, size, [Category(1, "motorcycle")], "rle", "centres")
    text = rest.answer({name: value.numpy() for name, value in answers.items()}, rows=True)
    assert len(text) <= 60_000
