"""Box head (NUMERICS section 9)."""

import keras
import numpy as np
import pytest

from keras_mrcnn.roi.box_head import BoxHead


def test_against_numpy():
    rng = np.random.default_rng(0)
    head = BoxHead(num_classes=3, units=6)
    pooled = rng.normal(size=(5, 2, 2, 4)).astype(np.float32)
    head(pooled)
    for weight in head.weights:
        weight.assign(rng.normal(size=weight.shape))
    logits, deltas = head(pooled)

    def dense(values, layer):
        return values @ layer.kernel.numpy() + layer.bias.numpy()

    hidden = pooled.reshape(5, 16)  # rows, then columns, then channels
    for layer in head.fcs:
        hidden = np.maximum(dense(hidden, layer), 0)
    assert (hidden == 0).any() and (hidden > 0).any()
    np.testing.assert_allclose(logits, dense(hidden, head.classes), rtol=1e-4, atol=1e-4)
    expected = dense(hidden, head.deltas).reshape(5, 3, 4)  # four for each class, one class after the other
    np.testing.assert_allclose(deltas, expected, rtol=1e-4, atol=1e-4)


def test_background_has_a_score_and_no_deltas():
    logits, deltas = BoxHead(num_classes=7)(keras.Input((7, 7, 16)))
    assert logits.shape == (None, 8) and deltas.shape == (None, 7, 4)


def test_initial_values():
    head = BoxHead(num_classes=80, units=256)
    head(np.zeros([1, 3, 3, 32], np.float32))
    for layer, fan_in in zip(head.fcs, (288, 256)):
        limit, kernel = (3 / fan_in) ** 0.5, layer.kernel.numpy()
        assert 0.98 * limit < np.abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert head.classes.kernel.numpy().std() == pytest.approx(0.01, rel=0.03)
    assert head.deltas.kernel.numpy().std() == pytest.approx(0.001, rel=0.03)
    assert not any(layer.bias.numpy().any() for layer in (*head.fcs, head.classes, head.deltas))


def test_no_region():
    head = BoxHead(num_classes=2, units=4)
    head(np.zeros([1, 2, 2, 3], np.float32))
    logits, deltas = head(np.zeros([0, 2, 2, 3], np.float32))
    assert logits.shape == (0, 3) and deltas.shape == (0, 2, 4)


def test_mixed_precision_gives_float32():
    logits, deltas = BoxHead(num_classes=2, units=4, dtype="mixed_bfloat16")(
        np.ones([1, 2, 2, 3], np.float32)
    )
    assert logits.dtype == deltas.dtype == "float32"


def test_average_over_positions_and_one_box_for_all_classes():
    head = BoxHead(num_classes=3, fcs=0, class_agnostic=True)
    pooled = np.random.default_rng(0).normal(size=[5, 7, 7, 6]).astype(np.float32)
    logits, deltas = head(pooled)
    assert logits.shape == (5, 4) and deltas.shape == (5, 1, 4)
    mean = pooled.mean((1, 2))
    np.testing.assert_allclose(logits, mean @ head.classes.kernel.numpy(), atol=1e-6)
    np.testing.assert_allclose(deltas[:, 0], mean @ head.deltas.kernel.numpy(), atol=1e-6)
    assert head(pooled[:0])[1].shape == (0, 1, 4)
