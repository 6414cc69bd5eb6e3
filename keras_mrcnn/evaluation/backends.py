"""The two programs that match detections with true objects: pycocotools and, many times faster, hotcoco.

Both get the same dictionaries and give the same arrays, bit for bit.
"""

import contextlib
import importlib.util
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BACKENDS = ("auto", "pycocotools", "hotcoco")


def choose(backend):
    """The name of the program to use: `auto` is hotcoco where it is installed, otherwise pycocotools.

    Raises:
        ValueError: no such backend.
        ImportError: hotcoco is asked for and not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {', '.join(BACKENDS)}. Received: backend={backend!r}")
    installed = importlib.util.find_spec("hotcoco") is not None
    if backend == "auto":
        return "hotcoco" if installed else "pycocotools"
    if backend == "hotcoco" and not installed:
        raise ImportError('`backend="hotcoco"` needs hotcoco: pip install "keras_mrcnn[hotcoco]"')
    return backend


def load(backend, dataset):
    """The backend's own dataset object from a COCO dictionary (images, categories, annotations)."""
    if backend == "hotcoco":
        import hotcoco

        return hotcoco.COCO(dataset)
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        coco.createIndex()
    return coco


def match(backend, truth, found, iou_type, max_detections, category=None, sigmas=None):
    """Precision and recall of all categories, or of one.

    Args:
        backend: "pycocotools" or "hotcoco".
        truth, found: what `load` gave.
        iou_type: "bbox", "segm" or "keypoints".
        max_detections: ascending list of M limits, per image and category.
        category: id of the only category to look at, or None.
        sigmas: float64 `[K]` of that category's keypoints, for "keypoints".

    Returns:
        Tuple of float64 arrays: precision `[10 IoU thresholds, 101 recall points, categories, areas, M]` and
        recall `[10, categories, areas, M]`; -1 where no true object is. There are 4 areas (all, small,
        medium, large), and 3 (all, medium, large) of keypoints.
    """
    if backend == "hotcoco":
        import hotcoco

        evaluation = hotcoco.COCOeval(truth, found, iou_type)
    else:
        evaluation = COCOeval(truth, found, iou_type)
    evaluation.params.maxDets = max_detections
    if category is not None:
        evaluation.params.catIds = [category]
    if sigmas is not None:
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def mean(values):
    """Mean of the entries of `match`'s arrays that exist; NaN where no true object is."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else float("nan")
