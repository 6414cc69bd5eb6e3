"""Every number of the walk: dataclasses, their checks, and YAML in and out."""

from keras_mrcnn.config.checks import check
from keras_mrcnn.config.files import find, folder, load, model_from_dict, override, save, to_dict
from keras_mrcnn.config.stations import (
    FPN,
    RPN,
    Anchors,
    Backbone,
    BoxHead,
    Config,
    Data,
    Detections,
    Input,
    KeypointHead,
    MaskHead,
    Model,
    Proposals,
    RoIAlign,
    Sampling,
    Training,
)

__all__ = [
    "FPN",
    "RPN",
    "Anchors",
    "Backbone",
    "BoxHead",
    "Config",
    "Data",
    "Detections",
    "Input",
    "KeypointHead",
    "MaskHead",
    "Model",
    "Proposals",
    "RoIAlign",
    "Sampling",
    "Training",
    "check",
    "find",
    "folder",
    "load",
    "model_from_dict",
    "override",
    "save",
    "to_dict",
]
