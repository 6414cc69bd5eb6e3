"""Configs to and from YAML files and plain dictionaries."""

import dataclasses
import os
import pathlib

import omegaconf
import yaml
from omegaconf import OmegaConf

from keras_mrcnn.config.checks import check, nearest
from keras_mrcnn.config.stations import Config, Model


def load(source, overrides=()):
    """Read a whole run's config.

    A file holds what differs from the defaults, or from another file that it names: `base: paper/r50_fpn`.

    Args:
        source: path of a YAML file, or the name of one in `configs/` (with or without `.yaml`).
        overrides: strings `section.key=value`, the value in YAML's notation.

    Returns:
        A `Config`.

    Raises:
        FileNotFoundError: no such file; the message lists the named configs.
        ValueError: an unknown key (with the nearest right one), a value of the wrong type, or not one of
            the choices.
    """
    config = OmegaConf.to_object(_override(_read(find(source)), overrides))
    check(config)
    return config


def _read(path, above=()):
    """The defaults with what the files from the lowest base up to `path` change."""
    if path in above:
        raise ValueError(f"A config cannot be its own base: {' -> '.join(map(str, (*above, path)))}")
    try:
        content = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    base = content.pop("base", None) if OmegaConf.is_dict(content) else None
    merged = _read(find(base), (*above, path)) if base else OmegaConf.structured(Config)
    return _merge(merged, content, str(path))


def save(config, path):
    """Write `config` as YAML, every key."""
    pathlib.Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def to_dict(config):
    """Plain dictionaries and lists, for JSON."""
    return dataclasses.asdict(config)


def model_from_dict(values):
    """The `Model` config that `to_dict` was given.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    model = OmegaConf.to_object(_merge(OmegaConf.structured(Model), OmegaConf.create(values), "model config"))
    check(Config(model=model))
    return model


def override(model, overrides):
    """A `Model` config with changes.

    Args:
        model: `Model`; stays as it is.
        overrides: strings `section.key=value`, as `backbone.frozen_stages=3`.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or not one of the choices.
    """
    model = OmegaConf.to_object(_override(OmegaConf.structured(model), overrides))
    check(Config(model=model))
    return model


def folder(name):
    """`configs/` or `custom_ops/`: inside the installed package, or beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parents[1]
    for candidate in (package / name, package.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"The folder {name}/ did not come with this installation of keras_mrcnn ({package})."
    )


def find(source):
    """Path of a config given by path or by the name of a file in `configs/`."""
    given = pathlib.Path(source)
    if given.is_file():
        return given
    top = folder("configs")
    named = {path.relative_to(top).with_suffix("").as_posix(): path for path in top.rglob("*.yaml")}
    if given.with_suffix("").as_posix() in named:
        return named[given.with_suffix("").as_posix()]
    names = sorted(named)
    raise FileNotFoundError(
        f"No config file {str(source)!r}, here ({os.getcwd()}) or among the named ones: {', '.join(names)}."
        + nearest(str(source), names)
    )


def _merge(base, new, where):
    try:
        return OmegaConf.merge(base, new)
    except omegaconf.errors.ConfigKeyError as error:
        key = error.full_key or str(error.key)
        known = _keys(base)
        raise ValueError(f"Unknown key `{key}` in {where}." + nearest(key, known)) from None
    except omegaconf.errors.OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"Wrong value for `{error.full_key}` in {where}: {message}") from None


def _override(node, overrides):
    for given in overrides:
        if "=" not in given:
            raise ValueError(f"An override has the form section.key=value. Received: {given!r}")
        node = _merge(node, OmegaConf.from_dotlist([given]), f"override {given!r}")
    return node


def _keys(node, prefix=""):
    names = []
    for key in node:
        names.append(prefix + key)
        if OmegaConf.is_dict(node[key]):
            names += _keys(node[key], f"{prefix}{key}.")
    return names
