"""Published names, hubs, local files and preset folders, without a network."""

import json
import pathlib
import sys
import types

import keras
import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.weights import download, presets, sources


@pytest.fixture
def fetched(monkeypatch):
    """The arguments of each `download.fetch`, which returns the path and downloads nothing."""
    calls = []

    def fetch(url, file_name, checksum="", size=0, cache=None, progress=True):
        calls.append((url, file_name, checksum, size))
        return pathlib.Path(cache or "cache", file_name)

    monkeypatch.setattr(download, "fetch", fetch)
    return calls


def test_resolve_a_published_name(fetched):
    name = "detectron2/mask_rcnn_r50_fpn_3x"
    assert sources.resolve(name, "here") == pathlib.Path("here/detectron2/model_final_f10217.pkl")
    assert fetched == [
        (presets.preset(name).url, "detectron2/model_final_f10217.pkl", "md5:f10217", 177797824)
    ]


@pytest.mark.parametrize("name", presets.published())
def test_offline_every_preset_says_what_to_put_where(monkeypatch, tmp_path, name):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(ConnectionError) as error:
        sources.resolve(name, tmp_path)
    preset, message = presets.preset(name), str(error.value)
    digits = preset.checksum.split(":")[-1]
    assert preset.url in message
    assert f"begins with {digits}" in message if digits else "no checksum published" in message
    assert f"{preset.size / 1e6:.0f} MB" in message if preset.size else "size not published" in message
    assert str(tmp_path / name.split("/")[0] / preset.file_name) in message


def test_every_preset_has_its_own_place(fetched):
    assert len({sources.resolve(name) for name in presets.published()}) == len(presets.published())


def test_resolve_local(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    assert sources.resolve(file) == file
    assert sources.resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("source", ["torchvision/mask_rcnn_r50", "mask_rcnn_r50_fpn_3x", "no such thing", ""])
def test_resolve_unknown(source):
    with pytest.raises(ValueError, match="neither a file or folder") as error:
        sources.resolve(source)
    assert "mask_rcnn_r50_fpn" in str(error.value)


def without(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)


def test_hugging_face_without_its_package(monkeypatch, fetched):
    without(monkeypatch, "huggingface_hub")
    place = "https://huggingface.co/owner/some.repo/resolve/main"
    assert sources.resolve("hf://owner/some.repo") == pathlib.Path("cache/hf/owner/some.repo")
    assert [call[0] for call in fetched] == [f"{place}/config.json", f"{place}/model.weights.h5"]
    fetched.clear()
    found = sources.resolve("hf://owner/some.repo/a folder/w.pth")
    assert found == pathlib.Path("cache/hf/owner/some.repo/a folder/w.pth")
    assert [call[0] for call in fetched] == [f"{place}/a%20folder/w.pth"]


def test_hugging_face_with_its_package(monkeypatch, fetched):
    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = lambda repository, name: f"/hub/{repository}/snapshot/{name}"
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    assert sources.resolve("hf://owner/repository") == pathlib.Path("/hub/owner/repository/snapshot")
    found = sources.resolve("hf://owner/repository/folder/w.pth")
    assert found == pathlib.Path("/hub/owner/repository/snapshot/folder/w.pth")
    assert fetched == []


@pytest.mark.parametrize(
    "source", ["hf://", "hf://owner", "hf://owner/", "hf://owner/repository/", "hf://a b/c"]
)
def test_malformed_hugging_face(source):
    with pytest.raises(ValueError, match="hf://owner/repository/file. Received"):
        sources.resolve(source)


def test_kaggle(monkeypatch):
    module = types.ModuleType("kagglehub")
    module.model_download = lambda handle: f"/kaggle/{handle}"
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    found = sources.resolve("kaggle://owner/model/keras/small")
    assert found == pathlib.Path("/kaggle/owner/model/keras/small")
    assert sources.resolve("kaggle://owner/model/keras/small/2").name == "2"


def test_kaggle_without_its_package(monkeypatch):
    without(monkeypatch, "kagglehub")
    with pytest.raises(ImportError, match="pip install kagglehub"):
        sources.resolve("kaggle://owner/model/keras/small")


@pytest.mark.parametrize(
    "source", ["kaggle://", "kaggle://owner/model/keras", "kaggle://owner/model/keras/small/new"]
)
def test_malformed_kaggle(source):
    with pytest.raises(ValueError, match="kaggle://owner/model/framework/variation"):
        sources.resolve(source)


@pytest.fixture(scope="module")
def model():
    from keras_mrcnn import MaskRCNN

    small = config.Model()
    small.backbone = config.Backbone("resnet18", norm="batch", frozen_stages=0)
    small.fpn.channels = small.rpn.channels = small.mask_head.channels = 8
    small.anchors.sizes = [8.0, 16.0, 32.0, 64.0, 128.0]
    small.proposals = config.Proposals(50, 50, 20, 20)
    small.box_head.units = 16
    small.mask_head.convs = 1
    small.detections = config.Detections(score_threshold=0.0, max_detections=5)
    return MaskRCNN(small, ["circle", {"id": 7, "name": "square"}], seed=3)


@pytest.mark.proof
def test_folder_round_trip(model, tmp_path):
    from keras_mrcnn import MaskRCNN

    folder = tmp_path / "new" / "folder"
    sources.save_to_preset(model, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.weights.h5"]
    settings, categories, weights = sources.load_preset_folder(sources.resolve(folder))
    assert settings == model.config
    assert categories == [{"id": 1, "name": "circle"}, {"id": 7, "name": "square"}]
    keras.utils.set_random_seed(1)  # other initial weights
    again = MaskRCNN(settings, categories, seed=4)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype("uint8")
    inputs = {"images": image, "image_sizes": np.array([[64, 64]], "int32")}
    before, fresh = model.predict_on_batch(inputs), again.predict_on_batch(inputs)
    again.load_weights(weights)
    after = again.predict_on_batch(inputs)
    assert before["num_detections"][0] > 0
    assert not np.array_equal(before["boxes"], fresh["boxes"])
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_a_preset_is_replaced_and_files_beside_it_stay(model, tmp_path):
    sources.save_to_preset(model, tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "model.weights.h5").write_bytes(b"damaged")
    sources.save_to_preset(model, tmp_path)
    assert (tmp_path / "model.weights.h5").stat().st_size > 10_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.weights.h5"]


@pytest.mark.parametrize(
    "name, content",
    [
        ("notes.txt", "mine"),
        ("config.json", '{"layers": 3}'),
        ("config.json", "layers: 3"),
        ("config.json", "[]"),
    ],
)
def test_something_else_is_not_overwritten(model, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileExistsError, match="something else than a preset"):
        sources.save_to_preset(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_file_is_not_overwritten(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="Received: the file"):
        sources.save_to_preset(model, tmp_path / "file")


def test_folders_that_are_no_presets(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        sources.load_preset_folder(tmp_path)
    sources.save_to_preset(model, tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for change, words in [
        ({"format": "other"}, "was not written by `save_to_preset`"),
        ({"categories": None}, "has no 'categories'"),
        ({"model": {**good["model"], "cascade": {"stages": 3}}}, "Unknown key `cascade`"),
        ({"model": {**good["model"], "input": {"short_edge": "wide"}}}, "Wrong value for `input.short_edge`"),
    ]:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=words) as error:
            sources.load_preset_folder(tmp_path)
        assert str(path) in str(error.value)
    path.write_text(json.dumps(good))
    (tmp_path / "model.weights.h5").unlink()
    with pytest.raises(FileNotFoundError, match="no model.weights.h5: an incomplete preset"):
        sources.load_preset_folder(tmp_path)
