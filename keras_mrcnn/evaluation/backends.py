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


def match(backend, truth, found, iou_type, max_detections):
    """Precision and recall of all categories.

    Args:
        backend: "pycocotools" or "hotcoco".
        truth, found: what `load` gave.
        iou_type: "bbox" or "segm".
        max_detections: ascending list of M limits, per image and category.

    Returns:
        Tuple of float64 arrays: precision `[10 IoU thresholds, 101 recall points, categories, 4 areas
        (all, small, medium, large), M]` and recall `[10, categories, 4, M]`; -1 where no true object is.
    """
    if backend == "hotcoco":
        import hotcoco

        evaluation = hotcoco.COCOeval(truth, found, iou_type)
    else:
        evaluation = COCOeval(truth, found, iou_type)
    evaluation.params.maxDets = max_detections
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])
