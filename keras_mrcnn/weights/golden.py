"""Golden files: what a reference computed for some images at every station of the walk.

Arrays are in the reference's order N, C, H, W.
"""

import json
import zipfile

import numpy as np

ABOUT = ("background_first", "channels", "cases")  # what `Golden.about` always has
HEATMAPS = np.s_[:8, :, 2::4, 2::4]  # what is kept of an image's heat maps


class Golden:
    """What a reference computed.

    Args:
        arrays: mapping of arrays under `CASE/...`: `images/I` (uint8 `[H, W, 3]`, RGB), `input/tensor`,
            `body/c2`, `fpn/p2`, `rpn/...`, `box/...`, `det/...`, `mask/...`, `keypoint/...`: pooled,
            heatmap_first (of the first detection), heatmaps_sample/I (`HEATMAPS` of an image), keypoints/I
            (x, y, score), scores/I (if they are there: the logits at the points; `keypoints` have no score
            then). What is absent is not compared.
        about: dictionary. background_first: bool, class 0 is background and labels count from 1.
            channels: "RGB" or "BGR", of `input/tensor`. arrays: for arrays of which only a part is stored (as
            `KEY/sample`), the whole `shape`, and `start` and `step` along each axis. cases: for each the
            `short_edge` and `long_edge` that images are resized to, if they are, and `output_sizes`, a
            (height, width) of each image, if detections are not in the pixels of the images as given.
            rle: pasted masks of each case and image, if there are any.
    """

    def __init__(self, arrays, about):
        self.arrays = arrays
        self.about = about

    @classmethod
    def load(cls, path):
        """Reads a `.npz` that `save` wrote; a ValueError says that it is something else."""
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays.pop("about")))
            missing = [name for name in ABOUT if name not in about]
        except (ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no golden file, or damaged ({error}).") from error
        if missing:
            raise ValueError(f"{path} is no golden file: its `about` has no {', '.join(missing)}.")
        return cls(arrays, about)

    def save(self, path):
        """Writes one `.npz`."""
        np.savez_compressed(path, about=json.dumps(self.about), **self.arrays)

    def each(self, key):
        """list of the arrays `KEY/0`, `KEY/1`, ... of the images of a case."""
        found = []
        while f"{key}/{len(found)}" in self.arrays:
            found.append(np.asarray(self.arrays[f"{key}/{len(found)}"]))
        return found

    def __contains__(self, key):
        return key in self.arrays or f"{key}/sample" in self.arrays

    def difference(self, key, ours, columns=slice(None)):
        """Largest difference from `ours` (axes in their order), and the reference's standard deviation.

        `columns` of the second axis are compared.
        """
        ours = np.asarray(ours, np.float32)
        if key in self.arrays:
            theirs = self.arrays[key]
        else:
            theirs, whole = self.arrays[f"{key}/sample"], self.about["arrays"][key]
            if list(ours.shape) != whole["shape"]:
                return np.inf, 1.0
            ours = ours[tuple(slice(a, None, b) for a, b in zip(whole["start"], whole["step"], strict=True))]
        if theirs.shape != ours.shape:
            return np.inf, 1.0
        difference = np.abs(theirs - ours)[:, columns] if ours.ndim > 1 else np.abs(theirs - ours)
        spread = float(np.std(theirs)) if theirs.size else 1.0
        return float(np.max(difference, initial=0)), max(spread, 1e-12)
