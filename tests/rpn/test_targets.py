"""What the RPN learns: labels, samples and deltas of anchors (NUMERICS section 6)."""

import keras
import numpy as np
import pytest

from keras_mrcnn.rpn.targets import RPNTargets, label_anchors

ALL = np.ones([1, 1], bool)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def oracle(anchors, true_boxes, positive, negative):
    """Labels and matches of one image without padding, anchor by anchor."""
    overlap = np.array([[iou(t, a) for a in anchors.astype(float)] for t in true_boxes.astype(float)])
    labels, matched = [], []
    for i in range(len(anchors)):
        best = overlap[:, i].max()
        is_best_of_one = any(overlap[g, i] == overlap[g].max() for g in range(len(true_boxes)))
        labels.append(1 if best >= positive or is_best_of_one else 0 if best < negative else -1)
        matched.append(int(overlap[:, i].argmax()))
    return np.array(labels), np.array(matched)


def labels_of(anchors, true_boxes, valid=None, **options):
    """Labels and matches of one image."""
    true_boxes = np.float32(true_boxes)
    valid = np.ones(len(true_boxes), bool) if valid is None else np.array(valid)
    labels, matched = label_anchors(np.float32(anchors), true_boxes[None], valid[None], **options)
    return labels.numpy()[0].tolist(), matched.numpy()[0].tolist()


def grid(count=12, stride=10.0, side=20.0):
    y, x = np.mgrid[:count, :count].reshape(2, -1) * stride
    return np.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], 1).astype(np.float32)


class TestLabels:
    # a true box of 10 x 10; anchors of width 10 inside its rows, IoU h / 10
    TRUE = [[0, 0, 10, 10]]

    def anchors(self, *heights):
        return [[0, 0, 10, height] for height in heights]

    def test_thresholds(self):
        # 1: best; .8 positive; .5 between; .2 negative; 0 negative
        heights = self.anchors(10, 8, 5, 2)
        assert labels_of([*heights, [50, 50, 60, 60]], self.TRUE)[0] == [1, 1, -1, 0, 0]

    def test_at_the_positive_threshold_is_positive_and_at_the_negative_one_ignored(self):
        # IoU 1, 1/2, 1/4 exactly
        labels, _ = labels_of(self.anchors(10, 5, 2.5), self.TRUE, positive_iou=0.5, negative_iou=0.25)
        assert labels == [1, 1, -1]

    def test_the_best_anchors_of_a_box_are_positive_however_low_ties_included(self):
        # IoU .2 twice, .1 once
        assert labels_of(self.anchors(2, 1, 2), self.TRUE)[0] == [1, 0, 1]
        assert labels_of([[0, 0, 10, 2], [0, 8, 10, 10], [0, 0, 10, 1]], self.TRUE)[0] == [1, 1, 0]

    def test_the_match_stays_the_anchor_s_own_best(self):
        # the anchor is the best that the small box has (.04), and overlaps the large one more (.5)
        labels, matched = labels_of(
            [[0, 0, 10, 10], [0, 0, 10, 20]], [[0, 0, 2, 2], [0, 0, 10, 20]], positive_iou=0.9
        )
        assert (labels, matched) == ([1, 1], [1, 1])

    def test_equal_overlaps_match_the_first_box(self):
        assert labels_of(self.anchors(10), [*self.TRUE, *self.TRUE])[1] == [0]

    def test_no_true_box_makes_every_anchor_negative(self):
        assert labels_of(self.anchors(10, 5), [[0, 0, 10, 10], [0, 0, 10, 5]], [False, False])[0] == [0, 0]

    @pytest.mark.parametrize("padding", [[0, 0, 0, 0], [0, 0, 10, 5], [50, 50, 60, 60]])
    def test_a_padded_box_matches_nothing(self, padding):
        anchors = [*self.anchors(10, 5), [50, 50, 60, 60]]
        expected = labels_of(anchors, self.TRUE)[0]
        assert expected == [1, -1, 0]
        labels, matched = labels_of(anchors, [padding, *self.TRUE, padding], [False, True, False])
        assert labels == expected
        assert matched[:2] == [1, 1]

    @pytest.mark.parametrize(
        "box", [[5, 5, 5, 5], [5, 5, 5, 9], [500, 500, 520, 520], [9, 9, 2, 2], [np.nan] * 4]
    )
    def test_a_box_that_overlaps_no_anchor_matches_nothing(self, box):
        anchors = [*self.anchors(10, 5), [50, 50, 60, 60]]
        assert labels_of(anchors, [*self.TRUE, box])[0] == [1, -1, 0]
        assert labels_of(anchors, [box])[0] == [0, 0, 0]

    def test_against_loops(self):
        rng = np.random.default_rng(0)
        anchors = grid()
        anchors += rng.uniform(-3, 3, anchors.shape).astype(np.float32)
        corner = rng.uniform(0, 80, (2, 5, 2))
        true_boxes = np.concatenate([corner, corner + rng.uniform(8, 40, (2, 5, 2))], 2).astype(np.float32)
        valid = np.array([[True] * 5, [True, False, True, True, False]])
        labels, matched = (x.numpy() for x in label_anchors(anchors, true_boxes, valid, 0.5, 0.2))
        for image in range(2):
            real = np.flatnonzero(valid[image])
            wanted, wanted_match = oracle(anchors, true_boxes[image, real], 0.5, 0.2)
            assert set(wanted) == {-1, 0, 1}
            np.testing.assert_array_equal(labels[image], wanted)
            touched = wanted != 0  # an anchor that overlaps nothing has no match of meaning
            np.testing.assert_array_equal(matched[image][touched], real[wanted_match][touched])

    @pytest.mark.parametrize("case, positive, negative", [("c0", 0.7, 0.3), ("c2", 0.5, 0.4)])
    def test_parity(self, shared, case, positive, negative):
        data = np.load(shared / "parity/ops/matcher.npz")
        gt, anchors, quality = (data[f"{case}/{name}"] for name in ("gt", "boxes", "quality"))
        overlaps = quality.max(1) > 0
        labels, matched = labels_of(anchors, gt, overlaps, positive_iou=positive, negative_iou=negative)
        if overlaps.all():
            assert labels == data[f"{case}/d2_label"].tolist()
            assert matched == data[f"{case}/d2_index"].tolist()
        else:  # the reference lets a box far from all anchors make all of them positive; here it is padded
            expected, expected_match = oracle(anchors, gt[overlaps], positive, negative)
            assert labels == expected.tolist() and matched == expected_match.tolist()
            assert (data[f"{case}/d2_label"] == 1).all()


class TestSample:
    TRUE = np.float32(
        [[[20, 20, 40, 40], [65, 55, 85, 75], [0, 0, 0, 0]], [[17, 88, 34, 106], [0] * 4, [0] * 4]]
    )
    VALID = np.array([[True, True, False], [True, False, False]])

    def sample(self, anchors=None, valid=None, **options):
        anchors = grid() if anchors is None else anchors
        valid = self.VALID if valid is None else valid
        layer = RPNTargets(**{"seed": 0, "positive_iou": 0.4, "negative_iou": 0.1, **options})
        sampled = [x.numpy() for x in layer(anchors, self.TRUE, valid)]
        return *sampled, label_anchors(anchors, self.TRUE, valid, 0.4, 0.1)[0].numpy()

    def test_only_labelled_anchors_each_once(self):
        indices, labels, weights, _, given = self.sample(samples=40)
        for image in range(2):
            counted = weights[image] == 1
            assert counted.sum() == 40 and set(weights[image]) <= {0, 1}
            assert len(set(indices[image][counted])) == 40
            np.testing.assert_array_equal(given[image][indices[image][counted]], labels[image][counted])
            # fewer positive ones than 20: all of them, the rest negative
            assert 0 < (given[image] == 1).sum() < 20
            assert (labels * weights)[image].sum() == (given[image] == 1).sum()

    def test_at_most_the_fraction_is_positive(self):
        _, labels, weights, _, given = self.sample(samples=8, positive_fraction=0.125)
        assert ((given == 1).sum(1) > 1).all()
        np.testing.assert_array_equal((labels * weights).sum(1), [1, 1])
        np.testing.assert_array_equal(weights.sum(1), [8, 8])

    def test_no_true_box_gives_negative_ones_only(self):
        _, labels, weights, deltas, _ = self.sample(samples=16, valid=np.zeros([2, 3], bool))
        np.testing.assert_array_equal(weights.sum(1), [16, 16])
        assert not (labels * weights).any()
        assert np.isfinite(deltas).all()

    def test_fewer_anchors_than_samples(self):
        anchors = np.float32([[20, 20, 40, 40], [200, 200, 220, 220], [20, 30, 40, 50], [17, 88, 34, 108]])
        indices, labels, weights, _, given = self.sample(
            anchors, self.VALID & [True, False, False], samples=256
        )
        assert given.tolist() == [[1, 0, -1, 0], [0, 0, 0, 1]]  # IoU 1, 0, 1/3, 0 and 0, 0, 0, .9
        for image in range(2):
            counted = weights[image] == 1
            assert sorted(indices[image][counted]) == np.flatnonzero(given[image] >= 0).tolist()

    def test_deltas_lead_from_the_anchor_to_its_own_box(self):
        true_boxes = np.float32([[[200, 200, 240, 240], [24, 31, 34, 51]]])
        anchors = np.float32([[20, 20, 40, 40], [205, 205, 245, 245]])
        indices, labels, weights, deltas = (
            x.numpy()[0] for x in RPNTargets(samples=4, seed=0)(anchors, true_boxes, np.ones([1, 2], bool))
        )
        positive = labels * weights == 1
        by_anchor = dict(zip(indices[positive], deltas[positive]))
        # anchor centre (30, 30), 20 x 20, to (24, 31, 34, 51): centre (29, 41), 10 x 20
        np.testing.assert_allclose(by_anchor[0], [-1 / 20, 11 / 20, np.log(0.5), 0], atol=1e-6)
        np.testing.assert_allclose(by_anchor[1], [-5 / 40, -5 / 40, 0, 0], atol=1e-6)

    def test_every_negative_anchor_is_sometimes_chosen(self):
        layer = RPNTargets(0.4, 0.1, samples=32, seed=1)
        counts = np.zeros(144)
        for _ in range(150):
            indices, labels, weights, _ = layer(grid(), self.TRUE[:1], self.VALID[:1])
            chosen = indices.numpy()[0][(weights.numpy()[0] == 1) & (labels.numpy()[0] == 0)]
            counts[chosen] += 1
        negative = label_anchors(grid(), self.TRUE[:1], self.VALID[:1], 0.4, 0.1)[0].numpy()[0] == 0
        share = counts[negative] / 150
        expected = counts.sum() / 150 / negative.sum()
        # a share of p has a standard deviation of sqrt(p (1 - p) / 150)
        assert np.abs(share - expected).max() < 5 * (expected * (1 - expected) / 150) ** 0.5
        assert not counts[~negative].any()


def test_mixed_precision_keeps_coordinates():
    # IoU with the first is 100/102; as bfloat16 both coordinates would be rounded to multiples of 8 or 4
    layer = RPNTargets(samples=2, seed=0, dtype="mixed_bfloat16")
    anchors, true_boxes = np.float32([[1001, 1001, 1103, 1103]]), np.float32([[[1001, 1001, 1103, 1101]]])
    _, labels, _, deltas = layer(anchors, true_boxes, ALL)
    assert labels[0, 0] == 1
    np.testing.assert_allclose(deltas[0, 0], [0, -1 / 102, 0, np.log(100 / 102)], atol=1e-6)


def test_unknown_sizes():
    anchors, boxes, valid = (
        keras.KerasTensor((None, 4)),
        keras.Input((None, 4)),
        keras.Input((None,), dtype="bool"),
    )
    indices, labels, weights, deltas = RPNTargets()(anchors, boxes, valid)
    assert [x.shape for x in (indices, labels, weights, deltas)] == [(None, None)] * 3 + [(None, None, 4)]
