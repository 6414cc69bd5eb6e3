"""Warm-up, steps, cosine; and L2 as in the paper."""

import keras
import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.training import schedule


def rates(settings, steps, steps_per_epoch):
    rate = schedule.learning_rate(settings, steps_per_epoch)
    return [float(rate(step)) for step in steps]


def test_warm_up_then_steps():
    settings = config.Training(learning_rate=0.02, warmup_steps=100, decay_epochs=[8, 11], epochs=12)
    # 1000 steps an epoch; step 0: a thousandth; step 50: 0.001 + 0.999 / 2 = 0.5005; drops at 8000 and 11000
    found = rates(settings, [0, 50, 100, 7999, 8000, 10999, 11000], 1000)
    np.testing.assert_allclose(found, [2e-5, 0.01001, 0.02, 0.02, 0.002, 0.002, 0.0002], rtol=1e-5)


def test_cosine_falls_to_nothing():
    settings = config.Training(learning_rate=0.1, warmup_steps=0, decay="cosine", epochs=10)
    # half way: (1 + cos(pi / 2)) / 2 = 0.5
    np.testing.assert_allclose(rates(settings, [0, 50, 100], 10), [0.1, 0.05, 0.0], atol=1e-7)


def test_no_drops_is_constant():
    settings = config.Training(learning_rate=0.1, warmup_steps=0, decay_epochs=[])
    np.testing.assert_allclose(rates(settings, [0, 1000], 10), [0.1, 0.1])


def test_the_rate_grows_with_the_batch():
    settings = config.Training(learning_rate=0.02, base_batch=16, warmup_steps=0, decay_epochs=[1], epochs=2)
    for batch_size, expected in ((16, [0.02, 0.002]), (2, [0.0025, 0.00025]), (64, [0.08, 0.008])):
        rate = schedule.learning_rate(settings, 10, batch_size)
        np.testing.assert_allclose([float(rate(0)), float(rate(10))], expected, rtol=1e-6)


def test_schedule_comes_back_from_its_config():
    settings = config.Training(learning_rate=0.3, warmup_steps=7, decay="cosine", epochs=3)
    given = schedule.learning_rate(settings, 11)
    back = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(given))
    for step in (0, 3, 7, 20):
        assert float(back(step)) == pytest.approx(float(given(step)))


def test_l2_is_half_the_decay_times_the_squares_of_trained_kernels():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, name="a"), keras.layers.Dense(1)])
    model.layers[0].kernel.assign([[1.0, 2.0], [3.0, 4.0]])
    model.layers[0].bias.assign([5.0, 5.0])
    model.layers[1].trainable = False
    schedule.regularize(model, 0.1)
    # 0.1 / 2 * (1 + 4 + 9 + 16); no bias, nothing that is not trained
    assert float(sum(model.losses)) == pytest.approx(1.5)


def test_clipping_is_by_the_global_norm_or_off():
    assert schedule.optimizer(config.Training(clip_norm=3.0), 10).global_clipnorm == 3.0
    assert schedule.optimizer(config.Training(clip_norm=0.0), 10).global_clipnorm is None


def test_half_precision_scales_the_loss():
    found = schedule.optimizer(config.Training(precision="mixed_float16"), 10)
    assert isinstance(found, keras.optimizers.LossScaleOptimizer)
