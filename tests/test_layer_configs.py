"""Every layer comes back from its config with the values it was given, and leaves its arguments alone."""

import copy
import importlib
import inspect
import json
import pkgutil

import keras
import numpy as np
import pytest

import keras_mrcnn
from keras_mrcnn.backbones.applications import Application
from keras_mrcnn.backbones.fpn import FPN
from keras_mrcnn.backbones.normalize import Normalize
from keras_mrcnn.backbones.resnet import ResNet
from keras_mrcnn.conv_norm import ConvNorm, FrozenNormalization
from keras_mrcnn.ops import RandomSubset
from keras_mrcnn.residual import BasicBlock, Bottleneck
from keras_mrcnn.roi.box_head import BoxHead
from keras_mrcnn.roi.detections import Detections
from keras_mrcnn.roi.keypoint_head import KeypointHead, RegionKeypoints
from keras_mrcnn.roi.mask_head import MaskHead, MLPMaskHead, RegionMasks
from keras_mrcnn.roi.pooling import RoIPooling
from keras_mrcnn.roi.sampling import RoISampling
from keras_mrcnn.roi.stage5 import Stage5
from keras_mrcnn.rpn.anchors import Anchors
from keras_mrcnn.rpn.head import RPNHead
from keras_mrcnn.rpn.proposals import Proposals
from keras_mrcnn.rpn.targets import RPNTargets

# Values all unlike the defaults.
GIVEN = {
    Anchors: {
        "sizes": [[10.0, 20.0]], "strides": [16], "aspect_ratios": [0.3, 3.0], "rounded": True,
        "fitted_strides": True,
    },
    Application: {
        "network": "MobileNetV3Small", "frozen_stages": 5, "channels": 2,
        "outputs": [
            "expanded_conv_project_bn", "expanded_conv_2_add", "expanded_conv_7_add", "expanded_conv_10_add"
        ],
    },
    BasicBlock: {"width": 6, "strides": 2, "project": True, "norm": "batch", "epsilon": 0.25},
    Bottleneck: {
        "width": 6, "strides": 2, "project": True, "norm": "batch", "epsilon": 0.25, "stride_in_1x1": True,
        "groups": 3, "expansion": 2,
    },
    BoxHead: {
        "num_classes": 3, "convs": 2, "channels": 6, "norm": "batch", "fcs": 1, "units": 5,
        "class_agnostic": True,
    },
    ConvNorm: {
        "filters": 32, "kernel_size": 5, "strides": 3, "norm": "group", "relu": True, "epsilon": 0.25,
        "kernel_initializer": "lecun_uniform", "groups": 4,
    },
    Detections: {
        "score_threshold": 0.2, "nms_iou": 0.3, "max_detections": 7,
        "box_weights": [1.0, 2.0, 3.0, 4.0], "min_size": 0.5,
    },
    FPN: {"channels": 6, "norm": "batch"},
    FrozenNormalization: {"epsilon": 0.25},
    KeypointHead: {"num_keypoints": 3, "convs": 2, "channels": 5, "norm": "batch"},
    MaskHead: {"maps": 3, "convs": 2, "channels": 5, "norm": "batch"},
    MLPMaskHead: {"maps": 3, "mask_size": 6, "fcs": 1, "units": 5},
    Normalize: {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
    Proposals: {
        "pre_nms_train": 11, "pre_nms_test": 12, "post_nms_train": 13, "post_nms_test": 14, "nms_iou": 0.6,
        "min_size": 0.5,
    },
    RandomSubset: {"seed": 5},
    RegionKeypoints: {"counts": [3, 0]},
    RegionMasks: {"activation": "softmax"},
    ResNet: {
        "depth": "resnet34", "norm": "group", "frozen_stages": 3, "blocks": [1, 1, 2, 1],
        "stride_in_1x1": True, "epsilon": 0.25, "last_stage": 4, "dilated": True,
    },
    RoIPooling: {
        "pool_size": 5, "strides": [16], "sampling_ratio": 3, "aligned": False, "operation": "warp",
        "reduction": "maximum",
    },
    RoISampling: {"rois": 20, "foreground_fraction": 0.4, "foreground_iou": 0.6, "seed": 5},
    RPNHead: {"anchors_per_position": 4, "channels": 6, "convs": 2},
    RPNTargets: {
        "positive_iou": 0.6, "negative_iou": 0.2, "samples": 20, "positive_fraction": 0.4, "seed": 5
    },
    Stage5: {
        "depth": "resnet34", "norm": "group", "strides": 2, "blocks": [1, 1, 2, 1], "stride_in_1x1": True,
        "epsilon": 0.25,
    },
}  # fmt: skip
OWN_FORM = {
    ("BoxHead", "convs"): "num_convs",
    ("BoxHead", "fcs"): "num_fcs",
    ("KeypointHead", "convs"): "num_convs",
    ("MaskHead", "convs"): "num_convs",
    ("MLPMaskHead", "fcs"): "num_fcs",
    ("RPNHead", "convs"): "num_convs",
}  # attributes named otherwise than their argument


def layers_of_the_package():
    found = set()
    for module in pkgutil.walk_packages(keras_mrcnn.__path__, "keras_mrcnn."):
        if module.name.split(".")[1] in ("backbones", "conv_norm", "residual", "ops", "rpn", "roi"):
            members = vars(importlib.import_module(module.name)).values()
            found |= {m for m in members if inspect.isclass(m) and issubclass(m, keras.layers.Layer)}
    return {
        layer for layer in found if layer.__module__.startswith("keras_mrcnn.") and layer.__name__[0] != "_"
    }


def test_no_layer_is_left_out():
    assert layers_of_the_package() == set(GIVEN)


@pytest.mark.parametrize("layer_class", GIVEN, ids=lambda layer_class: layer_class.__name__)
class TestEveryLayer:
    def test_the_values_are_unlike_the_defaults(self, layer_class):
        parameters = inspect.signature(layer_class.__init__).parameters
        named = {name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
        assert set(GIVEN[layer_class]) == named - {"self", "name", "dtype"}
        for name, value in GIVEN[layer_class].items():
            default = parameters[name].default
            assert (list(default) if isinstance(default, tuple) else default) != value

    def test_it_comes_back(self, layer_class):
        given = GIVEN[layer_class]
        layer = layer_class(**given, name="its_name", dtype="mixed_bfloat16", trainable=False)
        config = json.loads(json.dumps(layer.get_config()))  # as it stands in a file
        again = layer_class.from_config(config)
        assert (again.name, again.dtype_policy.name, again.trainable) == ("its_name", "mixed_bfloat16", False)
        for copied in (layer, again):
            for name, value in given.items():
                assert getattr(copied, OWN_FORM.get((layer_class.__name__, name), name)) == value
                assert copied.get_config()[name] == value
        assert again.autocast == layer.autocast and again.supports_jit == layer.supports_jit
        inner = [sub.dtype_policy.name for sub in again._flatten_layers(include_self=False)]
        assert inner == [sub.dtype_policy.name for sub in layer._flatten_layers(include_self=False)]

    def test_arguments_are_left_alone_and_not_held(self, layer_class):
        given = copy.deepcopy(GIVEN[layer_class])
        layer = layer_class(**given)
        layer.get_config()
        assert given == GIVEN[layer_class]
        for value in given.values():
            if isinstance(value, list):
                value.append(99.0)
        for name, value in GIVEN[layer_class].items():
            assert layer.get_config()[name] == value


def test_convolutions_inside_have_the_precision_of_their_layer():
    heads = [RPNHead(), BoxHead(3), MaskHead(3), KeypointHead(3), Stage5("resnet18")]
    layers = [ConvNorm(4, 3), Bottleneck(4), FPN(4), *heads, ResNet("resnet18")]
    for layer in layers:
        mixed = type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
        policies = {sub.dtype_policy.name for sub in mixed._flatten_layers()}
        assert policies == {"mixed_bfloat16"}


@pytest.mark.parametrize("layer_class", [RPNTargets, RoISampling])
def test_a_copy_draws_the_same_numbers(layer_class):
    """A seed in the config is the seed of the copy."""
    boxes = np.float32([[[20 * i, 0, 20 * i + 9, 9] for i in range(700)]])
    true_boxes, valid = boxes[:, :1], np.ones([1, 1], bool)
    proposals = (boxes[0],) if layer_class is RPNTargets else (boxes, np.ones([1, 700], bool))
    layer = layer_class(seed=3)
    again, other = layer_class.from_config(layer.get_config()), layer_class(seed=4)
    drawn, repeated, different = (one(*proposals, true_boxes, valid)[0] for one in (layer, again, other))
    np.testing.assert_array_equal(drawn, repeated)
    assert (drawn != different).numpy().any()
