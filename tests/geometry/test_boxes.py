"""Boxes: areas, overlaps, clipping and the box coder (NUMERICS sections 1 and 5)."""

import math

import numpy as np
import pytest

from keras_mrcnn.geometry import boxes as box_ops


def random_boxes(rng, *shape, extent=100.0):
    corner = rng.uniform(0, extent, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(0.5, extent, (*shape, 2))], -1).astype(np.float32)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(11)


class TestArea:
    def test_width_has_no_plus_one(self):
        # (12 - 2) * (8 - 3) = 50
        assert box_ops.area(np.float32([2, 3, 12, 8])).numpy() == 50

    def test_reversed_on_one_or_both_axes_is_nothing(self):
        reversed_boxes = np.float32([[5, 0, 2, 4], [0, 5, 4, 2], [5, 5, 2, 2], [3, 3, 3, 9]])
        np.testing.assert_array_equal(box_ops.area(reversed_boxes), np.zeros(4))


class TestIoU:
    def test_by_hand(self):
        a = np.float32([[0, 0, 2, 2], [0, 0, 4, 4]])
        b = np.float32([[1, 1, 3, 3], [0, 0, 2, 4], [2, 0, 4, 2]])
        # a0: corner 1 / (4 + 4 - 1); 4 / (4 + 8 - 4); touches only
        # a1: 4 / (16 + 4 - 4); 8 / 16; 4 / 16
        expected = [[1 / 7, 4 / 8, 0], [4 / 16, 8 / 16, 4 / 16]]
        np.testing.assert_allclose(box_ops.iou(a, b), expected, rtol=1e-6)

    def test_against_loops(self, rng):
        a, b = random_boxes(rng, 2, 7), random_boxes(rng, 2, 5)
        expected = np.zeros((2, 7, 5))
        for image in range(2):
            for i, p in enumerate(a[image].astype(np.float64)):
                for j, q in enumerate(b[image].astype(np.float64)):
                    width = max(min(p[2], q[2]) - max(p[0], q[0]), 0)
                    height = max(min(p[3], q[3]) - max(p[1], q[1]), 0)
                    both = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1])
                    expected[image, i, j] = width * height / (both - width * height)
        assert (expected > 0).any() and (expected == 0).any()
        np.testing.assert_allclose(box_ops.iou(a, b), expected, atol=1e-6)

    def test_leading_axis_of_one_broadcasts(self, rng):
        a, b = random_boxes(rng, 3, 4), random_boxes(rng, 6)
        together = box_ops.iou(a, b[None])
        for image in range(3):
            np.testing.assert_array_equal(together[image], box_ops.iou(a[image], b))

    def test_symmetric_and_the_same_at_any_scale_and_place(self, rng):
        a, b = random_boxes(rng, 8), random_boxes(rng, 6)
        overlap = box_ops.iou(a, b).numpy()
        np.testing.assert_allclose(box_ops.iou(b, a), overlap.T, atol=1e-6)
        np.testing.assert_allclose(box_ops.iou(a * 4, b * 4), overlap, atol=1e-6)
        np.testing.assert_allclose(box_ops.iou(a + 64, b + 64), overlap, atol=1e-5)
        np.testing.assert_allclose(np.diag(box_ops.iou(a, a)), np.ones(8), atol=1e-6)

    def test_nothing(self):
        point, box = np.float32([[5, 5, 5, 5]]), np.float32([[0, 0, 10, 10]])
        assert box_ops.iou(point, point).numpy() == 0
        assert box_ops.iou(point, box).numpy() == 0
        reversed_box = np.float32([[8, 8, 2, 2]])
        assert box_ops.iou(reversed_box, box).numpy() == 0
        assert box_ops.iou(np.float32([[np.nan, 0, 1, 1]]), box).numpy() == 0
        assert box_ops.iou(np.zeros([0, 4], np.float32), box).shape == (0, 1)
        assert box_ops.iou(box, np.zeros([0, 4], np.float32)).shape == (1, 0)

    def test_parity(self, shared):
        data = np.load(shared / "parity/ops/nms.npz")
        np.testing.assert_allclose(box_ops.iou(data["iou/a"], data["iou/b"]), data["iou/iou"], atol=1e-6)


class TestClip:
    def test_each_side_to_its_own_bound(self):
        boxes = np.float32([[-5, -6, 200, 300], [150, 20, 160, 30], [10, 20, 30, 40], [5, 70, 8, 90]])
        expected = [[0, 0, 120, 60], [120, 20, 120, 30], [10, 20, 30, 40], [5, 60, 8, 60]]
        np.testing.assert_array_equal(box_ops.clip(boxes, height=60.0, width=120.0), expected)

    def test_each_image_to_its_own_size(self):
        boxes = np.tile(np.float32([-1, -1, 999, 999]), (2, 3, 1))
        heights, widths = np.float32([[10], [30]]), np.float32([[20], [40]])
        clipped = box_ops.clip(boxes, heights, widths).numpy()
        np.testing.assert_array_equal(clipped[0], [[0, 0, 20, 10]] * 3)
        np.testing.assert_array_equal(clipped[1], [[0, 0, 40, 30]] * 3)

    def test_parity(self, shared):
        data = np.load(shared / "parity/ops/nms.npz")
        clipped = box_ops.clip(data["clip/boxes"], 90.0, 120.0)  # clip.size = (height, width) = (90, 120)
        np.testing.assert_array_equal(clipped, data["clip/out"])


class TestCoder:
    ANCHOR = np.float32([0, 0, 10, 20])  # centre (5, 10)
    BOX = np.float32([5, 10, 25, 20])  # centre (15, 15), 20 x 10

    def test_encode_by_hand(self):
        # dx = (15 - 5) / 10, dy = (15 - 10) / 20, dw = log(20 / 10), dh = log(10 / 20)
        expected = [1, 0.25, math.log(2), -math.log(2)]
        np.testing.assert_allclose(box_ops.encode(self.BOX, self.ANCHOR), expected, rtol=1e-6)

    def test_weights_multiply_in_encode_and_divide_in_decode(self):
        weights = (10, 7, 5, 3)
        deltas = box_ops.encode(self.BOX, self.ANCHOR, weights)
        np.testing.assert_allclose(deltas, [10, 1.75, 5 * math.log(2), -3 * math.log(2)], rtol=1e-6)
        np.testing.assert_allclose(box_ops.decode(deltas, self.ANCHOR, weights), self.BOX, atol=1e-5)

    def test_decode_by_hand(self):
        # centre (5 + .5 * 10, 10 - .25 * 20) = (10, 5), size (10 * 2, 20 * .5) = (20, 10)
        deltas = np.float32([0.5, -0.25, math.log(2), -math.log(2)])
        np.testing.assert_allclose(box_ops.decode(deltas, self.ANCHOR), [0, 0, 20, 10], atol=1e-5)

    def test_log_scale_is_bounded_from_above_only_and_after_the_weights(self):
        anchor = np.float32([0, 0, 16, 16])  # centre 8
        boxes = box_ops.decode(np.float32([[0, 0, 50, 4.2], [0, 0, -50, -4.2], [0, 0, 4.1, 0]]), anchor)
        # 16 * exp(log(1000 / 16)) = 1000
        np.testing.assert_allclose(boxes[0], [8 - 500, 8 - 500, 8 + 500, 8 + 500], rtol=1e-5)
        low = 8 * math.exp(-4.2)
        np.testing.assert_allclose(boxes[1], [8, 8 - low, 8, 8 + low], atol=1e-5)
        high = 8 * math.exp(4.1)
        np.testing.assert_allclose(boxes[2], [8 - high, 0, 8 + high, 16], rtol=1e-5)
        # 8 / 5 is far below the bound; bounding before the division would give exp(4.135 / 5).
        wide = box_ops.decode(np.float32([0, 0, 8, 0]), anchor, (10, 10, 5, 5)).numpy()
        np.testing.assert_allclose(wide[2] - wide[0], 16 * math.exp(1.6), rtol=1e-5)
        assert box_ops.MAX_LOG_SCALE == pytest.approx(4.135166556742356, abs=1e-12)

    def test_decode_against_loops(self, rng):
        anchors, deltas = random_boxes(rng, 9), rng.normal(0, 2, (9, 4)).astype(np.float32)
        weights = (10.0, 9.0, 5.0, 2.0)
        expected = []
        for (x1, y1, x2, y2), given in zip(anchors.astype(np.float64), deltas.astype(np.float64)):
            dx, dy, dw, dh = (d / w for d, w in zip(given, weights))
            width = (x2 - x1) * math.exp(min(dw, math.log(62.5)))
            height = (y2 - y1) * math.exp(min(dh, math.log(62.5)))
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        np.testing.assert_allclose(box_ops.decode(deltas, anchors, weights), expected, rtol=1e-4, atol=1e-3)

    def test_decode_inverts_encode(self, rng):
        boxes, anchors = random_boxes(rng, 3, 20), random_boxes(rng, 3, 20)
        for weights in ((1, 1, 1, 1), (10, 10, 5, 5)):
            again = box_ops.decode(box_ops.encode(boxes, anchors, weights), anchors, weights)
            np.testing.assert_allclose(again, boxes, atol=2e-4)

    def test_deltas_do_not_know_the_scale_or_the_place(self, rng):
        boxes, anchors = random_boxes(rng, 20), random_boxes(rng, 20)
        deltas = box_ops.encode(boxes, anchors)
        np.testing.assert_allclose(box_ops.encode(boxes * 3, anchors * 3), deltas, atol=1e-4)
        np.testing.assert_allclose(box_ops.encode(boxes + 32, anchors + 32), deltas, atol=1e-4)

    def test_no_area_gives_finite_deltas(self):
        point = np.float32([5, 5, 5, 5])
        for box, anchor in ((point, self.ANCHOR), (self.BOX, point), (point, point), (self.BOX[::-1], point)):
            assert np.isfinite(box_ops.encode(box, anchor)).all()

    def test_no_boxes(self):
        none = np.zeros([2, 0, 4], np.float32)
        assert box_ops.encode(none, none).shape == (2, 0, 4)
        assert box_ops.decode(none, none).shape == (2, 0, 4)

    def test_decode_computes_in_float32(self):
        # bfloat16 has 8 bits: 1001 is not among its numbers.
        deltas = box_ops.ops.zeros([4], "bfloat16")
        boxes = box_ops.decode(deltas, np.float32([1001, 3, 1003, 8]))
        np.testing.assert_array_equal(boxes, np.float32([1001, 3, 1003, 8]))
        assert boxes.dtype == "float32"

    @pytest.mark.parametrize("case, weights", [("w0", (1, 1, 1, 1)), ("w1", (10, 10, 5, 5))])
    def test_parity(self, shared, case, weights):
        data = np.load(shared / "parity/ops/box_coder.npz")
        proposals, deltas = data[f"{case}/proposals"], data[f"{case}/deltas"].reshape(40, 3, 4)
        encoded = box_ops.encode(data[f"{case}/gt"], proposals, weights)
        np.testing.assert_allclose(encoded, data[f"{case}/encoded"], rtol=1e-4, atol=1e-4)
        decoded = box_ops.decode(deltas, proposals[:, None], weights)
        expected = data[f"{case}/decoded"].reshape(40, 3, 4)
        np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=2e-3)
