"""Broken and hostile files the whole way: `mrcnn convert` and `from_preset` refuse, nothing runs or stays."""

import io
import json
import pathlib
import pickle
import zipfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from keras_mrcnn.cli import main
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights import presets, sources
from tests.weights import tiny
from tests.weights.tiny import TORCHVISION

KERAS_FILE = "model.keras"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Published models are small."""
    monkeypatch.setattr(presets, "preset_model", tiny.preset_model)


@pytest.fixture(scope="module")
def state():
    """A part of some weights: what is refused at reading need not be whole."""
    return {name: array for name, array in tiny.state().items() if array.size < 1000}


@pytest.fixture(scope="module")
def bomb():
    """An archive of 96 MiB of zeros."""
    zeros = npy(np.zeros([1 << 22], np.float32))
    return archive({f"{index}.npy": zeros for index in range(6)}, zipfile.ZIP_DEFLATED)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with a model of this package: as a preset folder, and as a `.keras` file."""
    folder = tmp_path_factory.mktemp("kept")
    model = MaskRCNN(tiny.preset_model(TORCHVISION)[0], tiny.NAMES)
    model.save(folder / KERAS_FILE)
    sources.save_to_preset(model, folder / "preset")
    return folder


def refused(path, words, output, like=TORCHVISION):
    """Both ways say no with `words`."""
    with pytest.raises(ValueError, match=words) as error:
        MaskRCNN.from_preset(path, like=like)
    assert str(path) in str(error.value)
    convert(path, output, like)


def convert(path, output, like=TORCHVISION):
    """`mrcnn convert` says no, without a traceback, and leaves nothing behind."""
    options = ["--like", like] if like else []
    result = CliRunner().invoke(main, ["convert", str(path), str(output / "out.keras"), *options])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert str(path) in result.output and "Traceback" not in result.output
    assert not (output / "out.keras").exists()
    return result


class Touch:
    """Unpickled as it asks, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def code(state, mark):
    """A pickle of good weights that also wants to run something."""
    return pickle.dumps({"model": state, "note": Touch(mark)}, protocol=2)


def archive(members, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def npy(array):
    data = io.BytesIO()
    np.lib.format.write_array(data, array)
    return data.getvalue()


@pytest.mark.parametrize("suffix", ["pth", "npz"])
class TestFiles:
    """What a file is its content says: each kind under each suffix."""

    @pytest.fixture
    def path(self, tmp_path, suffix):
        return tmp_path / f"weights.{suffix}"

    def test_a_page(self, path, tmp_path):
        path.write_text("<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>")
        refused(path, "It is an HTML or XML page, a server's answer in place of the file", tmp_path)

    def test_nothing(self, path, tmp_path):
        path.write_bytes(b"")
        refused(path, "It is empty", tmp_path)

    @pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
    @pytest.mark.parametrize("kind", ["pickle", "archive"])
    def test_cut_off(self, path, tmp_path, state, part, kind):
        data = pickle.dumps({"model": state}, protocol=2)
        if kind == "archive":
            tiny.write(tmp_path / "whole.npz", state)
            data = (tmp_path / "whole.npz").read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        refused(path, "was cut off. Fetch it again", tmp_path)

    def test_code(self, path, tmp_path, state):
        mark = tmp_path / "mark"
        path.write_bytes(code(state, mark))
        refused(path, "asks to run `__builtin__.getattr`", tmp_path)
        assert not mark.exists()

    def test_code_in_a_torch_archive(self, path, tmp_path, state):
        mark = tmp_path / "mark"
        path.write_bytes(archive({"w/data.pkl": code(state, mark), "w/version": b"3\n"}))
        refused(path, "asks to run `__builtin__.getattr`", tmp_path)
        assert not mark.exists()

    def test_a_bomb(self, path, tmp_path, bomb):
        path.write_bytes(bomb)
        refused(path, "made to fill the memory", tmp_path)


def test_renamed_keys(tmp_path):
    path = tiny.write(tmp_path / "w.npz", {f"net.{name}": array for name, array in tiny.state().items()})
    result = convert(path, tmp_path)
    assert "0 of 96 fit.\nmissing in the file: 96\n" in result.output
    assert "(the file has net.backbone.body.conv1.weight)" in result.output


@pytest.mark.proof
def test_the_weights_of_another_model(tmp_path):
    path = tiny.write(tmp_path / "w.npz", tiny.state(tiny.DETECTRON2))
    with pytest.raises(ValueError, match="of 96 fit.\nmissing in the file: "):
        MaskRCNN.from_preset(path, like=TORCHVISION)


class TestOwnFiles:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / KERAS_FILE

    @pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
    def test_cut_off(self, path, kept, tmp_path, part):
        data = (kept / KERAS_FILE).read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        refused(path, "was cut off. Fetch it again", tmp_path, like=None)

    @pytest.mark.parametrize("data", [b"", b"<html></html>", b"\x80\x02}q\x00."])
    def test_something_else(self, path, tmp_path, data):
        path.write_bytes(data)
        refused(path, "Cannot read weights", tmp_path, like=None)

    def members(self, kept):
        with zipfile.ZipFile(kept / KERAS_FILE) as file:
            return {name: file.read(name) for name in file.namelist()}

    @pytest.mark.parametrize(
        "config",
        [
            {
                "module": "os",
                "class_name": "system",
                "config": {"command": "touch MARK"},
                "registered_name": None,
            },
            {"class_name": "Lambda", "registered_name": "Lambda", "config": {"function": "MARK"}},
            [],
            "text",
        ],
    )
    def test_code_in_the_place_of_a_model(self, path, kept, tmp_path, config):
        mark = tmp_path / "mark"
        text = json.dumps(config).replace("MARK", str(mark))
        path.write_bytes(archive({**self.members(kept), "config.json": text}))
        refused(path, "not a MaskRCNN of this package", tmp_path, like=None)
        assert not mark.exists()

    @pytest.mark.parametrize("change", [{"config": {}}, {"config": None}, {"config": {"config": {"a": 1}}}])
    def test_a_config_that_is_wrong(self, path, kept, tmp_path, change):
        members = self.members(kept)
        saved = {**json.loads(members["config.json"]), **change}
        path.write_bytes(archive({**members, "config.json": json.dumps(saved)}))
        refused(path, "model", tmp_path, like=None)

    def test_no_config(self, path, kept, tmp_path):
        members = self.members(kept)
        del members["config.json"]
        path.write_bytes(archive(members))
        refused(path, "not a MaskRCNN of this package", tmp_path, like=None)

    @pytest.mark.parametrize("data", [b"", b"<html></html>", b"\x89HDF\r\n\x1a\n cut off"])
    def test_a_folder_with_damaged_weights(self, kept, tmp_path, data):
        folder = tmp_path / "preset"
        folder.mkdir()
        (folder / "config.json").write_bytes((kept / "preset" / "config.json").read_bytes())
        (folder / "model.weights.h5").write_bytes(data)
        refused(folder, "Cannot read weights", tmp_path, like=None)

    def test_a_bomb(self, path, tmp_path):
        path.write_bytes(archive({"model.weights.h5": bytes(96 << 20)}, zipfile.ZIP_DEFLATED))
        refused(path, "made to fill the memory", tmp_path, like=None)

    def test_another_model(self, path, tmp_path):
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
        refused(path, "not a MaskRCNN of this package. Received: .* Sequential", tmp_path, like=None)
