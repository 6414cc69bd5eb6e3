"""Keypoint head, and the points of each detection (NUMERICS section 11)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.geometry.keypoints import decode
from keras_mrcnn.roi.keypoint_head import KeypointHead, RegionKeypoints, with_keypoints


def doubled(row):
    """Bilinear enlargement by 2 along one axis: each cell becomes 3/4 of itself and 1/4 of its neighbour."""
    left, right = np.concatenate([row[:1], row[:-1]]), np.concatenate([row[1:], row[-1:]])
    return np.stack([0.75 * row + 0.25 * left, 0.75 * row + 0.25 * right], axis=1).reshape(-1, *row.shape[1:])


def test_against_numpy():
    rng = np.random.default_rng(0)
    head = KeypointHead(num_keypoints=3, convs=2, channels=4)
    pooled = rng.normal(size=(2, 3, 3, 5)).astype(np.float32)
    head(pooled)
    for weight in head.weights:
        weight.assign(rng.normal(size=weight.shape))
    hidden = pooled.astype(np.float64)
    for layer in head.convs:
        kernel, padded = layer.kernel.numpy(), np.pad(hidden, [(0, 0), (1, 1), (1, 1), (0, 0)])
        convolved = np.zeros((2, 3, 3, 4))
        for i, j in np.ndindex(3, 3):
            convolved[:, i, j] = np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3) + layer.bias.numpy()
        hidden = np.maximum(convolved, 0)
    larger = np.zeros((2, 8, 8, 3)) + head.upsample.bias.numpy()
    for i, j in np.ndindex(3, 3):  # each pixel adds to 4 x 4, two apart; then one is cut off on each side
        for p, q in np.ndindex(4, 4):
            larger[:, 2 * i + p, 2 * j + q] += hidden[:, i, j] @ head.upsample.kernel.numpy()[p, q].T
    larger = larger[:, 1:-1, 1:-1]
    for image, expected in zip(head(pooled).numpy(), larger, strict=True):
        expected = doubled(doubled(expected).swapaxes(0, 1)).swapaxes(0, 1)
        np.testing.assert_allclose(image, expected, rtol=1e-3, atol=1e-3)


def test_sizes_of_the_paper():
    head = KeypointHead(num_keypoints=17, name="keypoint_head")
    assert head(keras.Input((14, 14, 256))).shape == (None, 56, 56, 17)
    convs = 9 * 256 * 512 + 512 + 7 * (9 * 512 * 512 + 512)
    assert head.count_params() == convs + 16 * 512 * 17 + 17
    names = {weight.path.rsplit("/", 1)[0] for weight in head.weights}
    expected = {f"keypoint_head/conv{i}" for i in range(1, 9)} | {"keypoint_head/upsample"}
    assert {name[name.index("keypoint_head") :] for name in names} == expected


def test_initial_values():
    head = KeypointHead(num_keypoints=40, convs=1, channels=64)
    head(np.zeros([1, 2, 2, 32], np.float32))
    # sqrt(2 / fan_out): 3 * 3 * 64; of a deconvolution as torch counts it: 4 * 4 * 64 that come in
    assert head.convs[0].kernel.numpy().std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    assert head.upsample.kernel.numpy().std() == pytest.approx((2 / (16 * 64)) ** 0.5, rel=0.03)
    assert not any(weight.numpy().any() for weight in head.weights if "bias" in weight.path)


def test_no_region_and_mixed_precision():
    head = KeypointHead(num_keypoints=2, convs=1, channels=4, dtype="mixed_bfloat16")
    assert head(np.ones([1, 2, 2, 3], np.float32)).dtype == "float32"
    assert head(np.zeros([0, 2, 2, 3], np.float32)).shape == (0, 8, 8, 2)


def test_no_region_has_zero_gradients():
    head = KeypointHead(num_keypoints=2, convs=1, channels=4)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(head(np.zeros([0, 2, 2, 3], np.float32)))
    for gradient in tape.gradient(loss, head.trainable_variables):
        assert gradient is not None and not gradient.numpy().any()


def test_parity_of_the_deconvolution(shared):
    data = np.load(shared / "parity/ops/layers.npz")
    pooled, expected = (np.moveaxis(data[f"deconv4/{name}"], 1, 3) for name in ("input", "upsampled"))
    head = KeypointHead(num_keypoints=5, convs=0)
    head(pooled)
    head.upsample.kernel.assign(np.transpose(data["deconv4/weight"], (2, 3, 1, 0)))
    head.upsample.bias.assign(data["deconv4/bias"])
    np.testing.assert_allclose(head(pooled), expected, atol=1e-4 * np.abs(expected).max())


def test_classes_with_keypoints():
    classes = np.int32([[0, 1, 2], [2, 9, -1]])  # padding may be out of range
    valid = np.array([[True, True, True], [True, False, False]])
    carrying = with_keypoints(classes, valid, [0, 3, 2]).numpy()
    assert carrying.tolist() == [[False, True, True], [True, False, False]]


class TestRegionKeypoints:
    def test_points_in_their_places(self):
        logits = np.random.default_rng(1).normal(size=(3, 8, 8, 4)).astype(np.float32)
        boxes = np.float32([[[9] * 4, [0, 0, 20, 30], [5, 6, 25, 16]], [[1, 2, 9, 9], [9] * 4, [9] * 4]])
        classes = np.int32([[9, 1, 2], [1, 9, 9]])
        valid = np.array([[False, True, True], [True, False, False]])
        points = RegionKeypoints([0, 4, 2])(logits, boxes, classes, valid).numpy()
        assert points.shape == (2, 3, 4, 3)
        decoded = decode(logits, boxes[valid]).numpy()[..., [0, 1, 3]]
        np.testing.assert_allclose(points[0, 1], decoded[0], rtol=1e-6)
        np.testing.assert_allclose(points[0, 2, :2], decoded[1, :2], rtol=1e-6)
        np.testing.assert_allclose(points[1, 0], decoded[2], rtol=1e-6)
        assert not points[~valid].any() and not points[0, 2, 2:].any()

    def test_nothing_detected(self):
        nothing = np.zeros([2, 3, 4], np.float32), np.zeros([2, 3], np.int32), np.zeros([2, 3], bool)
        points = RegionKeypoints([5])(np.zeros([0, 56, 56, 5], np.float32), *nothing)
        np.testing.assert_array_equal(points, np.zeros([2, 3, 5, 3]))

    def test_unknown_sizes(self):
        boxes, classes = keras.Input((7, 4)), keras.Input((7,), dtype="int32")
        valid = with_keypoints(classes, keras.Input((7,), dtype="bool"), [3, 0])
        points = RegionKeypoints([3, 0])(keras.KerasTensor((None, 56, 56, 3)), boxes, classes, valid)
        assert points.shape == (None, 7, 3, 3) and points.dtype == "float32"

    def test_in_a_model(self):
        """Head and points as part of a functional graph."""
        pooled, boxes = keras.Input((4, 4, 3)), keras.Input((2, 4))
        classes, valid = keras.Input((2,), dtype="int32"), keras.Input((2,), dtype="bool")
        carrying = with_keypoints(classes, valid, [3, 0])
        logits = KeypointHead(3, convs=1, channels=4)(pooled)
        points = RegionKeypoints([3, 0])(logits, boxes, classes, carrying)
        model = keras.Model([pooled, boxes, classes, valid], points)
        given = [
            np.random.default_rng(0).normal(size=(1, 4, 4, 3)).astype(np.float32),
            np.float32([[[0, 0, 10, 10], [5, 5, 20, 300]]]),
            np.int32([[1, 0]]),
            np.array([[True, True]]),
        ]
        found = model.predict_on_batch(given)
        assert not found[0, 0].any() and (found[0, 1, :, 2] > 0).all()
