"""What every test finds in place: a quiet TensorFlow, fixed seeds, the shared data when it is there."""

import fcntl
import gc
import os
import pathlib
import random
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_MRCNN_OPS"] = "portable"  # not what somebody once compiled on this machine

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """The longest test first, so that the other process does the rest meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


def pytest_terminal_summary(terminalreporter):
    """The figures that tests recorded."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        if report.when == "call" and report.user_properties:
            figures = ", ".join(f"{name} {value:.3f}" for name, value in report.user_properties)
            terminalreporter.write_line(f"{report.nodeid}: {figures}")


@pytest.fixture(autouse=True)
def seeds():
    """The same random numbers in each test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if "keras" in sys.modules:  # a test without Keras shall not wait for its import
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(scope="module", autouse=True)
def memory():
    """What a file's tests leave behind is freed after them: models are cycles, and Keras holds on to some."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].backend.clear_session()
        gc.collect()
        gc.freeze()  # what is left stays; looking through it again and again took a tenth of the time


@pytest.fixture(scope="session")
def repository():
    """The top folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared():
    """The folder of larger data and weights beside the checkout; a test that needs it skips without."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` beside the checkout")
    return folder


@pytest.fixture(scope="session")
def compiled_cache(tmp_path_factory):
    """A cache folder with the compiled library, which is loaded; the test is skipped without a compiler.

    The processes that share the tests share it, too: the first one compiles.
    """
    from keras_mrcnn.ops import build, library

    if not build.compiler():
        pytest.skip("no g++")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "compiled"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, open(folder / "lock", "w") as lock:
        use(patch, folder, "native")
        patch.setattr(build, "cuda_compiler", lambda: None)  # takes minutes, and TestBuild has it
        fcntl.flock(lock, fcntl.LOCK_EX)
        build.build()
        assert library.choice().module
    return folder


@pytest.fixture
def native(compiled_cache, monkeypatch):
    """The compiled operations are in use."""
    use(monkeypatch, compiled_cache, "native")
    return compiled_cache


@pytest.fixture(scope="module")
def compiled(request):
    """The compiled operations are in use where there is a compiler: they are traced and run in less time."""
    from keras_mrcnn.ops import build

    with pytest.MonkeyPatch.context() as patch:
        if build.compiler():
            use(patch, request.getfixturevalue("compiled_cache"), "native")
        yield


def use(patch, folder, mode):
    """For this process and those that it starts."""
    patch.setenv("KERAS_MRCNN_CACHE", os.fspath(folder))
    patch.setenv("KERAS_MRCNN_OPS", mode)
