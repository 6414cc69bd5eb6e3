"""A loss that is not finite ends the run, and leaves what its step can be looked at with."""

import dataclasses
import json
import math
import pathlib
import shutil

import keras
import numpy as np

from keras_mrcnn import config as configs


class StopAtNonFinite(keras.callbacks.Callback):
    """Ends the run with a `FloatingPointError` at the step whose loss is not finite, and writes a dump.

    The dump is the folder `nonfinite` of the run's folder:
        nonfinite.json: epoch and batch (from 0), losses that are not finite, image ids of the batch.
        batch.npz: the batch, as "inputs/images", "targets/boxes", ...
        config.yaml, last.keras: the run as of its last checkpoint, with this folder as its output.
    So `mrcnn train FOLDER/config.yaml --resume` (without --resume where there is no last.keras) comes to the
    same step again. It then also writes `before.keras`, the model with the weights, the optimizer and the
    random generators as they are before that step.

    Stands before `Checkpoints`, so that no such step is saved.

    Args:
        run: `config.Config` of the run.
        batch_at: function of epoch and batch that gives (inputs, targets, image ids) of that step.
    """

    def __init__(self, run, batch_at):
        super().__init__()
        self.run = run
        self.batch_at = batch_at
        self.folder = pathlib.Path(run.training.output)
        noted = self.folder / "nonfinite.json"
        self.known = json.loads(noted.read_text()) if noted.is_file() else None  # this run is such a replay
        self.epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.known and (self.epoch, batch) == (self.known["epoch"], self.known["batch"]):
            self.model.save(self.folder / "before.keras")

    def on_train_batch_end(self, batch, logs=None):
        # Running means, all finite so far.
        went = {name: float(value) for name, value in logs.items() if not math.isfinite(value)}
        if not went:
            return
        inputs, targets, image_ids = self.batch_at(self.epoch, batch)
        where = self.folder if self.known else self._dump(batch, went, inputs, targets, image_ids)
        checkpoint = self.folder / "last.keras"
        raise FloatingPointError(
            f"Step {batch + 1} of epoch {self.epoch + 1}: the loss is not finite ("
            + ", ".join(f"{name}: {value}" for name, value in went.items())
            + f"). Images of the batch: {', '.join(map(str, image_ids))}. "
            + (
                f"{checkpoint} is that of before. "
                if checkpoint.is_file()
                else "No checkpoint was written yet. "
            )
            + f"{where} holds the batch; to come to this step again: mrcnn train {where / 'config.yaml'}"
            + " --resume" * checkpoint.is_file()
            + ". Lower training.learning_rate, or set training.clip_norm."
        )

    def _dump(self, batch, went, inputs, targets, image_ids):
        folder = self.folder / "nonfinite"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        arrays = {f"inputs/{name}": value for name, value in inputs.items()}
        arrays |= {f"targets/{name}": value for name, value in targets.items()}
        np.savez_compressed(folder / "batch.npz", **arrays)
        where = {"epoch": self.epoch, "batch": batch, "losses": {name: str(v) for name, v in went.items()}}
        noted = {**where, "image_ids": list(image_ids)}
        (folder / "nonfinite.json").write_text(json.dumps(noted, indent=1, default=int))
        training = dataclasses.replace(self.run.training, output=str(folder), checkpoint_steps=0)
        configs.save(dataclasses.replace(self.run, training=training), folder / "config.yaml")
        if (self.folder / "last.keras").is_file():
            shutil.copy(self.folder / "last.keras", folder)
        return folder


def check_weights(model):
    """Raises a FloatingPointError if a weight of the model is not finite."""
    for variable in model.variables:
        if variable.dtype.startswith(("float", "bfloat")) and not np.isfinite(variable.numpy()).all():
            raise FloatingPointError(
                f"The last step made {variable.path} infinite or not a number, so it is not saved. The last "
                "checkpoint is that of before. Lower training.learning_rate, or set training.clip_norm."
            )
