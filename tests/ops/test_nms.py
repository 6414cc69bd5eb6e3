"""Greedy non-maximum suppression within groups (NUMERICS sections 6 and 12)."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.ops import nms


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def oracle(boxes, scores, groups, valid, max_outputs, threshold):
    """Kept indices of one image, one box after the other, in float64."""
    boxes = np.asarray(boxes, np.float64)
    kept = []
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        if valid[i] and all(groups[i] != groups[k] or iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(int(i))
    return kept[:max_outputs]


def kept_of(boxes, scores, threshold, groups=None, valid=None, max_outputs=None):
    """The kept indices of one image, after a look at the padding."""
    count = len(boxes)
    groups = np.zeros(count, np.int32) if groups is None else np.int32(groups)
    valid = np.ones(count, bool) if valid is None else np.array(valid)
    size = count if max_outputs is None else max_outputs
    arrays = (np.float32(boxes), np.float32(scores), groups, valid)
    indices, kept = (x.numpy()[0] for x in nms(*(a[None] for a in arrays), size, threshold))
    assert indices.shape == kept.shape == (size,) and indices.dtype == np.int32
    assert kept.tolist() == sorted(kept, reverse=True)
    assert not indices[~kept].any()
    return indices[kept].tolist()


def clusters(rng, count, low=0.0, high=200.0):
    """Boxes in bunches of four, so that many overlaps lie on both sides of a threshold."""
    centre = np.repeat(rng.uniform(low, high, (count // 4, 2)), 4, 0) + rng.uniform(-4, 4, (count, 2))
    half = np.repeat(rng.uniform(4, 12, (count // 4, 2)), 4, 0) * rng.uniform(0.8, 1.2, (count, 2))
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


class TestByHand:
    # the second covers the lower half of the first: IoU 2 / 4 = 1/2 exactly
    HALF = [[0, 0, 2, 2], [0, 0, 2, 1]]

    def test_exactly_at_the_threshold_is_kept(self):
        assert kept_of(self.HALF, [0.9, 0.8], 0.5) == [0, 1]
        assert kept_of(self.HALF, [0.9, 0.8], 0.4999) == [0]

    def test_exactly_at_the_threshold_is_kept_in_a_far_group_too(self):
        boxes = np.float32(self.HALF) + [1330, 798, 1330, 798]
        assert kept_of(boxes, [0.9, 0.8], 0.5, groups=[79, 79]) == [0, 1]
        assert kept_of(boxes, [0.9, 0.8], 0.4999, groups=[79, 79]) == [0]

    def test_the_better_one_stays_wherever_it_stands(self):
        assert kept_of(self.HALF, [0.1, 0.8], 0.4) == [1]
        assert kept_of([[0, 0, 9, 9], [50, 0, 60, 9], [0, 0, 9, 8]], [-3.0, -1.0, -2.0], 0.5) == [1, 2]

    def test_ties_by_index(self):
        assert kept_of([[0, 0, 9, 9], [0, 0, 9, 8], [50, 0, 60, 9]], [0.5, 0.5, 0.5], 0.5) == [0, 2]
        apart = [[i * 20, 0, i * 20 + 9, 9] for i in range(5)]
        assert kept_of(apart, [0.5, 0.7, 0.5, 0.7, 0.5], 0.5) == [1, 3, 0, 2, 4]

    def test_a_suppressed_box_suppresses_nothing(self):
        # a chain: 0 takes 1 (IoU 60 / 140), 1 would take 2 (the same), 0 and 2 share 20 / 180
        boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]
        assert kept_of(boxes, [0.9, 0.8, 0.7], 0.4) == [0, 2]

    def test_groups_do_not_touch(self):
        same = [[3, 4, 50, 60]] * 4
        assert kept_of(same, [0.6, 0.9, 0.8, 0.7], 0.5, groups=[0, 1, 0, 2]) == [1, 2, 3]

    @pytest.mark.parametrize("step", [(101, 0), (0, 101), (101, 101)])
    def test_groups_do_not_touch_where_coordinates_are_negative(self, step):
        # 101 is the largest coordinate plus one: moved by it, the second box would lie on the first
        box = np.array([90, 90, 100, 100])
        assert kept_of([box, box - np.tile(step, 2)], [0.9, 0.8], 0.5, groups=[0, 1]) == [0, 1]

    def test_invalid_boxes_take_no_part(self):
        boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [40, 0, 50, 10]]
        assert kept_of(boxes, [0.9, 0.8, 0.7], 0.5, valid=[False, True, True]) == [1, 2]
        boxes[0] = [np.nan, 0, np.inf, 10]
        assert kept_of(boxes, [np.nan, 0.8, 0.7], 0.5, valid=[False, True, True]) == [1, 2]

    def test_the_limit_is_over_all_groups(self):
        boxes = [[i * 20, 0, i * 20 + 9, 9] for i in range(6)]
        scores, groups = [0.1, 0.6, 0.3, 0.5, 0.2, 0.4], [0, 1, 0, 1, 2, 2]
        assert kept_of(boxes, scores, 0.5, groups, max_outputs=3) == [1, 3, 5]

    def test_more_places_than_boxes(self):
        assert kept_of(self.HALF, [0.9, 0.8], 0.4, max_outputs=7) == [0]

    def test_empty_boxes_overlap_nothing(self):
        assert kept_of([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]], [0.9, 0.8, 0.7], 0.1) == [0, 1, 2]


def test_against_the_oracle():
    rng = np.random.default_rng(0)
    boxes = np.stack([clusters(rng, 60, -200) for _ in range(3)])  # negative coordinates among them
    scores = rng.permutation(180).reshape(3, 60).astype(np.float32) / 180
    groups = rng.integers(0, 4, (3, 60)).astype(np.int32)
    valid = rng.random((3, 60)) < [[1.0], [0.7], [0.0]]  # all, some, none
    for threshold, size in ((0.5, 60), (0.3, 25)):
        indices, kept = (x.numpy() for x in nms(boxes, scores, groups, valid, size, threshold))
        for i in range(3):
            expected = oracle(boxes[i], scores[i], groups[i], valid[i], size, threshold)
            assert indices[i][kept[i]].tolist() == expected
        assert kept[0].sum() > 20 and not kept[2].any()


def test_many_groups_cost_no_precision():
    """The set of each of 80 classes is what the class alone gives, at coordinates of a large image."""
    rng = np.random.default_rng(1)
    boxes = clusters(rng, 4000, 0, 1333)
    scores = rng.permutation(4000).astype(np.float32)
    groups = np.repeat(rng.integers(0, 80, 1000), 4)
    together = set(kept_of(boxes, scores, 0.5, groups))
    apart = set()
    for group in range(80):
        members = np.flatnonzero(groups == group)
        if len(members):
            apart |= set(members[kept_of(boxes[members], scores[members], 0.5)].tolist())
    assert together == apart


def test_the_order_of_the_boxes_does_not_matter():
    rng = np.random.default_rng(2)
    boxes, scores, order = clusters(rng, 40), rng.permutation(40).astype(np.float32), rng.permutation(40)
    kept, shuffled = kept_of(boxes, scores, 0.5), kept_of(boxes[order], scores[order], 0.5)
    assert order[shuffled].tolist() == kept


def test_no_boxes_and_unknown_sizes():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 4]),
            tf.TensorSpec([None, None]),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None], tf.bool),
        ]
    )
    def traced(*arguments):
        indices, kept = nms(*arguments, 5, 0.5)
        assert indices.shape.as_list() == kept.shape.as_list() == [None, 5]
        return indices, kept

    for batch, count in ((2, 0), (1, 3)):
        indices, kept = traced(
            tf.zeros([batch, count, 4]),
            tf.zeros([batch, count]),
            tf.zeros([batch, count], tf.int32),
            tf.zeros([batch, count], tf.bool),
        )
        np.testing.assert_array_equal(indices, np.zeros([batch, 5]))
        assert not kept.numpy().any()


PLAIN = ["plain0", "plain1", "plain2", "plain3", "plain4", "edge_0.50", "edge_0.00", "edge_1.00", "ties"]


@pytest.mark.parametrize("case", [*PLAIN, "batched0", "batched1", "batched2"])
def test_parity(shared, case):
    data = np.load(shared / "parity/ops/nms.npz")
    threshold = json.loads((shared / "parity/ops/nms.json").read_text())[case]["iou_threshold"]
    groups = data[f"{case}/labels"] if case.startswith("batched") else None
    kept = kept_of(data[f"{case}/boxes"], data[f"{case}/scores"], threshold, groups)
    assert kept == data[f"{case}/keep"].tolist()
