"""Scored and refined regions to the few that are reported (NUMERICS section 12)."""

import json
import math

import keras
import numpy as np
import pytest

from keras_mrcnn.roi.detections import Detections

UNIT = (1.0, 1.0, 1.0, 1.0)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def oracle(proposals, logits, deltas, size, threshold, suppress, limit, weights):
    """One image, box by box in float64: [(box, score, class)], best first."""
    found = []
    for proposal, logit, delta in zip(*(x.astype(np.float64) for x in (proposals, logits, deltas))):
        scores = np.exp(logit - logit.max()) / np.exp(logit - logit.max()).sum()
        x1, y1, x2, y2 = proposal
        for c in range(len(delta)):
            dx, dy, dw, dh = delta[c] / weights
            width = (x2 - x1) * math.exp(min(dw, math.log(62.5)))
            height = (y2 - y1) * math.exp(min(dh, math.log(62.5)))
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            box = np.clip(box, 0, [size[1], size[0]] * 2)
            if scores[c] > threshold:
                found.append((box, scores[c], c))
    kept = []
    for box, score, c in sorted(found, key=lambda one: -one[1]):
        if all(c != k or iou(box, other) <= suppress for other, _, k in kept):
            kept.append((box, score, c))
    return kept[:limit]


def detect(layer, proposals, logits, deltas, size, valid=None):
    """Detections of one image; its rows of logits and deltas are those of the valid proposals."""
    valid = np.ones(len(proposals), bool) if valid is None else np.array(valid)
    outputs = layer(
        np.float32(proposals)[None], valid[None], np.float32(logits), np.float32(deltas), np.int32([size])
    )
    return [x.numpy()[0] for x in outputs]


class TestByHand:
    def test_scores_are_softmax_probabilities_and_the_last_is_background(self):
        # weights 1 : 3 : 4 of class 0, class 1 and background
        logits = np.log([[1.0, 3.0, 4.0]])
        boxes, scores, classes, valid = detect(
            Detections(max_detections=3), [[10, 10, 30, 30]], logits, np.zeros([1, 2, 4]), (50, 50)
        )
        assert valid.tolist() == [True, True, False] and classes.tolist() == [1, 0, 0]
        np.testing.assert_allclose(scores, [3 / 8, 1 / 8, 0], rtol=1e-5)
        np.testing.assert_allclose(boxes, [[10, 10, 30, 30], [10, 10, 30, 30], [0] * 4], atol=1e-4)
        assert [x.dtype for x in (boxes, scores, classes, valid)] == [np.float32, np.float32, np.int32, bool]

    def test_only_scores_above_the_threshold_count(self):
        arguments = [[10, 10, 30, 30]], np.zeros([1, 4]), np.zeros([1, 3, 4]), (50, 50)  # 1/4 each, exactly
        assert detect(Detections(score_threshold=0.25), *arguments)[3].sum() == 0
        assert detect(Detections(score_threshold=0.2499), *arguments)[3].sum() == 3

    def test_deltas_are_of_the_class_and_divided_by_the_weights(self):
        # class 0 moves right by 10 / 10 of 20 px, class 1 grows by exp(5 log(2) / 5) in height
        deltas = [[[10, 0, 0, 0], [0, 0, 0, 5 * math.log(2)]]]
        boxes, _, classes, _ = detect(
            Detections(max_detections=2), [[10, 20, 30, 40]], np.log([[3.0, 2.0, 5.0]]), deltas, (100, 100)
        )
        assert classes.tolist() == [0, 1]
        np.testing.assert_allclose(boxes, [[30, 20, 50, 40], [10, 10, 30, 50]], atol=1e-4)

    def test_clipped_to_the_image_before_suppression(self):
        # both reach below the image: clipped at 30 they are equal, unclipped their IoU is 20 / 70
        proposals = [[0, 10, 20, 30], [0, 10, 20, 80]]
        logits = np.log([[8.0, 1.0], [9.0, 1.0]])
        boxes, _, _, valid = detect(
            Detections(max_detections=2), proposals, logits, np.zeros([2, 1, 4]), (30, 90)
        )
        assert valid.sum() == 1
        np.testing.assert_allclose(boxes[0], [0, 10, 20, 30], atol=1e-4)

    def test_suppression_is_within_a_class_only(self):
        proposals = [[10, 10, 30, 30], [10, 10, 30, 31]]
        logits = np.log([[6.0, 1.0, 3.0], [2.0, 5.0, 3.0]])
        _, scores, classes, valid = detect(
            Detections(max_detections=5), proposals, logits, np.zeros([2, 2, 4]), (90, 90)
        )
        assert valid.sum() == 2 and classes[:2].tolist() == [0, 1]
        np.testing.assert_allclose(scores[:2], [0.6, 0.5], rtol=1e-5)

    def test_the_best_of_all_classes(self):
        proposals = [[i * 20, 0, i * 20 + 10, 10] for i in range(4)]
        logits = np.log([[4, 1, 5], [1, 6, 3], [5, 1, 4], [1, 2, 7.0]])
        _, scores, classes, valid = detect(
            Detections(max_detections=3), proposals, logits, np.zeros([4, 2, 4]), (90, 90)
        )
        np.testing.assert_allclose(scores, [0.6, 0.5, 0.4], rtol=1e-5)
        assert classes.tolist() == [1, 0, 0] and valid.all()


def test_against_loops_with_padding():
    rng = np.random.default_rng(0)
    centre = np.repeat(rng.uniform(0, 100, (2, 10, 2)), 3, 1) + rng.uniform(-3, 3, (2, 30, 2))
    proposals = np.concatenate([centre - 12, centre + 10], 2).astype(np.float32)
    valid = np.arange(30)[None] < [[30], [17]]
    logits = rng.normal(0, 2, (47, 5)).astype(np.float32)
    deltas = rng.normal(0, 0.5, (47, 4, 4)).astype(np.float32)
    sizes = np.int32([[100, 80], [60, 110]])
    weights = np.array([10.0, 8.0, 5.0, 4.0])
    layer = Detections(0.1, 0.4, 25, tuple(weights))
    outputs = [x.numpy() for x in layer(proposals, valid, logits, deltas, sizes)]
    for image, rows in enumerate((slice(0, 30), slice(30, 47))):
        boxes, scores, classes, found = (x[image] for x in outputs)
        wanted = oracle(
            proposals[image][valid[image]], logits[rows], deltas[rows], sizes[image], 0.1, 0.4, 25, weights
        )
        assert found.sum() == len(wanted) > 8
        for row, (box, score, c) in enumerate(wanted):
            np.testing.assert_allclose(boxes[row], box, atol=1e-3)
            assert scores[row] == pytest.approx(score, abs=1e-5) and classes[row] == c
        assert not boxes[~found].any() and not scores[~found].any() and not classes[~found].any()


def test_an_added_constant_changes_no_score():
    rng = np.random.default_rng(1)
    logits, boxes = rng.normal(size=(4, 3)).astype(np.float32), [[i * 20, 0, i * 20 + 9, 9] for i in range(4)]
    before = detect(Detections(), boxes, logits, np.zeros([4, 2, 4]), (90, 90))
    after = detect(Detections(), boxes, logits + 40, np.zeros([4, 2, 4]), (90, 90))
    for a, b in zip(before, after):
        np.testing.assert_allclose(a, b, atol=1e-5)


class TestNothing:
    def test_no_valid_proposal(self):
        outputs = detect(
            Detections(), np.zeros([6, 4]), np.zeros([0, 3]), np.zeros([0, 2, 4]), (50, 50), [False] * 6
        )
        assert [x.shape for x in outputs] == [(100, 4), (100,), (100,), (100,)]
        assert not any(x.any() for x in outputs)

    def test_what_is_not_finite_is_dropped_and_spares_the_others(self):
        boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
        logits, deltas = np.log([[6.0, 4.0]] * 3), np.zeros([3, 1, 4])
        logits[0, 0], deltas[1, 0, 2] = np.nan, np.nan
        found, scores, _, valid = detect(Detections(max_detections=3), boxes, logits, deltas, (50, 60))
        assert valid.sum() == 1 and np.isfinite(found).all() and np.isfinite(scores).all()
        np.testing.assert_allclose(found[0], boxes[2], atol=1e-4)


def test_mixed_precision_keeps_coordinates():
    layer = Detections(max_detections=1, dtype="mixed_bfloat16")
    box = [[1001, 1003, 1101, 1107]]
    boxes, scores, _, _ = detect(layer, box, np.log([[5.01, 4.99]]), np.zeros([1, 1, 4]), (1201, 1203))
    np.testing.assert_array_equal(boxes, box)
    np.testing.assert_allclose(scores, [0.501], rtol=1e-5)
    clipped, *_ = detect(layer, [[1001, 1003, 1301, 1307]], [[5, 0]], np.zeros([1, 1, 4]), (1201, 1203))
    np.testing.assert_array_equal(clipped, [[1001, 1003, 1203, 1201]])


def test_unknown_sizes():
    boxes, scores, classes, valid = Detections(max_detections=9)(
        keras.Input((None, 4)),
        keras.Input((None,), dtype="bool"),
        keras.KerasTensor((None, 6)),
        keras.KerasTensor((None, 5, 4)),
        keras.Input((2,), dtype="int32"),
    )
    assert boxes.shape == (None, 9, 4)
    assert scores.shape == classes.shape == valid.shape == (None, 9)


@pytest.mark.parametrize("min_size, found", [(0.0, 3), (4.0, 2), (4.5, 1)])
def test_least_size(min_size, found):
    boxes = [[0, 0, 20, 20], [30, 0, 34, 20], [0, 30, 20, 33]]  # the shorter edges are 20, 4 and 3
    layer = Detections(max_detections=9, min_size=min_size)
    assert detect(layer, boxes, np.log([[6.0, 4.0]] * 3), np.zeros([3, 1, 4]), (50, 50))[3].sum() == found


@pytest.mark.parametrize("case", ["det0", "det1", "det2"])
@pytest.mark.parametrize("prefix, min_size", [("d2_", 0.0), ("", 1e-2)])  # detectron2, torchvision
def test_parity(shared, case, prefix, min_size):
    data = np.load(shared / "parity/ops/proposals.npz")
    about = json.loads((shared / "parity/ops/proposals.json").read_text())[case]
    layer = Detections(
        about["score_thresh"], about["nms_thresh"], about["detections_per_img"], about["weights"], min_size
    )
    logits = np.roll(data[f"{case}/class_logits"], -1, 1)  # background is stored first
    deltas = data[f"{case}/box_regression"].reshape(len(logits), -1, 4)[:, 1:]
    boxes, scores, classes, valid = detect(layer, data[f"{case}/proposals"], logits, deltas, about["image"])
    first = 0 if prefix else 1  # torchvision counts classes from 1
    assert classes[valid].tolist() == (data[f"{case}/{prefix}labels"] - first).tolist()
    np.testing.assert_allclose(scores[valid], data[f"{case}/{prefix}scores"], atol=1e-5)
    np.testing.assert_allclose(boxes[valid], data[f"{case}/{prefix}boxes"], atol=1e-2)


def test_one_box_for_all_classes_is_that_box_for_each():
    random = np.random.default_rng(0)
    corner = random.uniform(0, 60, [12, 2])
    proposals = np.concatenate([corner, corner + random.uniform(10, 40, [12, 2])], 1)
    logits, deltas = random.normal(size=[12, 4]), random.normal(size=[12, 1, 4])
    layer = Detections(max_detections=30)
    agnostic = detect(layer, proposals, logits, deltas, (100, 90))
    repeated = detect(layer, proposals, logits, np.repeat(deltas, 3, 1), (100, 90))
    assert agnostic[3].sum() > 5
    for ours, theirs in zip(agnostic, repeated):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
