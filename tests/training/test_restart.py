"""`mrcnn train` killed at random moments and resumed gives the run that nobody killed."""

import csv
import pathlib
import random
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.data.shapes import make_shapes
from keras_mrcnn.training.checkpoints import Progress
from keras_mrcnn.training.pace import Pace
from tests.test_cli import settings

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
IMAGES, EPOCHS = 20, 3
OF_TIME = {"images_per_second", "input_wait"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, the config of a run of ten steps in each epoch, and that run without a cut."""
    folder = tmp_path_factory.mktemp("restart")
    data = make_shapes(folder / "shapes", images=IMAGES, val_images=3, size=(64, 64), max_objects=2)
    run = settings(
        data, folder / "whole", epochs=EPOCHS, optimizer="adamw", evaluate_every=2, checkpoint_steps=3
    )
    run.training.learning_rate, run.training.learning_rate_factors = 0.001, {"backbone": 0.5}
    run.data.batch_size, run.model.backbone.blocks = 2, [1, 1, 1, 1]
    config.save(run, folder / "config.yaml")
    assert train(folder, "whole", "never") == 0
    return folder


def train(folder, name, moment):
    """Exit status of one process of the run `name`."""
    resume = ["--resume"] * (folder / name / "last.keras").is_file()
    arguments = [moment, "train", folder / "config.yaml", f"training.output={folder / name}", *resume]
    with open(folder / f"{name}.txt", "a") as file:
        command = [sys.executable, "-m", "tests.training.interrupted", *map(str, arguments)]
        return subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=file, check=False).returncode


def rows(path):
    with open(path, newline="") as file:
        return [{name: v for name, v in row.items() if name not in OF_TIME} for row in csv.DictReader(file)]


def assert_same(folder, name):
    one, other = (folder / run / "last.keras" for run in ("whole", name))
    first, second = Progress.read(one), Progress.read(other)
    assert first.images == second.images == IMAGES * EPOCHS
    assert (first.epochs, first.batches, first.seeds, first.best) == (EPOCHS, 0, second.seeds, second.best)
    assert set(Pace.COLUMNS) <= set(second.log[-1])
    for ours, theirs in zip(rows(folder / "whole/log.csv"), rows(folder / name / "log.csv"), strict=True):
        assert ours == theirs
    models = [keras.models.load_model(path) for path in (one, other)]
    variables = [(*model.variables, *model.optimizer.variables) for model in models]
    worst = max(
        np.abs(a.numpy().astype(np.float64) - b.numpy().astype(np.float64)).max(initial=0)
        for a, b in zip(*variables, strict=True)
    )
    print(f"largest difference of weights and optimizer state: {worst}")
    assert worst <= 1e-6


@pytest.mark.proof
def test_kill_9_at_ten_random_moments(folder):
    draw = random.Random(8)
    for _ in range(10):
        what, number = draw.choice([("steps", draw.randint(1, 6)), ("writes", draw.randint(2, 6))])
        moment = f"{what}:{number}:{draw.uniform(0, 0.4) if draw.random() < 0.8 else 0}:KILL"
        status = train(folder, "killed", moment)
        last = folder / "killed/last.keras"
        at = Progress.read(last).next_batch() if last.is_file() else "no checkpoint"
        print(f"{moment}: status {status}, (epoch, batch) to go on with: {at}")
        assert status == -signal.SIGKILL, (folder / "killed.txt").read_text()[-3000:]
    assert train(folder, "killed", "never") == 0
    assert_same(folder, "killed")


@pytest.mark.proof
def test_sigterm_twice(folder):
    for moment in ("steps:5:0:TERM", "steps:12:0.05:TERM"):
        assert train(folder, "ended", moment) == 143
    assert "Stopped by SIGTERM" in (folder / "ended.txt").read_text()
    assert train(folder, "ended", "never") == 0
    assert_same(folder, "ended")
