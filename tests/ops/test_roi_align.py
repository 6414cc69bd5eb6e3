"""RoIAlign, stock and compiled, against its rules written out (NUMERICS section 8) and the references."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.ops import multilevel_roi_align, roi_align, roi_levels

pytestmark = pytest.mark.usefixtures("implementation")
STRIDES = [4, 8, 16, 32]
FORWARD, GRADIENT = 2e-5, 6e-5  # largest differences allowed, for features of about unit size
REFERENCE = {"portable": FORWARD, "native": 1e-5}  # of the output from the reference's


def points(box, scale, size, sampling, aligned):
    """Rules 1 to 3: coordinates of all samples along y and x, `[size, sampling]` each, feature pixels."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (float(value) * scale - shift for value in box)
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = max(height, 1.0), max(width, 1.0)
    bins, samples = np.arange(size)[:, None], np.arange(sampling)[None]
    y = y1 + bins * (height / size) + (samples + 0.5) * (height / size) / sampling
    x = x1 + bins * (width / size) + (samples + 0.5) * (width / size) / sampling
    return y, x


def corners(position, size):
    """Rule 4 along one axis: the two pixels and their weights; nothing beyond one pixel outside."""
    if not -1 <= position <= size:
        return []
    position = max(position, 0.0)
    low = int(position)
    if low >= size - 1:
        return [(size - 1, 1.0)]
    return [(low, 1 - (position - low)), (low + 1, position - low)]


def oracle(features, boxes, images, size, scale, sampling, aligned, upstream=None):
    """Rules 1 to 6, sample by sample in float64.

    Returns:
        `[R, size, size, C]`, or with `upstream` of that shape the gradient of the features.
    """
    features = features.astype(np.float64)
    height, width = features.shape[1:3]
    output = np.zeros((len(boxes), size, size, features.shape[3]))
    gradient = np.zeros_like(features)
    for r, (box, image) in enumerate(zip(boxes, images)):
        y, x = points(box, scale, size, sampling, aligned)
        for i, j, iy, ix in np.ndindex(size, size, sampling, sampling):
            for row, wy in corners(y[i, iy], height):
                for column, wx in corners(x[j, ix], width):
                    weight = wy * wx / sampling**2
                    output[r, i, j] += weight * features[image, row, column]
                    if upstream is not None:
                        gradient[image, row, column] += weight * upstream[r, i, j]
    return output if upstream is None else gradient


def with_gradient(features, boxes, images, size, scale, sampling, aligned, upstream):
    features = tf.convert_to_tensor(features)
    with tf.GradientTape() as tape:
        tape.watch(features)
        output = roi_align(features, boxes, images, size, scale, sampling, aligned)
    return output.numpy(), tape.gradient(output, features, upstream).numpy()


def boxes_over_every_edge(height, width):
    """Boxes in pixels of an image of this size: inside, over each side and corner, outside, tiny, empty."""
    h, w = height, width
    parts = [
        (0.21, 0.17, 0.74, 0.83),
        (-0.31, 0.22, 0.38, 0.71),
        (0.63, 0.21, 1.33, 0.69),
        (0.24, -0.37, 0.71, 0.42),
        (0.27, 0.58, 0.73, 1.41),
        (-0.4, -0.3, 0.3, 0.4),
        (0.7, 0.6, 1.3, 1.4),
        (-0.23, -0.27, 1.29, 1.31),
        (-0.9, 0.2, -0.43, 0.7),
        (1.46, 0.2, 1.9, 0.6),
        (0.3, 1.53, 0.6, 1.9),
        (0.5031, 0.5017, 0.5042, 0.5031),
        (0.377, 0.613, 0.377, 0.613),
        (0.61, 0.13, 0.61, 0.87),
        (0.013, 0.011, 0.987, 0.989),
        (0.71, 0.63, 0.37, 0.21),
    ]
    return np.float32([(x1 * w, y1 * h, x2 * w, y2 * h) for x1, y1, x2, y2 in parts])


@pytest.mark.parametrize(
    "size, sampling, scale, height, width",
    [(7, 2, 0.25, 13, 19), (5, 1, 1.0, 8, 9), (3, 3, 0.5, 11, 6), (2, 2, 1 / 16, 5, 7), (1, 2, 0.125, 1, 3)],
)
@pytest.mark.parametrize("aligned", [True, False])
def test_against_the_rules_written_out(size, sampling, scale, height, width, aligned):
    rng = np.random.default_rng(size)
    features = rng.normal(size=(2, height, width, 2)).astype(np.float32)
    boxes = boxes_over_every_edge(height / scale, width / scale)
    images = rng.integers(0, 2, len(boxes)).astype(np.int32)
    upstream = rng.normal(size=(len(boxes), size, size, 2)).astype(np.float32)

    settings = boxes, images, size, scale, sampling, aligned
    output, gradient = with_gradient(features, *settings, upstream)
    expected = oracle(features, *settings)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(output, expected, rtol=0, atol=FORWARD)
    expected = oracle(features, *settings, upstream)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=GRADIENT)


class TestByHand:
    RAMP = (np.arange(6)[:, None] * 10 + np.arange(8)[None]).astype(np.float32)[None, :, :, None]  # 10 y + x

    def test_one_sample_in_the_middle_of_a_pixel(self):
        # aligned: the box (2, 3, 3, 4) is pixel (row 3, column 2); its middle holds exactly that value.
        output = roi_align(self.RAMP, np.float32([[2, 3, 3, 4]]), np.int32([0]), 1, 1.0, 1)
        np.testing.assert_allclose(output.numpy().ravel(), [32], rtol=1e-6)

    def test_legacy_is_half_a_pixel_further(self):
        # without the shift the middle (2.5, 3.5) is read as coordinates of pixel centres: 35 + 2.5
        output = roi_align(self.RAMP, np.float32([[2, 3, 3, 4]]), np.int32([0]), 1, 1.0, 1, aligned=False)
        np.testing.assert_allclose(output.numpy().ravel(), [37.5], rtol=1e-6)

    def test_bins_are_rows_then_columns(self):
        # bins 2 x 2 of the box (1, 1, 5, 3): centres x 2, 4, y 1.5, 2.5, read at minus one half
        output = roi_align(self.RAMP, np.float32([[1, 1, 5, 3]]), np.int32([0]), 2, 1.0, 2)
        np.testing.assert_allclose(output[0, :, :, 0], [[11.5, 13.5], [21.5, 23.5]], rtol=1e-6)

    def test_scale_is_feature_pixels_per_image_pixel(self):
        at_stride_4 = roi_align(self.RAMP, np.float32([[4, 4, 20, 12]]), np.int32([0]), 2, 0.25, 2)
        np.testing.assert_allclose(at_stride_4[0, :, :, 0], [[11.5, 13.5], [21.5, 23.5]], rtol=1e-6)

    def test_samples_outside_count_as_zeros(self):
        # ones of width 8; box x from 7 to 11, one bin, two samples at 7.5 and 9.5: inside and 2 px outside
        ones = np.ones([1, 6, 8, 1], np.float32)
        output = roi_align(ones, np.float32([[7, 1, 11, 5]]), np.int32([0]), 1, 1.0, 2)
        np.testing.assert_allclose(output.numpy().ravel(), [0.5], rtol=1e-6)

    def test_the_border_reaches_half_a_pixel_beyond_the_image(self):
        # samples at x = 8.2 - .5 = 7.7 (border) and 8.7 - .5 = 8.2 > 8 (outside); y the same at both
        ones = np.ones([1, 6, 8, 1], np.float32)
        boxes = np.float32([[8.2, 2, 8.2, 3], [8.45, 2, 8.45, 3], [8.55, 2, 8.55, 3], [-0.45, 2, -0.45, 3]])
        output = roi_align(ones, boxes, np.zeros(4, np.int32), 1, 1.0, 1)
        np.testing.assert_allclose(output.numpy().ravel(), [1, 1, 0, 1], rtol=1e-6)

    def test_legacy_boxes_are_at_least_one_feature_pixel_wide(self):
        # the empty box at (3, 2) becomes (3, 2, 4, 3); one sample at its middle (3.5, 2.5): 25 + 3.5
        output = roi_align(self.RAMP, np.float32([[3, 2, 3, 2]]), np.int32([0]), 1, 1.0, 1, aligned=False)
        np.testing.assert_allclose(output.numpy().ravel(), [28.5], rtol=1e-6)


class TestInvariance:
    def setup_method(self):
        rng = np.random.default_rng(3)
        self.features = rng.normal(size=(1, 9, 12, 3)).astype(np.float32)
        self.boxes = np.float32([[9.3, 8.1, 30.2, 22.4], [12, 12, 28, 20]])
        self.images = np.zeros(2, np.int32)

    def test_moved_by_one_feature_pixel(self):
        moved = np.roll(self.features, (1, 1), (1, 2))
        before = roi_align(self.features, self.boxes, self.images, 4, 0.25)
        after = roi_align(moved, self.boxes + 4, self.images, 4, 0.25)
        np.testing.assert_allclose(after, before, atol=FORWARD)

    def test_transposed(self):
        before = roi_align(self.features, self.boxes, self.images, 4, 0.25).numpy()
        swapped = np.transpose(self.features, (0, 2, 1, 3))
        after = roi_align(swapped, self.boxes[:, [1, 0, 3, 2]], self.images, 4, 0.25)
        np.testing.assert_allclose(after, np.transpose(before, (0, 2, 1, 3)), atol=FORWARD)

    def test_flipped(self):
        # an aligned box of the flipped image: x -> W - x (W = 48 px)
        before = roi_align(self.features, self.boxes, self.images, 4, 0.25).numpy()
        boxes = self.boxes.copy()
        boxes[:, [0, 2]] = 48 - self.boxes[:, [2, 0]]
        after = roi_align(self.features[:, :, ::-1], boxes, self.images, 4, 0.25)
        np.testing.assert_allclose(after, before[:, :, ::-1], atol=FORWARD)

    def test_half_the_image_and_half_the_box(self):
        # a plane, sampled at pixel centres: at half size the pixel i holds the plane at 2 i + 1/2.
        full = np.fromfunction(lambda y, x: 3 * (x + 0.5) - 2 * (y + 0.5), (16, 20))
        half = np.fromfunction(lambda y, x: 3 * (2 * x + 1) - 2 * (2 * y + 1), (8, 10))
        box = np.float32([[4, 3, 15, 12.5]])
        crops = [
            roi_align(np.float32(plane)[None, ..., None], box / divisor, np.int32([0]), 5, 1.0)
            for plane, divisor in ((full, 1), (half, 2))
        ]
        np.testing.assert_allclose(crops[1], crops[0], atol=1e-4)


class TestNothing:
    FEATURES = tf.constant(np.random.default_rng(0).normal(size=(1, 6, 6, 2)), tf.float32)

    def test_no_boxes(self):
        boxes, images = np.zeros([0, 4], np.float32), np.zeros([0], np.int32)
        output, gradient = with_gradient(
            self.FEATURES, boxes, images, 7, 0.25, 2, True, np.zeros([0, 7, 7, 2], np.float32)
        )
        assert output.shape == (0, 7, 7, 2)
        np.testing.assert_array_equal(gradient, np.zeros([1, 6, 6, 2]))

    def test_wholly_outside_is_zero(self):
        boxes = np.float32([[-50, 0, -30, 6], [1e6, 1e6, 2e6, 2e6]])
        output = roi_align(self.FEATURES, boxes, np.int32([0, 0]), 3, 1.0)
        np.testing.assert_array_equal(output, np.zeros([2, 3, 3, 2]))

    def test_nan_is_zero_and_spares_the_others(self):
        boxes = np.float32([[np.nan, 1, 4, 5], [1, 1, 5, 5], [1, 1, 5, np.nan]])
        output = roi_align(self.FEATURES, boxes, np.zeros(3, np.int32), 3, 1.0).numpy()
        np.testing.assert_array_equal(output[[0, 2]], np.zeros([2, 3, 3, 2]))
        np.testing.assert_array_equal(
            output[1:2], roi_align(self.FEATURES, boxes[1:2], np.int32([0]), 3, 1.0)
        )


class TestGradientOfManyRegionsOnOnePlace:
    """Threads that add to the same pixels must not lose each other's sums."""

    def test_every_run_gives_the_same_sum(self):
        features = tf.ones([1, 8, 8, 64])
        boxes = tf.tile(tf.constant([[1.0, 1.0, 7.0, 7.0]]), [400, 1])
        images = tf.zeros([400], tf.int32)
        for _ in range(10):
            with tf.GradientTape() as tape:
                tape.watch(features)
                total = tf.reduce_sum(roi_align(features, boxes, images, 7, 1.0))
            # each of 400 regions spreads 1 for each of its 49 bins and 64 channels
            gradient = tape.gradient(total, features)
            np.testing.assert_allclose(float(tf.reduce_sum(gradient)), 400 * 49 * 64, rtol=1e-5)


class TestDtypes:
    def test_no_gradient_to_the_boxes(self):
        boxes = tf.Variable([[1.0, 1.0, 5.0, 5.0]])
        with tf.GradientTape() as tape:
            output = roi_align(TestNothing.FEATURES, boxes, [0], 3, 1.0)
        assert tape.gradient(output, boxes) is None

    def test_bfloat16_features_keep_exact_boxes(self):
        wide = np.zeros([1, 4, 1030, 1], np.float32)
        wide[0, :, 1001] = 1  # the pixel [1001, 1002]; as bfloat16 the box would begin at 1000
        box = np.float32([[1001, 1, 1002, 2]])
        output = roi_align(tf.cast(wide, tf.bfloat16), box, [0], 1, 1.0, 1)
        assert output.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(output, tf.float32).numpy().ravel(), [1], atol=1e-2)

    def test_unknown_sizes_in_a_graph(self):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, None, 2]),
                tf.TensorSpec([None, 4]),
                tf.TensorSpec([None], tf.int32),
            ]
        )
        def traced(features, boxes, images):
            output = roi_align(features, boxes, images, 3, 0.5)
            assert output.shape.as_list() == [None, 3, 3, 2]
            return output

        boxes = np.float32([[1, 2, 9, 8], [0, 0, 4, 4]])
        eager = roi_align(TestNothing.FEATURES, boxes, [0, 0], 3, 0.5)
        np.testing.assert_allclose(traced(TestNothing.FEATURES, boxes, [0, 0]), eager, atol=1e-6)


class TestParity:
    @pytest.mark.parametrize("case", [*(f"c{number}" for number in range(13)), "ramp", "no_rois"])
    def test_forward_and_gradient(self, shared, case, implementation):
        data = np.load(shared / "parity/ops/roi_align.npz")
        about = json.loads((shared / "parity/ops/roi_align.json").read_text())[case]

        def channels_last(name):
            return np.ascontiguousarray(np.moveaxis(data[f"{case}/{name}"], 1, 3))

        rois, features = data[f"{case}/rois"], channels_last("input")
        expected = channels_last("output")
        trained = f"{case}/grad_output" in data
        output, gradient = with_gradient(
            features,
            rois[:, 1:],
            rois[:, 0].astype(np.int32),
            about["output_size"],
            about["spatial_scale"],
            about["sampling_ratio"],
            about["aligned"],
            channels_last("grad_output") if trained else np.zeros_like(expected),
        )
        np.testing.assert_allclose(output, expected, rtol=0, atol=REFERENCE[implementation])
        spread = channels_last("grad_input") if trained else np.zeros_like(features)
        np.testing.assert_allclose(gradient, spread, rtol=0, atol=GRADIENT)


class TestLevels:
    def test_by_hand(self):
        # 4 + log2(sqrt(w h) / 224): 224 -> 4 (index 2), 112 -> 3, 447 -> 4, 448 -> 5, 56 -> 2, 900 -> 6 -> 5
        sides = np.float32([224, 112, 447, 448, 56, 55, 3, 900, 223.9, 111.9])
        boxes = np.stack([0 * sides, 0 * sides + 7, sides, sides + 7], -1)
        np.testing.assert_array_equal(roi_levels(boxes, 4), [2, 1, 2, 3, 0, 0, 0, 3, 1, 0])

    def test_the_area_counts_and_not_the_longer_side(self):
        # sqrt(448 * 112) = 224; sqrt(448 * 28) = 112; sqrt(900 * 10) = 95
        boxes = np.float32([[0, 0, 448, 112], [0, 0, 28, 448], [0, 0, 900, 10]])
        np.testing.assert_array_equal(roi_levels(boxes, 4), [2, 1, 0])

    def test_no_area_and_reversed_boxes_take_the_finest_level(self):
        boxes = np.float32([[5, 5, 5, 5], [500, 500, 5, 5], [0, 0, 400, 0]])
        np.testing.assert_array_equal(roi_levels(boxes, 4), [0, 0, 0])

    def test_parity(self, shared):
        data = np.load(shared / "parity/ops/multiscale.npz")
        levels = roi_levels(data["levels/boxes"], 4)  # those exactly on a boundary included
        np.testing.assert_array_equal(levels, data["levels/detectron2"])


class TestMultilevel:
    def test_each_box_on_its_level_in_the_given_order(self):
        rng = np.random.default_rng(5)
        pyramid = [rng.normal(size=(2, 256 >> k, 320 >> k, 2)).astype(np.float32) for k in range(2, 6)]
        corner, side = rng.uniform(-20, 150, (12, 2)), np.geomspace(8, 700, 12)[:, None] * [1, 0.8]
        boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)[rng.permutation(12)]
        images = rng.integers(0, 2, 12).astype(np.int32)
        output = multilevel_roi_align(pyramid, boxes, images, 3, STRIDES)
        levels = roi_levels(boxes, 4).numpy()
        assert set(levels) == {0, 1, 2, 3}
        for r, level in enumerate(levels):
            place = boxes[r : r + 1], images[r : r + 1]
            expected = oracle(pyramid[level], *place, 3, 1 / STRIDES[level], 2, True)
            np.testing.assert_allclose(output[r], expected[0], rtol=0, atol=FORWARD)

    @pytest.mark.parametrize("sampling", [2, 0])
    @pytest.mark.parametrize("eager", [True, False])
    def test_no_boxes(self, sampling, eager):
        align = multilevel_roi_align if eager else tf.function(multilevel_roi_align)
        features = tf.ones([1, 8, 8, 3])
        with tf.GradientTape() as tape:
            tape.watch(features)
            output = align([features] * 4, tf.zeros([0, 4]), tf.zeros([0], tf.int32), 7, STRIDES, sampling)
        assert output.shape == (0, 7, 7, 3)
        np.testing.assert_array_equal(tape.gradient(output, features), np.zeros([1, 8, 8, 3]))

    def test_nan_keeps_its_row(self):
        pyramid = [tf.ones([1, 64 >> k, 64 >> k, 3]) for k in range(4)]
        boxes = np.float32([[10, 10, 60, 60], [np.nan, 1, 4, 5], [10, 10, 200, 200], [np.nan] * 4])
        output = multilevel_roi_align(pyramid, boxes, np.zeros(4, np.int32), 2, STRIDES)
        expected = np.float32([1, 0, 1, 0])[:, None, None, None] * np.ones([4, 2, 2, 3])
        np.testing.assert_allclose(output, expected, atol=1e-6)

    @pytest.mark.parametrize(
        "name, size, sampling, aligned",
        [("tv_pool", 7, 2, False), ("d2_pool_v2", 7, 0, True), ("d2_pool_v1", 5, 2, False)],
    )
    def test_parity(self, shared, name, size, sampling, aligned, implementation):
        data = np.load(shared / "parity/ops/multiscale.npz")
        pyramid = [np.moveaxis(data[f"tv_pool/p{k}"], 1, 3) for k in range(2, 6)]
        boxes, images = data["tv_pool/boxes"], data["tv_pool/image_index"]
        output = multilevel_roi_align(pyramid, boxes, images, size, STRIDES, sampling, aligned)
        expected = np.moveaxis(data[f"{name}/output"], 1, 3)
        np.testing.assert_allclose(output, expected, rtol=0, atol=REFERENCE[implementation])
