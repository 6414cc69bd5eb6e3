"""RoIPool, stock and compiled, against answers worked by hand and the references."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.ops import multilevel_roi_align, roi_align

pytestmark = pytest.mark.usefixtures("implementation")
RAMP = (np.arange(6)[:, None] * 10 + np.arange(8)).astype(np.float32)[None, :, :, None]  # 10 y + x


def roi_pool(features, boxes, images, size, scale=1.0):
    return roi_align(features, boxes, images, size, scale, operation="pool", reduction="maximum")


def one(box, size, features=RAMP):
    return roi_pool(features, np.float32([box]), [0], size)[0, :, :, 0]


class TestByHand:
    def test_both_corners_are_inside(self):
        # corners round to (1, 1) and (5, 2): pixels 1..5 and 1..2; the largest is the last, 10 * 2 + 5
        np.testing.assert_array_equal(one([1.4, 0.6, 5.3, 2.4], 1), [[25]])

    def test_bins_are_widened_to_whole_pixels(self):
        # x from 1 to 5, 5 pixels in 2 bins of 2.5: [1 + 0, 1 + 3) and [1 + 2, 1 + 5): pixel 3 is in both
        row = np.zeros([1, 1, 8, 1], np.float32)
        row[0, 0, 3] = 9
        np.testing.assert_array_equal(one([1, 0, 5, 0], [1, 2], row), [[9, 9]])
        np.testing.assert_array_equal(one([1, 0, 5, 2], [1, 2]), [[23, 25]])

    def test_halves_are_rounded_away_from_zero(self):
        # 1.5 -> 2 and 2.5 -> 3; -0.5 -> -1, whose pixel does not count; just below a half -> 0
        np.testing.assert_array_equal(one([1.5, 2.5, 1.5, 2.5], 1), [[32]])
        np.testing.assert_array_equal(one([-0.5, 0, -0.5, 0], 1), [[0]])
        below = np.nextafter(np.float32(0.5), np.float32(0))  # + 0.5 is 1 in float32
        np.testing.assert_array_equal(one([0, 0, below, below], 1), [[0]])

    def test_every_box_has_a_pixel(self):
        np.testing.assert_array_equal(one([3, 2, 3, 2], 1), [[23]])
        np.testing.assert_array_equal(one([3, 2, 1, 0], 1), [[23]])  # reversed: one pixel from its start

    def test_negative_pixels_and_empty_bins(self):
        # x from -2 to 1, 4 pixels in 2 bins: [-2, 0) is not on the map, [0, 2) is
        np.testing.assert_array_equal(one([-2, 1, 1, 1], [1, 2], -RAMP - 1), [[0, -11]])

    def test_the_first_of_equal_pixels_takes_the_gradient(self):
        features = tf.constant([[0.0, 7, 7], [7, 0, 7]])[tf.newaxis, :, :, tf.newaxis]
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_pool(features, [[0.0, 0, 2, 1]], [0], 1)
        np.testing.assert_array_equal(tape.gradient(pooled, features)[0, :, :, 0], [[0, 1, 0], [0, 0, 0]])

    def test_a_shared_pixel_takes_the_gradient_of_both_bins(self):
        features = tf.constant([0.0, 0, 0, 9, 0, 0])[tf.newaxis, tf.newaxis, :, tf.newaxis]
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_pool(features, [[1.0, 0, 5, 0]], [0], [1, 2])
        gradient = tape.gradient(pooled, features, tf.reshape([2.0, 3.0], pooled.shape))
        np.testing.assert_array_equal(gradient[0, 0, :, 0], [0, 0, 0, 5, 0, 0])


def test_what_is_nowhere_is_zero():
    features = tf.ones([1, 6, 8, 2])
    boxes = [[np.nan] * 4, [1, np.inf, 3, 4], [-50, 0, -30, 5], [1, 1, 4, 4], [1e9, 1e9, 2e9, 2e9]]
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = roi_pool(features, np.float32(boxes), [0] * 5, 2)
    expected = np.float32([0, 0, 0, 1, 0])[:, None, None, None] * np.ones([5, 2, 2, 2])
    np.testing.assert_array_equal(pooled, expected)
    assert float(tf.reduce_sum(tape.gradient(pooled, features))) == 8  # 2 x 2 bins, 2 channels


def channels_last(array):
    return tf.constant(np.moveaxis(array, 1, 3))


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3"])
def test_parity(shared, case, graph):
    data = np.load(shared / "parity/ops/roi_pool.npz")
    about = json.loads((shared / "parity/ops/roi_pool.json").read_text())[case]
    features, rois = channels_last(data[f"{case}/input"]), data[f"{case}/rois"]

    def both(features, upstream):
        with tf.GradientTape() as tape:
            tape.watch(features)
            place = rois[:, 1:], rois[:, 0].astype(np.int32), about["output_size"], about["spatial_scale"]
            pooled = roi_pool(features, *place)
        return pooled, tape.gradient(pooled, features, upstream)

    both = tf.function(both) if graph else both
    pooled, gradient = both(features, channels_last(data[f"{case}/grad_output"]))
    np.testing.assert_array_equal(pooled, channels_last(data[f"{case}/output"]))
    np.testing.assert_allclose(gradient, channels_last(data[f"{case}/grad_input"]), rtol=0, atol=1e-5)


def test_parity_of_levels(shared):
    data = np.load(shared / "parity/ops/multiscale.npz")
    pyramid = [channels_last(data[f"tv_pool/p{k}"]) for k in range(2, 6)]
    regions = data["tv_pool/boxes"], data["tv_pool/image_index"]
    how = dict(operation="pool", reduction="maximum")
    pooled = multilevel_roi_align(pyramid, *regions, 7, [4, 8, 16, 32], **how)
    np.testing.assert_array_equal(pooled, channels_last(data["d2_pool_roipool/output"]))
