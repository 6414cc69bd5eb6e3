"""Weights files of every source but torch against values worked out here; wrong ones are refused."""

import io
import pathlib
import pickle
import struct
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.weights import files
from keras_mrcnn.weights.files import read_weights

GRID = np.arange(12).reshape(3, 4)
LINE = np.arange(60, dtype=np.float32)
CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
TWO = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.array([1, 2])}


def assert_same(got, expected):
    """The same names in the same order, dtypes, shapes and values."""
    assert list(got) == list(expected)
    for name, array in got.items():
        wanted = np.asarray(expected[name])
        assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape), name
        np.testing.assert_array_equal(array, wanted, name)


def torch_zip(path, members, compression=zipfile.ZIP_STORED):
    """A zip archive of {name: bytes}."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write(path, data):
    path.write_bytes(data)
    return path


class TestPickles:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_detectron2(self, tmp_path, protocol):
        content = {"model": TWO, "__author__": "somebody", "matching_heuristics": True}
        assert_same(read_weights(write(tmp_path / "w.pkl", pickle.dumps(content, protocol))), TWO)

    @pytest.mark.parametrize(
        "content",
        [
            TWO,
            {"blobs": TWO, "cfg": "text"},
            {"blobs": {**TWO, "weight_order": ["a", "b.c"]}},
            {"state_dict": TWO, "meta": {"epoch": 3}},
            {"model_state": {"model": TWO}},
            {"model": {"name": "r50"}, "state_dict": TWO},
            {**TWO, "note": "text", "count": 3, "nothing": None},
        ],
    )
    def test_containers(self, tmp_path, content):
        assert_same(read_weights(write(tmp_path / "w.pkl", pickle.dumps(content))), TWO)

    def test_name_of_an_array_that_looks_like_a_container(self, tmp_path):
        content = {"model": TWO["a"], "b": TWO["b.c"]}
        assert list(read_weights(write(tmp_path / "w.pkl", pickle.dumps(content)))) == ["model", "b"]

    @pytest.mark.parametrize(
        "content, words",
        [
            ([TWO["a"]], "Received: list"),
            (TWO["a"], "Received: Array"),
            ({}, "Expected a dict of arrays"),
            ({"weights": TWO}, "Received: a dict of .'weights'"),
            ({**TWO, "head": TWO}, "'head' is a dict"),
            ({**TWO, "more": [TWO["a"]]}, "'more' is a list"),
            ({1: TWO["a"]}, "text as the name"),
            ({"a": np.array([None])}, "array of Python objects"),
            ({"a": np.array(["x"])}, "'U1'"),
        ],
    )
    def test_no_dict_of_arrays(self, tmp_path, content, words):
        with pytest.raises(ValueError, match=words):
            read_weights(write(tmp_path / "w.pkl", pickle.dumps(content)))

    @pytest.mark.parametrize("suffix", ["pth", "pkl", "npz"])
    @pytest.mark.parametrize(
        "text", [b"cos\nsystem\n(S'echo'\ntR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93."]
    )
    def test_code(self, tmp_path, suffix, text):
        with pytest.raises(ValueError, match=r"asks to run `os\.system`"):
            read_weights(write(tmp_path / f"w.{suffix}", text))

    def test_code_in_a_torch_archive(self, tmp_path):
        members = {"w/data.pkl": b"cbuiltins\neval\n(S'1'\ntR.", "w/version": b"3\n"}
        with pytest.raises(ValueError, match=r"asks to run `builtins\.eval`"):
            read_weights(torch_zip(tmp_path / "w.pth", members))

    def test_text_pickle_of_python_2(self, tmp_path):
        with pytest.raises(ValueError, match="Python 2. Write it again with protocol 2"):
            read_weights(write(tmp_path / "w.pkl", rb"(dp0" + b"\nS'a'\nS'\\x80'\ns."))


class TestNpz:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_numbers(self, tmp_path, save):
        save(
            tmp_path / "w.npz",
            **TWO,
            half=GRID.astype(np.float16),
            text=np.array("note"),
            big=GRID.astype(">f4"),
        )
        expected = {**TWO, "half": GRID.astype(np.float32), "big": GRID.astype(np.float32)}
        assert_same(read_weights(tmp_path / "w.npz"), expected)

    @pytest.mark.parametrize(
        "array, words", [(np.array([{}]), "allow_pickle"), (np.array([1j]), "complex128")]
    )
    def test_no_numbers(self, tmp_path, array, words):
        np.savez(tmp_path / "w.npz", **TWO, other=array)
        with pytest.raises(ValueError, match=words):
            read_weights(tmp_path / "w.npz")

    def test_claimed_shape(self, tmp_path):
        stream = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)}
        np.lib.format.write_array_header_1_0(stream, header)
        with pytest.raises(ValueError, match="beyond this machine|EOF|early"):
            read_weights(torch_zip(tmp_path / "w.npz", {"a.npy": stream.getvalue()}))

    def test_zip_bomb(self, tmp_path):
        path = torch_zip(tmp_path / "w.npz", {"a.npy": b"\0" * (80 << 20)}, zipfile.ZIP_DEFLATED)
        start = time.process_time()
        with pytest.raises(ValueError, match="bytes unfold to 83886080 bytes"):
            read_weights(path)
        assert time.process_time() - start < 1

    def test_bomb_that_lies_about_its_size(self, tmp_path):
        path = torch_zip(tmp_path / "w.npz", {"a.npy": b"\0" * (80 << 20)}, zipfile.ZIP_DEFLATED)
        data = path.read_bytes().replace(struct.pack("<I", 80 << 20), struct.pack("<I", 100))
        with pytest.raises(ValueError, match="damaged"):
            read_weights(write(path, data))


class TestHdf5:
    def test_matterport(self, tmp_path):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            file.attrs["layer_names"] = [b"conv1", b"rpn_model"]
            file["conv1/conv1/kernel:0"] = CUBE
            file["rpn_model/rpn_conv_shared/bias:0"] = LINE[:3]
            file["note"] = "text"
            file["names"] = ["more", "text"]
        expected = {"conv1/conv1/kernel:0": CUBE, "rpn_model/rpn_conv_shared/bias:0": LINE[:3]}
        assert_same(read_weights(tmp_path / "w.h5"), expected)

    def test_whole_model_of_keras_2(self, tmp_path):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            file["model_weights/conv1/conv1/kernel:0"] = CUBE.astype(np.float16)
            file["optimizer_weights/momentum:0"] = LINE
        assert_same(read_weights(tmp_path / "w.h5"), {"conv1/conv1/kernel:0": CUBE})

    @pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_keras_3(self, tmp_path, suffix, dtype):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(3, name="d", dtype=dtype)(inputs))
        values = [GRID.T.astype(np.float32), np.arange(3, dtype=np.float32)]
        model.set_weights(values)
        path = tmp_path / f"w.{suffix}"
        model.save(path) if suffix == "keras" else model.save_weights(path)
        got = read_weights(path)
        assert_same(got, {"layers/dense/vars/0": values[0], "layers/dense/vars/1": values[1]})

    def test_links_are_not_followed(self, tmp_path):
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["secret"] = LINE
        with h5py.File(tmp_path / "w.h5", "w") as file:
            file["a"] = CUBE
            file["model_weights"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
        assert_same(read_weights(tmp_path / "w.h5"), {"a": CUBE})

    def test_values_in_another_file(self, tmp_path):
        write(tmp_path / "raw", LINE.tobytes())
        with h5py.File(tmp_path / "w.h5", "w") as file:
            file.create_dataset("a", (60,), "f4", external=[(str(tmp_path / "raw"), 0, 240)])
        with pytest.raises(ValueError, match="'a' lies in another file"):
            read_weights(tmp_path / "w.h5")

    def test_bomb_of_fill_values(self, tmp_path):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            file.create_dataset("a", (10**6, 10**6), "f4", chunks=(1000, 1000))
        with pytest.raises(ValueError, match="bytes unfold to 4000000000000 bytes"):
            read_weights(tmp_path / "w.h5")

    def test_truncated(self, tmp_path):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            file["a"] = CUBE
        data = (tmp_path / "w.h5").read_bytes()
        for length in (8, 100, len(data) // 2, len(data) - 1):
            with pytest.raises(ValueError, match="HDF5 file, but cut off or damaged"):
                read_weights(write(tmp_path / "w.h5", data[:length]))


@pytest.fixture
def checkpoint(tmp_path):
    """The prefix of a checkpoint in its own folder."""
    variables = tf.train.Checkpoint(
        kernel=tf.Variable(CUBE),
        half=tf.Variable(tf.cast(GRID, tf.bfloat16)),
        step=tf.Variable(7, dtype=tf.int64),
        names=tf.Variable(["some", "text"]),
    )
    return pathlib.Path(variables.write(str(tmp_path / "checkpoint_folder" / "model.ckpt-7")))


class TestTensorFlow:
    VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
    EXPECTED = {
        f"half{VALUE}": GRID.astype(np.float32),
        f"kernel{VALUE}": CUBE,
        f"step{VALUE}": np.int64(7),
    }

    def test_prefix_index_part_and_directory(self, checkpoint):
        for path in (
            checkpoint,
            f"{checkpoint}.index",
            f"{checkpoint}.data-00000-of-00001",
            checkpoint.parent,
        ):
            got = read_weights(path)
            assert_same({name: got[name] for name in self.EXPECTED}, self.EXPECTED)
            assert {name.split("/")[0] for name in got} <= {"half", "kernel", "step", "save_counter"}

    def test_directory_of_several(self, checkpoint):
        other = tf.train.Checkpoint(kernel=tf.Variable(LINE))
        other.write(str(checkpoint.parent / "other"))
        with pytest.raises(ValueError, match="several checkpoints.*'model.ckpt-7', 'other'"):
            read_weights(checkpoint.parent)
        state = checkpoint.parent / "checkpoint"
        state.write_text('model_checkpoint_path: "/elsewhere/other"\nall_model_checkpoint_paths: "x"\n')
        assert_same(read_weights(checkpoint.parent), {f"kernel{self.VALUE}": LINE})

    def test_broken(self, checkpoint):
        index, part = pathlib.Path(f"{checkpoint}.index"), pathlib.Path(f"{checkpoint}.data-00000-of-00001")
        data = part.read_bytes()
        part.write_bytes(data[:40])
        with pytest.raises(ValueError, match="checkpoint, but damaged"):
            read_weights(checkpoint)
        part.unlink()
        with pytest.raises(ValueError, match="without its values"):
            read_weights(checkpoint)
        part.write_bytes(data)
        index.write_bytes(index.read_bytes()[:-20])
        with pytest.raises(ValueError, match="checkpoint, but damaged"):
            read_weights(checkpoint)


class TestOtherFiles:
    @pytest.mark.parametrize(
        "data, words",
        [
            (b"", "It is empty"),
            (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML or XML page"),
            (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "HTML or XML page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
            (b'{"error": "not found"}', "JSON text"),
            (struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"}}', "safetensors"),
            (b"\x93NUMPY\x01\x00", "one numpy array"),
            (b"\x1f\x8b\x08\x00", "compressed or tar"),
            (b"\x89PNG\r\n\x1a\n", r"begins b'\\x89PNG"),
            (b"PK\x05\x06" + b"\0" * 18, "no weights file known"),
            (b"hello", "no weights file known"),
        ],
    )
    def test_is_named(self, tmp_path, data, words):
        with pytest.raises(ValueError, match=words) as refusal:
            read_weights(write(tmp_path / "w.pth", data))
        assert str(tmp_path / "w.pth") in str(refusal.value)

    def test_other_archive(self, tmp_path):
        with pytest.raises(ValueError, match="zip archive without weights known here.*'notes.txt'"):
            read_weights(torch_zip(tmp_path / "w.pth", {"notes.txt": b"x"}))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Received: .*absent.pth"):
            read_weights(tmp_path / "absent.pth")

    def test_directory_without_a_checkpoint(self, tmp_path):
        with pytest.raises(ValueError, match="directory without a TensorFlow checkpoint"):
            read_weights(tmp_path)

    def test_bound_of_the_bombs(self):
        files.check_room(64 << 20, 10)
        files.check_room(20 << 24, 1 << 24)
        with pytest.raises(ValueError, match="fill the memory"):
            files.check_room((20 << 24) + 1, 1 << 24)
