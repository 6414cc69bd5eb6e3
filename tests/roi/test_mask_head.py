"""Mask head, and each region's own mask (NUMERICS section 10)."""

import keras
import numpy as np
import pytest

from keras_mrcnn.roi.mask_head import MaskHead, MLPMaskHead, RegionMasks, of_class


def relu(values):
    return np.maximum(values, 0)


def test_against_numpy():
    rng = np.random.default_rng(0)
    head = MaskHead(maps=3, convs=2, channels=4)
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
        hidden = relu(convolved)
    larger = np.zeros((2, 6, 6, 4))
    kernel = head.upsample.kernel.numpy()  # [2, 2, out, in]
    for i, j in np.ndindex(6, 6):  # each pixel becomes 2 x 2: no overlap
        larger[:, i, j] = hidden[:, i // 2, j // 2] @ kernel[i % 2, j % 2].T + head.upsample.bias.numpy()
    expected = relu(larger) @ head.logits.kernel.numpy()[0, 0] + head.logits.bias.numpy()
    np.testing.assert_allclose(head(pooled), expected, rtol=1e-3, atol=1e-3)


def test_sizes_of_the_paper():
    head = MaskHead(maps=80)
    assert head(keras.Input((14, 14, 256))).shape == (None, 28, 28, 80)
    # four 3x3 convolutions and a 2x2 deconvolution of 256 to 256, one 1x1 to 80
    assert head.count_params() == 4 * (9 * 256 * 256 + 256) + (4 * 256 * 256 + 256) + (256 * 80 + 80)


def test_initial_values():
    head = MaskHead(maps=40, convs=1, channels=64)
    head(np.zeros([1, 2, 2, 32], np.float32))
    # sqrt(2 / fan_out): 3 * 3 * 64 for a convolution; 1e-3 for the last
    assert head.convs[0].kernel.numpy().std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    assert head.upsample.kernel.numpy().std() == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.03)
    assert head.logits.kernel.numpy().std() == pytest.approx(0.001, rel=0.06)
    assert not any(weight.numpy().any() for weight in head.weights if "bias" in weight.path)


def test_no_region_and_mixed_precision():
    head = MaskHead(maps=2, convs=1, channels=4, dtype="mixed_bfloat16")
    assert head(np.ones([1, 2, 2, 3], np.float32)).dtype == "float32"
    assert head(np.zeros([0, 2, 2, 3], np.float32)).shape == (0, 4, 4, 2)


def test_parity_of_the_deconvolution(shared):
    data = np.load(shared / "parity/ops/layers.npz")
    pooled, expected = (np.moveaxis(data[f"deconv2/{name}"], 1, 3) for name in ("input", "output"))
    head = MaskHead(maps=5, convs=0, channels=5)
    head(pooled)
    head.upsample.kernel.assign(np.transpose(data["deconv2/weight"], (2, 3, 1, 0)))
    head.upsample.bias.assign(data["deconv2/bias"])
    head.logits.kernel.assign(np.eye(5)[None, None])
    np.testing.assert_allclose(head(pooled), relu(expected), atol=1e-4 * np.abs(expected).max())


def test_own_class_of_each_region():
    masks = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    picked = of_class(masks, np.int32([5, 0, 2])).numpy()
    np.testing.assert_array_equal(picked, [masks[0, :, :, 5], masks[1, :, :, 0], masks[2, :, :, 2]])
    assert of_class(masks[:0], np.zeros([0], np.int32)).shape == (0, 4, 5)


class TestRegionMasks:
    def test_probabilities_in_their_places(self):
        logits = np.random.default_rng(1).normal(size=(3, 2, 2, 4)).astype(np.float32)
        classes = np.int32([[9, 2, 1], [3, 9, 9]])  # padding would be out of range
        valid = np.array([[False, True, True], [True, False, False]])
        masks = RegionMasks()(logits, classes, valid).numpy()
        expected = np.zeros((2, 3, 2, 2))
        expected[0, 1], expected[0, 2] = logits[0, ..., 2], logits[1, ..., 1]
        expected[1, 0] = logits[2, ..., 3]
        expected = np.where(valid[..., None, None], 1 / (1 + np.exp(-expected)), 0)
        np.testing.assert_allclose(masks, expected, atol=1e-6)

    def test_nothing_detected(self):
        nothing = np.zeros([2, 3], np.int32), np.zeros([2, 3], bool)
        masks = RegionMasks()(np.zeros([0, 28, 28, 4], np.float32), *nothing)
        np.testing.assert_array_equal(masks, np.zeros([2, 3, 28, 28]))

    def test_unknown_sizes(self):
        masks = RegionMasks()(
            keras.KerasTensor((None, 28, 28, 4)),
            keras.Input((7,), dtype="int32"),
            keras.Input((7,), dtype="bool"),
        )
        assert masks.shape == (None, 7, 28, 28) and masks.dtype == "float32"


def test_fully_connected_head_against_numpy():
    head = MLPMaskHead(3, mask_size=4, fcs=2, units=5)
    pooled = np.random.default_rng(0).normal(size=[6, 2, 2, 7]).astype(np.float32)
    logits = head(pooled)
    hidden = pooled.reshape(6, 28)
    for fc in head.fcs:
        hidden = np.maximum(hidden @ fc.kernel.numpy() + fc.bias.numpy(), 0)
    expected = (hidden @ head.logits.kernel.numpy()).reshape(6, 4, 4, 3)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert head(pooled[:0]).shape == (0, 4, 4, 3)


def test_masks_of_all_classes_and_of_a_softmax():
    random = np.random.default_rng(0)
    logits = random.normal(size=[3, 2, 2, 3]).astype(np.float32)  # two classes and the background
    classes, valid = np.array([[1, 0], [0, 1]]), np.array([[True, True], [False, True]])
    found = RegionMasks("softmax")(logits, classes, valid).numpy()
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found[0, 0], shares[0, ..., 1], rtol=1e-5)
    np.testing.assert_allclose(found[0, 1], shares[1, ..., 0], rtol=1e-5)
    np.testing.assert_allclose(found[1, 1], shares[2, ..., 1], rtol=1e-5)
    assert not found[1, 0].any()
    one = RegionMasks()(logits[..., :1], classes, valid).numpy()
    np.testing.assert_allclose(one[1, 1], 1 / (1 + np.exp(-logits[2, ..., 0])), rtol=1e-5)
