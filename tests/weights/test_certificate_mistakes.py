"""The usual mistakes of a port, made one by one: the certificate names the station where each is made."""

import pytest

from keras_mrcnn.conv_norm import FrozenNormalization
from keras_mrcnn.weights import tables
from keras_mrcnn.weights.certificate import certify
from keras_mrcnn.weights.golden import Golden
from tests.weights import tiny
from tests.weights.test_parity import GOLDEN, Reference

pytestmark = pytest.mark.proof


def differing(model, golden):
    """Names of the stations that differ, in order, of the only case."""
    (stations,) = certify(model, golden).values()
    return [station.name for station in stations if not station.passed]


def other_epsilon(patch, model, _):
    for layer in model.backbone._flatten_layers():
        if isinstance(layer, FrozenNormalization):
            patch.setattr(layer, "epsilon", 0.0)


def stride_in_the_first_convolution(patch, model, _):
    for stage in (3, 4, 5):
        block = next(x for x in model.backbone._flatten_layers() if x.name == f"c{stage}_block1")
        patch.setattr(block.convs[0], "strides", 2)
        patch.setattr(block.convs[1], "strides", 1)


def aligned(patch, model, _):
    patch.setattr(model.box_pooling, "aligned", True)
    patch.setattr(model.mask_pooling, "aligned", True)


def attribute(*path, value):
    def change(patch, model, _):
        owner = model
        for name in path[:-1]:
            owner = getattr(owner, name)
        assert getattr(owner, path[-1]) != value
        patch.setattr(owner, path[-1], value)

    return change


def other_weights(path, name, convert):
    def change(patch, model, weights):
        (variable,) = (variable for variable in model.variables if variable.path == path)
        variable.assign(convert(weights[name]))

    return change


MISTAKES = {
    # what is done: (how, the first station that differs, others, stations that are right)
    "epsilon": (other_epsilon, "body/c2", ["fpn/p2", "rpn/proposals"], ["input/tensor"]),
    "stride in the 1x1": (stride_in_the_first_convolution, "body/c3", ["fpn/p3"], ["body/c2"]),
    "BGR": (
        other_weights("backbone/stem/kernel", "backbone.body.conv1.weight", tables.bgr_kernel),
        "body/c2",
        ["body/c5"],
        ["input/tensor"],
    ),
    "resize": (attribute("config", "input", "resize", value="pillow"), "input/tensor", ["body/c2"], []),
    "anchors not rounded": (
        attribute("anchors", "rounded", value=False),
        "rpn/decoded/p2",
        ["rpn/decoded/p6", "rpn/proposals"],
        ["rpn/deltas/p2", "box/head"],
    ),
    "nominal stride at P6": (
        attribute("anchors", "fitted_strides", value=False),
        "rpn/decoded/p6",
        [],
        ["rpn/deltas/p6", "rpn/decoded/p5"],
    ),
    "aligned": (
        aligned,
        "box/pooled",
        ["box/class_logits", "mask/pooled", "mask/logits/0"],
        ["rpn/proposals"],
    ),
    "sampling": (
        attribute("box_pooling", "sampling_ratio", value=0),
        "box/pooled",
        ["box/head"],
        ["rpn/proposals", "mask/pooled"],
    ),
    "flattening": (
        other_weights("box_head/fc1/kernel", "roi_heads.box_head.fc6.weight", tables.dense),
        "box/head",
        ["box/class_logits", "box/box_regression", "det/unmatched/0"],
        ["box/pooled", "mask/logits/0"],
    ),
    "background first": (
        other_weights("box_head/classes/kernel", "roi_heads.box_predictor.cls_score.weight", tables.dense),
        "box/class_logits",
        ["det/unmatched/1"],
        ["box/head", "box/box_regression"],
    ),
    "score threshold": (
        attribute("detections", "score_threshold", value=0.5),
        "det/unmatched/0",
        ["det/unmatched/1"],
        ["box/class_logits"],
    ),
    "pasting": (
        attribute("config", "mask_head", "paste", value="centres"),
        "det/masks/0",
        ["det/masks/1"],
        ["mask/logits/0", "det/boxes/0"],
    ),
}


class TestMistakes:
    @pytest.fixture(scope="class")
    @classmethod
    def mini(cls):
        """torchvision's small golden model; the case whose images are resized."""
        reference = Reference("tv_mini", GOLDEN)
        golden = reference.golden()
        cases = {"b": golden.about["cases"]["b"]}
        return reference, Golden(golden.arrays, {**golden.about, "cases": cases})

    def test_none(self, mini):
        reference, golden = mini
        assert differing(reference.model, golden) == []

    @pytest.mark.parametrize("name", MISTAKES)
    def test_shows_where_it_is_made(self, mini, name, monkeypatch):
        reference, golden = mini
        change, first, others, right = MISTAKES[name]
        before = tiny.values(reference.model)
        change(monkeypatch, reference.model, reference.weights)
        found = differing(reference.model, golden)
        for variable in reference.model.variables:
            if variable.path in before:
                variable.assign(before[variable.path])
        assert found[0] == first
        assert set(others) <= set(found) and not set(right) & set(found)

    def test_their_channels(self, mini):
        reference, golden = mini
        wrong = Golden(golden.arrays, {**golden.about, "channels": "BGR"})
        assert differing(reference.model, wrong) == ["input/tensor"]
