"""Bodies of the reference models: the same parameters, the same maps at every stage."""

import json

import keras
import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.backbones.normalize import Normalize
from keras_mrcnn.backbones.resnet import ResNet
from keras_mrcnn.weights import detectron2, tables
from keras_mrcnn.weights.load import load_table
from tests.golden import filling

LARGEST = 2e-4  # difference / standard deviation, of maps whose image is not resized
BODIES = {  # arguments of ours, and how their names begin in the reference
    "tv_maskrcnn_r50_fpn": ({"depth": "resnet50"}, "backbone.body."),
    "tv_mini": ({"depth": "resnet50", "blocks": [1, 1, 2, 1]}, "backbone.body."),
    "tv_small": ({"depth": "resnet18"}, "backbone.body."),
    "d2_maskrcnn_r50_fpn": ({"depth": "resnet50"}, "backbone.bottom_up."),
    "d2_maskrcnn_r101_fpn": ({"depth": "resnet101"}, "backbone.bottom_up."),
    "d2_maskrcnn_x101_fpn": ({"depth": "resnext101_32x8d"}, "backbone.bottom_up."),
    "d2_maskrcnn_r50_c4": ({"depth": "resnet50", "last_stage": 4}, "backbone."),
    "d2_maskrcnn_r50_dc5": ({"depth": "resnet50", "dilated": True}, "backbone."),
}


def specification(shared, name):
    return json.loads((shared / f"parity/models/{name}.json").read_text())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "r50" in name else pytest.mark.proof) for name in BODIES]
)
def test_numbers_of_parameters(shared, name):
    arguments, prefix = BODIES[name]
    network = ResNet(**arguments)
    network(keras.Input((None, None, 3)))
    expected = sum(
        int(np.prod(shape))
        for key, shape, *_ in specification(shared, name)["params"]
        if key.startswith(prefix) and not key.endswith("num_batches_tracked")
    )
    assert network.count_params() == expected


def loaded(network, channels, features, spec):
    """The layer, for inputs of so many channels, filled with its part of a detectron2 model: all of it."""
    network(keras.Input((None, None, channels)))
    backbone = config.Backbone(name=network.depth, features=features)
    table = detectron2.detector(config.Model(backbone=backbone), 80)
    rows = [row for row in table.rows if row.ours.startswith(f"{network.name}/")]
    names = {row.theirs for row in rows}
    shapes = [row for row in spec["params"] if row[0] in names]
    weights = {row[0]: filling.parameter(*row, spec["seed"], names) for row in shapes}
    report = load_table(network, weights, tables.Table(rows, ()), spec["name"])
    assert len(report.loaded) == len(rows) == len(names)
    return network


def normalized_image(spec):
    """The image of case a, as the backbone takes it."""
    [size_and_seed] = spec["cases"]["a"]["images"]
    image = filling.image(*size_and_seed)
    normalize = Normalize(spec["config"]["pixel_mean"][::-1], spec["config"]["pixel_std"][::-1])
    return normalize(image[None], np.int32([image.shape[:2]]))


def compare(found, key, spec, data):
    """`found` `[B, H, W, C]` with a stored map, or with the samples and means of one."""
    found = np.moveaxis(np.asarray(found, np.float64), 3, 1)
    about = spec["arrays"][key]
    assert list(found.shape) == about["shape"]
    sample = data[f"{key}/sample"]
    picked = found[tuple(slice(a, None, b) for a, b in zip(about["start"], about["step"]))]
    assert np.abs(picked - sample).max() / sample.std() < LARGEST, key
    means = data[f"{key}/channel_mean"]
    np.testing.assert_allclose(found.mean((2, 3)), means, atol=LARGEST * data[f"{key}/mean_std"][1])


@pytest.mark.parametrize(
    "name, features, stages",
    [
        ("d2_maskrcnn_r50_c4", "c4", ["c4"]),
        ("d2_maskrcnn_r50_dc5", "c5", ["c5"]),
        pytest.param("d2_maskrcnn_x101_fpn", "fpn", ["c2", "c3", "c4", "c5"], marks=pytest.mark.proof),
    ],
)
def test_stages(shared, name, features, stages):
    spec = specification(shared, name)
    about = spec["config"]
    network = loaded(
        ResNet(
            **BODIES[name][0],
            stride_in_1x1=about["stride_in_1x1"],
            epsilon=about["norm_eps"],
            name="backbone",
        ),
        3,
        features,
        spec,
    )
    maps = network(normalized_image(spec))
    with np.load(shared / f"parity/models/{name}.npz") as data:
        for stage in stages:
            compare(maps[int(stage[1]) - 2], f"a/body/{stage}", spec, data)
