"""A run that is cut off anywhere goes on as if it had not been; with a small Keras model in place of ours."""

import csv
import itertools
import json
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.training import checkpoints
from keras_mrcnn.training.checkpoints import Checkpoints, Progress, replace

EPOCHS, STEPS = 3, 4


class CutOff(BaseException):
    """As good as `kill -9`: nothing of the run's own code goes on."""


@keras.saving.register_keras_serializable(package="test_checkpoints")
class Model(keras.Sequential):
    """Trains with momentum and dropout, and as `MaskRCNN` does, has running means of its own only."""

    @property
    def metrics(self):
        if not hasattr(self, "mean"):
            self.mean = keras.metrics.Mean(name="loss")
        return [self.mean]

    def train_step(self, data):
        inputs, targets = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(inputs, training=True) - targets) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.mean.update_state(loss)
        return {"loss": self.mean.result()}

    def test_step(self, data):
        self.mean.update_state(keras.ops.mean((self(data[0], training=True) - data[1]) ** 2))  # uses up seeds
        return {"loss": self.mean.result()}


def batches(epoch):
    random = np.random.default_rng(epoch)
    inputs = random.normal(size=(STEPS * 5, 3)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((inputs, inputs[:, :1])).batch(5)


def train(folder, watchers=(), **options):
    """A run, or the rest of one, with as little as `keras_mrcnn.train.run` has around `Checkpoints`."""
    last = folder / "last.keras"
    if last.is_file():
        model, progress = keras.models.load_model(last), Progress.read(last)
    else:
        keras.utils.set_random_seed(1)
        model = Model(
            [keras.Input((3,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        )
        model.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
        progress = Progress(steps=STEPS)
    keep = Checkpoints(
        folder, progress, ["loss", "val_loss"], "val_loss", scored=lambda epoch: True, **options
    )
    epoch, batch = progress.next_batch()
    data = batches(epoch).skip(batch)
    for later in range(epoch + 1, EPOCHS + 2):  # Keras counts the batches of before, too
        data = data.concatenate(batches(later))
    with keep.stopping_on_sigterm():
        model.fit(
            data,
            steps_per_epoch=STEPS,
            initial_epoch=progress.epochs,
            epochs=EPOCHS,
            validation_data=batches(99),
            callbacks=[*watchers, keep],
            shuffle=False,
            verbose=0,
        )
    return model


def state(folder):
    model = keras.models.load_model(folder / "last.keras")
    progress = Progress.read(folder / "last.keras")
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    values = [
        variable.numpy().tolist() for variable in (*model.trainable_variables, *model.optimizer.variables)
    ]
    best = json.loads((folder / "best.json").read_text())
    return values, progress, rows, best, {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder, every=2)
    return state(folder)


class After(keras.callbacks.Callback):
    """Calls `act` at the end of the run's step of that number, from 1."""

    def __init__(self, number, act):
        super().__init__()
        self.number = number
        self.act = act
        self.counted = itertools.count(1)

    def on_train_batch_end(self, batch, logs=None):
        if next(self.counted) == self.number:
            self.act()


def cut_off():
    raise CutOff


def test_the_whole_run(whole):
    _, progress, rows, best, names = whole
    assert names == {"last.keras", "best.keras", "best.json", "log.csv"}
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert progress.epochs == EPOCHS and progress.batches == 0
    assert best["val_loss"] == max(float(row["val_loss"]) for row in rows)


@pytest.mark.parametrize("number, every", [(7, 0), (8, 2), (4, 3), (12, 3)])
def test_cut_off_at_a_step(whole, tmp_path, number, every):
    with pytest.raises(CutOff):
        train(tmp_path, [After(number, cut_off)], every=every)
    train(tmp_path, every=every)
    assert state(tmp_path) == whole


@pytest.mark.parametrize("moment", ["within", "after"])
def test_cut_off_at_files(whole, tmp_path, monkeypatch, moment):
    for cuts in itertools.count():
        written = itertools.count()

        def interrupted(path, write, cuts=cuts, written=written):
            if next(written) != cuts + 1:  # each process gets one file further than the one before
                return replace(path, write)
            if moment == "after":
                replace(path, write)
            else:
                unfinished = path.with_name("unfinished_" + path.name)
                write(unfinished)
                unfinished.write_bytes(unfinished.read_bytes()[:-9])
            raise CutOff

        monkeypatch.setattr(checkpoints, "replace", interrupted)
        try:
            train(tmp_path, every=2)
            break
        except CutOff:
            pass
    assert cuts >= 3
    assert state(tmp_path) == whole


@pytest.mark.parametrize("number", [2, 8])
def test_sigterm_finishes_the_step_and_saves(whole, tmp_path, capsys, number):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, [After(number, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "--resume" in capsys.readouterr().err
    progress = Progress.read(tmp_path / "last.keras")
    assert progress.epochs * STEPS + progress.batches == number
    train(tmp_path, every=2)
    assert state(tmp_path) == whole


def test_sigterm_before_the_first_step(tmp_path, capsys):
    stop = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(tmp_path, [stop])
    assert "Nothing was trained yet" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_worker_that_is_not_the_chief_keeps_step_and_writes_nothing(whole, tmp_path):
    with pytest.raises(CutOff):
        train(tmp_path, [After(8, cut_off)], every=3)
    (tmp_path / "log.csv").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    seen = []
    model = train(tmp_path, [After(1, lambda: seen.append("skipped"))], every=3, chief=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert seen and [variable.numpy().tolist() for variable in model.trainable_variables] == whole[0][:4]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    def spoil():
        model.layers[0].kernel.assign(np.full((3, 8), np.nan, np.float32))

    keep = Checkpoints(tmp_path, Progress(steps=STEPS), ["loss"], every=1)
    model = Model([keras.Input((3,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(FloatingPointError, match="kernel"):
        model.fit(batches(0), callbacks=[After(2, spoil), keep], verbose=0)
    assert Progress.read(tmp_path / "last.keras").batches == 1


def test_a_file_of_another_kind_is_no_checkpoint(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="is no checkpoint of a run.*training.weights="):
        Progress.read(tmp_path / "other.keras")
