"""Where a preset comes from: a published name, a file, a hub, or a folder that `save_to_preset` made."""

import importlib.metadata
import json
import os
import pathlib
import re
import tempfile
import urllib.parse

from keras_mrcnn import __version__, config
from keras_mrcnn.weights import download
from keras_mrcnn.weights.presets import nearest, published

FORMAT = "keras_mrcnn preset"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.weights.h5"
HUGGING_FACE = "https://huggingface.co"


def resolve(source, cache=None, progress=True):
    """The local path of weights, downloaded if need be.

    Args:
        source: a published name; a local file or folder; `hf://owner/repository` (a folder that
            `save_to_preset` made) or `hf://owner/repository/file`; `kaggle://owner/model/framework/variation`
            with or without `/version`.
        cache: folder of downloads, or None; see `download.cache_folder`. What was fetched from a hub is kept
            there too and not looked up again.
        progress: bool, show a progress bar.

    Returns:
        A `pathlib.Path` of a file or of a folder.

    Raises:
        ValueError: nothing is known under this name, or an address is malformed.
        ConnectionError: a download failed; see `download.fetch`.
        ImportError: kaggle:// without `kagglehub`.
    """
    source = os.fspath(source)
    if source in published():
        chosen = published()[source]
        folder = source.split("/")[0]
        return download.fetch(
            chosen.url, f"{folder}/{chosen.file_name}", chosen.checksum, chosen.size, cache, progress
        )
    if source.startswith("hf://"):
        return _from_hugging_face(source, cache, progress)
    if source.startswith("kaggle://"):
        return _from_kaggle(source)
    path = pathlib.Path(source).expanduser()
    if source and path.exists():
        return path
    raise ValueError(
        f"{source!r} is neither a file or folder (looked in {os.getcwd()}), nor the name of published "
        f"weights, nor an address that begins with hf:// or kaggle://.{nearest(source)}"
    )


def _from_hugging_face(source, cache, progress):
    match = re.fullmatch(r"hf://([\w.-]+)/([\w.-]+)(?:/([^/].*))?", source)
    if not match:
        raise ValueError(
            "A Hugging Face address is hf://owner/repository or hf://owner/repository/file. "
            f"Received: {source!r}"
        )
    owner, repository, file = match.groups()
    files = [file] if file else [CONFIG_FILE, WEIGHTS_FILE]
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        address, below = f"{HUGGING_FACE}/{owner}/{repository}/resolve/main", f"hf/{owner}/{repository}"
        paths = [
            download.fetch(
                f"{address}/{urllib.parse.quote(name)}", f"{below}/{name}", cache=cache, progress=progress
            )
            for name in files
        ]
    else:
        paths = [pathlib.Path(hf_hub_download(f"{owner}/{repository}", name)) for name in files]
    return paths[0] if file else paths[0].parent


def _from_kaggle(source):
    handle = source.removeprefix("kaggle://")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){3}(/\d+)?", handle):
        raise ValueError(
            "A Kaggle address is kaggle://owner/model/framework/variation, with or without /version. "
            f"Received: {source!r}"
        )
    try:
        import kagglehub
    except ImportError as error:
        raise ImportError(
            f"{source} needs the package kagglehub: pip install kagglehub. Or download the model from "
            f"https://www.kaggle.com/models/{handle} and give the folder."
        ) from error
    return pathlib.Path(kagglehub.model_download(handle))


def save_to_preset(model, folder):
    """Write a model as a folder from which it can be built again: `config.json` and `model.weights.h5`.

    Args:
        model: a `MaskRCNN`.
        folder: new or empty, or one that this function wrote before, whose two files are replaced.

    Raises:
        FileExistsError: `folder` is a file, or holds something else.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"`folder` is a directory to write a preset to. Received: the file {folder}")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            _read_config(folder)
        except (OSError, ValueError) as error:
            raise FileExistsError(
                f"{folder} holds something else than a preset. {error} Give a new folder."
            ) from error
    content = {
        "format": FORMAT,
        "model": config.to_dict(model.config),
        "categories": [category.to_dict() for category in model.categories],
        "versions": {
            "keras_mrcnn": __version__,
            **{name: importlib.metadata.version(name) for name in ("keras", "tensorflow")},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing") as new:
        model.save_weights(pathlib.Path(new, WEIGHTS_FILE))
        pathlib.Path(new, CONFIG_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            os.replace(pathlib.Path(new, name), folder / name)


def load_preset_folder(folder):
    """What `save_to_preset` wrote.

    Returns:
        A `config.Model`; the categories, a list of dictionaries with "id" and "name"; the weights' path.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: `config.json` is not what `save_to_preset` writes, or has values that this version does
            not know.
    """
    folder = pathlib.Path(folder)
    content = _read_config(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has a {CONFIG_FILE} but no {WEIGHTS_FILE}: an incomplete preset.")
    try:
        model = config.model_from_dict(content["model"])
    except ValueError as error:
        raise ValueError(
            f"{folder / CONFIG_FILE}, written by keras_mrcnn {content['versions'].get('keras_mrcnn')}, does "
            f"not fit this version ({__version__}): {error}"
        ) from error
    return model, content["categories"], weights


def _read_config(folder):
    """The content of the `config.json` of a preset folder, of the right form."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}: not a folder that `save_to_preset` made.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by `save_to_preset` (its `format` is not {FORMAT!r}).")
    parts = {"model": dict, "categories": list, "versions": dict}
    for part, kind in parts.items():
        if not isinstance(content.get(part), kind):
            raise ValueError(f"{path} has no {part!r}, or not a {kind.__name__}.")
    return content
