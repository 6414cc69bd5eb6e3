"""Categories: what a class of the model is in the data set, with the keypoints that its objects have."""

import re
from dataclasses import dataclass

# left, or an L that stands alone, ends a word (eyeL, legL2) or begins one (LEye); right alike
_SIDE = re.compile(
    r"left|right|(?<![a-z])[lr](?![a-z])|(?<=(?-i:[a-z]))(?-i:[LR])(?![a-z])|(?<![a-z])(?-i:[LR](?=[A-Z]))",
    re.IGNORECASE,
)
_OTHER_SIDE = {"l": "r", "r": "l", "left": "right", "right": "left"}


@dataclass(frozen=True)
class Category:
    """A category under the data set's own id, and its keypoints if it has any.

    Attributes:
        id, name: as the json gives them.
        keypoints: names of the K keypoints; empty for a category without.
        skeleton: pairs of positions in `keypoints`, from 0: the lines to draw.
        flip_pairs: pairs of positions in `keypoints`, from 0, that change places in a mirror image; None:
            those whose names differ in left and right only (`mirror_pairs`).

    Example:
        >>> Category(1, "fly", ("head", "eyeL", "eyeR"), ((0, 1), (0, 2))).flip_pairs
        ((1, 2),)
    """

    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self):
        pairs = mirror_pairs(self.keypoints) if self.flip_pairs is None else self.flip_pairs
        object.__setattr__(self, "keypoints", tuple(str(name) for name in self.keypoints))
        object.__setattr__(self, "skeleton", tuple((int(a), int(b)) for a, b in self.skeleton))
        object.__setattr__(self, "flip_pairs", tuple((int(a), int(b)) for a, b in pairs))

    def mirrored(self):
        """list of K int: for each keypoint the position of its partner in a mirror image, or its own."""
        partners = list(range(len(self.keypoints)))
        for a, b in self.flip_pairs:
            partners[a], partners[b] = b, a
        return partners

    def to_dict(self):
        """As an entry of a COCO json: `id`, `name` and, with keypoints, `keypoints`, `skeleton` (positions
        from 1, as COCO counts) and `flip_pairs` (pairs of names)."""
        entry = {"id": self.id, "name": self.name}
        if self.keypoints:
            entry["keypoints"] = list(self.keypoints)
            entry["skeleton"] = [[a + 1, b + 1] for a, b in self.skeleton]
            entry["flip_pairs"] = [[self.keypoints[a], self.keypoints[b]] for a, b in self.flip_pairs]
        return entry

    @classmethod
    def from_dict(cls, entry):
        """The category of an entry of a COCO json, or of what `to_dict` gave.

        Args:
            entry: dict with `id`, `name` and optionally `keypoints` (names), `skeleton` (pairs of positions
                from 1; from 0 where a 0 is among them) and `flip_pairs` (pairs of names, overrides what the
                names say).

        Raises:
            ValueError: names are missing or there twice, or a pair has no such keypoint.
        """
        names = entry.get("keypoints") or []
        where = f"category {entry['id']} {entry['name']!r}"
        if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"`keypoints` of {where} must be a list of names. Received: {names!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"`keypoints` of {where} must be different names. Received: {list(names)}")
        if not names:
            return cls(entry["id"], str(entry["name"]))
        skeleton = _pairs(entry.get("skeleton") or [], f"`skeleton` of {where}", int)
        first = 0 if any(0 in pair for pair in skeleton) else 1
        skeleton = [(a - first, b - first) for a, b in skeleton]
        if any(not 0 <= position < len(names) for pair in skeleton for position in pair):
            raise ValueError(
                f"`skeleton` of {where} must hold positions of its keypoints, from {first} to "
                f"{len(names) - 1 + first}. Received: {entry['skeleton']}"
            )
        pairs = entry.get("flip_pairs")
        if pairs is not None:
            pairs = _pairs(pairs, f"`flip_pairs` of {where}", str)
            members = [name for pair in pairs for name in pair]
            if not set(members) <= set(names) or len(set(members)) < len(members):
                raise ValueError(
                    f"`flip_pairs` of {where} must be pairs of its keypoints, each in one pair at most. "
                    f"Received: {pairs}; the keypoints are {list(names)}"
                )
            pairs = [(names.index(a), names.index(b)) for a, b in pairs]
        return cls(entry["id"], str(entry["name"]), tuple(names), tuple(skeleton), pairs)


def _pairs(given, what, kind):
    if not isinstance(given, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(one, kind) for one in pair)
        for pair in given
    ):
        noun = "whole numbers" if kind is int else "names"
        raise ValueError(f"{what} must be a list of pairs of {noun}. Received: {given!r}")
    return [tuple(pair) for pair in given]


def mirror_pairs(names):
    """Pairs of positions of names that differ in left and right only: left_eye, right_eye; eyeL, eyeR.

    Args:
        names: list of str.

    Returns:
        list of (int, int), the earlier name first.
    """
    position = {name: index for index, name in enumerate(names)}
    pairs = []
    for index, name in enumerate(names):
        partner = position.get(_SIDE.sub(_swap_side, name))
        if partner is not None and partner > index:
            pairs.append((index, partner))
    return pairs


def _swap_side(match):
    side = match.group()
    other = _OTHER_SIDE[side.lower()]
    if side.isupper():
        return other.upper()
    return other.capitalize() if side[0].isupper() else other
