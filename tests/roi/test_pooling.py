"""Valid regions to features of one size, and the way there and back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.ops import roi_align
from keras_mrcnn.roi.pooling import RoIPooling, put_valid, take_valid

VALID = np.array([[True, False, True, False], [False, False, False, False], [False, True, True, True]])
BOXES = np.float32(
    [
        [[4, 4, 60, 60], [0] * 4, [10, 20, 300, 250], [0] * 4],
        [[0] * 4] * 4,
        [[0] * 4, [5, 8, 118, 130], [-10, -10, 30, 20], [40, 0, 700, 800]],
    ]
)


def pyramid(rng, channels=2, size=512):
    return [
        rng.normal(size=(3, size // 2**k, size // 2**k, channels)).astype(np.float32) for k in (2, 3, 4, 5, 6)
    ]


def test_rows_are_the_valid_regions_of_all_images_in_order():
    maps = pyramid(np.random.default_rng(0))
    pooled = RoIPooling(pool_size=3, sampling_ratio=2)(maps, BOXES, VALID)
    # sides 56, 269, 117, 35, 727: levels P2, P4, P3, P2, P5
    expected = [(0, 0, 0), (0, 2, 2), (2, 1, 1), (2, 2, 0), (2, 3, 3)]
    assert pooled.shape == (5, 3, 3, 2)
    for row, (image, region, level) in enumerate(expected):
        alone = roi_align(maps[level], BOXES[image, region][None], [image], 3, 1 / 2 ** (level + 2), 2)
        np.testing.assert_allclose(pooled[row], alone[0], atol=1e-5)


def test_the_sampling_ratio_is_used():
    maps = pyramid(np.random.default_rng(1))
    one, two = (RoIPooling(2, sampling_ratio=ratio)(maps, BOXES, VALID).numpy() for ratio in (1, 2))
    assert np.abs(one - two).max() > 0.1


@pytest.mark.parametrize(
    "operation, reduction",
    [("align", "maximum"), ("warp", "average"), ("warp", "maximum"), ("pool", "maximum")],
)
def test_the_mode_is_used(operation, reduction):
    maps = pyramid(np.random.default_rng(3))
    mode = dict(operation=operation, reduction=reduction)
    pooled = RoIPooling(3, **mode)(maps, BOXES, VALID)
    np.testing.assert_array_equal(pooled[1], roi_align(maps[2], BOXES[:1, 2], [0], 3, 1 / 16, **mode)[0])
    assert np.abs(pooled - RoIPooling(3)(maps, BOXES, VALID)).max() > 0.1


def test_one_map_takes_every_region():
    maps = pyramid(np.random.default_rng(4))
    pooled = RoIPooling(3, strides=[8])(maps[1:], BOXES, VALID)
    alone = roi_align(maps[1], BOXES[VALID], [0, 0, 2, 2, 2], 3, 1 / 8)
    np.testing.assert_array_equal(pooled, alone)
    assert np.abs(alone).max(axis=(1, 2, 3)).min() > 0.1


def test_fewer_maps_than_strides():
    with pytest.raises(ValueError, match=r"\[4, 8, 16, 32\] for 3 maps"):
        RoIPooling(3)(pyramid(np.random.default_rng(0))[:3], BOXES, VALID)


@pytest.mark.parametrize("operation", ["align", "warp", "pool"])
def test_saved_in_a_model(operation, tmp_path):
    maps = pyramid(np.random.default_rng(5))[2:3]
    inputs = keras.Input((None, None, 2)), keras.Input((4, 4)), keras.Input((4,), dtype="bool")
    layer = RoIPooling(3, [16], 0, operation=operation, reduction="maximum")
    model = keras.Model(inputs, layer([inputs[0]], *inputs[1:]))
    assert model.output_shape == (None, 3, 3, 2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", {"RoIPooling": RoIPooling})
    pooled = again.predict_on_batch([*maps, BOXES, VALID])
    np.testing.assert_allclose(pooled, layer(maps, BOXES, VALID), atol=1e-6)


def test_p6_is_not_pooled_from():
    maps = pyramid(np.random.default_rng(2))
    huge = np.float32([[[-900, -900, 2000, 2000]]] * 3)  # 2900 px: level 7 of the rule
    valid = np.ones([3, 1], bool)
    pooled = RoIPooling(3)(maps, huge, valid)
    np.testing.assert_allclose(pooled, roi_align(maps[3], huge[:, 0], [0, 1, 2], 3, 1 / 32), atol=1e-5)
    np.testing.assert_array_equal(RoIPooling(3)(maps[:4], huge, valid), pooled)


def test_no_region():
    features = [tf.ones([2, 8 // k, 8 // k, 3]) for k in (1, 2, 4, 8)]
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = RoIPooling(7)(features, np.zeros([2, 5, 4], np.float32), np.zeros([2, 5], bool))
    assert pooled.shape == (0, 7, 7, 3)
    for gradient, level in zip(tape.gradient(pooled, features), features):
        np.testing.assert_array_equal(gradient, tf.zeros_like(level))
    none = np.zeros([2, 0, 4], np.float32), np.zeros([2, 0], bool)
    assert RoIPooling(7)(features, *none).shape == (0, 7, 7, 3)


def test_mixed_precision_keeps_coordinates():
    wide = np.zeros([1, 4, 1026, 1], np.float32)
    wide[0, :, 1001] = 1
    maps = [tf.cast(wide, tf.bfloat16)] * 4
    layer = RoIPooling(1, sampling_ratio=1, dtype="mixed_bfloat16")
    # P2 pixel 1001 is [4004, 4008]; as bfloat16, 4004 and 4008 would become 4000
    pooled = layer(maps, np.float32([[[4004, 4, 4008, 8]]]), np.array([[True]]))
    assert pooled.dtype == "bfloat16"
    np.testing.assert_allclose(tf.cast(pooled, tf.float32).numpy().ravel(), [1], atol=1e-2)


def test_unknown_sizes():
    maps = [keras.Input((None, None, 6)) for _ in range(5)]
    pooled = RoIPooling(7)(maps, keras.Input((None, 4)), keras.Input((None,), dtype="bool"))
    assert pooled.shape == (None, 7, 7, 6)


class TestRows:
    def test_by_hand(self):
        values = np.float32([[[1], [2], [3]], [[4], [5], [6]]])
        valid = np.array([[False, True, True], [True, False, False]])
        rows = take_valid(values, valid)
        np.testing.assert_array_equal(rows, [[2], [3], [4]])
        np.testing.assert_array_equal(put_valid(rows * 10, valid), [[[0], [20], [30]], [[40], [0], [0]]])

    def test_there_and_back(self):
        values = np.random.default_rng(0).normal(size=(3, 4, 2, 5)).astype(np.float32)
        back = put_valid(take_valid(values, VALID), VALID)
        np.testing.assert_array_equal(back, np.where(VALID[..., None, None], values, 0))

    def test_values_without_further_axes(self):
        numbers = np.arange(12, dtype=np.int32).reshape(3, 4)
        rows = take_valid(numbers, VALID)
        np.testing.assert_array_equal(rows, [0, 2, 9, 10, 11])
        np.testing.assert_array_equal(put_valid(rows, VALID), np.where(VALID, numbers, 0))

    def test_nothing(self):
        rows = take_valid(np.ones([2, 3, 4], np.float32), np.zeros([2, 3], bool))
        assert rows.shape == (0, 4)
        np.testing.assert_array_equal(put_valid(rows, np.zeros([2, 3], bool)), np.zeros([2, 3, 4]))
