"""The averaged weights: by hand, inside and outside, and what `fit` scores and saves."""

import keras
import numpy as np
import pytest

from keras_mrcnn import MaskRCNN, config
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
        # 8, then 7, 6, 5: the average is 7, (1 * 7 + 9 * 6) / 10 = 6.1, (2 * 6.1 + 9 * 5) / 11 = 5.2
        assert weight(model) == pytest.approx(5.2)
    assert weight(model) == 5


def test_a_long_training_leaves_the_momentum_of_the_average():
    model = make_model(ema=0.75)
    model.train_on_batch(**ONE)  # 7
    model.optimizer.iterations.assign(100)  # 100 / 109 is more
    model.train_on_batch(**ONE)
    with averaged(model):
        assert weight(model) == pytest.approx(0.75 * 7 + 0.25 * 6)


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
    np.testing.assert_allclose(seen.history["val_loss"], [7, 6.1, 5.2])
    np.testing.assert_allclose(seen.history["loss"], [8, 7, 6])
    assert weight(model) == pytest.approx(5.2)


def normalized_model(**settings):
    """A normalisation alone, whose statistics start at mean 0 and variance 1; its loss is its output."""
    inputs = keras.Input([1])
    layer = keras.layers.BatchNormalization(momentum=0.5)
    model = keras.Model(inputs, layer(inputs))
    optimizer = schedule.optimizer(config.Training(warmup_steps=0, ema=0.75, **settings), 1)
    model.compile(optimizer, loss=lambda true, predicted: predicted)
    optimizer.build(model.trainable_variables)
    optimizer.average_also([layer.moving_mean, layer.moving_variance])
    return model, layer


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_batch_statistics_by_hand(optimizer):
    model, layer = normalized_model(optimizer=optimizer)
    for mean in (2.0, 4.0, 0.0):  # the moving mean: 1, 2.5, 1.25; variance 1 of each batch
        model.train_on_batch(np.array([[mean - 1], [mean + 1]]), np.zeros([2, 1]))
    assert float(layer.moving_mean.numpy()[0]) == pytest.approx(1.25)
    with averaged(model):
        # (1 * 1 + 9 * 2.5) / 10 = 2.35, (2 * 2.35 + 9 * 1.25) / 11 = 1.45
        assert float(layer.moving_mean.numpy()[0]) == pytest.approx(1.45)
        assert float(layer.moving_variance.numpy()[0]) == pytest.approx(1.0)
    assert float(layer.moving_mean.numpy()[0]) == pytest.approx(1.25)
    model.optimizer.finalize_variable_values(model.trainable_variables)  # the end of `fit`
    assert float(layer.moving_mean.numpy()[0]) == pytest.approx(1.45)


def test_the_model_has_its_batch_statistics_averaged_also_after_loading(tmp_path):
    settings = config.load("shapes_r18_fpn", ["model.backbone.blocks=[1,1,1,1]"])
    model = MaskRCNN(settings.model, ["circle"])
    model.compile(schedule.optimizer(config.Training(ema=0.75), 1))
    model.build_optimizer()
    statistics = [weight for weight in model.weights if "moving_" in weight.path]
    assert statistics
    assert {weight.path for weight in model.optimizer.also_averaged()} == {one.path for one in statistics}
    averages = model.optimizer._model_variables_moving_average
    averages[-1].assign(averages[-1] + 3)
    model.optimizer.iterations.assign(1)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    with averaged(again):
        np.testing.assert_array_equal(again.optimizer.also_averaged()[-1], averages[-1])
