"""As many parameters as the references have, trained and frozen; the models are built and not run."""

import gc
import json
import math

import keras
import pytest

from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights.load import is_weight
from tests.weights.test_parity import GOLDEN, QUICK, SLOW, settings_of

FROZEN = {  # kinds of parameters that an optimizer does not get
    "FrozenBatchNorm2d": ("norm_weight", "norm_bias", "norm_mean", "norm_var"),
    "FrozenBN": ("norm_weight", "norm_bias", "norm_mean", "norm_var"),
    "BatchNorm2d": ("norm_mean", "norm_var"),
}
ALWAYS = ("tv_mini_keypoint", "d2_maskrcnn_r50_fpn")  # the others with the slow proofs
OF_THE_BACKGROUND = {  # torchvision's, in a layer for every class: nobody reads them, and we have none
    "roi_heads.box_predictor.bbox_pred": 4,
    "roi_heads.mask_predictor.mask_fcn_logits": 1,
}


def counted(spec):
    """{is it trained: parameters of the reference}, those of the background's box and mask left out."""
    frozen = FROZEN[spec["config"]["norm"]]
    total = {True: 0, False: 0}
    for name, shape, kind, _ in spec["params"]:
        rows = OF_THE_BACKGROUND.get(name.rpartition(".")[0], 0) if spec["name"].startswith("tv_") else 0
        if kind != "count":  # num_batches_tracked
            total[kind not in frozen] += (shape[0] - rows) * math.prod(shape[1:])
    return total


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.proof) for name in (*QUICK, *SLOW)],
)
def test_as_many_as_the_reference(name, request):
    folder = (
        GOLDEN
        if (GOLDEN / f"{name}.npz").is_file()
        else request.getfixturevalue("shared") / "parity" / "models"
    )
    spec = json.loads((folder / f"{name}.json").read_text())
    model = MaskRCNN(*settings_of(name, spec))
    ours = {True: 0, False: 0}
    for variable in filter(is_weight, model.variables):
        ours[variable.trainable] += math.prod(variable.shape)
    print(f"{name}: {ours[True]:,} trained, {ours[False]:,} frozen")
    assert ours == counted(spec)
    del model
    keras.backend.clear_session()
    gc.collect()  # models are cycles, and these are large


def test_every_model_is_counted(shared):
    files = {path.stem for path in (shared / "parity" / "models").glob("*.json")}
    assert files == {*QUICK, *SLOW}


def test_counts_by_hand():
    # a 1x1 convolution from 2 to 3 channels, its normalisation, and the boxes and masks of two classes with
    # background, which see 5 numbers: 3 * 2 + 3 + 3 trained, and (12 - 4) * 5 + (3 - 1) * 5
    rows = [
        ["conv1.weight", [3, 2, 1, 1], "conv", 1],
        ["bn1.weight", [3], "norm_weight", 1],
        ["bn1.bias", [3], "norm_bias", 1],
        ["bn1.running_mean", [3], "norm_mean", 1],
        ["bn1.running_var", [3], "norm_var", 1],
        ["bn1.num_batches_tracked", [], "count", 1],
        ["roi_heads.box_predictor.bbox_pred.weight", [12, 5], "linear", 1],
        ["roi_heads.mask_predictor.mask_fcn_logits.weight", [3, 5, 1, 1], "conv", 1],
    ]
    spec = {"name": "tv_x", "config": {"norm": "BatchNorm2d"}, "params": rows}
    assert counted(spec) == {True: 12 + 40 + 10, False: 6}
    assert counted({**spec, "config": {"norm": "FrozenBN"}}) == {True: 6 + 40 + 10, False: 12}
    assert counted({**spec, "name": "d2_x"}) == {True: 12 + 60 + 15, False: 6}
