"""RoIWarp, RoIPool and the largest sample, stock and compiled, against their rules written out."""

import numpy as np
import pytest
import tensorflow as tf

from custom_ops.c_library import Settings
from keras_mrcnn.ops import library, multilevel_roi_align, roi_align
from tests.custom_ops.slow_roi import METHODS, REDUCTIONS, gradient_for, random_case, reference

STRIDES = [4, 8, 16, 32]
MODES = {
    "align": ("aligned", "average"),
    "align maximum": ("aligned", "maximum"),
    "legacy": ("legacy", "average"),
    "legacy maximum": ("legacy", "maximum"),
    "warp": ("warp", "average"),
    "warp maximum": ("warp", "maximum"),
    "pool": ("pool", "maximum"),
}
both_implementations = pytest.mark.usefixtures("implementation")
RATIOS = [0, 2, *(pytest.param(ratio, marks=pytest.mark.proof) for ratio in (1, 3))]
every_mode = pytest.mark.parametrize("mode", MODES)


def arguments(mode):
    method, reduction = MODES[mode]
    operation = method if method in ("warp", "pool") else "align"
    return {"aligned": method == "aligned", "operation": operation, "reduction": reduction}


def with_gradient(features, upstream, *place, **how):
    """The pooled regions, and the gradient to the features: of any size where `how` asks for a `graph`."""
    graph = how.pop("graph", False)

    def both(features, upstream, boxes, images):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(features, boxes, images, *place[2:], **how)
        return pooled, tape.gradient(pooled, features, upstream)

    given = [tf.convert_to_tensor(part) for part in (features, upstream, *place[:2])]
    if graph:
        specs = [
            tf.TensorSpec([None] * (tensor.shape.rank - 1) + tensor.shape[-1:], tensor.dtype)
            for tensor in given
        ]
        specs[-1] = tf.TensorSpec([None], tf.int32)
        both = tf.function(both, input_signature=specs)
    return [tensor.numpy() for tensor in both(*given)]


@both_implementations
@every_mode
@pytest.mark.parametrize("ratio", RATIOS)
def test_against_the_rules_written_out(mode, ratio):
    rng = np.random.default_rng(ratio)
    features, boxes, images = random_case(rng, regions=24)
    method, reduction = MODES[mode]
    settings = Settings((3, 2), (0.25,), ratio, METHODS[method], REDUCTIONS[reduction])
    upstream = gradient_for(rng, settings, features, boxes)
    expected, (expected_gradient,) = reference(settings, features, boxes, images, upstream)
    assert np.count_nonzero(expected) > expected.size / 3 and np.abs(expected_gradient).max() > 1
    how = dict(**arguments(mode), sampling_ratio=ratio)
    pooled, gradient = with_gradient(features[0], upstream, boxes, images, [3, 2], 0.25, **how)
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-4)


@every_mode
@pytest.mark.parametrize(
    "graph", [pytest.param(False, id="eager", marks=pytest.mark.proof), pytest.param(True, id="graph")]
)
@pytest.mark.parametrize("ratio", RATIOS)
def test_stock_equals_compiled(native, mode, ratio, graph):
    """With zeros in most places, as after a ReLU, and samples on whole pixels and on the border.

    The average of RoIAlign has no samples there: crop_and_resize decides on the last bit otherwise.
    """
    rng = np.random.default_rng(ratio)
    features, boxes, images = random_case(rng, regions=30, shape=(2, 21, 26, 4), reach=100)
    if mode not in ("align", "legacy"):
        boxes[10:] = np.round(boxes[10:] / 4) * 4
    features = np.maximum(features[0], 0)
    upstream = rng.normal(size=(30, 7, 7, 4)).astype(np.float32)
    how = dict(**arguments(mode), sampling_ratio=ratio)
    case = features, upstream, boxes, images, 7, 0.25
    expected = with_gradient(*case, **how)
    with library.stock_operations():
        pooled, gradient = with_gradient(*case, **how, graph=graph)
    assert expected[0].max() > 1 and np.abs(expected[1]).max() > 1
    exact = how["reduction"] == "maximum"  # the same sample is the largest, to the last bit
    np.testing.assert_allclose(pooled, expected[0], rtol=0, atol=0 if exact else 1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-4)


@every_mode
def test_stock_equals_compiled_on_a_pyramid(native, mode):
    rng = np.random.default_rng(5)
    pyramid = [tf.constant(rng.normal(size=(2, 256 >> k, 320 >> k, 3)), tf.float32) for k in range(2, 6)]
    corner, side = rng.uniform(-40, 200, (30, 2)), np.geomspace(5, 900, 30)[:, None]
    boxes = np.float32(np.concatenate([corner, corner + side * rng.uniform(0.7, 1.4, (30, 2))], 1))
    images, upstream = rng.integers(0, 2, 30).astype(np.int32), tf.random.normal([30, 3, 3, 3])

    def both():
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            pooled = multilevel_roi_align(pyramid, boxes, images, 3, STRIDES, **arguments(mode))
        return pooled, *tape.gradient(pooled, pyramid, upstream)

    expected = both()
    with library.stock_operations():
        pooled, *gradients = both()
    np.testing.assert_allclose(pooled, expected[0], rtol=0, atol=3e-5)  # positions are up to 80 here
    for ours, theirs in zip(gradients, expected[1:]):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@both_implementations
@pytest.mark.parametrize("mode", ["align", "legacy", "warp"])
def test_adaptive_samples_are_counted_the_same_in_a_graph(mode):
    """Where a bin is a whole number of pixels long, the last bit decides between n and n + 1 samples."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 64, 64, 1)).astype(np.float32)
    ends = np.arange(1, 57, dtype=np.float32)
    boxes, images = np.stack([0 * ends, 0 * ends, ends, ends[::-1]], 1), np.zeros(56, np.int32)
    case = features, np.zeros([56, 7, 7, 1], np.float32), boxes, images, 7, 1.0
    how = dict(**arguments(mode), sampling_ratio=0)
    eager, _ = with_gradient(*case, **how)
    graph, _ = with_gradient(*case, **how, graph=True)
    np.testing.assert_allclose(graph, eager, rtol=0, atol=2e-5)


@both_implementations
class TestByHand:
    RAMP = (np.arange(6)[:, None] * 10 + np.arange(8)).astype(np.float32)[None, :, :, None]  # 10 y + x
    BOX = np.float32([[1.4, 0.6, 5.3, 2.4]])

    def value(self, box=BOX, **how):
        return float(roi_align(self.RAMP, box, [0], 1, 1.0, **how)[0, 0, 0, 0])

    def test_the_largest_sample(self):
        # two samples a side, x 1.4 + 3.9 (1/4, 3/4) = 2.375, 4.325 and y 1.05, 1.95, less one half
        assert self.value(reduction="maximum") == pytest.approx(10 * 1.45 + 3.825, abs=1e-5)
        assert self.value(reduction="maximum", aligned=False) == pytest.approx(10 * 1.95 + 4.325, abs=1e-5)

    @pytest.mark.parametrize("aligned", [True, False])  # without effect
    def test_warp(self, aligned):
        # corners (1, 1) and (5, 2); no + 1: the middle is (3, 1.5), the last sample 1 + 3/4 of 4 and of 1
        how = dict(operation="warp", aligned=aligned)
        assert self.value(**how) == pytest.approx(10 * 1.5 + 3, abs=1e-5)
        assert self.value(**how, reduction="maximum") == pytest.approx(10 * 1.75 + 4, abs=1e-5)
        # adaptive: 4 samples along x and 1 along y: the largest at 1 + 7/8 of 4 and 1 + 1/2
        how |= dict(reduction="maximum", sampling_ratio=0)
        assert self.value(**how) == pytest.approx(10 * 1.5 + 4.5, abs=1e-5)

    def test_warp_rounds_halves_away_from_zero(self):
        # (2.5, 0.5) -> (3, 1), and at least one pixel: the middle is (3.5, 1.5)
        assert self.value(np.float32([[2.5, 0.5, 2.5, 0.5]]), operation="warp") == pytest.approx(18.5)
        # -0.5 -> -1, to 1: samples at -0.5, read as 0, and 0.5: 0.25 on average; y 0 to 1: 0.5
        assert self.value(np.float32([[-0.5, 0, 1, 1]]), operation="warp") == pytest.approx(5.25)

    def test_a_sample_on_the_border_counts(self):
        # warp, one sample, at the middle: x = -1 (box from -3 to 1) is as far outside as a map reaches
        how = dict(operation="warp", sampling_ratio=1)
        assert self.value(np.float32([[-3, 2, 1, 4]]), **how) == pytest.approx(30)
        assert self.value(np.float32([[-4, 2, 1, 4]]), **how) == 0
        # and x = 8, the width, on the other side: the last column is 7
        assert self.value(np.float32([[6, 2, 10, 4]]), **how) == pytest.approx(37)
        assert self.value(np.float32([[6, 2, 11, 4]]), **how) == 0

    def test_outside_is_a_zero_among_the_samples(self):
        # two samples along x, at 7.5 (inside) and 9.5: of -1 and 0 the largest is 0
        box = np.float32([[7, 1, 11, 3]])
        features = -np.ones([1, 6, 8, 1], np.float32)
        for operation in ("align", "warp"):
            pooled = roi_align(features, box, [0], 1, 1.0, operation=operation, reduction="maximum")
            np.testing.assert_array_equal(pooled, [[[[0]]]])

    def test_the_gradient_goes_to_the_pixels_of_the_first_largest_sample(self):
        # warp of x 0..4, y 0..1, two samples a side at x 1, 3 and y .25, .75; columns 1 and 3 are both 8
        row = np.float32([0, 8, 1, 8, 0])
        features = tf.constant(np.stack([row, row])[None, :, :, None])
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(features, [[0.0, 0, 4, 1]], [0], 1, 1.0, operation="warp", reduction="maximum")
        expected = [[0, 0.75, 0, 0, 0], [0, 0.25, 0, 0, 0]]
        np.testing.assert_array_equal(tape.gradient(pooled, features)[0, :, :, 0], expected)


@both_implementations
@every_mode
class TestHostile:
    @pytest.mark.parametrize("ratio", [0, 2])
    def test_boxes_without_a_place(self, mode, ratio):
        nan, inf, huge = np.nan, np.inf, np.finfo(np.float32).max
        boxes = [[nan] * 4, [1, 1, nan, 5], [nan, 1, 4, 5], [inf] * 4, [-inf, 0, inf, 5], [-inf] * 4]
        boxes += [[0, 0, inf, inf], [-huge, -huge, -huge, huge], [5, -inf, 3, inf], [1e9, 1e9, 2e9, 2e9]]
        boxes += [[-90, 1, -60, 9], [1, 1, 9, 9]]
        features = np.ones([1, 6, 8, 3], np.float32)
        case = features, np.ones([12, 3, 3, 3], np.float32), np.float32(boxes), np.zeros(12, np.int32), 3, 0.5
        pooled, gradient = with_gradient(*case, **arguments(mode), sampling_ratio=ratio)
        np.testing.assert_array_equal(pooled[:-1], 0)
        np.testing.assert_allclose(pooled[-1], 1, atol=1e-6)
        assert gradient.sum() == pytest.approx(27, abs=1e-4)  # 9 bins, 3 channels, of the last region

    @pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
    def test_no_boxes(self, mode, graph):
        case = np.ones([2, 6, 8, 3], np.float32), np.zeros([0, 4, 2, 3], np.float32)
        place = np.zeros([0, 4], np.float32), np.zeros([0], np.int32), [4, 2], 0.25
        pooled, gradient = with_gradient(*case, *place, **arguments(mode), graph=graph)
        assert pooled.shape == (0, 4, 2, 3)
        np.testing.assert_array_equal(gradient, np.zeros([2, 6, 8, 3]))

    @pytest.mark.parametrize("image", [2, -1])
    def test_an_image_that_is_not_there(self, mode, image):
        with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError)):
            roi_align(tf.ones([2, 6, 8, 3]), [[1.0, 1, 5, 5]], [image], 2, 1.0, **arguments(mode))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_mixed_precision(self, mode, dtype):
        """As float32, rounded at the end; the boxes, beyond 256, are not rounded."""
        rng = np.random.default_rng(0)
        features = tf.cast(rng.normal(size=(1, 12, 330, 4)), dtype)
        boxes = np.float32([[301.3, 2.2, 318.7, 9.9], [290.6, -3, 340, 8]])
        upstream = tf.cast(rng.normal(size=(2, 3, 3, 4)), dtype)
        place = boxes, np.zeros(2, np.int32), 3, 1.0
        pooled, gradient = with_gradient(features, upstream, *place, **arguments(mode))
        assert pooled.dtype == gradient.dtype == features.dtype.as_numpy_dtype
        exact = with_gradient(
            tf.cast(features, "float32"), tf.cast(upstream, "float32"), *place, **arguments(mode)
        )
        for ours, theirs in zip((pooled, gradient), exact):
            np.testing.assert_allclose(ours.astype("float32"), theirs, rtol=2**-8, atol=1e-4)

    def test_the_gradient_is_that_of_small_changes(self, mode):
        """Pooling is linear in the features as long as no other sample becomes the largest."""
        rng = np.random.default_rng(1)
        features, direction = rng.normal(size=(2, 1, 9, 11, 2)).astype(np.float32)
        upstream = rng.normal(size=(2, 3, 3, 2)).astype(np.float32)
        place = np.float32([[2.1, 3.3, 30.2, 28.9], [-4, 9, 21, 22]]), np.zeros(2, np.int32), 3, 0.25
        _, gradient = with_gradient(features, upstream, *place, **arguments(mode))
        above, below = (
            roi_align(features + step * direction, *place, **arguments(mode)) for step in (1e-3, -1e-3)
        )
        change = float(tf.reduce_sum((above - below) * upstream)) / 2e-3
        assert abs(change) > 0.1 and change == pytest.approx(float((gradient * direction).sum()), rel=1e-2)


class TestArguments:
    FEATURES, BOX = tf.ones([1, 8, 8, 2]), np.float32([[1, 1, 5, 5]])

    def pooled(self, strides=(16,), count=1, **how):
        return multilevel_roi_align([self.FEATURES] * count, self.BOX, [0], 2, strides, **how)

    @both_implementations
    @pytest.mark.parametrize(
        "how, message",
        [
            (dict(operation="crop"), "`operation` is align, warp or pool. Received: 'crop'"),
            (dict(reduction="mean"), "`reduction` is average or maximum. Received: 'mean'"),
            (dict(operation="pool"), "needs `reduction='maximum'`. Received: reduction='average'"),
        ],
    )
    def test_wrong_modes(self, how, message):
        with pytest.raises(ValueError, match=message):
            roi_align(self.FEATURES, self.BOX, [0], 2, 1.0, **how)
        with pytest.raises(ValueError, match=message):
            self.pooled(**how)

    @both_implementations
    @pytest.mark.parametrize(
        "strides, count, message",
        [
            ([4, 8], 1, r"an entry for each map. Received: \[4, 8\] for 1 maps"),
            ([4], 2, r"an entry for each map. Received: \[4\] for 2 maps"),
            ([8, 16], 2, r"are 4, 8, 16, 32 .*Received: \[8, 16\]"),
            ([4, 8, 16, 16], 4, r"are 4, 8, 16, 32 .*Received: \[4, 8, 16, 16\]"),
        ],
    )
    def test_strides_that_do_not_fit(self, strides, count, message):
        with pytest.raises(ValueError, match=message):
            self.pooled(strides, count)

    @both_implementations
    @every_mode
    def test_one_map_has_no_levels(self, mode):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(1, 20, 20, 2)).astype(np.float32)
        boxes = np.float32([[3, 5, 20, 19], [10, 12, 300, 290], [1, 1, 90, 300]])  # of three levels
        pooled = multilevel_roi_align([features], boxes, [0] * 3, 3, [16], **arguments(mode))
        expected = roi_align(features, boxes, [0] * 3, 3, 1 / 16, **arguments(mode))
        np.testing.assert_array_equal(pooled, expected)
        assert np.abs(expected).max(axis=(1, 2, 3)).min() > 0.1


@every_mode
@pytest.mark.parametrize("ratio", [0, 2])
def test_the_graph_of_stock_operations_has_no_other(native, mode, ratio):
    def both(features, boxes, images):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = multilevel_roi_align([features] * 2, boxes, images, 3, [4, 8], ratio, **arguments(mode))
        return tape.gradient(pooled, features)

    def operations():
        graph = tf.function(both).get_concrete_function(*given).graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        return {node.op for node in nodes}

    given = tf.ones([1, 8, 8, 3]), tf.ones([2, 4]), tf.zeros([2], tf.int32)
    assert not operations().isdisjoint(library.OPERATIONS)
    with library.stock_operations():
        assert operations().isdisjoint(library.OPERATIONS)
