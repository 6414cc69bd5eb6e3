"""Proposals: best of each level, decode, clip, suppress, best of all levels (NUMERICS section 6)."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.rpn.proposals import Proposals


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def decoded(delta, anchor):
    x1, y1, x2, y2 = anchor
    dx, dy, dw, dh = delta
    width = (x2 - x1) * math.exp(min(dw, math.log(62.5)))
    height = (y2 - y1) * math.exp(min(dh, math.log(62.5)))
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def oracle(logits, deltas, anchors, size, pre_nms, post_nms, threshold):
    """Steps a to c for one image, in float64: (boxes, scores), best first."""
    kept = []
    for level in range(len(logits)):
        of_level = []
        for i in np.argsort(-logits[level], kind="stable")[:pre_nms]:
            x1, y1, x2, y2 = decoded(deltas[level][i].astype(float), anchors[level][i].astype(float))
            x1, x2 = np.clip([x1, x2], 0, size[1])
            y1, y2 = np.clip([y1, y2], 0, size[0])
            box = x1, y1, x2, y2
            if np.isfinite(logits[level][i]) and x2 > x1 and y2 > y1:
                if all(iou(box, other) <= threshold for other, _ in of_level):
                    of_level.append((box, logits[level][i]))
        kept += of_level
    kept = sorted(kept, key=lambda pair: -pair[1])[:post_nms]
    return np.array([box for box, _ in kept]).reshape(-1, 4), np.array([score for _, score in kept])


def random_levels(rng, batch, counts, extent=100):
    """Logits, deltas and anchors, in bunches so that some are suppressed."""
    anchors, deltas, logits = [], [], []
    for count in counts:
        centre = np.repeat(rng.uniform(-10, extent + 10, (count // 3, 2)), 3, 0)
        half = np.repeat(rng.uniform(5, 30, (count // 3, 2)), 3, 0)
        anchors.append(np.concatenate([centre - half, centre + half], 1).astype(np.float32))
        deltas.append(rng.normal(0, 0.15, (batch, count, 4)).astype(np.float32))
        logits.append(rng.permutation(batch * count).reshape(batch, count).astype(np.float32) / 10 - 3)
    return logits, deltas, anchors


def propose(layer, boxes, scores, image_size, **options):
    """Proposals of one image from boxes that need no decoding; lists over levels."""
    anchors = [np.float32(level).reshape(-1, 4) for level in boxes]
    logits = [np.float32(level)[None] for level in scores]
    deltas = [np.zeros([1, len(level), 4], np.float32) for level in anchors]
    boxes, scores, valid = layer(logits, deltas, anchors, np.int32([image_size]), **options)
    return boxes.numpy()[0], scores.numpy()[0], valid.numpy()[0]


class TestByHand:
    def test_sorted_clipped_and_padded(self):
        boxes = [[[10, 10, 30, 40], [-8, 50, 20, 120]], [[60, 60, 90, 90]]]
        out, scores, valid = propose(Proposals(post_nms_test=5), boxes, [[-1.5, 0.5], [2.0]], (100, 80))
        # the second leaves the image left and below; the third is cut at the width of 80
        np.testing.assert_allclose(
            out, [[60, 60, 80, 90], [0, 50, 20, 100], [10, 10, 30, 40], [0] * 4, [0] * 4], atol=1e-4
        )
        np.testing.assert_allclose(scores, [2, 0.5, -1.5, 0, 0])
        assert valid.tolist() == [True, True, True, False, False]
        assert (out.dtype, scores.dtype, valid.dtype) == (np.float32, np.float32, bool)

    def test_suppression_is_within_a_level_only(self):
        same = [10, 10, 50, 50]
        out, scores, valid = propose(
            Proposals(post_nms_test=4), [[same, same], [same]], [[1, 3], [2]], (100, 100)
        )
        assert valid.sum() == 2
        np.testing.assert_allclose(scores[:2], [3, 2])

    def test_threshold(self):
        # 40 x 40 and the 40 x 28 in it: IoU .7 ; 40 x 29: .725
        boxes = [[[10, 10, 50, 50], [10, 10, 50, 38.5]]]
        assert propose(Proposals(post_nms_test=3), boxes, [[2, 1]], (90, 90))[2].sum() == 1  # .7125 > .7
        assert propose(Proposals(post_nms_test=3, nms_iou=0.72), boxes, [[2, 1]], (90, 90))[2].sum() == 2

    def test_deltas_move_the_boxes_and_the_scale_is_bounded(self):
        anchors = [np.float32([[40, 40, 56, 56]])]
        deltas = [np.float32([[[0.25, -0.5, math.log(2), 50]]])]
        size = np.int32([[2000, 2000]])
        boxes, _, _ = Proposals(post_nms_test=1)([np.float32([[1]])], deltas, anchors, size)
        # centre (48 + 4, 48 - 8), width 32, height 16 * 62.5 = 1000, cut at 0
        np.testing.assert_allclose(boxes[0], [[36, 0, 68, 540]], atol=1e-3)

    def test_training_has_its_own_limits(self):
        boxes = [[[i * 10, 0, i * 10 + 8, 8] for i in range(8)] for _ in range(2)]
        scores = [np.arange(8), np.arange(8) + 0.5]
        layer = Proposals(pre_nms_train=3, pre_nms_test=2, post_nms_train=5, post_nms_test=9)
        out, scored, valid = propose(layer, boxes, scores, (100, 100), training=True)
        assert out.shape == (5, 4) and valid.all()  # 3 of each level, 5 of all
        np.testing.assert_allclose(scored, [7.5, 7, 6.5, 6, 5.5])
        out, scored, valid = propose(layer, boxes, scores, (100, 100), training=False)
        assert out.shape == (9, 4)
        np.testing.assert_allclose(scored[valid], [7.5, 7, 6.5, 6])


class TestDropped:
    def test_what_is_not_finite_or_has_no_area(self):
        anchors = [
            np.tile(np.float32([10, 10, 30, 30]), (6, 1)) + 40 * np.arange(6, dtype=np.float32)[:, None]
        ]
        deltas, logits = np.zeros([1, 6, 4], np.float32), np.float32([[6, 5, 4, 3, 2, 1]])
        deltas[0, 0, 0] = np.nan
        deltas[0, 1, 3] = -np.inf  # no height
        deltas[0, 2, 1] = np.inf
        deltas[0, 3, 2] = np.inf  # the bound makes it wide, not infinite
        logits[0, 4] = np.inf
        boxes, scores, valid = Proposals(post_nms_test=6)([logits], [deltas], anchors, np.int32([[400, 400]]))
        assert valid.numpy()[0].tolist() == [True, True, False, False, False, False]
        np.testing.assert_allclose(scores[0, :2], [3, 1])
        np.testing.assert_allclose(boxes[0, :2], [[0, 130, 400, 150], [210, 210, 230, 230]], atol=1e-3)
        assert np.isfinite(boxes).all() and np.isfinite(scores).all()

    def test_a_score_that_is_not_a_number(self):
        boxes = [[[i * 10, 0, i * 10 + 8, 8] for i in range(3)]]
        out, scores, valid = propose(Proposals(post_nms_test=3), boxes, [[np.nan, 1, 2]], (100, 100))
        assert valid.tolist() == [True, True, False] and scores.tolist() == [2, 1, 0]
        np.testing.assert_allclose(out, [[20, 0, 28, 8], [10, 0, 18, 8], [0] * 4])

    def test_outside_of_its_own_image(self):
        boxes, scores = [[[-30, 10, -5, 40], [120, 10, 150, 40], [10, 101, 40, 130]]], [[3, 2, 1]]
        out, scores, valid = propose(Proposals(post_nms_test=3), boxes, scores, (100, 110))
        assert not valid.any() and not out.any() and not scores.any()

    def test_a_level_without_anchors(self):
        out, _, valid = propose(Proposals(post_nms_test=2), [[], [[5, 5, 9, 9]]], [[], [1.0]], (50, 50))
        assert valid.tolist() == [True, False]


@pytest.mark.parametrize("pre_nms, post_nms, threshold", [(20, 200, 0.5), (200, 12, 0.7)])
def test_against_the_steps_written_out(pre_nms, post_nms, threshold):
    rng = np.random.default_rng(pre_nms)
    logits, deltas, anchors = random_levels(rng, 2, (45, 24, 6))
    sizes = np.int32([[100, 80], [60, 110]])
    layer = Proposals(pre_nms_test=pre_nms, post_nms_test=post_nms, nms_iou=threshold)
    boxes, scores, valid = (x.numpy() for x in layer(logits, deltas, anchors, sizes))
    for image in range(2):
        of_image = [level[image] for level in logits], [level[image] for level in deltas]
        wanted, wanted_scores = oracle(*of_image, anchors, sizes[image], pre_nms, post_nms, threshold)
        count = valid[image].sum()
        assert count == len(wanted) and (count == post_nms or 10 < count < post_nms)
        np.testing.assert_allclose(scores[image, :count], wanted_scores)
        np.testing.assert_allclose(boxes[image, :count], wanted, atol=1e-3)
        assert not boxes[image, count:].any() and not scores[image, count:].any()


def test_no_gradient_flows_through():
    rng = np.random.default_rng(0)
    logits, deltas, anchors = random_levels(rng, 1, (12,))
    logits, deltas = tf.Variable(logits[0]), tf.Variable(deltas[0])
    with tf.GradientTape() as tape:
        boxes, scores, _ = Proposals()([logits], [deltas], anchors, np.int32([[90, 90]]))
        total = tf.reduce_sum(boxes) + tf.reduce_sum(scores)
    assert tape.gradient(total, [logits, deltas]) == [None, None]


def test_mixed_precision_keeps_coordinates():
    layer = Proposals(post_nms_test=1, dtype="mixed_bfloat16")
    boxes, _, _ = propose(layer, [[[1001, 1003, 1101, 1107]]], [[1.001]], (1200, 1200))
    np.testing.assert_array_equal(boxes, [[1001, 1003, 1101, 1107]])


def test_unknown_sizes():
    boxes, scores, valid = Proposals(post_nms_test=7)(
        [keras.Input((None,)), keras.Input((None,))],
        [keras.Input((None, 4)), keras.Input((None, 4))],
        [keras.KerasTensor((None, 4)), keras.KerasTensor((None, 4))],
        keras.Input((2,), dtype="int32"),
    )
    assert (boxes.shape, scores.shape, valid.shape) == ((None, 7, 4), (None, 7), (None, 7))
    assert valid.dtype == "bool"


@pytest.mark.parametrize("min_size, kept", [(0.0, 3), (4.0, 2), (4.5, 1), (30.0, 0)])
def test_least_size(min_size, kept):
    boxes = [[[0, 0, 20, 20], [30, 0, 34, 20], [0, 30, 20, 33]]]  # the shorter edges are 20, 4 and 3
    layer = Proposals(min_size=min_size)
    _, _, valid = propose(layer, boxes, [[3.0, 2.0, 1.0]], (50, 50))
    assert valid.sum() == kept


@pytest.mark.parametrize("case", ["rpn0", "rpn1"])
@pytest.mark.parametrize("source, min_size", [("d2", 0.0), ("tv", 1e-3)])
def test_parity(shared, case, source, min_size):
    data = np.load(shared / "parity/ops/proposals.npz")
    about = json.loads((shared / "parity/ops/proposals.json").read_text())[case]
    starts = np.cumsum(about["per_level"])[:-1]
    layer = Proposals(
        pre_nms_test=about["pre_nms_top_n"],
        post_nms_test=about["post_nms_top_n"],
        nms_iou=about["nms_thresh"],
        min_size=min_size,
    )
    boxes, scores = (np.split(data[f"{case}/{name}"], starts) for name in ("boxes", "logits"))
    boxes, scores, valid = propose(layer, boxes, scores, about["image"])
    if source == "d2":
        np.testing.assert_allclose(scores[valid], data[f"{case}/d2_logits"], rtol=1e-6)
    else:  # probabilities
        np.testing.assert_allclose(1 / (1 + np.exp(-scores[valid])), data[f"{case}/tv_scores"], rtol=1e-5)
    np.testing.assert_allclose(boxes[valid], data[f"{case}/{source}_boxes"], atol=1e-3)
