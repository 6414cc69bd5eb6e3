"""The compiled kernels on the CPU against slow references, the stock operations and stored results."""

import json

import numpy as np
import pytest

from custom_ops.c_library import ALIGN, AVERAGE, LEGACY, MAXIMUM, POOL, WARP, Settings
from tests.custom_ops.slow_roi import METHODS, REDUCTIONS, gradient_for, random_case, reference

METHOD_AND_REDUCTION = [
    pytest.param(method, reduction, id=f"{name}-{how}")
    for name, method in METHODS.items()
    for how, reduction in REDUCTIONS.items()
    if method != POOL or reduction == MAXIMUM
]


def assert_close(ours, expected, tolerance, message=""):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=message)


def channels_last(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("method, reduction", METHOD_AND_REDUCTION)
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_equals_the_rules_written_out(library, ratio, method, reduction):
    rng = np.random.default_rng(ratio)
    case = random_case(rng, regions=24)
    settings = Settings((3, 2), (0.25,), ratio, method, reduction)
    output_gradient = gradient_for(rng, settings, *case[:2])
    output, (gradient,) = reference(settings, *case, output_gradient)
    assert np.count_nonzero(output) > output.size / 3
    assert_close(library.forward(settings, *case), output, 1e-5)
    assert_close(library.backward(settings, *case, output_gradient)[0], gradient, 1e-5)


@pytest.mark.parametrize("method, reduction", METHOD_AND_REDUCTION)
def test_all_levels_in_one_call(library, method, reduction):
    rng = np.random.default_rng(1)
    case = random_case(rng, regions=30, shape=(2, 40, 37, 3), reach=160, levels=3)
    levels = rng.integers(0, 3, 30).astype(np.int32)
    settings = Settings((2, 4), (0.25, 0.125, 0.0625), 2, method, reduction)
    output_gradient = gradient_for(rng, settings, *case[:2])
    output, gradients = reference(settings, *case, output_gradient, levels)
    assert_close(library.forward(settings, *case, levels), output, 1e-5)
    for ours, expected in zip(library.backward(settings, *case, output_gradient, levels), gradients):
        assert np.abs(expected).max() > 0
        assert_close(ours, expected, 1e-5)


@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_equals_the_stock_operations(library, ratio, aligned):
    import tensorflow as tf

    from keras_mrcnn.ops import multilevel_roi_align

    rng = np.random.default_rng(10 + ratio)
    features, boxes, images = random_case(rng, regions=60, shape=(2, 64, 56, 7), reach=250, levels=4)
    boxes[5:15] *= 3  # large ones, for the coarse levels
    settings = Settings(
        (7, 7), tuple(1 / 2 ** (k + 2) for k in range(4)), ratio, ALIGN if aligned else LEGACY
    )
    output_gradient = gradient_for(rng, settings, features, boxes)
    with tf.GradientTape() as tape:
        pyramid = [tf.Variable(map_) for map_ in features]
        regions = tf.constant(boxes), tf.constant(images)
        stock = multilevel_roi_align(pyramid, *regions, 7, [4, 8, 16, 32], ratio, aligned)
    gradients = tape.gradient(stock, pyramid, output_gradients=tf.constant(output_gradient))
    if aligned and ratio:  # a reversed box too: its samples run backwards
        assert np.abs(stock[0]).max() > 0
    # The stock path divides positions by the size of the map and multiplies again.
    assert_close(library.forward(settings, features, boxes, images), stock, 5e-5)
    for ours, expected in zip(
        library.backward(settings, features, boxes, images, output_gradient), gradients
    ):
        assert_close(ours, tf.convert_to_tensor(expected), 6e-5)


def test_roi_align_equals_the_stored_results(library, shared):
    folder = shared / "parity" / "ops"
    cases = json.loads((folder / "roi_align.json").read_text())
    with np.load(folder / "roi_align.npz") as stored:
        for name, case in cases.items():
            method = ALIGN if case["aligned"] else LEGACY
            scales = (case["spatial_scale"],)
            settings = Settings(tuple(case["output_size"]), scales, case["sampling_ratio"], method)
            compare_with_stored(library, settings, stored, name, 1e-5, 1e-4)
    assert len(cases) == 15


def test_roi_pool_equals_the_stored_results(library, shared):
    folder = shared / "parity" / "ops"
    cases = json.loads((folder / "roi_pool.json").read_text())
    with np.load(folder / "roi_pool.npz") as stored:
        for name, case in cases.items():
            settings = Settings(tuple(case["output_size"]), (case["spatial_scale"],), 0, POOL, MAXIMUM)
            compare_with_stored(library, settings, stored, name, 0, 1e-5)
    assert len(cases) == 4


def compare_with_stored(library, settings, stored, name, tolerance, gradient_tolerance):
    features = [channels_last(stored[f"{name}/input"])]
    boxes = np.ascontiguousarray(stored[f"{name}/rois"][:, 1:])
    case = features, boxes, stored[f"{name}/rois"][:, 0].astype(np.int32)
    output = library.forward(settings, *case)
    assert_close(output, stored[f"{name}/output"].transpose(0, 2, 3, 1), tolerance, name)
    if f"{name}/grad_output" in stored:
        (gradient,) = library.backward(settings, *case, channels_last(stored[f"{name}/grad_output"]))
        expected = stored[f"{name}/grad_input"].transpose(0, 2, 3, 1)
        assert_close(gradient, expected, gradient_tolerance, name)


def test_multilevel_pooling_equals_the_stored_results(library, shared):
    folder = shared / "parity" / "ops"
    spec = json.loads((folder / "multiscale.json").read_text())
    with np.load(folder / "multiscale.npz") as stored:
        features = [channels_last(stored[f"tv_pool/p{k}"]) for k in (2, 3, 4, 5)]
        boxes, images = stored["tv_pool/boxes"], stored["tv_pool/image_index"].astype(np.int32)
        outputs = {name: stored[f"{name}/output"].transpose(0, 2, 3, 1) for name in spec if name != "levels"}
    scales = (0.25, 0.125, 0.0625, 0.03125)
    levels = np.array(spec["tv_pool"]["levels"], np.int32)
    ours = library.forward(Settings((7, 7), scales, 2, LEGACY), features, boxes, images, levels)
    assert_close(ours, outputs["tv_pool"], 1e-5)
    # detectron2 chooses the levels by the same rule as the kernel
    for name, settings in {
        "d2_pool_v2": Settings((7, 7), scales, 0, ALIGN),
        "d2_pool_v1": Settings((5, 5), scales, 2, LEGACY),
        "d2_pool_roipool": Settings((7, 7), scales, 0, POOL, MAXIMUM),
    }.items():
        assert_close(library.forward(settings, features, boxes, images), outputs[name], 1e-5, name)


def test_levels_equal_the_stored_ones(library, shared):
    with np.load(shared / "parity" / "ops" / "multiscale.npz") as stored:
        boxes, expected = stored["levels/boxes"], stored["levels/detectron2"]
        decided = stored["levels/exact"] == 0
    assert len(set(expected[decided])) == 4
    assert_close(chosen_levels(library, boxes, 4)[decided], expected[decided], 0)


def chosen_levels(library, boxes, levels):
    """Which level the kernel reads: every map has its number as its value, and covers every box."""
    maps = [np.full((1, 4, 4, 1), level, np.float32) for level in range(levels)]
    settings = Settings((1, 1), (1e-9,) * levels, 1, LEGACY)
    return library.forward(settings, maps, boxes, np.zeros(len(boxes), np.int32)).ravel()


def test_levels_of_odd_boxes_equal_those_of_the_stock_rule(library):
    from keras_mrcnn.ops import roi_levels

    side = np.array([0, 1, 111.9, 112, 223.9, 224, 448, 900, 1e5, 3e30], np.float32)
    boxes = np.stack([-side / 2, -side / 2, side / 2, side / 2], 1)
    boxes = np.concatenate([boxes, boxes[:, [2, 3, 0, 1]]])
    for levels in (1, 3, 4, 5):
        expected = roi_levels(boxes, levels).numpy()
        finite = np.abs(boxes).max(1) < 1e9  # so small a scale keeps these inside the map
        assert_close(chosen_levels(library, boxes[finite], levels), expected[finite], 0)


@pytest.mark.parametrize("column, expected", [([-1, 0], [0, 0]), ([0, -1], [1, 0]), ([0, 1], [0, 1])])
def test_the_first_of_equal_maxima_takes_the_gradient(library, column, expected):
    features = [np.array(column, np.float32).reshape(1, 2, 1, 1)]
    box = np.array([[-0.5, 0, 3.5, 2]], np.float32)  # samples at y = 0 and 1; at x = 0 and, outside, 2
    settings = Settings((1, 1), (1.0,), 2, ALIGN, MAXIMUM)
    ones = np.ones((1, 1, 1, 1), np.float32)
    (gradient,) = library.backward(settings, features, box, np.zeros(1, np.int32), ones)
    np.testing.assert_array_equal(gradient.ravel(), expected)


def test_maxima_of_infinite_and_nan_features(library):
    features = np.array([[-np.inf, 2, 3], [4, np.inf, 5], [6, 7, np.nan]], np.float32).reshape(1, 3, 3, 1)
    boxes = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 2, 2]], np.float32)  # pixels, inclusive
    pooled = library.forward(
        Settings((1, 1), (1.0,), 0, POOL, MAXIMUM), [features], boxes, np.zeros(3, np.int32)
    )
    np.testing.assert_array_equal(pooled.ravel(), [-np.inf, np.inf, np.nan])


@pytest.mark.parametrize("method, reduction", METHOD_AND_REDUCTION)
@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_without_a_place_pool_to_zero(library, ratio, method, reduction):
    nan, inf, huge = np.nan, np.inf, np.finfo(np.float32).max
    boxes = [[nan] * 4, [1, 1, nan, 5], [inf] * 4, [-inf, 0, inf, 5], [-inf, 0, 5, 5], [-inf] * 4]
    boxes += [[0, 0, inf, inf], [-huge, -huge, -huge, huge], [5, -inf, 3, inf], [1e9, 1e9, 2e9, 2e9]]
    boxes = np.array(boxes, np.float32)
    case = [np.ones((1, 6, 8, 3), np.float32)], boxes, np.zeros(len(boxes), np.int32)
    settings = Settings((3, 3), (0.5,), ratio, method, reduction)
    output = library.forward(settings, *case)
    np.testing.assert_array_equal(output, 0)
    np.testing.assert_array_equal(library.backward(settings, *case, np.ones_like(output))[0], 0)


def test_boxes_of_no_size(library):
    features = np.arange(6 * 8, dtype=np.float32).reshape(1, 6, 8, 1)
    boxes = np.array([[3.5, 2.5, 3.5, 2.5], [5.5, 4.5, 2.5, 1.5]], np.float32)
    case = [features], boxes, np.zeros(2, np.int32)
    point = library.forward(Settings((2, 2), (1.0,), 2), *case)[0]
    np.testing.assert_array_equal(point, features[0, 2, 3, 0])  # every sample is the one point
    np.testing.assert_array_equal(library.forward(Settings((2, 2), (1.0,), 0), *case), 0)  # no samples
    widened = library.forward(Settings((1, 1), (1.0,), 0, LEGACY), *case)[:, 0, 0, 0]
    # One pixel from the first corner on, sampled half a pixel further.
    np.testing.assert_array_equal(widened, [features[0, 3, 4, 0], features[0, 5, 6, 0]])


def test_warp_is_legacy_with_rounded_corners(library):
    rng = np.random.default_rng(4)
    features, boxes, images = random_case(rng)
    boxes[3] = [-2, 2, 6, 10]  # halves, of both signs
    corners = np.sign(boxes) * np.floor(np.abs(boxes) * 0.25 + 0.5).astype(np.float32)
    for reduction in (AVERAGE, MAXIMUM):
        warped = library.forward(Settings((3, 3), (0.25,), 2, WARP, reduction), features, boxes, images)
        legacy = library.forward(Settings((3, 3), (1.0,), 2, LEGACY, reduction), features, corners, images)
        np.testing.assert_array_equal(warped, legacy)


@pytest.mark.parametrize("low, high", [(-700.3, 900.7), (-1e6, 3e6), (-2e4, 5.3)])
def test_huge_adaptive_grids_are_counted_not_walked(library, low, high):
    features = [np.ones((1, 6, 9, 2), np.float32)]
    boxes = np.array([[low, low, high, high]], np.float32)
    images = np.zeros(1, np.int32)
    output = library.forward(Settings((1, 1), (1.0,), 0), features, boxes, images)
    start = boxes[0, 0] - np.float32(0.5)
    length = boxes[0, 2] - np.float32(0.5) - start
    grid = int(np.ceil(length))
    positions = start + (np.arange(grid, dtype=np.float32) + np.float32(0.5)) * length / np.float32(grid)
    inside = [((positions >= -1) & (positions <= size)).mean() for size in (6, 9)]
    assert min(inside) > 0
    np.testing.assert_allclose(output, inside[0] * inside[1], rtol=1e-5)
    largest = library.forward(Settings((1, 1), (1.0,), 0, ALIGN, MAXIMUM), features, boxes, images)
    np.testing.assert_array_equal(largest, 1)
