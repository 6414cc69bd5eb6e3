"""The losses (NUMERICS sections 6 and 9 to 11)."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import losses


def value_and_gradient(function, values, *arguments):
    values = tf.convert_to_tensor(values, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = function(values, *arguments)
    return loss.numpy(), tape.gradient(loss, values).numpy()


def cross_entropy(logit, label):
    probability = 1 / (1 + math.exp(-float(logit)))
    return -math.log(probability) if label == 1 else -math.log(1 - probability)


class TestSigmoidCrossEntropy:
    def test_by_hand(self):
        # p = 3/4 at log 3: -log(3/4) for a positive, -log(1/4) for a negative; log 2 at 0
        logits = tf.constant([math.log(3), math.log(3), -math.log(3), 0.0])
        value = losses.sigmoid_cross_entropy(logits, tf.constant([1.0, 0.0, 1.0, 1.0]))
        np.testing.assert_allclose(value, np.log([4 / 3, 4, 4, 2]), rtol=1e-5)

    def test_large_logits(self):
        logits = tf.constant([1e4, -1e4, 1e4, -1e4, -30.0])
        value, gradient = value_and_gradient(
            losses.sigmoid_cross_entropy, logits, tf.constant([1.0, 0.0, 0.0, 1.0, 0.0])
        )
        np.testing.assert_allclose(value, [0, 0, 1e4, 1e4, math.exp(-30)], rtol=1e-5)
        np.testing.assert_allclose(gradient, [0, 0, 1, -1, math.exp(-30)], atol=1e-12)

    def test_gradient_is_probability_minus_label_at_zero_too(self):
        # Zero is not rare: a bias of 0 over features that a ReLU has cut.
        logits = np.float32([0, 0, 1e-3, -1e-3, 2])
        labels = np.float32([0, 1, 0, 1, 1])
        _, gradient = value_and_gradient(losses.sigmoid_cross_entropy, logits, labels)
        np.testing.assert_allclose(gradient, 1 / (1 + np.exp(-logits)) - labels, atol=1e-6)

    def test_soft_labels(self):
        # -.3 log(p) - .7 log(1 - p) at p = 3/4
        value = losses.sigmoid_cross_entropy(tf.constant([math.log(3)]), tf.constant([0.3]))
        np.testing.assert_allclose(value, [0.3 * math.log(4 / 3) + 0.7 * math.log(4)], rtol=1e-5)


class TestSmoothL1:
    def test_by_hand(self):
        # beta 0.5: 0.5 * 0.2^2 / 0.5 = 0.04 inside, 2 - 0.25 = 1.75 outside, 0.25 where both meet
        output = losses.smooth_l1(np.float32([0, 0.2, -0.2, 0.5, -2]), 0.5)
        np.testing.assert_allclose(output, [0, 0.04, 0.04, 0.25, 1.75], rtol=1e-6)

    @pytest.mark.parametrize("case", ["0.000", "0.111", "0.500", "1.000"])
    def test_parity(self, shared, case):
        data = np.load(shared / "parity/ops/losses.npz")
        x = tf.constant(data[f"smooth_l1_{case}/x"])
        beta = json.loads((shared / "parity/ops/losses.json").read_text())[f"smooth_l1_{case}"]["beta"]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = losses.smooth_l1(x, beta)
        np.testing.assert_allclose(y, data[f"smooth_l1_{case}/y"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(tape.gradient(y, x), data[f"smooth_l1_{case}/grad"], rtol=1e-5, atol=1e-6)

    def test_parity_of_the_box_head(self, shared):
        """torchvision: beta 1/9, background first, its deltas never read."""
        data = np.load(shared / "parity/ops/losses.npz")
        labels = data["fastrcnn/labels"]
        deltas = tf.constant(data["fastrcnn/regression"].reshape(len(labels), -1, 4)[:, 1:])
        with tf.GradientTape() as tape:
            tape.watch(deltas)
            loss = losses.box(deltas, data["fastrcnn/targets"], labels - 1, labels > 0, 1 / 9)
        np.testing.assert_allclose(loss, data["fastrcnn/loss_box"], rtol=1e-5)
        expected = data["fastrcnn/grad_regression"].reshape(len(labels), -1, 4)[:, 1:]
        np.testing.assert_allclose(tape.gradient(loss, deltas), expected, atol=1e-6)


class TestRPN:
    """Two images, levels of 3 and 2 anchors; the last place of the first sample is padding."""

    LOGITS = [np.float32([[0.1, -2, 3], [1, 1, -1]]), np.float32([[4, -0.5], [0.3, 2]])]
    INDICES = np.int32([[4, 0, 2, 2], [1, 3, 0, 4]])
    LABELS = np.float32([[1, 1, 0, 0], [1, 0, 0, 0]])
    WEIGHTS = np.float32([[1, 0, 1, 0], [1, 1, 1, 1]])

    def test_objectness(self):
        sample = self.INDICES, self.LABELS, self.WEIGHTS, None, 8
        # anchor 4 of image 0 is the second of level 2: logit -.5; place 1 has weight 0
        terms = [(-0.5, 1), (3, 0), (1, 1), (0.3, 0), (1, 0), (2, 0)]
        expected = sum(cross_entropy(*term) for term in terms) / (8 * 2)
        assert losses.rpn_objectness(self.LOGITS, *sample).numpy() == pytest.approx(expected, rel=1e-5)

    def test_box(self):
        rng = np.random.default_rng(0)
        deltas = [rng.normal(size=(2, count, 4)).astype(np.float32) for count in (3, 2)]
        targets = rng.normal(size=(2, 4, 4)).astype(np.float32)
        sample = self.INDICES, self.LABELS, self.WEIGHTS, targets, 8
        differences = deltas[1][0, 1] - targets[0, 0], deltas[0][1, 1] - targets[1, 0]
        expected = np.abs(differences).sum()
        assert losses.rpn_box(deltas, *sample).numpy() == pytest.approx(expected / (8 * 2), rel=1e-5)
        targets[:, 1:] = 1e9  # of no positive anchor
        assert losses.rpn_box(deltas, *sample).numpy() == pytest.approx(expected / (8 * 2), rel=1e-5)

    def test_gradients_reach_the_sampled_anchors_only(self):
        sample = self.INDICES[:1], self.LABELS[:1], self.WEIGHTS[:1], None, 8
        _, gradient = value_and_gradient(
            lambda first: losses.rpn_objectness([first, self.LOGITS[1][:1]], *sample), self.LOGITS[0][:1]
        )
        # anchor 2: sigmoid(3) / 8; place 1, anchor 0, has no weight
        np.testing.assert_allclose(gradient, [[0, 0, 1 / (1 + math.exp(-3)) / 8]], rtol=1e-5)

    def test_nothing_sampled_is_zero_and_has_gradients(self):
        none = self.INDICES, self.LABELS, np.zeros_like(self.WEIGHTS), np.zeros([2, 4, 4], np.float32), 8
        value, gradient = value_and_gradient(lambda x: losses.rpn_objectness([x], *none), np.ones([2, 5]))
        assert value == 0 and not gradient.any()
        value, gradient = value_and_gradient(lambda x: losses.rpn_box([x], *none), np.ones([2, 5, 4]))
        assert value == 0 and not gradient.any()

    def test_parity_of_objectness(self, shared):
        data = np.load(shared / "parity/ops/losses.npz")
        about = json.loads((shared / "parity/ops/losses.json").read_text())["rpn"]
        labels, size = data["rpn/labels"], about["batch_size"]
        chosen = []
        for candidates in (np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)):
            count = size // 2  # enough of either
            chosen += [candidates[(i * len(candidates)) // count] for i in range(count)]
        sample = np.int32([chosen]), labels[chosen][None], np.ones([1, size], np.float32), None, size
        value, gradient = value_and_gradient(
            lambda x: losses.rpn_objectness([x], *sample), data["rpn/objectness"][None]
        )
        assert value == pytest.approx(float(data["rpn/loss_objectness"]), rel=1e-5)
        np.testing.assert_allclose(gradient[0], data["rpn/grad_objectness"], atol=1e-6)


class TestClassification:
    def test_by_hand(self):
        # -log(3/8) and -log(4/8), mean over both
        logits = np.log(np.float32([[1, 3, 4], [1, 3, 4]]))
        expected = (math.log(8 / 3) + math.log(2)) / 2
        assert losses.classification(logits, np.int32([1, 2])).numpy() == pytest.approx(expected, rel=1e-5)

    def test_large_logits_and_an_added_constant(self):
        logits = np.float32([[1e4, 0, -1e4], [5, 6, 7]])
        value = losses.classification(logits, np.int32([2, 1])).numpy()
        assert value == pytest.approx((2e4 + math.log(math.exp(-1) + 1 + math.exp(1))) / 2, rel=1e-5)
        assert losses.classification(logits[1:] + 50, np.int32([1])).numpy() == pytest.approx(
            losses.classification(logits[1:], np.int32([1])).numpy(), rel=1e-4
        )

    def test_no_region_is_zero_and_has_gradients(self):
        value, gradient = value_and_gradient(losses.classification, np.zeros([0, 3]), np.zeros([0], np.int32))
        assert value == 0 and gradient.shape == (0, 3)

    def test_parity(self, shared):
        data = np.load(shared / "parity/ops/losses.npz")
        # background is stored as class 0 in the first column
        logits, classes = np.roll(data["fastrcnn/logits"], -1, 1), (data["fastrcnn/labels"] - 1) % 7
        value, gradient = value_and_gradient(losses.classification, logits, classes.astype(np.int32))
        assert value == pytest.approx(float(data["fastrcnn/loss_cls"]), rel=1e-5)
        np.testing.assert_allclose(gradient, np.roll(data["fastrcnn/grad_logits"], -1, 1), atol=1e-6)


class TestBox:
    CLASSES, FOREGROUND = np.int32([1, 2, 0, 2]), np.array([True, False, True, False])  # 2 is background

    def test_by_hand(self):
        deltas = np.zeros([4, 2, 4], np.float32)
        deltas[0, 1], deltas[2, 0] = [1, -2, 3, 0], [0.5, 0, 0, 0]
        deltas[0, 0] = deltas[1] = deltas[3] = 100  # other classes, background
        targets = np.float32([[0, 0, 0, 1], [7] * 4, [0] * 4, [7] * 4])
        # (1 + 2 + 3 + 1 + .5) over all four regions, not over the two of foreground
        value, gradient = value_and_gradient(losses.box, deltas, targets, self.CLASSES, self.FOREGROUND)
        assert value == pytest.approx(7.5 / 4)
        expected = np.zeros([4, 2, 4])
        expected[0, 1], expected[2, 0] = np.array([1, -1, 1, -1]) / 4, np.array([1, 0, 0, 0]) / 4
        np.testing.assert_allclose(gradient, expected)

    def test_against_loops(self):
        rng = np.random.default_rng(0)
        deltas, targets = rng.normal(size=(9, 5, 4)), rng.normal(size=(9, 4))
        classes, foreground = rng.integers(0, 5, 9), rng.random(9) < 0.6
        classes = np.where(foreground, classes, 5).astype(np.int32)
        rows = np.flatnonzero(foreground)
        expected = sum(np.abs(deltas[i, classes[i]] - targets[i]).sum() for i in rows) / 9
        value = losses.box(np.float32(deltas), np.float32(targets), classes, foreground)
        assert value.numpy() == pytest.approx(expected, rel=1e-5)

    def test_plain_absolute_values(self, shared):
        data = np.load(shared / "parity/ops/losses.npz")
        x, y = data["smooth_l1_0.000/x"], data["smooth_l1_0.000/y"]
        deltas = np.zeros([len(x), 1, 4], np.float32)
        deltas[:, 0, 2] = x
        arguments = np.zeros([len(x), 4], np.float32), np.zeros(len(x), np.int32), np.ones(len(x), bool)
        value, gradient = value_and_gradient(losses.box, deltas, *arguments)
        assert value == pytest.approx(y.mean(), rel=1e-5)
        np.testing.assert_allclose(gradient[:, 0, 2] * len(x), data["smooth_l1_0.000/grad"], atol=1e-6)

    def test_no_foreground_or_no_region_is_zero_and_has_gradients(self):
        for count in (3, 0):
            value, gradient = value_and_gradient(
                losses.box,
                np.ones([count, 2, 4]),
                np.zeros([count, 4], np.float32),
                np.full([count], 2, np.int32),
                np.zeros([count], bool),
            )
            assert value == 0 and gradient.shape == (count, 2, 4) and not gradient.any()


class TestMask:
    def test_by_hand(self):
        logits = np.float32([[[math.log(3), 0], [0, 0]], [[9, 9], [9, 9]], [[-math.log(3)] * 2] * 2])
        targets = np.float32([[[0, 0], [1, 1]], [[0, 1], [0, 1]], [[1, 0], [1, 0]]])
        # first: (log 4 + 3 log 2) / 4; second does not count; third: (2 log 4 + 2 log(4/3)) / 4
        first = (math.log(4) + 3 * math.log(2)) / 4
        third = (math.log(4) + math.log(4 / 3)) / 2
        value = losses.mask(logits, targets, np.array([True, False, True]))
        assert value.numpy() == pytest.approx((first + third) / 2, rel=1e-5)

    def test_objects_without_a_mask_have_no_gradient(self):
        arguments = np.zeros([2, 3, 3], np.float32), np.array([False, True])
        _, gradient = value_and_gradient(losses.mask, np.ones([2, 3, 3]), *arguments)
        assert not gradient[0].any()
        np.testing.assert_allclose(gradient[1], np.full([3, 3], 1 / (1 + math.exp(-1)) / 9), rtol=1e-5)

    def test_nothing_is_zero_and_has_gradients(self):
        for count in (2, 0):
            arguments = np.zeros([count, 3, 3], np.float32), np.zeros([count], bool)
            value, gradient = value_and_gradient(losses.mask, np.ones([count, 3, 3]), *arguments)
            assert value == 0 and gradient.shape == (count, 3, 3) and not gradient.any()

    def test_parity(self, shared):
        data, masks = (np.load(shared / f"parity/ops/{name}.npz") for name in ("losses", "masks"))
        about = json.loads((shared / "parity/ops/losses.json").read_text())["mask"]
        np.testing.assert_array_equal(data["mask/proposals"], masks["targets14/proposals"][:9])
        targets = masks["targets14/torchvision"][:9]  # soft values
        classes = np.array(about["gt_labels"])[data["mask/matched"]]
        rows = np.arange(9)
        value, gradient = value_and_gradient(
            losses.mask, data["mask/logits"][rows, classes], targets, np.ones(9, bool)
        )
        assert value == pytest.approx(float(data["mask/loss"]), rel=1e-5)
        np.testing.assert_allclose(gradient, data["mask/grad"][rows, classes], atol=1e-6)


def test_softmax_mask_against_a_slow_one():
    random = np.random.default_rng(0)
    for maps in (4, 2):  # a mask for each of three classes, or one for all; and the background
        logits = random.normal(size=[5, 3, 3, maps]).astype(np.float32)
        classes, has_mask = random.integers(0, 3, 5).astype(np.int32), np.array([1, 1, 0, 1, 1], bool)
        targets = random.integers(0, 2, [5, 3, 3]).astype(np.float32)
        total = 0.0
        for region in np.flatnonzero(has_mask):
            for y, x in np.ndindex(3, 3):
                values = np.exp(logits[region, y, x].astype(np.float64))
                own = classes[region] if maps == 4 else 0
                total -= math.log(values[own if targets[region, y, x] else maps - 1] / values.sum())
        value, gradient = value_and_gradient(losses.softmax_mask, logits, classes, targets, has_mask)
        assert value == pytest.approx(total / (4 * 9), rel=1e-5)
        assert not gradient[2].any() and gradient[[0, 1, 3, 4]].all()


class TestKeypoint:
    def test_by_hand(self):
        # two regions, 2 x 2 positions, two keypoints
        logits = np.zeros([2, 2, 2, 2], np.float32)
        logits[0, 1, 0, 0] = math.log(5)  # position 2: 5 of 5 + 3
        logits[1, 0, 1, 1] = math.log(3)  # position 1: 3 of 3 + 3
        indices, valid = np.int32([[2, 0], [3, 0]]), np.array([[True, False], [True, True]])
        # the second region's first map is flat: log 4; its second: -log(1 / 6) at position 0
        expected = (math.log(8 / 5) + math.log(4) + math.log(6)) / 3
        value, gradient = value_and_gradient(losses.keypoint, logits, indices, valid)
        assert value == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(gradient[0, :, :, 0], np.float32([[1, 1], [5 - 8, 1]]) / 8 / 3, rtol=1e-5)

    def test_what_is_not_labelled_has_no_gradient(self):
        logits = np.random.default_rng(0).normal(size=(2, 3, 3, 2))
        valid = np.array([[False, True], [False, False]])
        _, gradient = value_and_gradient(losses.keypoint, logits, np.int32([[0, 4], [0, 0]]), valid)
        assert not gradient[..., 0].any() and not gradient[1].any() and gradient[0, :, :, 1].all()

    def test_nothing_is_zero_and_has_gradients(self):
        for count in (2, 0):
            arguments = np.zeros([count, 4], np.int32), np.zeros([count, 4], bool)
            value, gradient = value_and_gradient(losses.keypoint, np.ones([count, 3, 3, 4]), *arguments)
            assert value == 0 and gradient.shape == (count, 3, 3, 4) and not gradient.any()

    def test_large_logits(self):
        logits = np.float32([[[[1e4], [0]], [[-1e4], [0]]]])
        value, gradient = value_and_gradient(losses.keypoint, logits, np.int32([[2]]), np.array([[True]]))
        assert value == pytest.approx(2e4) and np.isfinite(gradient).all()

    def test_parity(self, shared):
        data, points = (np.load(shared / f"parity/ops/{name}.npz") for name in ("losses", "keypoints"))
        logits = np.moveaxis(data["keypoint_full/logits"], 1, 3)
        arguments = points["encode/index"], points["encode/valid"] > 0
        value, gradient = value_and_gradient(losses.keypoint, logits, *arguments)
        assert value == pytest.approx(float(data["keypoint/loss"]), rel=1e-5)
        expected = np.moveaxis(data["keypoint/grad_first"], 0, 2)
        np.testing.assert_allclose(gradient[0], expected, atol=1e-6)
