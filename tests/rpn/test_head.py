"""RPN head: one set of weights for all levels, outputs in the order of the anchors (NUMERICS section 6)."""

import keras
import numpy as np
import pytest

from keras_mrcnn.rpn.head import RPNHead


def numbered(height, width):
    """A map of one channel whose pixels hold their row-major number plus one."""
    return np.arange(1, height * width + 1, dtype=np.float32).reshape(1, height, width, 1)


def test_outputs_are_in_the_order_of_the_anchors():
    head = RPNHead(anchors_per_position=2, channels=1)
    pyramid = [numbered(3, 4), numbered(2, 2)]
    head(pyramid)
    centre = np.zeros([3, 3, 1, 1])
    centre[1, 1] = 1
    head.convs[0].kernel.assign(centre)
    head.objectness.kernel.assign(np.float32([1, 100]).reshape(1, 1, 1, 2))
    head.deltas.kernel.assign(np.float32([1, 2, 3, 4, 50, 60, 70, 80]).reshape(1, 1, 1, 8))
    logits, deltas = head(pyramid)
    for level, count in enumerate((12, 4)):
        number = np.arange(1, count + 1)
        np.testing.assert_allclose(logits[level], np.stack([number, 100 * number], 1).reshape(1, -1))
        expected = number[:, None, None] * [[1, 2, 3, 4], [50, 60, 70, 80]]
        np.testing.assert_allclose(deltas[level], expected.reshape(1, -1, 4))


def test_against_numpy():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 4, 2)).astype(np.float32)
    head = RPNHead(anchors_per_position=3, channels=5)
    head([features])
    for weight in head.weights:
        weight.assign(rng.normal(size=weight.shape))
    kernel, bias = head.convs[0].kernel.numpy(), head.convs[0].bias.numpy()
    padded = np.pad(features, [(0, 0), (1, 1), (1, 1), (0, 0)])
    hidden = np.zeros((2, 3, 4, 5))
    for i, j in np.ndindex(3, 4):
        hidden[:, i, j] = np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3) + bias
    hidden = np.maximum(hidden, 0)
    logits, deltas = head([features])
    expected = hidden @ head.objectness.kernel.numpy()[0, 0] + head.objectness.bias.numpy()
    np.testing.assert_allclose(logits[0], expected.reshape(2, -1), rtol=1e-4, atol=1e-4)
    expected = hidden @ head.deltas.kernel.numpy()[0, 0] + head.deltas.bias.numpy()
    np.testing.assert_allclose(deltas[0], expected.reshape(2, -1, 4), rtol=1e-4, atol=1e-4)


def test_one_set_of_weights_with_its_initial_values():
    head = RPNHead(anchors_per_position=3, channels=64)
    head([np.zeros([1, 4, 4, 32], np.float32), np.zeros([1, 2, 2, 32], np.float32)])
    assert [weight.shape for weight in head.weights] == [
        (3, 3, 32, 64), (64,), (1, 1, 64, 3), (3,), (1, 1, 64, 12), (12,)
    ]  # fmt: skip
    assert head.convs[0].kernel.numpy().std() == pytest.approx(0.01, rel=0.05)
    assert head.deltas.kernel.numpy().std() == pytest.approx(0.01, rel=0.15)
    assert head.objectness.kernel.numpy().std() == pytest.approx(0.01, rel=0.3)
    assert not any(weight.numpy().any() for weight in head.weights if "bias" in weight.path)


def test_unknown_sizes_and_mixed_precision():
    head = RPNHead(dtype="mixed_bfloat16")
    logits, deltas = head([keras.Input((None, None, 8)), keras.Input((None, None, 8))])
    assert [x.shape for x in logits] == [(None, None)] * 2
    assert [x.shape for x in deltas] == [(None, None, 4)] * 2
    assert {x.dtype for x in (*logits, *deltas)} == {"float32"}
    assert head([np.zeros([2, 4, 4, 8], np.float32)])[0][0].dtype == "float32"
