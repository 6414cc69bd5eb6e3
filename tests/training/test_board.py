"""Event files that TensorBoard's own reader reads."""

import builtins

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

from keras_mrcnn.training.board import Board
from tests.training.test_checkpoints import Model, batches

PNG = tf.io.encode_png(np.full((4, 6, 3), 200, np.uint8)).numpy()


def test_curves_and_pictures(tmp_path):
    def scores(epoch, logs):
        logs["val_segm_AP"], logs["val_segm_AP75"] = 0.25 * (epoch + 1), float("nan")

    model = Model([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.125), run_eagerly=True)
    watchers = [
        keras.callbacks.LambdaCallback(on_epoch_end=scores),
        Board(tmp_path, lambda model: {"image/7": PNG}),
    ]
    model.fit(batches(0).repeat(6), epochs=2, callbacks=watchers, verbose=0, shuffle=False)

    read = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in read.Scalars("epoch/val_segm_AP")] == [
        (24, 0.25),
        (48, 0.5),
    ]
    assert [event.step for event in read.Scalars("step/loss")] == [20, 40]
    assert read.Scalars("step/learning_rate")[0].value == 0.125
    assert "epoch/val_segm_AP75" not in read.Tags()["scalars"]
    assert [(image.step, image.encoded_image_string) for image in read.Images("image/7")] == [
        (24, PNG),
        (48, PNG),
    ]


def test_without_tensorboard_a_line_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'keras_mrcnn\[tensorboard\]'"):
        Board(tmp_path)
