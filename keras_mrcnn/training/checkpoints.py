"""Checkpoints that a run goes on from as if it had never stopped, wherever in an epoch it was."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import pathlib
import signal
import sys
import threading
import zipfile

import keras

from keras_mrcnn.training.averages import averaged
from keras_mrcnn.training.nonfinite import check_weights

_ENTRY = "progress.json"  # in last.keras; Keras reads the entries that it knows
TERMINATED = 128 + signal.SIGTERM  # a shell's exit status of a process that SIGTERM ended


@dataclasses.dataclass
class Progress:
    """Where a run stands, with what a `.keras` file does not hold of its state.

    Attributes:
        epochs: int, finished.
        batches: int, done of the epoch under way; all of them before it is scored.
        steps: int, batches in an epoch.
        images: int, seen since the first epoch.
        pace: of the epoch under way: "images", "seconds" of its steps, "waited" of these for data.
        means: state of the running means of the losses of the epoch under way.
        seeds: state of each random generator in the model.
        best: the best score so far.
        log: one dictionary for each finished epoch, the rows of `log.csv`.
    """

    epochs: int = 0
    batches: int = 0
    steps: int = 0
    images: int = 0
    pace: dict = dataclasses.field(default_factory=dict)
    means: list = dataclasses.field(default_factory=list)
    seeds: list = dataclasses.field(default_factory=list)
    best: float = -math.inf
    log: list = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, path):
        """Of the checkpoint `path`.

        Raises:
            ValueError: the file is no checkpoint of a run.
        """
        with zipfile.ZipFile(path) as file:
            if _ENTRY not in file.namelist():
                raise ValueError(
                    f"{path} is no checkpoint of a run: it does not say how far the run was. To start from "
                    f"its weights, train without --resume and with training.weights={path}."
                )
            return cls(**json.loads(file.read(_ENTRY)))

    def next_batch(self):
        """(epoch, batch) to go on with, each from 0."""
        if self.batches and self.batches == self.steps:
            return self.epochs + 1, 0
        return self.epochs, self.batches


class Checkpoints(keras.callbacks.Callback):
    """`last.keras` with all that a run needs to go on, `best.keras` by a score, and `log.csv`.

    `last.keras` is written after every epoch, before an epoch is scored, every `every` steps, and on SIGTERM.
    It alone says where the run stands: `log.csv` is written anew from it. Files are complete or not there.

    In a resumed epoch Keras counts the batches that were done, too: for them other callbacks see no work.
    Stands after all callbacks that change the logs.

    Args:
        folder: where the files go; beside `best.keras` `best.json`, its score and epoch.
        progress: `Progress` to go on from; kept up to date.
        columns: list of str, the names in the logs that `log.csv` holds.
        monitor: name in the logs, more is better; NaN never is.
        every: int, steps of an epoch from one checkpoint to the next; 0: none within epochs.
        scored: function that tells of an epoch, from 0, whether it is scored.
        chief: bool, False for all but one of several workers: they only keep step with the one that writes.
    """

    def __init__(
        self,
        folder,
        progress,
        columns,
        monitor="val_segm_AP",
        every=0,
        scored=lambda epoch: False,
        chief=True,
    ):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.progress = progress
        self.columns = ["epoch", *columns]
        self.monitor = monitor
        self.every = every
        self.scored = scored
        self.chief = chief
        self.saved = True  # nothing would be lost by stopping now
        self.asked = False  # to stop

    @contextlib.contextmanager
    def stopping_on_sigterm(self):
        """In this context SIGTERM ends the process with status 143, after the step under way is saved."""
        if threading.current_thread() is not threading.main_thread():  # Python's rule for signals
            yield
            return
        before = signal.signal(signal.SIGTERM, self._stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_train_begin(self, logs=None):
        if self.progress.seeds:
            for variable, state in zip(_seeds(self.model), self.progress.seeds, strict=True):
                variable.assign(state)
        if not self.chief:
            return
        for path in self.folder.glob("unfinished_*"):  # left by a kill
            path.unlink()
        if self.progress.log:
            self._write_log()

    def on_epoch_begin(self, epoch, logs=None):
        """Keras has just reset the running means."""
        done = self.progress.batches
        if not done:
            return
        for variable, state in zip(self.model.metrics_variables, self.progress.means, strict=True):
            variable.assign(state)
        step, means = self.model.train_function, self.model.get_metrics_result()
        left = iter(range(done - 1, -1, -1))

        def skip(iterator):
            if next(left) == 0:
                self.model.train_function = step
            return means

        self.model.train_function = skip

    def on_train_batch_end(self, batch, logs=None):
        if batch < self.progress.batches:  # done before this process
            return
        self.progress.batches = batch + 1
        self.saved = False
        last = self.progress.batches == self.progress.steps
        due = self.every and self.progress.batches % self.every == 0
        if self.asked or due or last and self.scored(self.progress.epochs):
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        progress = self.progress
        progress.epochs, progress.batches, progress.pace = epoch + 1, 0, {}
        self.model.epochs_done = epoch + 1
        self.saved = False
        if not self.chief:
            return
        value = float(logs.get(self.monitor, math.nan))
        if value > progress.best:
            progress.best = value
            with averaged(self.model):
                replace(self.folder / "best.keras", self.model.save)
            noted = json.dumps({self.monitor: value, "epoch": epoch + 1})
            replace(self.folder / "best.json", lambda path: path.write_text(noted))
        row = {name: logs.get(name, "NA") for name in self.columns}
        progress.log.append({name: v if isinstance(v, str) else float(v) for name, v in row.items()})
        progress.log[-1]["epoch"] = epoch
        self._save()
        self._write_log()

    def _save(self):
        if self.progress.batches:  # of several workers, all take part in reading the means
            self.progress.means = [float(variable.numpy()) for variable in self.model.metrics_variables]
        if not self.chief:
            return
        check_weights(self.model)
        self.progress.seeds = [variable.numpy().tolist() for variable in _seeds(self.model)]

        def write(path):
            self.model.save(path)
            with zipfile.ZipFile(path, "a") as file:
                file.writestr(_ENTRY, json.dumps(dataclasses.asdict(self.progress)))

        replace(self.folder / "last.keras", write)
        self.saved = True
        if self.asked:
            self._leave()

    def _write_log(self):
        def write(path):
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(self.progress.log)

        replace(self.folder / "log.csv", write)

    def _stop(self, number, frame):
        self.asked = True
        if self.saved:
            self._leave()

    def _leave(self):
        done = f"{self.progress.epochs} epochs and {self.progress.batches} steps"
        path = self.folder / "last.keras"
        held = f"{path} holds {done}. Go on with --resume." if path.is_file() else "Nothing was trained yet."
        print(f"\nStopped by SIGTERM. {held}", file=sys.stderr, flush=True)
        raise SystemExit(TERMINATED)


def replace(path, write):
    """Write a file so that it is the old or the new one, whole, whenever the process or the machine stops.

    Args:
        path: `pathlib.Path` of the file.
        write: function of the path to write to: of the same suffix, in the same folder.
    """
    unfinished = path.with_name("unfinished_" + path.name)
    write(unfinished)
    for written, then in ((unfinished, lambda: os.replace(unfinished, path)), (path.parent, lambda: None)):
        descriptor = os.open(written, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        then()


def _seeds(model):
    """The states of the random generators. Keras saves those of its own layers, as dropout, with no file."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
