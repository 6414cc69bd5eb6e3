"""The compiled kernels, once per session."""

import shutil

import pytest

from custom_ops import c_library


@pytest.fixture(scope="session")
def compiler():
    """Path of g++; a test that needs it skips without."""
    path = shutil.which("g++")
    if not path:
        pytest.skip("no g++")
    return path


@pytest.fixture(scope="session")
def library_path(compiler, tmp_path_factory):
    """The library, compiled by the command in the README."""
    return c_library.compile_library(tmp_path_factory.mktemp("library") / "roi_align.so", compiler=compiler)


@pytest.fixture(scope="session")
def library(library_path):
    """The kernels on two threads."""
    return c_library.Library(library_path, threads=2)
