"""What a user has after `pip install .`: every room, the configs, the sources of the ops, `mrcnn`."""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
INPUTS = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "keras_mrcnn", "configs", "custom_ops")
FIND = """
import sys
from keras_mrcnn import config
print(config.folder("configs"))
print(config.folder("custom_ops"))
print("tensorflow" in sys.modules)
"""


def run(*arguments, path, folder):
    """The finished process of this Python, started in `folder`, with `path` first among its imports."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )


def data_files(folder, suffixes):
    """Paths below `folder`, as an installed package should hold them."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in suffixes}


def packages_of(folder):
    """The packages that setup.cfg has to list for `folder`/keras_mrcnn."""
    found = {"keras_mrcnn.configs", "keras_mrcnn.custom_ops"}
    for path in (folder / "keras_mrcnn").rglob("*.py"):
        found.add(".".join(path.parent.relative_to(folder).parts))
    return found


def listed_packages():
    """The packages that setup.cfg lists."""
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return setup["options"]["packages"].split()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel of this checkout, built without a network."""
    pytest.importorskip("setuptools", minversion="64")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in INPUTS:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    run("-c", build, path="", folder=source)
    zipfile.ZipFile(next(target.glob("*.whl"))).extractall(target)
    return target


def test_setup_lists_every_package():
    assert sorted(listed_packages()) == sorted(packages_of(REPOSITORY))


def test_a_forgotten_package_would_be_seen(tmp_path):
    (tmp_path / "keras_mrcnn" / "attic").mkdir(parents=True)
    (tmp_path / "keras_mrcnn" / "attic" / "__init__.py").touch()
    assert "keras_mrcnn.attic" in packages_of(tmp_path)


def test_wheel_holds_configs_and_op_sources(installed):
    for name, suffixes in {"configs": {".yaml", ".md"}, "custom_ops": {".cc", ".cu", ".h", ".md"}}.items():
        wanted = data_files(REPOSITORY / name, suffixes)
        assert wanted, f"{name}/ is empty"
        assert data_files(installed / "keras_mrcnn" / name, suffixes) == wanted


def test_wheel_holds_the_list_of_presets(installed):
    wanted = data_files(REPOSITORY / "keras_mrcnn" / "weights", {".yaml", ".txt"})
    assert wanted == {"presets.yaml", "lvis_v0.5.txt"}
    assert data_files(installed / "keras_mrcnn" / "weights", {".yaml", ".txt"}) == wanted


def test_wheel_holds_what_stands_beside_an_export(installed):
    folder = REPOSITORY / "keras_mrcnn" / "serving" / "deploy"
    wanted = sorted(path.name for path in folder.iterdir())
    there = installed / "keras_mrcnn" / "serving" / "deploy"
    assert "models.config" in wanted and sorted(path.name for path in there.iterdir()) == wanted


def test_folders_are_found_from_anywhere(installed, tmp_path):
    configs, custom_ops, tensorflow = run("-c", FIND, path=installed, folder=tmp_path).stdout.split()
    assert pathlib.Path(configs) == installed / "keras_mrcnn" / "configs"
    assert pathlib.Path(custom_ops) == installed / "keras_mrcnn" / "custom_ops"
    assert tensorflow == "False"


def test_folders_of_a_checkout_are_found_from_anywhere(tmp_path):
    configs, custom_ops, tensorflow = run("-c", FIND, path=REPOSITORY, folder=tmp_path).stdout.split()
    assert pathlib.Path(configs) == REPOSITORY / "configs"
    assert pathlib.Path(custom_ops) == REPOSITORY / "custom_ops"
    assert tensorflow == "False"


@pytest.mark.skipif(not (REPOSITORY / "keras_mrcnn/cli.py").exists(), reason="no command line yet")
def test_help_answers_within_half_a_second(tmp_path):
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        answer = run("-m", "keras_mrcnn", "--help", path=REPOSITORY, folder=tmp_path).stdout
        seconds.append(time.perf_counter() - start)
    assert "Usage" in answer
    assert min(seconds) < 0.5, seconds
