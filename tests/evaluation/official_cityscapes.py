"""Scores of made streets by the official package, for `golden/cityscapes.json`.

`cityscapesscripts` 2.3.0 asks for `np.in1d`, which numpy 2.4 no longer has, and requires the old package
`typing`, so it stands in no extra. From the top of the repository:

    python3.11 -m venv official
    official/bin/pip install "numpy==1.23.5" "matplotlib<3.9" pillow pyquaternion tqdm requests coloredlogs
    official/bin/pip install --no-deps appdirs cityscapesscripts==2.3.0
    official/bin/python -m tests.evaluation.official_cityscapes
"""

import contextlib
import json
import os
import pathlib
import tempfile

import numpy as np
from PIL import Image

from tests.evaluation import streets

GOLDEN = pathlib.Path(__file__).parent / "golden" / "cityscapes.json"
SEEDS = range(12)


def official(folder, images, found):
    """`AP` and `AP50` of everything and of each class; NaN where there is no object.

    Args:
        folder: what `streets.make` wrote; the package's own files go there too.
        images, found: as `streets` made them.
    """
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as evaluation

    lists = {name: [] for name in images}
    (folder / "masks").mkdir()
    for n, one in enumerate(found):
        Image.fromarray(one["mask"].astype(np.uint8) * 255).save(folder / "masks" / f"{n}.png")
        lists[one["image"]].append(f"masks/{n}.png {one['label']} {one['score']!r}\n")
    predictions, truths = [], []
    for city, name in streets.names(len(images)):
        (folder / f"{name}.txt").write_text("".join(lists[name]))
        predictions.append(str(folder / f"{name}.txt"))
        truths.append(str(folder / "gtFine" / "val" / city / f"{name}_gtFine_instanceIds.png"))
    evaluation.args.predictionPath = str(folder)
    evaluation.args.gtInstancesFile = str(folder / "gtInstances.json")
    evaluation.args.JSONOutput, evaluation.args.quiet = False, True
    here = os.getcwd()
    with contextlib.ExitStack() as stack:  # it writes matches.json where it stands
        stack.callback(os.chdir, here)
        os.chdir(folder)
        averages = evaluation.evaluateImgLists(predictions, truths, evaluation.args)["averages"]
    scores = {"": {"AP": averages["allAp"], "AP50": averages["allAp50%"]}}
    for name, row in averages["classes"].items():
        scores[name] = {"AP": row["ap"], "AP50": row["ap50%"]}
    return {name: {key: float(value) for key, value in row.items()} for name, row in scores.items()}


def main():
    """Writes the golden file."""
    golden = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder).resolve()
            images = streets.make(folder, seed)
            found = streets.detections(images, seed)
            pixels = int(sum(ids.sum() for ids in images.values()))
            check = [pixels, len(found), int(sum(one["mask"].sum() for one in found))]
            golden[seed] = {"check": check, "scores": official(folder, images, found)}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
