"""The certificate of keypoint models: what counts as elsewhere, and which of the two scores is meant."""

import numpy as np
import pytest
from click.testing import CliRunner

from keras_mrcnn.cli import main
from keras_mrcnn.data.categories import Category
from keras_mrcnn.geometry.keypoints import decode
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import presets
from keras_mrcnn.weights.certificate import certify
from keras_mrcnn.weights.golden import Golden
from tests.weights import tiny
from tests.weights.test_certificate import differing, own_golden

POINTS, SCORES = "one/keypoint/keypoints/0", "one/keypoint/scores/0"
SCORED = ["keypoint/keypoint_scores/0", "det/keypoint_scores/0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    like = tiny.KEYPOINTS
    file = tiny.write(tmp_path_factory.mktemp("files") / "weights.npz", tiny.state(like, num_classes=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "preset_model", tiny.preset_model)
        return MaskRCNN.from_preset(file, like=like)


@pytest.fixture(scope="module")
def golden(model):
    return own_golden(model)


def test_a_model_agrees_with_itself(model, golden):
    (stations,) = certify(model, golden).values()
    assert max(station.error for station in stations) < 1e-5
    names = [station.name for station in stations if "keypoint" in station.name]
    expected = [f"keypoint/{x}" for x in ("pooled", "heatmap_first", "heatmaps_sample/0", "keypoints/0")]
    assert names == [*expected, SCORED[0], "det/keypoints/0", SCORED[1]]


def test_one_weight_changed(model, golden):
    (variable,) = (v for v in model.variables if v.path == "keypoint_head/upsample/bias")
    before = variable.numpy()
    variable.assign(before + np.float32(0.1))  # every logit: points and their scores stay
    found = differing(model, golden)
    variable.assign(before)
    assert found == ["keypoint/heatmap_first", "keypoint/heatmaps_sample/0"]


@pytest.mark.parametrize("moved, expected", [(2, []), (3, ["keypoint/keypoints/0", "det/keypoints/0"])])
def test_a_few_may_be_elsewhere(model, golden, moved, expected):
    points = golden.arrays[POINTS].copy()
    assert points.shape == (5, 17, 3)  # 3 % are 2.55
    points[0, :moved, 0] += 0.6
    points[1, :, 0] += 0.4
    assert differing(model, Golden({**golden.arrays, POINTS: points}, golden.about)) == expected


def test_another_score(model, golden):
    points = golden.arrays[POINTS] * np.float32([1, 1, 1.005])
    changed = Golden({**golden.arrays, POINTS: points}, golden.about)
    assert differing(model, changed) == SCORED[:1]  # end to end boxes differ, and 1 % is within it
    points[0, 0, 2] = np.nan
    assert differing(model, changed) == SCORED


def test_logits_in_place_of_scores(model, golden):
    points, heatmaps = golden.arrays[POINTS].copy(), golden.arrays["one/keypoint/heatmap_first"]
    assert points[0, 0, 2] < 1 and np.abs(heatmaps).max() > 0
    points[..., 2] = 1  # as torchvision has it
    boxes = golden.arrays["one/det/boxes_input/0"]
    pooled = golden.arrays["one/keypoint/pooled"].transpose(0, 2, 3, 1)
    logits = np.array(decode(model.keypoint_head(pooled), boxes))[..., 2]
    arrays = {**golden.arrays, POINTS: points, SCORES: logits}
    assert differing(model, Golden(arrays, golden.about)) == []
    arrays[SCORES] = golden.arrays[POINTS][..., 2]
    assert differing(model, Golden(arrays, golden.about)) == ["keypoint/scores/0"]


def test_another_number_of_keypoints(model, golden):
    points = golden.arrays[POINTS][:, :16]
    found = differing(model, Golden({**golden.arrays, POINTS: points}, golden.about))
    assert sorted(found) == sorted([*SCORED, "keypoint/keypoints/0", "det/keypoints/0"])


def test_no_detections(model, golden, monkeypatch):
    monkeypatch.setattr(model.detections, "score_threshold", 2.0)
    nothing = own_golden(model)
    assert nothing.arrays[POINTS].shape == (0, 17, 3)
    assert differing(model, nothing) == []


@pytest.mark.proof
def test_convert(golden, tmp_path, monkeypatch):
    """Verified with a golden file and written: the keypoints' names travel with the model."""
    monkeypatch.setattr(presets, "preset_model", tiny.preset_model)
    weights = tiny.write(tmp_path / "weights.npz", tiny.state(tiny.KEYPOINTS, num_classes=1))
    golden.save(tmp_path / "golden.npz")
    arguments = [weights, tmp_path / "kept", "--like", tiny.KEYPOINTS]
    arguments += ["--verify", tmp_path / "golden.npz"]
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    assert result.exit_code == 0 and "DIFFERS" not in result.output, result.output
    (person,) = MaskRCNN.from_preset(tmp_path / "kept").categories
    assert person == Category.from_dict(presets.categories("person")[0])
    assert person.flip_pairs[0] == (1, 2) and person.skeleton[0] == (15, 13)
