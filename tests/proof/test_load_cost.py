"""What it costs to bring R50-FPN weights from a file into a model: seconds, and memory beyond the model."""

import json
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.golden import filling

SECONDS, FILES = 10, 2  # the most that it may take; memory in sizes of the file
MEASURE = """
import sys, time
from keras_mrcnn import MaskRCNN
from keras_mrcnn.weights import presets, torchvision
from keras_mrcnn.weights.files import read_weights
from keras_mrcnn.weights.load import load_table

def memory(field):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))

settings, categories = presets.preset_model("torchvision/mask_rcnn_r50_fpn_v2")
model = MaskRCNN(settings, categories)
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before, start = memory("VmRSS"), time.perf_counter()
weights = read_weights(sys.argv[1])
table = torchvision.detector(settings, len(categories), names=weights)
report = load_table(model, weights, table, sys.argv[1])
print(report, time.perf_counter() - start, "seconds", memory("VmHWM") - before, "bytes")
"""


def written(folder, kind):
    golden = pathlib.Path(__file__).parents[1] / "golden" / "tv_maskrcnn_r50_fpn_v2.json"
    state = filling.state(json.loads(golden.read_text()))
    path = folder / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **state)
    else:
        path.write_bytes(pickle.dumps({"model": state}, protocol=4))
    return path


@pytest.mark.proof
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory")
@pytest.mark.parametrize("kind", ["npz", "pkl"])
def test_time_and_memory(tmp_path, kind):
    path = written(tmp_path, kind)
    printed = subprocess.run(
        [sys.executable, "-c", MEASURE, path], check=True, capture_output=True, text=True
    ).stdout
    loaded, seconds, growth = re.search(r"loaded (\S+) (\S+) seconds (\d+) bytes", printed).groups()
    files = int(growth) / path.stat().st_size
    print(
        f"\n{kind}, {path.stat().st_size / 1e6:.0f} MB: loaded {loaded} in {float(seconds):.2f} s; memory",
        end="",
    )
    print(f" beyond the model at most {int(growth) / 1e6:.0f} MB, {files:.2f} files")
    assert loaded == "363/363"
    assert float(seconds) < SECONDS and files < FILES
