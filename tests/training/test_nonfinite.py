"""A loss that is not finite: where the run ends, and what it leaves."""

import json

import keras
import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.training.checkpoints import Checkpoints, Progress
from keras_mrcnn.training.nonfinite import StopAtNonFinite
from tests.training.test_checkpoints import STEPS, Model, batches


class Spoil(keras.callbacks.Callback):
    """Makes the weights so large that the loss of the step at (epoch, batch) overflows."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.moment = epoch, batch
        self.epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.moment:
            kernel = self.model.layers[0].kernel
            kernel.assign(np.full(kernel.shape, 1e30, np.float32))


def batch_at(epoch, batch):
    inputs, targets = list(batches(epoch).as_numpy_iterator())[batch]
    return {"images": inputs}, {"boxes": targets}, [f"{epoch}-{batch}-{row}" for row in range(len(inputs))]


def train(folder, run, moment):
    model = Model([keras.Input((3,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile("sgd", run_eagerly=True)
    watchers = [
        Spoil(*moment),
        StopAtNonFinite(run, batch_at),
        Checkpoints(folder, Progress(steps=STEPS), ["loss"]),
    ]
    data = batches(0).concatenate(batches(1))
    model.fit(data, steps_per_epoch=STEPS, epochs=2, callbacks=watchers, verbose=0, shuffle=False)


def test_the_run_ends_at_the_step_and_leaves_a_dump(tmp_path):
    run = config.Config(training=config.Training(output=str(tmp_path), checkpoint_steps=7))
    with pytest.raises(FloatingPointError) as error:
        train(tmp_path, run, (1, 2))
    message = str(error.value)
    for part in ("Step 3 of epoch 2", "loss: inf", "1-2-0, 1-2-1", "last.keras", "config.yaml --resume"):
        assert part in message, part
    dump = tmp_path / "nonfinite"
    noted = json.loads((dump / "nonfinite.json").read_text())
    assert (noted["epoch"], noted["batch"], noted["losses"]) == (1, 2, {"loss": "inf"})
    assert noted["image_ids"][1] == "1-2-1"
    with np.load(dump / "batch.npz") as arrays:
        np.testing.assert_array_equal(arrays["inputs/images"], batch_at(1, 2)[0]["images"])
        assert set(arrays) == {"inputs/images", "targets/boxes"}
    for folder in (tmp_path, dump):  # the file of before stays
        assert Progress.read(folder / "last.keras").next_batch() == (1, 0)

    again = config.load(dump / "config.yaml")
    assert (again.training.output, again.training.checkpoint_steps) == (str(dump), 0)
    with pytest.raises(FloatingPointError, match="Step 3 of epoch 2"):
        train(dump, again, (1, 2))
    before = keras.models.load_model(dump / "before.keras")
    assert before.optimizer.iterations == STEPS + 2
    assert not (dump / "nonfinite").exists()


def test_without_a_checkpoint_the_dump_starts_anew(tmp_path):
    run = config.Config(training=config.Training(output=str(tmp_path)))
    with pytest.raises(FloatingPointError, match="No checkpoint was written yet.*config.yaml. Lower"):
        train(tmp_path, run, (0, 0))
    assert not (tmp_path / "nonfinite" / "last.keras").exists() and not (tmp_path / "last.keras").exists()
