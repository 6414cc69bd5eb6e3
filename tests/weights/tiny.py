"""A Mask R-CNN small enough for tests, and weights for it as torchvision and detectron2 would write them."""

import copy
import functools
import pickle

import numpy as np

from keras_mrcnn import config
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import detectron2, presets, torchvision

TORCHVISION, DETECTRON2 = "torchvision/mask_rcnn_r50_fpn", "detectron2/mask_rcnn_r50_fpn_3x"
FASTER = "torchvision/faster_rcnn_r50_fpn"
KEYPOINTS, D2_KEYPOINTS = "torchvision/keypoint_rcnn_r50_fpn", "detectron2/keypoint_rcnn_r50_fpn_3x"
C4, DC5 = "detectron2/mask_rcnn_r50_c4_3x", "detectron2/mask_rcnn_r50_dc5_3x"
NAMES = ["cat", "dog", "cow"]
SMALL = [
    "backbone.name=resnet18",
    "backbone.blocks=[1,1,1,1]",
    "fpn.channels=8",
    "rpn.channels=8",
    "mask_head.channels=8",
    "mask_head.convs=1",
    "keypoint_head.channels=8",
    "keypoint_head.convs=1",
    "box_head.units=8",
    "proposals.post_nms_test=20",
    "detections.max_detections=5",
    "detections.score_threshold=0.0",
    "input.short_edge=64",
    "input.long_edge=96",
]
REAL = presets.preset_model


@functools.cache
def _small(name):
    settings, categories = REAL(name)
    if settings.keypoint_head.enabled:  # persons, with COCO's keypoints
        return config.override(settings, SMALL), categories
    known = [{"id": 7 + index, "name": word} for index, word in enumerate(NAMES)]
    return config.override(settings, SMALL), known if categories else []


def preset_model(name):
    """The rules of a published model in a small architecture, with three classes; with keypoints, one."""
    return copy.deepcopy(_small(name))


def numbered(classes, keypoints):
    """That many categories, each with that many keypoints."""
    points = [f"point {index}" for index in range(keypoints)]
    return [{"id": index + 1, "name": f"class {index}", "keypoints": points} for index in range(classes)]


@functools.cache
def ours(like, num_classes, keypoints, overrides):
    """{path: shape} of the small model that follows the published one `like`."""
    settings = config.override(preset_model(like)[0], overrides)
    model = MaskRCNN(settings, numbered(num_classes, keypoints))
    return {variable.path: tuple(variable.shape) for variable in model.variables}


def shapes(like, num_classes, keypoints, overrides):
    """{name in the file: shape} of a detector that follows the published one `like`."""
    of_torchvision = like.startswith("torchvision/")
    settings = config.override(preset_model(like)[0], overrides)
    table = (torchvision if of_torchvision else detectron2).detector(settings, num_classes)
    found, own = {}, ours(like, num_classes, keypoints, overrides)
    for row in table.rows:
        shape = list(reversed(own[row.ours]))  # (rows, columns) of a kernel are equal
        if of_torchvision and row.ours.startswith(("box_head/deltas", "mask_head/logits")):
            shape[0] += 4 if "deltas" in row.ours else 1  # the background's
        found[row.theirs] = tuple(shape)
    return found


def state(like=TORCHVISION, num_classes=3, seed=0, keypoints=17, overrides=()):
    """{name: array}, random."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes(like, num_classes, keypoints, overrides).items():
        spread = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        arrays[name] = rng.normal(0, spread if len(shape) > 1 else 0.1, shape).astype(np.float32)
        if name.endswith("running_var"):
            arrays[name] = np.abs(arrays[name]) + np.float32(0.5)
    return arrays


def write(path, arrays):
    """A `.npz`, or a pickle as detectron2 writes it."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "nobody"}, protocol=2))
    return path


def inputs(seed=0):
    """One random image in the network frame."""
    images = np.random.default_rng(seed).integers(0, 256, (1, 64, 96, 3)).astype(np.uint8)
    return {"images": images, "image_sizes": np.array([[64, 96]], np.int32)}


def values(model):
    """{path: array} of all weights."""
    return {v.path: v.numpy() for v in model.variables if "seed_generator" not in v.path}
