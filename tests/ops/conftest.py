"""The compiled operations, built once for all tests."""

import os

import pytest


@pytest.fixture(scope="session")
def compiled_cache(tmp_path_factory):
    """A cache folder with the compiled library, which is loaded; the test is skipped without a compiler."""
    from keras_mrcnn.ops import build, library

    if not build.compiler():
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, folder, "native")
        patch.setattr(build, "cuda_compiler", lambda: None)  # takes minutes, and TestBuild has it
        build.build()
        assert library.choice().module
    return folder


@pytest.fixture
def native(compiled_cache, monkeypatch):
    """The compiled operations are in use."""
    use(monkeypatch, compiled_cache, "native")
    return compiled_cache


def use(patch, folder, mode):
    """For this process and those that it starts."""
    patch.setenv("KERAS_MRCNN_CACHE", os.fspath(folder))
    patch.setenv("KERAS_MRCNN_OPS", mode)
