"""Memory does not grow over a long run."""

import os
import pathlib

import keras
import pytest

from keras_mrcnn.data.shapes import make_shapes
from keras_mrcnn.train import run
from tests.test_cli import settings

STEPS, EVERY, SETTLED = 2000, 100, 500


class Resident(keras.callbacks.Callback):
    """Resident memory of the process, MiB, every so many steps."""

    def __init__(self):
        super().__init__()
        self.steps = 0
        self.found = {}

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps % EVERY == 0:
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            self.found[self.steps] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            print(f"step {self.steps}: {self.found[self.steps]:.0f} MiB", flush=True)


@pytest.mark.proof
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_2000_steps_with_scores_and_checkpoints_take_no_more_memory(tmp_path):
    data = make_shapes(tmp_path / "shapes", images=400, val_images=8, size=(64, 64), max_objects=4)
    tiny = settings(data, tmp_path / "run", epochs=STEPS // 200, evaluate_every=2, checkpoint_steps=100)
    tiny.data.batch_size, tiny.data.short_edges = 2, [48, 56, 64]
    resident = Resident()
    run(tiny, callbacks=[resident])
    settled = [size for step, size in resident.found.items() if step >= SETTLED]
    middle = sorted(settled)[len(settled) // 2]
    assert max(abs(size / middle - 1) for size in settled) <= 0.03, resident.found
