"""Published weights by name: where each file is, and the model that it was trained as.

The list is `presets.yaml`. A preset may also be a folder that `save_to_preset` made, here or on a hub.
"""

import difflib
import functools
import importlib.metadata
import json
import os
import pathlib
import re
import tempfile
import urllib.parse
from dataclasses import dataclass

import yaml

from keras_mrcnn import __version__, config
from keras_mrcnn.weights import download

FORMAT = "keras_mrcnn preset"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.weights.h5"
HUGGING_FACE = "https://huggingface.co"


@dataclass(frozen=True)
class Preset:
    """One row of `presets.yaml`; the meaning of its fields stands there.

    Attributes:
        checksum: "sha256:" or "md5:" and the first digits; "" when none is published.
        size: bytes, about; 0 when not published.
        box_ap, mask_ap, keypoint_ap: float, percent, as published; None when not.
        needs: what this version of the package lacks; "" when the preset is available.
    """

    name: str
    url: str
    checksum: str
    size: int
    data: str
    box_ap: float | None
    mask_ap: float | None
    keypoint_ap: float | None
    licence: str
    source: str
    family: str
    settings: tuple
    categories: str
    needs: str

    @property
    def file_name(self):
        """Of the published file."""
        return self.url.rsplit("/", 1)[-1]


@functools.cache
def _content():
    return yaml.safe_load(pathlib.Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))


@functools.cache
def published():
    """{name: `Preset`} of all published weights, also of those that are not available yet."""
    presets = {}
    for name, row in _content()["presets"].items():
        source = _content()["sources"][name.split("/")[0]]
        ap = row.get("ap", {})
        presets[name] = Preset(
            name=name,
            url=row["url"],
            checksum=row.get("checksum", ""),
            size=row.get("size", 0),
            data=row["data"],
            box_ap=ap.get("box"),
            mask_ap=ap.get("mask"),
            keypoint_ap=ap.get("keypoint"),
            licence=source["licence"],
            source=source["from"],
            family=row["family"],
            settings=tuple(row["settings"]),
            categories=row.get("categories", ""),
            needs=row.get("needs", ""),
        )
    return presets


def preset(name):
    """The `Preset` of that name.

    Raises:
        ValueError: no published weights have it; the nearest names are given.
    """
    if name not in published():
        raise ValueError(f"No published weights are called {name!r}.{_nearest(name)}")
    return published()[name]


def preset_model(name):
    """The model that published weights belong to.

    Args:
        name: str, one of `published()`.

    Returns:
        A `config.Model` with the rules of the source, and the categories in the order of the classes, a list
        of dictionaries with "id" and "name"; an empty list for a backbone, which knows no classes.

    Raises:
        ValueError: an unknown name, or a model that this version does not have.
    """
    chosen = preset(name)
    if chosen.needs:
        raise ValueError(
            f"{name} is not available in this version of keras_mrcnn ({__version__}), which does not have "
            f"{chosen.needs} yet. Available: {', '.join(n for n, p in published().items() if not p.needs)}."
        )
    return config.model_from_dict(model_settings(chosen)), categories(chosen.categories)


def model_settings(chosen):
    """The part of `config.Model` in which a `Preset` differs from the defaults, as nested dictionaries."""
    merged = {}
    for part in chosen.settings:
        for station, values in _content()["settings"][part].items():
            merged[station] = {**merged.get(station, {}), **values}
    return merged


def categories(name):
    """Categories of the data set `name` ("" for none), a list of dictionaries with "id" and "name"."""
    if not name:
        return []
    if name == "lvis_v0.5":
        lines = pathlib.Path(__file__).with_name("lvis_v0.5.txt").read_text(encoding="utf-8").splitlines()
        known = dict(enumerate(lines, 1))
    elif name == "coco_91":
        coco = _content()["categories"]["coco"]
        known = {number: coco.get(number, "N/A") for number in range(1, max(coco) + 1)}
    else:
        known = _content()["categories"][name]
    return [{"id": number, "name": word} for number, word in known.items()]


def preset_table():
    """The published weights as text, one a line."""
    head = ("name", "data", "box AP", "mask AP", "keypoint AP", "size", "licence", "available")
    rows = [head]
    for p in published().values():
        scores = ["" if ap is None else f"{ap:.1f}" for ap in (p.box_ap, p.mask_ap, p.keypoint_ap)]
        size = f"{p.size / 1e6:.0f} MB" if p.size else "?"
        rows.append((p.name, p.data, *scores, size, p.licence, f"no: {p.needs}" if p.needs else "yes"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if title.endswith(("AP", "size")) else text.ljust(width)
            for title, text, width in zip(head, row, widths)
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [""] + [f"{name}: {source['from']}" for name, source in _content()["sources"].items()]
    lines.append(
        "AP as published there, on the validation set. The terms of the training data may apply too."
    )
    return "\n".join(lines)


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
        f"weights, nor an address that begins with hf:// or kaggle://.{_nearest(source)}"
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
        "categories": [{"id": category.id, "name": category.name} for category in model.categories],
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


def _nearest(name):
    close = difflib.get_close_matches(name, published(), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else f" Known: {', '.join(published())}."
