"""torch's files against values worked out here; hostile and broken ones are refused.

`files/*.pth` and `files/plain_tensors.pkl` were written by torch 2.11.0: `_zip` by `torch.save` as it is,
`_legacy` with `_use_new_zipfile_serialization=False`, `plain_tensors.pkl` by `pickle.dump`. Their values are
those of `KINDS`, `VIEWS` and `TRAINING` below; `old_parameter_legacy.pth` has its parameter rebuilt as torch
0.1 did. When they were made, `torch.load` gave the same arrays as `read_weights`.
"""

import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from keras_mrcnn.weights.files import read_weights

FILES = pathlib.Path(__file__).parent / "files"
GRID = np.arange(12).reshape(3, 4)
LINE = np.arange(60, dtype=np.float32)
CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
WIDENED = {"float16": "float32", "bfloat16": "float32"}
KIND_NAMES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
KINDS = {kind: (GRID % 2 if kind == "bool" else GRID).astype(WIDENED.get(kind, kind)) for kind in KIND_NAMES}
VIEWS = {
    "line": LINE,
    "tail": LINE[50:],
    "every_seventh": LINE[3:40:7],
    "transposed": CUBE.transpose(2, 0, 1),
    "channels_last": np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5),
    "expanded": np.full((3, 4), 7, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float32(3.5),
    "half_view": np.arange(5, 20, dtype=np.float32).reshape(3, 5).T,
}
TRAINING = {"conv.weight": CUBE / 8, "conv.bias": LINE[:2]}
OLD = {"a": CUBE.transpose(1, 0, 2)}
MEASURE = """
import sys
from keras_mrcnn.weights.files import read_weights
def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
before = kilobytes("VmRSS")
arrays = read_weights(sys.argv[1])
print((kilobytes("VmHWM") - before) * 1024, arrays["a"][-1])
"""


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


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, data):
    path.write_bytes(data)
    return path


def large_tensor(count):
    """The pickle of {"a": float32 tensor of `count` values in storage "0"}, as torch writes it."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + struct.pack("<Bi", 0x4A, count) + b"tQ"
    view = b"K\x00" + struct.pack("<Bi", 0x4A, count) + b"\x85K\x01\x85"
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"\x89" + hooks + b"tRs."


def legacy(program, keys, count, memory):
    """The bytes of a legacy file with one storage."""
    start = [pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*start, program, pickle.dumps(keys, 2), struct.pack("<q", count), memory])


class TestTorch:
    @pytest.mark.parametrize("form", ["zip", "legacy"])
    @pytest.mark.parametrize(
        "content, expected", [("kinds", KINDS), ("views", VIEWS), ("training", TRAINING)]
    )
    def test_written_by_torch(self, content, form, expected):
        assert_same(read_weights(FILES / f"{content}_{form}.pth"), expected)

    def test_parameter_of_2017(self):
        assert_same(read_weights(FILES / "old_parameter_legacy.pth"), OLD)

    def test_deflated_archive(self, tmp_path):
        path = torch_zip(tmp_path / "w", members_of(FILES / "views_zip.pth"), zipfile.ZIP_DEFLATED)
        assert_same(read_weights(path), VIEWS)

    def test_suffix_does_not_matter(self, tmp_path):
        assert_same(read_weights(write(tmp_path / "w.h5", (FILES / "kinds_zip.pth").read_bytes())), KINDS)

    def test_arrays_cannot_be_changed_by_accident(self):
        got = read_weights(FILES / "views_zip.pth")
        assert not any(array.flags.writeable for array in got.values())

    def test_whole_model(self):
        with pytest.raises(ValueError, match=r"class `torch\.nn\.modules\.linear\.Linear`.*state_dict"):
            read_weights(FILES / "whole_model_zip.pth")

    def test_plain_pickle_of_tensors(self):
        with pytest.raises(ValueError, match=r"plain pickle.*torch\.save"):
            read_weights(FILES / "plain_tensors.pkl")

    def test_torchscript(self, tmp_path):
        members = members_of(FILES / "kinds_zip.pth") | {"kinds_zip/constants.pkl": b"\x80\x02)."}
        with pytest.raises(ValueError, match="TorchScript archive.*state_dict"):
            read_weights(torch_zip(tmp_path / "w.pth", members))

    @pytest.mark.parametrize("content", ["views_zip", "views_legacy", "training_legacy"])
    def test_truncated_anywhere(self, tmp_path, content):
        data = (FILES / f"{content}.pth").read_bytes()
        for length in [*range(1, len(data), 61), len(data) - 1]:
            with pytest.raises(ValueError, match="Cannot read weights from"):
                read_weights(write(tmp_path / "w.pth", data[:length]))

    @pytest.mark.parametrize("content", ["views_zip", "views_legacy"])
    def test_cut_off_says_so(self, tmp_path, content):
        data = (FILES / f"{content}.pth").read_bytes()
        for length in (len(data) // 3, len(data) - 30):
            with pytest.raises(ValueError, match="cut off. Fetch it again"):
                read_weights(write(tmp_path / "w.pth", data[:length]))

    def test_changed_byte_of_a_record(self, tmp_path):
        data = (FILES / "views_zip.pth").read_bytes()
        changed = data.replace(struct.pack("<f", 17), struct.pack("<f", 18), 1)
        assert changed != data
        with pytest.raises(ValueError, match="damaged.*CRC"):
            read_weights(write(tmp_path / "w.pth", changed))

    @pytest.mark.parametrize("record", [b"", b"\0" * 236, b"\0" * 244])
    def test_record_of_another_length(self, tmp_path, record):
        members = members_of(FILES / "views_zip.pth")
        assert len(members["views_zip/data/0"]) == 240
        with pytest.raises(ValueError, match="storage 0 as long as its record"):
            read_weights(torch_zip(tmp_path / "w.pth", members | {"views_zip/data/0": record}))

    def test_entry_outside_of_the_file(self, tmp_path):
        # the directory's own offset, moved by 2**31, moves every entry before the start of the file
        data = bytearray(torch_zip(tmp_path / "w.pth", members_of(FILES / "views_zip.pth")).read_bytes())
        data[data.rindex(b"PK\x05\x06") + 19] |= 0x80
        with pytest.raises(ValueError, match="Expected every entry of the archive in it"):
            read_weights(write(tmp_path / "w.pth", data))

    def test_unusual_compression(self, tmp_path):
        path = torch_zip(tmp_path / "w.pth", members_of(FILES / "views_zip.pth"), zipfile.ZIP_BZIP2)
        with pytest.raises(ValueError, match="stored or deflated"):
            read_weights(path)

    def test_missing_record(self, tmp_path):
        members = members_of(FILES / "views_zip.pth")
        del members["views_zip/data/0"]
        with pytest.raises(ValueError, match="a record for storage 0"):
            read_weights(torch_zip(tmp_path / "w.pth", members))

    def test_big_endian(self, tmp_path):
        members = members_of(FILES / "views_zip.pth") | {"views_zip/byteorder": b"big"}
        with pytest.raises(ValueError, match="big-endian"):
            read_weights(torch_zip(tmp_path / "w.pth", members))

    def test_legacy_storage_of_another_length(self, tmp_path):
        data = (FILES / "old_parameter_legacy.pth").read_bytes()
        count = struct.pack("<q", 24)
        for other in (0, 23, 2**60):
            with pytest.raises(ValueError, match="as long as its record"):
                read_weights(write(tmp_path / "w.pth", data.replace(count, struct.pack("<q", other))))

    def test_legacy_storage_that_claims_more_than_the_file_has(self, tmp_path):
        path = write(tmp_path / "w.pth", legacy(large_tensor(2**31 - 1), ["0"], 2**31 - 1, b"\0" * 16))
        tracemalloc.start()
        with pytest.raises(ValueError, match="middle of its tensors: it was cut off"):
            read_weights(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20

    @pytest.mark.parametrize("keys", [["0", "0"], [], ["1"], ["0", "1"], [0], "0"])
    def test_legacy_list_of_storages(self, tmp_path, keys):
        path = write(tmp_path / "w.pth", legacy(large_tensor(2), ["0"], 2, struct.pack("<2f", 1, 2)))
        assert read_weights(path)["a"].tolist() == [1, 2]
        with pytest.raises(ValueError, match="Expected .* storages"):
            read_weights(write(path, legacy(large_tensor(2), keys, 2, struct.pack("<2f", 1, 2) * 2)))

    def test_expanded_bomb(self, tmp_path):
        # three values, each shown 4 times, become three values, each shown 10**9 times: 12 GB from 4 kB
        members = members_of(FILES / "views_zip.pth")
        program = members["views_zip/data.pkl"]
        small, large = b"K\x03K\x04\x86", b"K\x03" + struct.pack("<Bi", 0x4A, 10**9) + b"\x86"
        members["views_zip/data.pkl"] = program.replace(small, large)
        assert members["views_zip/data.pkl"] != program
        with pytest.raises(ValueError, match="unfold to 120000"):
            read_weights(torch_zip(tmp_path / "w.pth", members))

    @pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
    @pytest.mark.parametrize("form", ["zip", "legacy"])
    def test_memory_of_two_files_is_not_needed(self, tmp_path, form):
        values = np.random.default_rng(0).standard_normal(12 << 20, np.float32)  # 48 MiB
        program = large_tensor(values.size)
        if form == "zip":
            members = {"w/data.pkl": program, "w/version": b"3\n", "w/data/0": values.tobytes()}
            path = torch_zip(tmp_path / "w.pth", members)
        else:
            start = [
                pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
            ]
            end = [pickle.dumps(["0"], 2), struct.pack("<q", values.size), values.tobytes()]
            path = write(tmp_path / "w.pth", b"".join([*start, program, *end]))
        environment = {**os.environ, "PYTHONPATH": str(FILES.parents[2])}
        command = [sys.executable, "-c", MEASURE, str(path)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        growth, last = answer.split()
        assert np.float32(last) == values[-1]
        assert values.nbytes * 0.9 < int(growth) < 2 * path.stat().st_size
