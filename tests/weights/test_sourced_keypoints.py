"""Keypoint models from elsewhere, as published and for other classes and keypoints; small ones from files."""

import numpy as np
import pytest

from keras_mrcnn.data.categories import Category
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import presets
from tests.weights import tiny
from tests.weights.test_sourced import OF_THE_CLASSES, reported
from tests.weights.tiny import values

PERSON = presets.categories("person")[0]
FLY = {"id": 1, "name": "person", "keypoints": ["head", "tail"]}
BOTH = ("mask_head.enabled=true",)
UPSAMPLE = [
    "keypoint_head/upsample/kernel, "
    "VarianceScaling(scale=2.0, mode=fan_out, distribution=untruncated_normal)",
    "keypoint_head/upsample/bias, zeros",
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Published models are small."""
    monkeypatch.setattr(presets, "preset_model", tiny.preset_model)


@pytest.fixture
def loaded(tmp_path, capsys):
    """Writes a file and reads it: the model, and what was not loaded."""

    def load(keypoints=17, like=tiny.KEYPOINTS, overrides=(), **given):
        arrays = tiny.state(like, 1, keypoints=keypoints, overrides=overrides)
        file = tiny.write(tmp_path / "model.pkl", arrays)
        model = MaskRCNN.from_preset(file, like=like, overrides=overrides, **given)
        first, *anew = reported(capsys)
        total = len(values(model))
        assert first == f"{file}: loaded {total - len(anew)}/{total}"
        assert "keypoints" in model.output and ("masks" in model.output) == bool(overrides)
        return model, [line.removeprefix("  initialised anew: ") for line in anew]

    return load


@pytest.mark.parametrize("like", [tiny.KEYPOINTS, tiny.D2_KEYPOINTS])
def test_as_published(loaded, like):
    model, anew = loaded(like=like)
    assert not anew and model.categories == [Category.from_dict(PERSON)]


@pytest.mark.proof
def test_another_class_of_the_same_keypoints(loaded):
    model, anew = loaded(categories=[{**PERSON, "name": "dancer"}])
    assert anew == OF_THE_CLASSES[:4]
    assert model.categories[0].name == "dancer"


@pytest.mark.parametrize("overrides", [(), BOTH])
@pytest.mark.proof
def test_a_number_of_classes(loaded, overrides):
    model, anew = loaded(num_classes=2, overrides=overrides)
    assert anew == OF_THE_CLASSES[: 6 if overrides else 4]
    assert [(c.name, c.keypoints) for c in model.categories] == [
        (f"class {n}", tuple(PERSON["keypoints"])) for n in (1, 2)
    ]


@pytest.mark.proof
def test_other_keypoints(loaded):
    model, anew = loaded(categories=[FLY])
    assert anew == UPSAMPLE
    assert values(model)["keypoint_head/upsample/kernel"].shape == (4, 4, 2, 8)
    renamed = [f"other {name}" for name in PERSON["keypoints"]]  # as many
    assert loaded(categories=[{**PERSON, "keypoints": renamed}])[1] == UPSAMPLE


@pytest.mark.parametrize("overrides", [(), BOTH])
def test_other_classes_and_keypoints(loaded, overrides):
    _, anew = loaded(categories=["leaf", FLY], overrides=overrides)
    assert sorted(anew) == sorted(OF_THE_CLASSES[: 6 if overrides else 4] + UPSAMPLE)


@pytest.mark.proof
def test_a_fine_tuned_file_keeps_its_own_keypoints(loaded):
    model, anew = loaded(keypoints=2)
    assert not anew and model.categories[0].keypoints == ("keypoint 1", "keypoint 2")
    model, anew = loaded(keypoints=2, categories=[FLY])
    assert not anew and model.categories[0].keypoints == ("head", "tail")
    assert loaded(keypoints=3, categories=[FLY])[1] == UPSAMPLE


@pytest.mark.proof
def test_our_own_files(loaded, tmp_path, capsys):
    model, _ = loaded(overrides=BOTH)
    model.save_to_preset(tmp_path / "kept")
    assert MaskRCNN.from_preset(tmp_path / "kept").categories == model.categories
    MaskRCNN.from_preset(tmp_path / "kept", categories=[FLY])
    assert [line.split(": ")[1] for line in reported(capsys)[2:]] == UPSAMPLE


def test_no_keypoints(loaded):
    with pytest.raises(ValueError, match="no category has keypoints. .* Received: person"):
        loaded(categories=["person"])


@pytest.mark.parametrize("shape", [(1, 10**6, 4, 4), (8, 17, 2, 2), (8,), ()])  # the first would be a giant
def test_heat_maps_of_another_shape(tmp_path, shape):
    name = "roi_heads.keypoint_predictor.kps_score_lowres.weight"
    arrays = {**tiny.state(tiny.KEYPOINTS, 1), name: np.zeros(shape, np.float16)}
    file = tiny.write(tmp_path / "w.npz", arrays)
    with pytest.raises(ValueError, match=f"of another shape: 1\n  {name}"):
        MaskRCNN.from_preset(file, like=tiny.KEYPOINTS)
