"""Published weights by name: where each file is, and the model that it was trained as.

The list is `presets.yaml`.
"""

import copy
import difflib
import functools
import pathlib
from dataclasses import dataclass

import yaml

from keras_mrcnn import config


@dataclass(frozen=True)
class Preset:
    """One row of `presets.yaml`; the meaning of its fields stands there.

    Attributes:
        checksum: "sha256:" or "md5:" and the first digits; "" when none is published.
        size: bytes, about; 0 when not published.
        box_ap, mask_ap, keypoint_ap: float, percent, as published; None when not.
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

    @property
    def file_name(self):
        """Of the published file."""
        return self.url.rsplit("/", 1)[-1]


@functools.cache
def _content():
    return yaml.safe_load(pathlib.Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))


@functools.cache
def published():
    """{name: `Preset`} of all published weights."""
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
        )
    return presets


def preset(name):
    """The `Preset` of that name.

    Raises:
        ValueError: no published weights have it; the nearest names are given.
    """
    if name not in published():
        raise ValueError(f"No published weights are called {name!r}.{nearest(name)}")
    return published()[name]


def preset_model(name):
    """The model that published weights belong to.

    Args:
        name: str, one of `published()`.

    Returns:
        A `config.Model` with the rules of the source, and the categories in the order of the classes, a list
        of entries of a COCO json; an empty list for a backbone, which knows no classes.

    Raises:
        ValueError: an unknown name.
    """
    chosen = preset(name)
    return config.model_from_dict(model_settings(chosen)), categories(chosen.categories)


def model_settings(chosen):
    """The part of `config.Model` in which a `Preset` differs from the defaults, as nested dictionaries."""
    merged = {}
    for part in chosen.settings:
        for station, values in _content()["settings"][part].items():
            merged[station] = {**merged.get(station, {}), **values}
    return merged


def categories(name):
    """Categories of the data set `name` ("" for none), a list of entries of a COCO json."""
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
    keypoints = copy.deepcopy(_content()["keypoints"].get(name, {}))
    return [{"id": number, "name": word, **keypoints} for number, word in known.items()]


def preset_table():
    """The published weights as text, one a line."""
    head = ("name", "data", "box AP", "mask AP", "keypoint AP", "size", "licence")
    rows = [head]
    for p in published().values():
        scores = ["" if ap is None else f"{ap:.1f}" for ap in (p.box_ap, p.mask_ap, p.keypoint_ap)]
        size = f"{p.size / 1e6:.0f} MB" if p.size else "?"
        rows.append((p.name, p.data, *scores, size, p.licence))
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


def nearest(name):
    """A sentence with the published names that resemble `name`, or with all of them."""
    close = difflib.get_close_matches(name, published(), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else f" Known: {', '.join(published())}."
