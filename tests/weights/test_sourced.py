"""Models with weights from elsewhere: small ones from files, and one of real size."""

import json
import pathlib
import pickle

import keras
import numpy as np
import pytest

from keras_mrcnn.data.records import Category
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import presets, sources
from tests.golden import filling
from tests.weights import tiny
from tests.weights.tiny import DETECTRON2, NAMES, TORCHVISION, values

OF_THE_CLASSES = [
    "box_head/classes/kernel, RandomNormal(mean=0.0, stddev=0.01)",
    "box_head/classes/bias, zeros",
    "box_head/deltas/kernel, RandomNormal(mean=0.0, stddev=0.001)",
    "box_head/deltas/bias, zeros",
    "mask_head/logits/kernel, RandomNormal(mean=0.0, stddev=0.001)",
    "mask_head/logits/bias, zeros",
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Published models are small, and nothing is fetched."""
    monkeypatch.setattr(presets, "preset_model", tiny.preset_model)

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setenv("KERAS_MRCNN_CACHE", "/nonexistent")


@pytest.fixture(scope="module")
def state():
    return tiny.state()


@pytest.fixture(scope="module")
def file(tmp_path_factory, state):
    return tiny.write(tmp_path_factory.mktemp("files") / "weights.npz", state)


def reported(capsys):
    """What was printed, in lines."""
    return capsys.readouterr().out.splitlines()


class TestTorchvision:
    def test_rules_and_weights(self, file, state, capsys):
        model = MaskRCNN.from_preset(file, like=TORCHVISION)
        assert reported(capsys) == [f"{file}: loaded 96/96"]
        assert model.config == tiny.preset_model(TORCHVISION)[0]
        assert [(c.id, c.name) for c in model.categories] == [(7, "cat"), (8, "dog"), (9, "cow")]
        found = values(model)
        stem = state["backbone.body.conv1.weight"]  # RGB, as ours
        np.testing.assert_array_equal(found["backbone/stem/kernel"], stem.transpose(2, 3, 1, 0))
        logits = state["roi_heads.box_predictor.cls_score.weight"]  # background first, ours last
        np.testing.assert_array_equal(found["box_head/classes/kernel"], np.roll(logits, -1, axis=0).T)
        deltas = state["roi_heads.box_predictor.bbox_pred.bias"]
        np.testing.assert_array_equal(found["box_head/deltas/bias"], deltas[4:])

    def test_overrides(self, file, capsys):
        changed = ["backbone.frozen_stages=5", "detections.max_detections=3"]
        model = MaskRCNN.from_preset(file, like=TORCHVISION, overrides=changed, name="mine", seed=4)
        assert "loaded 96/96" in reported(capsys)[0]
        assert (model.config.backbone.frozen_stages, model.config.detections.max_detections) == (5, 3)
        assert (model.name, model.seed) == ("mine", 4)
        assert not model.backbone.trainable_variables
        with pytest.raises(ValueError, match="Did you mean `backbone.frozen_stages`"):
            MaskRCNN.from_preset(TORCHVISION, overrides=["backbone.frozen_stage=5"])  # before the download

    def test_new_classes(self, file, state, capsys):
        names = NAMES[::-1]  # as many, but others
        model = MaskRCNN.from_preset(file, like=TORCHVISION, seed=0, categories=names)
        assert [category.name for category in model.categories] == names
        assert reported(capsys) == [f"{file}: loaded 90/96"] + [
            f"  initialised anew: {line}" for line in OF_THE_CLASSES
        ]
        found = values(model)
        assert found["box_head/classes/kernel"].shape == (8, len(names) + 1)
        assert np.std(found["box_head/classes/kernel"]) < 0.03
        fc = state["roi_heads.box_head.fc7.weight"]
        np.testing.assert_array_equal(found["box_head/fc2/kernel"], fc.T)

    def test_the_same_classes_stay(self, file, capsys):
        same = [NAMES[0], {"id": 1, "name": NAMES[1]}, Category(1, NAMES[2])]
        model = MaskRCNN.from_preset(file, like=TORCHVISION, categories=same)
        assert reported(capsys) == [f"{file}: loaded 96/96"]
        assert [category.name for category in model.categories] == NAMES

    @pytest.mark.parametrize(
        "given, names, line",
        [
            ({}, ["class 1", "class 2"], "loaded 96/96"),
            ({"num_classes": 3}, ["class 1", "class 2", "class 3"], "loaded 90/96"),
            pytest.param(
                {"categories": ["circle", "square"]},
                ["circle", "square"],
                "loaded 96/96",
                marks=pytest.mark.proof,
            ),
        ],
    )
    def test_a_fine_tuned_file_keeps_its_own_classes(self, tmp_path, capsys, given, names, line):
        arrays = tiny.state(num_classes=2)
        file = tiny.write(tmp_path / "mine.npz", arrays)
        model = MaskRCNN.from_preset(file, like=TORCHVISION, **given)
        assert reported(capsys)[0] == f"{file}: {line}"
        assert [category.name for category in model.categories] == names
        if len(names) == 2:
            bias = arrays["roi_heads.mask_predictor.mask_fcn_logits.bias"]
            np.testing.assert_array_equal(values(model)["mask_head/logits/bias"], bias[1:])

    def test_what_does_not_fit_is_listed_and_no_model_comes_out(self, tmp_path, state):
        arrays = {f"module.{name}": array for name, array in state.items()}
        with pytest.raises(ValueError) as error:
            MaskRCNN.from_preset(tiny.write(tmp_path / "w.npz", arrays), like=TORCHVISION)
        lines = str(error.value).splitlines()
        assert lines[0].endswith("w.npz does not fit this model, and nothing was loaded: 0 of 96 fit.")
        assert lines[1:3] == [
            "missing in the file: 96",
            "  backbone.body.conv1.weight, for backbone/stem/kernel (the file has "
            "module.backbone.body.conv1.weight)",
        ]
        assert "  ... and 76 more" in lines and len(lines) == 1 + 2 * 22

    @pytest.mark.parametrize("shape", [(10**6, 1), ()])
    def test_a_hostile_classifier_makes_no_giant(self, tmp_path, state, shape):
        name = "roi_heads.box_predictor.cls_score.weight"
        file = tiny.write(tmp_path / "w.npz", {**state, name: np.zeros(shape, np.float32)})
        with pytest.raises(ValueError, match=f"of another shape: 1\n  {name}"):
            MaskRCNN.from_preset(file, like=TORCHVISION)


def test_detectron2(tmp_path, capsys):
    arrays = tiny.state(DETECTRON2)
    file = tiny.write(tmp_path / "model_final.pkl", {**arrays, "pixel_mean": np.zeros(3)})
    model = MaskRCNN.from_preset(str(file), like=DETECTRON2, num_classes=3)
    assert reported(capsys) == [f"{file}: loaded 96/96"]
    found = values(model)
    stem = arrays["backbone.bottom_up.stem.conv1.weight"]  # BGR
    np.testing.assert_array_equal(found["backbone/stem/kernel"], stem[:, ::-1].transpose(2, 3, 1, 0))
    logits = arrays["roi_heads.box_predictor.cls_score.weight"]  # background last, as ours
    np.testing.assert_array_equal(found["box_head/classes/kernel"], logits.T)


@pytest.mark.parametrize("like", [tiny.C4, tiny.DC5, tiny.FASTER])
@pytest.mark.parametrize("num_classes", [3, 2])
@pytest.mark.proof
def test_other_architectures(tmp_path, capsys, like, num_classes):
    """The published classes, and those of a file that was fine-tuned."""
    arrays = tiny.state(like, num_classes)
    file = tiny.write(tmp_path / "model_final.pkl", arrays)
    model = MaskRCNN.from_preset(file, like=like)
    assert reported(capsys) == [f"{file}: loaded {len(arrays)}/{len(arrays)}"]
    assert len(model.categories) == num_classes
    found = values(model)
    if like == tiny.C4:
        name = "roi_heads.res5.0.conv2.weight"
        kernel = arrays[name].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found["stage5/c5_block1/conv2/kernel"], kernel)
        assert model.config.backbone.features == "c4" and model.box_pooling.strides == [16]
    elif like == tiny.DC5:
        kernel = arrays["backbone.res5.0.conv2.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(found["backbone/c5_block1/conv2/kernel"], kernel)
        assert model.config.backbone.dilated and model.box_pooling.strides == [16]
    assert ("masks" in model(tiny.inputs(), training=False)) == (like != tiny.FASTER)
    again = MaskRCNN.from_preset(file, like=like, categories=["one"])
    anew = 4 if like == tiny.FASTER else 6
    assert reported(capsys)[0] == f"{file}: loaded {len(arrays) - anew}/{len(arrays)}"
    assert len(again.categories) == 1


@pytest.mark.proof
def test_a_published_model_in_its_real_size(monkeypatch, tmp_path, capsys):
    """torchvision's v2, the weights made by rule, in a pickle as detectron2 writes it."""
    monkeypatch.setattr(presets, "preset_model", tiny.REAL)
    golden = pathlib.Path(__file__).parents[1] / "golden" / "tv_maskrcnn_r50_fpn_v2.json"
    arrays = filling.state(json.loads(golden.read_text()))
    file = tmp_path / "weights.pkl"
    file.write_bytes(pickle.dumps({"model": arrays}, protocol=4))
    model = MaskRCNN.from_preset(file, like="torchvision/mask_rcnn_r50_fpn_v2")
    assert reported(capsys) == [f"{file}: loaded 363/363"]
    assert len(model.categories) == 90 and model.categories[0].name == "person"
    found = values(model)
    assert model.config.rpn.convs == 2 and model.config.input.resize == "plain"
    last = arrays["roi_heads.mask_predictor.mask_fcn_logits.weight"][1:]
    np.testing.assert_array_equal(found["mask_head/logits/kernel"], last.transpose(2, 3, 1, 0))
    variance = arrays["backbone.body.layer4.2.bn3.running_var"]
    np.testing.assert_array_equal(found["backbone/c5_block3/conv3/normalization/moving_variance"], variance)


@pytest.fixture(scope="module")
def model(file):
    """It has an optimizer with momentum, as after training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "preset_model", tiny.preset_model)
        made = MaskRCNN.from_preset(file, like=TORCHVISION)
    made.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    made.optimizer.build(made.trainable_variables)
    return made


@pytest.fixture
def kept(model, tmp_path):
    """Writes the model as a folder or as a file."""

    def write(kind):
        path = tmp_path / kind
        (model.save if path.suffix else model.save_to_preset)(path)
        return path

    return write


class TestOwnFiles:
    @pytest.mark.parametrize("kind", ["folder", "model.keras"])
    def test_round_trip(self, model, kept, kind, capsys):
        path = kept(kind)
        again = MaskRCNN.from_preset(path)
        assert reported(capsys) == [f"{path}: loaded 96/96"]
        assert again.config == model.config
        assert [vars(c) for c in again.categories] == [vars(c) for c in model.categories]
        before, after = (m(tiny.inputs(), training=False) for m in (model, again))
        assert before["num_detections"][0] > 0
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value)

    def test_new_classes(self, model, kept, capsys):
        path = kept("model.keras")
        again = MaskRCNN.from_preset(path, num_classes=1, overrides=["backbone.norm=batch"])
        assert reported(capsys)[0] == f"{path}: loaded 90/96"
        assert again.config.backbone.norm == "batch" and model.config.backbone.norm == "frozen"
        before, after = values(model), values(again)
        changed = {path.rsplit("/", 1)[0] for path in before if not np.array_equal(before[path], after[path])}
        assert changed == {"box_head/classes", "box_head/deltas", "mask_head/logits"}

    @pytest.mark.proof
    def test_another_architecture_does_not_fit(self, kept):
        path = kept("folder")
        with pytest.raises(ValueError) as error:
            MaskRCNN.from_preset(path, overrides=["box_head.units=9", "box_head.fcs=1"])
        lines = str(error.value).splitlines()
        assert lines[0] == f"{path} does not fit this model, and nothing was loaded: 90 of 94 fit."
        assert lines[1] == "of another shape: 4" and lines[6] == "not in the model: 2" and len(lines) == 9

    def test_a_file_of_another_model(self, tmp_path):
        other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        other.save(tmp_path / "other.keras")
        with pytest.raises(ValueError, match="not a MaskRCNN of this package. Received: .* Sequential"):
            MaskRCNN.from_preset(tmp_path / "other.keras")


class TestRefusals:
    def test_unknown_names(self, file):
        with pytest.raises(ValueError, match="Did you mean torchvision/mask_rcnn_r50_fpn"):
            MaskRCNN.from_preset("torchvision/maskrcnn_r50_fpn")
        with pytest.raises(ValueError, match="Did you mean torchvision/mask_rcnn_r50_fpn"):
            MaskRCNN.from_preset(file, like="maskrcnn_r50_fpn")

    def test_a_file_does_not_say_what_it_is(self, file):
        with pytest.raises(ValueError, match="Give `like`, the name of the published weights .*presets"):
            MaskRCNN.from_preset(file)

    def test_offline(self):
        with pytest.raises(ConnectionError) as error:
            MaskRCNN.from_preset(TORCHVISION)
        preset = presets.preset(TORCHVISION)
        for part in (preset.url, preset.file_name, preset.checksum.split(":")[1], "178 MB"):
            assert part in str(error.value)

    @pytest.mark.parametrize(
        "wrong, words",
        [
            ({"num_classes": 3, "categories": NAMES}, "not both"),
            ({"num_classes": 0}, "at least 1, without background. Received: 0"),
            ({"num_classes": -1}, "Received: -1"),
            ({"categories": []}, "at least one class"),
        ],
    )
    def test_classes(self, file, wrong, words):
        with pytest.raises(ValueError, match=words):
            MaskRCNN.from_preset(file, like=TORCHVISION, **wrong)


class TestBackbonePresets:
    NAME = "torchvision/resnet18_imagenet_v1"

    @pytest.fixture
    def file(self, tmp_path):
        weights = {
            name.removeprefix("backbone.body."): array
            for name, array in tiny.state().items()
            if name.startswith("backbone.body.")
        }
        return tiny.write(tmp_path / "resnet.npz", {**weights, "fc.weight": np.zeros([1000, 512])})

    @pytest.mark.proof
    def test_a_detector_on_it(self, file, capsys):
        model = MaskRCNN.from_preset(file, categories=["nucleus"], like=self.NAME)
        lines = reported(capsys)
        inside = len(model.backbone.variables)
        whole = len(values(model))
        assert lines[0] == f"{file}: loaded {inside}/{whole}"
        assert lines[1].startswith("  initialised anew: fpn/lateral2/kernel, ")
        assert lines[-1] == f"  ... and {whole - inside - 20} more" and len(lines) == 22
        assert [category.name for category in model.categories] == ["nucleus"]

    def test_a_detector_without_pyramid_on_it(self, file, capsys):
        model = MaskRCNN.from_preset(file, like=self.NAME, num_classes=1, overrides=["backbone.features=c4"])
        inside = len(model.backbone.variables) + len(model.stage5.variables)
        lines = reported(capsys)
        assert lines[0] == f"{file}: loaded {inside}/{len(values(model))}"
        assert lines[1].startswith("  initialised anew: rpn_head/conv/kernel, ")

    def test_it_knows_no_classes(self, monkeypatch):
        monkeypatch.setattr(sources, "resolve", lambda source: pytest.fail(f"{source} was fetched"))
        with pytest.raises(ValueError, match=f"{self.NAME} is a backbone and knows no classes"):
            MaskRCNN.from_preset(self.NAME)
