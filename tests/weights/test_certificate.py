"""The certificate: right models pass, known mistakes show where they are made, odd files fail in words."""

import json
import sys
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from keras_mrcnn.cli import main
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import presets
from keras_mrcnn.weights.certificate import Station, certify
from keras_mrcnn.weights.golden import HEATMAPS, Golden
from keras_mrcnn.weights.torch_reference import torchvision_golden
from tests.weights import tiny
from tests.weights.tiny import DETECTRON2, TORCHVISION


def nchw(features):
    return np.moveaxis(np.array(features), -1, 1)


def own_golden(model):
    """What a model itself computes for one image, with torchvision's order of classes."""
    inputs = tiny.inputs()
    pixels = model.normalize(inputs["images"], inputs["image_sizes"])
    stages = model.backbone(pixels, training=False)
    maps = model.fpn(stages, training=False) if model.fpn else stages[-1:]
    logits, deltas = model.rpn_head(maps)
    proposals, _, valid = model.proposals(logits, deltas, model.anchors(maps), inputs["image_sizes"])
    pooled = model.box_pooling(maps, proposals, valid)
    classes, boxes = (np.array(x) for x in model.box_head(model.stage5(pooled) if model.stage5 else pooled))
    found = {name: np.array(value[0]) for name, value in model(inputs, training=False).items()}
    count = int(found["num_detections"])
    detected = found["boxes"][:count]
    arrays = {
        "images/0": inputs["images"][0],
        "input/tensor": nchw(pixels),
        "rpn/proposals/0": np.array(proposals[0])[np.array(valid[0])],
        "box/pooled": nchw(pooled),
        "box/class_logits": np.roll(classes, 1, axis=1),
        "box/box_regression": np.pad(boxes, [[0, 0], [1, 0], [0, 0]]).reshape(
            len(boxes), 4 + 4 * boxes.shape[1]
        ),
        "det/boxes_input/0": detected,
        "det/boxes/0": detected,
        "det/labels/0": found["classes"][:count] + 1,
        "det/scores/0": found["scores"][:count],
    }
    if model.mask_head:
        pooling = model.box_pooling if model.stage5 else model.mask_pooling
        own = pooling(maps, detected[None], np.ones([1, count], bool))
        logits_of_masks = model.mask_head(model.stage5(own) if model.stage5 else own)
        arrays["mask/pooled"] = nchw(own)
        arrays["mask/logits/0"] = np.array(logits_of_masks)[range(count), :, :, found["classes"][:count]]
    if model.keypoint_head:
        own = model.keypoint_pooling(maps, detected[None], np.ones([1, count], bool))
        heatmaps = nchw(model.keypoint_head(own))
        arrays |= {"keypoint/pooled": nchw(own)}
        arrays |= {"keypoint/heatmap_first": heatmaps[0]} if count else {}
        arrays |= {"keypoint/heatmaps_sample/0": heatmaps[HEATMAPS]}
        arrays |= {"keypoint/keypoints/0": found["keypoints"][:count]}
    arrays |= {f"body/c{level}": nchw(stage) for level, stage in enumerate(stages, 2)}
    levels = [f"p{level}" for level in range(2, 7)] if model.fpn else [f"res{len(stages) + 1}"]
    for level, features, scores in zip(levels, maps, logits, strict=True):
        arrays[f"rpn/objectness/{level}"] = nchw(np.reshape(scores, [*features.shape[:3], -1]))
        if model.fpn:
            arrays[f"fpn/{level}"] = nchw(features)
    about = {"background_first": True, "channels": "RGB", "cases": {"one": {}}}
    return Golden({f"one/{name}": array for name, array in arrays.items()}, about)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("files") / "weights.npz", tiny.state())


@pytest.fixture(scope="module")
def model(file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "preset_model", tiny.preset_model)
        return MaskRCNN.from_preset(file, like=TORCHVISION)


@pytest.fixture(scope="module")
def golden(model):
    return own_golden(model)


def differing(model, golden):
    """Names of the stations that differ, in order, of the only case."""
    (stations,) = certify(model, golden).values()
    assert stations
    return [station.name for station in stations if not station.passed]


class TestOwnGolden:
    def test_a_model_agrees_with_itself(self, model, golden):
        (stations,) = certify(model, golden).values()
        names = [station.name for station in stations]
        assert names[:6] == ["input/tensor", "body/c2", "body/c3", "body/c4", "body/c5", "fpn/p2"]
        assert names[-5:] == [
            "mask/logits/0",
            *(f"det/{x}/0" for x in ("unmatched", "order", "boxes", "scores")),
        ]
        assert len(names) == 25 and all(station.error == 0 for station in stations)

    @pytest.mark.parametrize(
        "path, first", [("fpn/output3/bias", "fpn/p3"), ("mask_head/logits/bias", "mask/logits/0")]
    )
    @pytest.mark.parametrize("change", [1.0, np.nan])
    def test_one_weight_changed(self, model, golden, path, first, change):
        (variable,) = (variable for variable in model.variables if variable.path == path)
        before = variable.numpy()
        variable.assign(before + np.float32(change))
        found = differing(model, golden)
        variable.assign(before)
        assert found[0] == first and "fpn/p2" not in found
        assert change != 1 or ("det/unmatched/0" in found) == (first == "fpn/p3")

    def test_a_reference_that_is_not_a_number(self, model, golden):
        for name in ("one/fpn/p4", "one/det/scores/0"):
            arrays = {**golden.arrays, name: golden.arrays[name] + np.float32(np.nan)}
            assert differing(model, Golden(arrays, golden.about))[0].startswith(name[4:].split("scores")[0])

    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_another_shape_is_a_difference(self, model, golden, axis):
        names = ["input/tensor", "body/c3", "fpn/p6", "box/pooled", "box/class_logits", "mask/pooled"]
        names += ["mask/logits/0"]
        wrong = {f"one/{name}": np.repeat(golden.arrays[f"one/{name}"], 2, axis) for name in names}
        assert differing(model, Golden({**golden.arrays, **wrong}, golden.about)) == names

    def test_another_shape_of_what_is_stored_in_part(self, model, golden):
        whole = golden.arrays["one/fpn/p2"]
        about = {"shape": list(whole.shape), "start": [0, 1, 0, 3], "step": [1, 2, 3, 4]}
        arrays = {name: array for name, array in golden.arrays.items() if name != "one/fpn/p2"}
        arrays["one/fpn/p2/sample"] = whole[:, 1::2, ::3, 3::4]
        for shape, expected in ((about["shape"], []), ([1, 8, 16, 25], ["fpn/p2"])):
            sampled = {**golden.about, "arrays": {"one/fpn/p2": {**about, "shape": shape}}}
            assert differing(model, Golden(arrays, sampled)) == expected

    def test_classes_that_the_model_has_not(self, model, golden):
        arrays = {**golden.arrays, "one/det/labels/0": golden.arrays["one/det/labels/0"] + 10}
        assert differing(model, Golden(arrays, golden.about)) == [
            "mask/logits/0",
            "det/unmatched/0",
            "det/order/0",
        ]

    def test_a_class_that_the_model_has_not_is_no_other(self, model, golden):
        pooled = golden.arrays["one/mask/pooled"].transpose(0, 2, 3, 1)
        wrong = {
            "one/mask/logits/0": np.array(model.mask_head(pooled))[..., 0],  # of class 0
            "one/det/labels/0": np.full(len(pooled), 11),
        }
        assert differing(model, Golden({**golden.arrays, **wrong}, golden.about))[0] == "mask/logits/0"

    @pytest.mark.parametrize("column, expected", [(3, []), (4, ["box/box_regression"])])
    def test_deltas_of_the_background_are_read_by_nobody(self, model, golden, column, expected):
        deltas = golden.arrays["one/box/box_regression"].copy()
        deltas[0, column] += 1
        changed = Golden({**golden.arrays, "one/box/box_regression": deltas}, golden.about)
        assert differing(model, changed) == expected

    def test_another_score_is_another_detection(self, model, golden):
        for difference, expected in ((0.001, []), (0.01, ["det/unmatched/0"])):
            scores = golden.arrays["one/det/scores/0"] + np.float32([difference, 0, 0, 0, 0])
            changed = Golden({**golden.arrays, "one/det/scores/0": scores}, golden.about)
            assert differing(model, changed) == expected

    def test_no_detections(self, model, golden, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(model.detections, "score_threshold", 2.0)
            nothing = own_golden(model)
            assert nothing.arrays["one/det/boxes/0"].shape == (0, 4)
            assert differing(model, nothing) == []
            assert differing(model, golden) == ["det/unmatched/0", "det/order/0"]
        assert differing(model, nothing) == ["det/unmatched/0"]

    def test_no_proposals(self, model, golden, monkeypatch):
        monkeypatch.setattr(model.proposals, "min_size", 1e6)
        nothing = own_golden(model)
        assert nothing.arrays["one/rpn/proposals/0"].shape == (0, 4)
        assert differing(model, nothing) == []
        found = differing(model, golden)
        assert found[0] == "rpn/proposals" and "box/class_logits" not in found

    def test_what_is_absent_is_not_compared(self, model, golden):
        arrays = {name: array for name, array in golden.arrays.items() if "body" in name or "images" in name}
        (stations,) = certify(model, Golden(arrays, golden.about)).values()
        assert [station.name for station in stations] == ["body/c2", "body/c3", "body/c4", "body/c5"]

    def test_nothing_to_compare_is_no_proof(self, model, golden):
        images = {name: array for name, array in golden.arrays.items() if "images" in name}
        others = {name: array for name, array in golden.arrays.items() if "images" not in name}
        for wrong, words in [
            (Golden(golden.arrays, {**golden.about, "cases": {}}), "nothing to compare"),
            (Golden(images, golden.about), "nothing to compare"),
            (Golden(others, golden.about), "no image of case 'one'"),
        ]:
            with pytest.raises(ValueError, match=words):
                certify(model, wrong)


class TestOtherArchitectures:
    """One map instead of a pyramid, stage 5 on each region, no masks."""

    @pytest.fixture(
        scope="class",
        params=[tiny.C4, *(pytest.param(like, marks=pytest.mark.proof) for like in (tiny.DC5, tiny.FASTER))],
    )
    @classmethod
    def like(cls, request):
        return request.param

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, like, tmp_path_factory):
        file = tiny.write(tmp_path_factory.mktemp("files") / "weights.npz", tiny.state(like))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(presets, "preset_model", tiny.preset_model)
            return MaskRCNN.from_preset(file, like=like)

    @pytest.fixture(scope="class")
    @classmethod
    def golden(cls, model):
        return own_golden(model)

    def test_a_model_agrees_with_itself(self, like, model, golden):
        (stations,) = certify(model, golden).values()
        assert all(station.error == 0 for station in stations)
        names = [station.name for station in stations]
        last = {tiny.C4: 4, tiny.DC5: 5}.get(like)
        expected = ["input/tensor", *(f"body/c{level}" for level in range(2, (last or 5) + 1))]
        expected += [] if last else [f"fpn/p{level}" for level in range(2, 7)]
        levels = [f"res{last}"] if last else ["p2", "p3", "p4", "p5", "p6"]
        expected += [f"rpn/objectness/{level}" for level in levels]
        expected += ["rpn/proposals", "box/pooled", "box/class_logits", "box/box_regression"]
        expected += [] if like == tiny.FASTER else ["mask/pooled", "mask/logits/0"]
        assert names == expected + [f"det/{x}/0" for x in ("unmatched", "order", "boxes", "scores")]

    def test_one_weight_changed(self, like, model, golden):
        path, first, right = {
            tiny.C4: ("stage5/c5_block1/conv2/kernel", "box/class_logits", {"box/pooled", "mask/pooled"}),
            tiny.DC5: ("backbone/c5_block1/conv2/kernel", "body/c5", {"body/c4"}),
            tiny.FASTER: ("fpn/output3/bias", "fpn/p3", {"fpn/p2"}),
        }[like]
        (variable,) = (variable for variable in model.variables if variable.path == path)
        before = variable.numpy()
        variable.assign(before + np.float32(0.1))
        found = differing(model, golden)
        variable.assign(before)
        assert found[0] == first and not right & set(found)
        assert like != tiny.C4 or "mask/logits/0" in found


class TestGoldenFiles:
    def test_round_trip(self, golden, tmp_path):
        golden.save(tmp_path / "golden.npz")
        again = Golden.load(tmp_path / "golden.npz")
        assert again.about == golden.about and set(again.arrays) == set(golden.arrays)
        for name, array in golden.arrays.items():
            np.testing.assert_array_equal(again.arrays[name], array)
            assert again.arrays[name].dtype == array.dtype

    @pytest.mark.parametrize(
        "content, words",
        [
            ({"a": np.zeros(3)}, "no golden file"),
            ({"about": "no JSON"}, "no golden file"),
            ({"about": "[]"}, "its `about` has no background_first, channels, cases"),
            ({"about": json.dumps({"cases": {}})}, "its `about` has no background_first, channels"),
            ({"about": np.array([print], object)}, "no golden file"),
            (b"<html>not found</html>", "no golden file"),
            (b"", "no golden file"),
            (b"PK\x03\x04 cut off", "no golden file"),
        ],
    )
    def test_something_else(self, tmp_path, content, words):
        path = tmp_path / "golden.npz"
        path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
        with pytest.raises(ValueError, match=words) as error:
            Golden.load(path)
        assert str(path) in str(error.value)

    def test_one_damaged_array(self, golden, tmp_path):
        golden.save(tmp_path / "golden.npz")
        with zipfile.ZipFile(tmp_path / "golden.npz") as archive:
            place = archive.getinfo("one/fpn/p2.npy").header_offset
        data = bytearray((tmp_path / "golden.npz").read_bytes())
        data[place + 500 : place + 600] = bytes(100)
        (tmp_path / "golden.npz").write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            Golden.load(tmp_path / "golden.npz")

    def test_a_station_in_print(self):
        assert str(Station("body/c2", 2e-4, 2e-4, "of the standard deviation")) == (
            "body/c2                   2.00e-04  (limit 2e-04) of the standard deviation"
        )
        for error in (2.1e-4, np.inf, np.nan):
            assert str(Station("body/c2", error, 2e-4, "pixels")).endswith("pixels  DIFFERS")


class TestConvert:
    @pytest.fixture
    def convert(self, file, golden, tmp_path, monkeypatch):
        """Runs `mrcnn convert` with some more arguments: its result, and whether something was written."""
        monkeypatch.setattr(presets, "preset_model", tiny.preset_model)

        def run(*more, weights=file, verify=None):
            if verify:
                verify.save(tmp_path / "golden.npz")
                more = (*more, "--verify", tmp_path / "golden.npz")
            arguments = ["convert", weights, tmp_path / "kept", "--like", TORCHVISION, *more]
            result = CliRunner().invoke(main, [str(argument) for argument in arguments])
            assert "Traceback" not in result.output
            return result, (tmp_path / "kept").exists()

        return run

    def test_verified_and_written(self, convert, golden, tmp_path, file):
        result, written = convert(verify=golden)
        assert result.exit_code == 0 and written, result.output
        lines = result.output.splitlines()
        assert lines[:2] == [f"{file}: loaded 96/96", "one:"]
        assert len(lines) == 2 + 25 + 1 and lines[-1] == f"-> {tmp_path / 'kept'}"
        assert lines[3].split() == "body/c2 0.00e+00 (limit 2e-04) of the standard deviation".split()

    def test_a_difference_is_named_and_nothing_is_written(self, convert, golden, tmp_path):
        arrays = tiny.state()
        arrays["backbone.fpn.layer_blocks.1.0.bias"][2] += 1
        weights = tiny.write(tmp_path / "other.npz", arrays)
        result, written = convert(weights=weights, verify=golden)
        assert result.exit_code == 1 and not written
        assert "stations differ, fpn/p3 of one first. Nothing was written." in result.output
        assert [line.split()[0] for line in result.output.splitlines() if "DIFFERS" in line][0] == "fpn/p3"

    def test_a_bad_golden_file_is_told_before_anything_else(self, convert, tmp_path):
        (tmp_path / "page.npz").write_text("<html>not found</html>")
        for name, words in (("page.npz", "is no golden file"), ("nothing.npz", "No such file")):
            result, written = convert("--verify", tmp_path / name)
            assert result.exit_code == 1 and not written and words in result.output
            assert "loaded" not in result.output

    def test_without_torch(self, convert, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        result, written = convert("--verify", "torch")
        assert result.exit_code == 1 and not written and "pip install torchvision" in result.output
        assert "loaded" not in result.output  # said before anything is fetched
        with pytest.raises(ValueError, match=f"torchvision has no model for {DETECTRON2}"):
            torchvision_golden(DETECTRON2, {}, None, [])
