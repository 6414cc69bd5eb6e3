"""Building the compiled operations, keeping them, and choosing between them and the stock ones."""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_mrcnn.cli import main
from keras_mrcnn.ops import build, library, roi_align

VERSION = tf.version.VERSION

# Writes its output in two halves, and counts itself.
SLOW_COMPILER = """#!/bin/sh
echo called >> "$CALLS"
for last; do :; done
printf first > "$last"; sleep 0.2; printf second >> "$last"
"""
FAILING_COMPILER = """#!/bin/sh
echo 'roi_align.cc:7: error: no such thing' >&2
exit 1
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, nothing chosen before, no CUDA."""
    monkeypatch.setenv("KERAS_MRCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_MRCNN_OPS", "auto")
    monkeypatch.setattr(build, "cuda_compiler", lambda: None)
    forget()
    yield tmp_path / "cache" / "ops"
    forget()


def forget():
    """As if the process had just begun."""
    for remembered in (library._native, library._auto, library._tell):
        remembered.cache_clear()


def pretend_compiler(folder, monkeypatch, script):
    path = folder / "compiler"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    return folder / "calls"


class TestBuild:
    def test_the_name_tells_the_version_and_the_devices(self, cache):
        assert build.described("a/roi_align-tensorflow-2.21.0-rc1-cuda-0123456789ab.so") == (
            "2.21.0-rc1",
            "cuda",
        )
        assert build.described("roi_align.so") is None
        assert build.described(build._name("cpu")) == (VERSION, "cpu")

    def test_an_installed_package_has_its_own_sources(self, tmp_path, monkeypatch, repository):
        assert build._folder() == repository / "custom_ops"
        (tmp_path / "keras_mrcnn" / "custom_ops").mkdir(parents=True)
        monkeypatch.setattr(build, "__file__", str(tmp_path / "keras_mrcnn" / "ops" / "build.py"))
        assert build._folder() == tmp_path / "keras_mrcnn" / "custom_ops"

    def test_what_is_built_is_found_and_not_built_again(self, cache, tmp_path, monkeypatch):
        calls = pretend_compiler(tmp_path, monkeypatch, SLOW_COMPILER)
        assert build.find() is None
        path = build.build()
        assert path.parent == cache and build.find() == path
        once = len(calls.read_text().splitlines())
        assert once == len(build._sources("cpu/*.cc")) + 3 + 1  # the ops, the linker
        assert build.build() == path and len(calls.read_text().splitlines()) == once
        assert build.build(force=True) == path and len(calls.read_text().splitlines()) == 2 * once
        assert [p.name for p in cache.iterdir()] == [path.name]

    def test_other_sources_or_flags_are_another_library(self, cache, tmp_path, monkeypatch):
        before = build._name("cpu")
        shutil.copytree(build._folder(), tmp_path / "sources")
        monkeypatch.setattr(build, "_folder", lambda: tmp_path / "sources")
        assert build._name("cpu") == before
        for name in ("roi_align_geometry.h", "cpu/roi_align.cc", "tensorflow/roi_align_op.cc"):
            path = tmp_path / "sources" / name
            text = path.read_text()
            path.write_text(text + "\n")
            assert build._name("cpu") != before, name
            path.write_text(text)
        monkeypatch.setattr(build, "_KERNEL", ("-O1",))
        assert build._name("cpu") != before

    def test_nobody_sees_half_a_library_when_several_build(self, cache, tmp_path, monkeypatch):
        pretend_compiler(tmp_path, monkeypatch, SLOW_COMPILER)
        expected, seen, done = cache / build._name("cpu"), set(), threading.Event()

        def watch():
            last = False
            while not last:
                last = done.is_set()
                if expected.is_file():
                    seen.add(expected.read_text())
                time.sleep(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            built = [future.result() for future in [pool.submit(build.build, True) for _ in range(3)]]
        done.set()
        watcher.join()
        assert set(built) == {expected} and seen == {"firstsecond"}
        assert list(cache.iterdir()) == [expected]

    def test_what_a_compiler_says_is_told_and_nothing_stays(self, cache, tmp_path, monkeypatch):
        pretend_compiler(tmp_path, monkeypatch, FAILING_COMPILER)
        with pytest.raises(ChildProcessError, match=r"(?s)compiler.*-c.*no such thing"):
            build.build()
        assert list(cache.iterdir()) == []

    def test_no_compiler(self, cache, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(FileNotFoundError, match="`no-such-compiler` is not there.*apt install"):
            build.build()

    @pytest.mark.proof
    def test_with_cuda(self, cache, tmp_path, monkeypatch):
        nvcc = shutil.which("nvcc")
        if not (nvcc and build.compiler() and build._sources("cuda/*.cu")):
            pytest.skip("no nvcc, no g++ or no kernels")
        monkeypatch.setattr(build, "cuda_compiler", lambda: nvcc)
        monkeypatch.setattr(build, "_CUDA", (*build._CUDA[:4], "-gencode=arch=compute_90,code=sm_90"))
        path = build.build()
        assert build.described(path)[1] == "cuda" and build.find() == path
        symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
        assert "keras_mrcnn_roi_align_cuda_forward" in symbols
        assert not [line for line in symbols.splitlines() if " U cuda" in line or " U __cuda" in line]


class TestChoice:
    def test_nothing_built(self, cache, caplog):
        assert library.choice() == (None, (), "no library is built. `mrcnn build-ops` makes one")
        for _ in range(2):
            np.testing.assert_array_equal(align_ones(), 1)
        assert len(caplog.records) == 1 and "mrcnn build-ops" in caplog.text

    def test_what_was_asked_for_is_not_told(self, cache, caplog, monkeypatch):
        with library.stock_operations():
            align_ones()
        monkeypatch.setenv("KERAS_MRCNN_OPS", "portable")
        align_ones()
        assert not caplog.records

    def test_another_value(self, monkeypatch):
        monkeypatch.setenv("KERAS_MRCNN_OPS", "cuda")
        with pytest.raises(ValueError, match="auto, native or portable. Received: 'cuda'"):
            library.choice()

    def test_a_library_for_another_version_is_refused(self, cache):
        path = cache / "roi_align-tensorflow-2.3.4-cpu-0123456789ab.so"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        with pytest.raises(OSError, match=rf"not for TensorFlow {VERSION}, but for 2.3.4.*mrcnn build-ops"):
            library.load(path)
        with pytest.raises(OSError, match="unknown version"):
            library.load(cache / "roi_align.so")
        module, _, reason = library.choice()
        assert module is None
        assert reason.startswith(f"the library is for TensorFlow 2.3.4, this is {VERSION}. `mrcnn build-ops`")

    def test_a_broken_library(self, cache, monkeypatch):
        path = cache / build._name("cpu")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no library")
        module, _, reason = library.choice()
        assert module is None and "build-ops --force" in reason
        monkeypatch.setenv("KERAS_MRCNN_OPS", "native")
        with pytest.raises(OSError, match="build-ops --force"):
            library.choice()

    def test_native_without_a_compiler_fails(self, cache, monkeypatch):
        monkeypatch.setenv("KERAS_MRCNN_OPS", "native")
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(FileNotFoundError, match="KERAS_MRCNN_OPS=portable"):
            align_ones()

    def test_auto_takes_what_is_built_unless_there_is_a_gpu_without_kernels(self, native, monkeypatch):
        monkeypatch.setenv("KERAS_MRCNN_OPS", "auto")
        forget()
        chosen = library.choice()
        assert chosen.module and chosen.devices == ("CPU",) and chosen.reason == str(build.find())
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [f"{kind}:0"])
        assert library.choice().module is None and "no kernels for the GPU" in library.choice().reason
        monkeypatch.setenv("KERAS_MRCNN_OPS", "native")
        assert library.choice().module

    def test_portable_never_takes_it(self, native, monkeypatch):
        monkeypatch.setenv("KERAS_MRCNN_OPS", "portable")
        assert library.choice() == (None, (), "KERAS_MRCNN_OPS=portable")

    def test_stock_operations_end_with_their_block_and_stay_in_their_thread(self, native):
        with pytest.raises(ZeroDivisionError), library.stock_operations():
            assert library.choice().module is None
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                assert pool.submit(library.choice).result().module
            1 / 0  # noqa: B018
        assert library.choice().module

    def test_loading_again_is_harmless(self, native):
        again = library.load(build.find())
        assert again.module is library.choice().module or again.module
        features = tf.ones([1, 4, 4, 2])
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(features, np.float32([[1, 1, 3, 3]]), [0], 1, 1.0)
        np.testing.assert_allclose(tf.reduce_sum(tape.gradient(pooled, features)), 2, rtol=1e-6)


def align_ones():
    return roi_align(tf.ones([1, 4, 4, 2]), np.float32([[1, 1, 3, 3]]), [0], 2, 1.0)


ALONE = """
import os, logging
from tests.ops.test_library import align_ones
import numpy as np
np.testing.assert_array_equal(align_ones(), 1)
np.testing.assert_array_equal(align_ones(), 1)
os.environ["KERAS_MRCNN_OPS"] = "native"
try:
    align_ones()
except FileNotFoundError as error:
    print("refused:", error)
"""


def test_a_machine_without_a_compiler(tmp_path, repository):
    environment = {**os.environ, "PATH": "", "KERAS_MRCNN_OPS": "auto", "KERAS_MRCNN_CACHE": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if name not in ("CXX", "CUDA_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RoIAlign uses stock TensorFlow operations") == 1
    assert "no library is built, and there is no g++ to make one" in done.stderr
    assert "refused: No C++ compiler" in done.stdout


class TestCommands:
    def test_build_ops_says_what_it_made(self, native, monkeypatch):
        monkeypatch.setattr(build, "cuda_compiler", lambda: None)
        result = CliRunner().invoke(main, ["build-ops"])
        assert result.exit_code == 0, result.output
        path, state, *_ = result.output.splitlines()
        assert pathlib.Path(path) == build.find()
        assert state == "operations     compiled: RoIAlign for CPU, resize and mask crops for CPU"

    def test_doctor(self, native):
        result = CliRunner().invoke(main, ["doctor"])
        assert result.exit_code == 0, result.output
        lines = dict(line.split(None, 1) for line in result.output.splitlines())
        assert lines["operations"].startswith("compiled: RoIAlign for CPU,")
        assert lines["from"] == str(build.find())
        assert lines["TensorFlow"] == VERSION and build.compiler() in lines["C++"]
        assert len(lines) <= 12

    def test_doctor_without_a_library(self, cache):
        result = CliRunner().invoke(main, ["doctor"])
        assert "operations     TensorFlow's own\nbecause        no library is built" in result.output

    def test_doctor_of_what_cannot_be(self, cache, monkeypatch):
        monkeypatch.setenv("KERAS_MRCNN_OPS", "native")
        monkeypatch.setenv("CXX", "no-such-compiler")
        result = CliRunner().invoke(main, ["doctor"])
        assert result.exit_code == 0, result.output
        assert "operations     none. No C++ compiler" in result.output
