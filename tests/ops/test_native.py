"""The compiled operations beside the stock ones: shapes, errors, types, gradients."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.ops import library, multilevel_roi_align, roi_align, roi_levels
from keras_mrcnn.roi.pooling import RoIPooling

pytestmark = pytest.mark.usefixtures("native")
STRIDES = [4, 8, 16, 32]
SCALES = [1 / stride for stride in STRIDES]


def raw(**changes):
    """The operation itself, on two maps, three boxes and two images."""
    arguments = {
        "features": [tf.ones([2, 8, 9, 5]), tf.ones([2, 4, 5, 5])],
        "boxes": tf.constant([[0.0, 0, 8, 8], [4, 4, 30, 20], [1, 2, 300, 200]]),
        "images": tf.constant([0, 1, 0]),
        "levels": [],
        "scales": SCALES[:2],
        "output_height": 3,
        "output_width": 2,
        "sampling_ratio": 2,
        "method": "align",
        "reduction": "average",
        **changes,
    }
    return library.choice().module.keras_mrcnn_roi_align(**arguments)


def scene(dtype="float32", channels=6, regions=40):
    """A pyramid of two images, boxes of all levels, images."""
    random = np.random.default_rng(3)
    pyramid = [random.normal(size=(2, 256 >> k, 320 >> k, channels)) for k in range(2, 6)]
    corner, size = random.uniform(-40, 200, (regions, 2)), np.geomspace(5, 900, regions)[:, None]
    boxes = np.concatenate([corner, corner + size * random.uniform(0.7, 1.4, (regions, 2))], 1)
    images = random.integers(0, 2, regions)
    return [tf.cast(m, dtype) for m in pyramid], np.float32(boxes), np.int32(images)


def pooled_with_gradient(pyramid, boxes, images, sampling, aligned):
    """The pooled regions and the gradients to the maps of a weighted sum, float32."""
    with tf.GradientTape() as tape:
        tape.watch(pyramid)
        pooled = multilevel_roi_align(pyramid, boxes, images, 5, STRIDES, sampling, aligned)
        weights = tf.cast(np.random.default_rng(1).normal(size=pooled.shape), pooled.dtype)
        total = tf.reduce_sum(pooled * weights)
    return [tf.cast(value, tf.float32).numpy() for value in (pooled, *tape.gradient(total, pyramid))]


class TestShapes:
    def test_known_sizes_are_told_before_the_graph_runs(self):
        @tf.function
        def traced(boxes):
            pooled = raw(boxes=boxes)
            assert pooled.shape.as_list() == [3, 3, 2, 5]
            return pooled

        assert traced(tf.zeros([3, 4])).shape == (3, 3, 2, 5)

    @pytest.mark.parametrize("ranks", ["known", "unknown"])
    def test_unknown_sizes_pass_through(self, ranks):
        known = ranks == "known"
        maps = tf.TensorSpec([None] * 4 if known else None)
        boxes = tf.TensorSpec([None, 4] if known else None)
        images = tf.TensorSpec([None] if known else None, tf.int32)

        @tf.function(input_signature=[[maps] * 4, boxes, images])
        def traced(pyramid, boxes, images):
            with tf.GradientTape() as tape:
                tape.watch(pyramid)
                pooled = library.pool(
                    library.choice().module, pyramid, boxes, images, SCALES, (3, 2), 2, "align"
                )
            assert pooled.shape.as_list() == [None, 3, 2, None]
            gradients = tape.gradient(pooled, pyramid)
            assert all(g.shape.rank == (4 if known else None) for g in gradients)
            return pooled, gradients

        pyramid, boxes, images = scene()
        pooled, gradients = traced(pyramid, boxes, images)
        expected = multilevel_roi_align(pyramid, boxes, images, [3, 2], STRIDES)
        np.testing.assert_allclose(pooled, expected, atol=1e-6)
        assert [g.shape for g in gradients] == [m.shape for m in pyramid]

    def test_what_several_tensors_know_comes_together(self):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None] * 3 + [5]),
                tf.TensorSpec([None] * 4),
                tf.TensorSpec([3, 4]),
            ]
        )
        def traced(fine, coarse, boxes):
            pooled = raw(features=[coarse, fine], boxes=boxes, images=tf.zeros(tf.shape(boxes)[:1], tf.int32))
            assert pooled.shape.as_list() == [3, 3, 2, 5]

        traced(tf.ones([2, 8, 9, 5]), tf.ones([2, 4, 5, 5]), tf.zeros([3, 4]))


WRONG = {
    "an image beyond the batch": ({"images": [0, 2, 0]}, "from 0 to 1.*Received: 2.*index 1"),
    "an image before the batch": ({"images": [0, 1, -1]}, "Received: -1.*index 2"),
    "a level that is not there": ({"levels": [[0, 0, 2]]}, "from 0 to 1.*Received: 2.*index 2"),
    "boxes of three": ({"boxes": tf.zeros([3, 3])}, r"\[regions, 4\].*\[3,3\]"),
    "a box without a list": ({"boxes": tf.zeros([4]), "images": [0]}, r"\[regions, 4\].*\[4\]"),
    "fewer images than boxes": ({"images": [0, 1]}, r"`images` of shape \[3\].*\[2\]"),
    "images of two axes": ({"images": [[0, 1, 0]]}, r"`images` of shape \[3\].*\[1,3\]"),
    "more levels than boxes": ({"levels": [[0, 0, 0, 0]]}, r"`levels` of shape \[3\].*\[4\]"),
    "two lists of levels": ({"levels": [[0, 0, 0]] * 2}, "0 to 1.*Received: 2"),
    "maps of three axes": ({"features": [tf.ones([8, 9, 5])] * 2}, r"batch, height.*\[8,9,5\]"),
    "maps of two batches": ({"features": [tf.ones([2, 8, 9, 5]), tf.ones([1, 4, 5, 5])]}, "one batch"),
    "maps of two widths": ({"features": [tf.ones([2, 8, 9, 5]), tf.ones([2, 4, 5, 4])]}, "channels"),
    "a map without pixels": ({"features": [tf.ones([2, 8, 9, 5]), tf.ones([2, 0, 5, 5])]}, "Received: 0"),
    "a map that is too long": ({"features": [tf.ones([2, 1, 16385, 1])] * 2}, "16384.*16385"),
    "one scale for two maps": ({"scales": [0.25]}, "each of 2 levels.*Received: 1"),
    "a scale of 0": ({"scales": [0.25, 0.0]}, "above 0.*Received: 0"),
    "a scale that is no number": ({"scales": [0.25, float("nan")]}, "above 0.*nan"),
    "an output without bins": ({"output_height": 0}, "output_height"),
    "an output that is too large": ({"output_width": 2**40}, "output_width.*16384"),
    "samples less than none": ({"sampling_ratio": -1}, "sampling_ratio"),
    "too many samples": ({"sampling_ratio": 2000}, "1024.*2000"),
    "a method nobody knows": ({"method": "crop"}, "crop"),
    "an average of whole pixels": ({"method": "pool"}, "maximum.*average"),
    "boxes of another type": ({"boxes": tf.zeros([3, 4], tf.float64)}, "float"),
    "images of another type": ({"images": tf.zeros([3], tf.int64)}, "int32"),
    "maps of another type": ({"features": [tf.ones([2, 8, 9, 5], tf.float64)] * 2}, "float"),
    "nine maps": ({"features": [tf.ones([2, 8, 9, 5])] * 9, "scales": [0.25] * 9}, "from 1 to 8.*9"),
}


class TestErrors:
    @pytest.mark.parametrize("case", WRONG)
    def test_wrong_arguments_are_told(self, case):
        changes, message = WRONG[case]
        with pytest.raises((tf.errors.InvalidArgumentError, TypeError), match=f"(?s){message}") as raised:
            raw(**changes)
        # Python's own check of the types comes before that of TensorFlow in some versions
        assert raised.type is tf.errors.InvalidArgumentError or "another type" in case

    @pytest.mark.parametrize("boxes", [[2, 3], [8]])
    def test_shapes_that_only_the_run_shows(self, boxes):
        traced = tf.function(lambda boxes: raw(boxes=boxes), input_signature=[tf.TensorSpec(None)])
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[regions, 4\]"):
            traced(tf.zeros(boxes))

    def test_shapes_that_the_graph_shows(self):
        with pytest.raises(ValueError, match="must be 4 but is 3"):
            tf.function(raw)(boxes=tf.zeros([3, 3]))

    def test_a_gradient_of_another_shape(self):
        grad = library.choice().module.keras_mrcnn_roi_align_grad
        boxes, images = tf.zeros([3, 4]), tf.zeros([3], tf.int32)
        settings = dict(scales=[1.0], output_height=3, output_width=2, sampling_ratio=2)
        settings |= dict(method="align", reduction="average")
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[3,3,2,5\].*\[3,2,3,5\]"):
            grad(tf.zeros([3, 2, 3, 5]), [tf.ones([2, 8, 9, 5])], boxes, images, [], **settings)

    def test_more_elements_than_can_be_counted(self):
        boxes, images = tf.zeros([2**20, 4]), tf.zeros([2**20], tf.int32)
        changes = dict(features=[tf.ones([1, 1, 1, 2**20])] * 2, boxes=boxes, images=images)
        with pytest.raises(tf.errors.OpError):  # TensorFlow's own words
            raw(**changes, output_height=2**14, output_width=2**14)


def random_call(random):
    """Arguments of which some are wrong, mostly one at a time."""
    count, batch, channels = random.integers(1, 4), random.integers(0, 3), random.integers(0, 4)
    regions = random.integers(0, 6)

    def wrong():
        return random.random() < 0.04

    def size():
        return int(random.integers(0, 8)) if wrong() else int(random.integers(1, 8))

    def shape(*sizes):
        if not wrong():
            return sizes
        return sizes[:-1] if random.random() < 0.5 else (*sizes, 2)

    boxes = random.choice([-1e30, -9.5, 0, 3.3, 40, 2e9, np.nan, np.inf, -np.inf], shape(regions, 4))
    low, high = (-1, batch + 1) if wrong() else (0, max(batch, 1))
    maps = [random.normal(size=shape(batch + wrong(), size(), size(), channels)) for _ in range(count)]
    levels = [random.integers(0, count + wrong(), shape(regions))] * (int(random.integers(0, 2)) + wrong())
    method = random.choice(["align", "align_legacy", "warp", "pool"])
    return {
        "features": [
            tf.cast(m, random.choice([tf.float32, tf.bfloat16])) if wrong() else np.float32(m) for m in maps
        ],
        "boxes": np.float32(boxes),
        "images": np.int32(random.integers(low, high, shape(regions))),
        "levels": [np.int32(level) for level in levels],
        "scales": [float(random.choice([0.25, 1.0, 3e3]))] * (count + wrong()),
        "output_height": size(),
        "output_width": size(),
        "sampling_ratio": int(random.integers(0, 3)),
        "method": method,
        "reduction": "maximum" if method == "pool" and not wrong() else random.choice(["average", "maximum"]),
    }


def test_random_calls_give_a_finite_result_or_a_clear_error():
    random = np.random.default_rng(0)
    answered = refused = 0
    for _ in range(3000):
        call = random_call(random)
        try:
            with tf.GradientTape() as tape:
                maps = [tf.convert_to_tensor(m) for m in call["features"]]
                tape.watch(maps)
                pooled = raw(**{**call, "features": maps})
            gradients = tape.gradient(pooled, maps)
        except (tf.errors.InvalidArgumentError, TypeError) as error:
            assert "RoiAlign" in str(error), call
            refused += 1
            continue
        size = call["output_height"], call["output_width"]
        assert pooled.shape == (len(call["boxes"]), *size, maps[0].shape[3])
        assert np.isfinite(pooled).all(), call
        for gradient, m in zip(gradients, maps):
            assert gradient.shape == m.shape and np.isfinite(gradient).all(), call
        answered += 1
    assert answered > 800 and refused > 800


class TestNumbers:
    @pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "legacy"])
    @pytest.mark.parametrize("sampling", [2, 0])
    @pytest.mark.parametrize("dtype, most", [("float32", 3e-5), ("float16", 1e-3), ("bfloat16", 8e-3)])
    def test_equal_to_the_stock_operations(self, dtype, most, sampling, aligned):
        case = *scene(dtype), sampling, aligned
        ours = pooled_with_gradient(*case)
        with library.stock_operations():
            theirs = pooled_with_gradient(*case)
        for our, their in zip(ours, theirs):
            assert np.abs(their).max() > 0.1
            np.testing.assert_allclose(our, their, rtol=0, atol=most * np.abs(their).max())

    def test_the_level_is_that_of_the_stock_operations_on_every_boundary(self):
        sides = np.float32([28, 56, 112, 224, 448, 896, 1792])
        sides = np.concatenate([sides, np.nextafter(sides, 0), np.nextafter(sides, 2000), sides + 0.01])
        boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1)
        boxes = np.concatenate([boxes, np.random.default_rng(0).uniform(0, 900, (5000, 4))]).astype("float32")
        maps = [tf.fill([1, 300, 300, 1], float(level)) for level in range(4)]
        images = np.zeros(len(boxes), np.int32)
        pooled = library.pool(
            library.choice().module, maps, boxes, images, [0.25] * 4, (1, 1), 1, "align_legacy"
        )
        np.testing.assert_array_equal(pooled[:, 0, 0, 0], roi_levels(boxes, 4))

    def test_a_level_that_is_given_counts(self):
        maps = [tf.fill([2, 9, 9, 5], value) for value in (3.0, 7.0)]
        pooled = raw(features=maps, boxes=[[0.0, 0, 8, 8]] * 3, levels=[[1, 0, 1]])
        np.testing.assert_array_equal(pooled[:, 0, 0, 0], [7, 3, 7])

    def test_methods_and_reductions_by_hand(self):
        ramp = tf.reshape(tf.range(48, dtype=tf.float32), [1, 6, 8, 1])  # 8 y + x
        case = dict(features=[ramp], boxes=[[1.4, 0.6, 5.3, 2.4]], images=[0], scales=[1.0])
        case |= dict(output_height=1, output_width=1)

        def value(method, reduction):
            return float(raw(**case, method=method, reduction=reduction)[0, 0, 0, 0])

        # align: samples at x 2.375, 4.325 and y 1.05, 1.95, less .5: middle (2.85, 1), last (3.825, 1.45)
        assert value("align", "average") == pytest.approx(8 * 1.0 + 2.85, abs=1e-5)
        assert value("align", "maximum") == pytest.approx(8 * 1.45 + 3.825, abs=1e-5)
        # legacy: half a pixel further along both
        assert value("align_legacy", "average") == pytest.approx(8 * 1.5 + 3.35, abs=1e-5)
        # warp: the corners rounded to (1, 1) and (5, 2), legacy: the middle is (3, 1.5)
        assert value("warp", "average") == pytest.approx(8 * 1.5 + 3.0, abs=1e-5)
        # pool: the same corners, pixels 1..5 and 1..2 with both ends; the largest is the last
        assert value("pool", "maximum") == 8 * 2 + 5

    def test_the_gradient_has_the_same_bits_in_every_run(self):
        case = *scene(regions=300), 2, True
        first = pooled_with_gradient(*case)
        for _ in range(5):
            for one, other in zip(first, pooled_with_gradient(*case)):
                np.testing.assert_array_equal(one, other)

    def test_types_that_the_library_does_not_know_are_pooled_from_stock(self):
        pooled = roi_align(tf.ones([1, 4, 4, 2], tf.float64), np.float32([[1, 1, 3, 3]]), [0], 2, 1.0)
        assert pooled.dtype == tf.float64
        np.testing.assert_allclose(pooled, 1)

    def test_mixed_precision_keeps_coordinates(self):
        wide = np.zeros([1, 4, 1026, 1], np.float32)
        wide[0, :, 1001] = 1
        layer = RoIPooling(1, sampling_ratio=1, dtype="mixed_bfloat16")
        # P2 pixel 1001 is [4004, 4008]; as bfloat16 both would become 4000
        boxes = np.float32([[[4004, 4, 4008, 8]]])
        pooled = layer([tf.cast(wide, tf.bfloat16)] * 4, boxes, np.array([[True]]))
        assert pooled.dtype == "bfloat16"
        np.testing.assert_array_equal(tf.cast(pooled, tf.float32).numpy().ravel(), [1])
