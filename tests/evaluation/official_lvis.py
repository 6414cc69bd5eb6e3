"""Scores of a made LVIS json by the official package, for `golden/lvis.json`.

`lvis` 0.5.3 asks for `np.float`, which numpy 1.24 and later do not have, and requires opencv-python, which
takes the place of opencv-python-headless, so it stands in no extra. From the top of the repository:

    python3.11 -m venv official
    official/bin/pip install "numpy==1.23.5" "matplotlib<3.9" pycocotools "opencv-python-headless<4.9"
    official/bin/pip install --no-deps lvis==0.5.3
    official/bin/python -m tests.evaluation.official_lvis
"""

import copy
import json
import pathlib
import tempfile

from tests.evaluation import federated

GOLDEN = pathlib.Path(__file__).parent / "golden" / "lvis.json"
SEEDS = range(6)


def official(content, found, iou_type):
    """The scores of the package by its own names; -1 where there is no object.

    The boxes are left out of results that are scored as masks: with them the package takes the area of a
    detection from its box.
    """
    from lvis import LVIS, LVISEval, LVISResults

    found = copy.deepcopy(found)
    for one in found:
        one.pop("segmentation" if iou_type == "bbox" else "bbox")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        truth = LVIS(file.name)
    evaluation = LVISEval(truth, LVISResults(truth, found), iou_type)
    evaluation.run()
    return {name: float(value) for name, value in evaluation.get_results().items()}


def main():
    """Writes the golden file."""
    golden = {}
    for seed in SEEDS:
        content = federated.make(seed)
        found = federated.detections(content, seed)
        scores = {iou_type: official(content, found, iou_type) for iou_type in ("bbox", "segm")}
        check = [len(found), sum(one["bbox"][0] for one in found)]
        golden[seed] = {"check": check, "scores": scores}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
