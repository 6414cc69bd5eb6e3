"""The averaged weights: by hand, inside and outside, and what `fit` scores and saves."""

import keras
import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.training import schedule
from keras_mrcnn.training.averages import ValidateAverage, averaged


def make_model(**settings):
    """One weight w, loss w, so that every step takes the rate from it."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False, name="dense")])
    model.layers[0].kernel.assign([[8.0]])
    settings = config.Training(learning_rate=1.0, warmup_steps=0, decay_epochs=[], **settings)
    model.compile(schedule.optimizer(settings, 1), loss=lambda true, predicted: predicted)
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    inner.momentum = 0.0
    return model


def weight(model):
    return float(model.layers[0].kernel.numpy()[0, 0])


ONE = {"x": np.ones([1, 1]), "y": np.ones([1, 1])}


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_by_hand(precision):
    model = make_model(ema=0.75, precision=precision)
    with averaged(model):
        assert weight(model) == 8  # no step yet
    for _ in range(3):
        model.train_on_batch(**ONE)
    with averaged(model):
        # 8, then 7, 6, 5: the average is 7, 0.75 * 7 + 0.25 * 6 = 6.75, 0.75 * 6.75 + 0.25 * 5 = 6.3125
        assert weight(model) == pytest.approx(6.3125)
    assert weight(model) == 5


def test_afterwards_every_bit_is_back_also_after_an_error():
    model = make_model(ema=0.9)
    model.train_on_batch(**ONE)
    model.layers[0].kernel.assign([[1 / 3]])
    with pytest.raises(KeyError), averaged(model):
        raise KeyError
    assert weight(model) == np.float32(1 / 3)


def test_without_an_average_nothing_changes():
    model = make_model()
    model.train_on_batch(**ONE)
    with averaged(model):
        assert weight(model) == 7


def test_fit_validates_the_average_and_ends_with_it():
    model = make_model(ema=0.75)
    seen = model.fit(
        **ONE, epochs=3, validation_data=(ONE["x"], ONE["y"]), callbacks=[ValidateAverage()], verbose=0
    )
    np.testing.assert_allclose(seen.history["val_loss"], [7, 6.75, 6.3125])
    np.testing.assert_allclose(seen.history["loss"], [8, 7, 6])
    assert weight(model) == pytest.approx(6.3125)
