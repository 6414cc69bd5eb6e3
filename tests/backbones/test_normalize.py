"""Pixels to what the backbone's weights expect (NUMERICS section 2: normalise first, then pad with zeros)."""

import keras
import numpy as np
import pytest

from keras_mrcnn.backbones.normalize import Normalize

MEAN, STD = (100.0, 110.0, 120.0), (50.0, 40.0, 20.0)


def test_by_hand():
    images = np.tile(np.uint8([200, 110, 90]), (1, 32, 32, 1))
    output = Normalize(MEAN, STD)(images, np.int32([[32, 32]]))
    # (200 - 100) / 50, (110 - 110) / 40, (90 - 120) / 20
    np.testing.assert_allclose(output, np.tile(np.float32([2, 0, -1.5]), (1, 32, 32, 1)), rtol=1e-6)


def test_against_loops_with_a_size_for_each_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 40, 33, 3)).astype(np.uint8)
    sizes = np.int32([[40, 33], [17, 30], [33, 1]])
    output = Normalize(MEAN, STD)(images, sizes).numpy()
    assert output.shape == (3, 64, 64, 3) and output.dtype == np.float32
    expected = np.zeros((3, 64, 64, 3))
    for image, (height, width) in enumerate(sizes):
        for i, j in np.ndindex(height, width):
            expected[image, i, j] = (images[image, i, j] - np.float64(MEAN)) / STD
    np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize("fill", [0, 77, 255, np.nan, np.inf])
def test_padding_has_no_influence(fill):
    images = np.random.default_rng(1).uniform(0, 255, (1, 32, 64, 3)).astype(np.float32)
    sizes = np.int32([[20, 45]])
    layer = Normalize(MEAN, STD)
    expected = layer(images, sizes).numpy()
    images[:, 20:], images[:, :, 45:] = fill, fill
    np.testing.assert_array_equal(layer(images, sizes), expected)
    assert not expected[:, 20:].any() and not expected[:, :, 45:].any()


@pytest.mark.parametrize("size, padded", [((32, 64), (32, 64)), ((1, 33), (32, 64)), ((63, 31), (64, 32))])
def test_multiples_of_32(size, padded):
    output = Normalize(MEAN, STD)(np.full([1, *size, 3], 9.0, np.float32), np.int32([size]))
    assert output.shape == (1, *padded, 3)
    inside = np.broadcast_to((9 - np.float32(MEAN)) / STD, (1, *size, 3))
    np.testing.assert_allclose(output[:, : size[0], : size[1]], inside, rtol=1e-5)
    assert not output[:, size[0] :].numpy().any() and not output[:, :, size[1] :].numpy().any()


def test_unknown_sizes():
    output = Normalize(MEAN, STD)(keras.Input((None, None, 3)), keras.Input((2,), dtype="int32"))
    assert output.shape == (None, None, None, 3)


def test_mixed_precision_subtracts_before_it_rounds():
    # bfloat16 knows 200 and 201 and nothing between; 200.6 - 200.5 = 0.1 must survive
    images = np.full([1, 32, 32, 3], 200.6, np.float32)
    layer = Normalize([200.5] * 3, [1.0] * 3, dtype="mixed_bfloat16")
    output = layer(images, np.int32([[32, 32]]))
    assert output.dtype == "bfloat16"
    np.testing.assert_allclose(keras.ops.cast(output, "float32"), np.full([1, 32, 32, 3], 0.1), rtol=1e-2)


def test_whole_numbers_serve_as_constants():
    images = np.full([1, 32, 32, 3], 101, np.uint8)
    output = Normalize([100, 100, 100], [1, 1, 1])(images, np.int32([[32, 32]]))
    np.testing.assert_array_equal(output, np.ones([1, 32, 32, 3]))
