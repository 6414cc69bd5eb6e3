"""Mask R-CNN for Keras 3 on TensorFlow: train, score, predict, export.

    from keras_mrcnn import MaskRCNN, Results, config, load_coco

TensorFlow is imported when `MaskRCNN` is first used.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "MaskRCNN": "keras_mrcnn.model",
    "load_model": "keras_mrcnn.cli",
    "Results": "keras_mrcnn.results",
    "load_coco": "keras_mrcnn.data.coco",
    "training_dataset": "keras_mrcnn.data.pipeline",
    "evaluation_dataset": "keras_mrcnn.data.pipeline",
    "CocoEvaluator": "keras_mrcnn.evaluation.coco",
}
__all__ = ["config", *_PUBLIC]


def __getattr__(name):
    if name == "config":
        return importlib.import_module("keras_mrcnn.config")
    if name == "MaskRCNN":  # a trained model's file also names the schedule of its optimizer
        importlib.import_module("keras_mrcnn.training.schedule")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'keras_mrcnn' has no attribute {name!r}")
