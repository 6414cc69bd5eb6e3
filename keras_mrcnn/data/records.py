"""What a data set is once it has been read and checked: records, categories, and what was left out."""

import collections
from dataclasses import dataclass

import numpy as np

from keras_mrcnn.data.categories import Category


@dataclass(frozen=True)
class Problem:
    """Something of the input that was left out, and why."""

    file: str  # the image file, or the json where no image is concerned
    image_id: int | str | None
    annotation_id: int | str | None
    what: str  # what was expected, what came, what to do
    kind: str = ""  # a few words, the same for all problems of a sort

    def __str__(self):
        where = [self.file]
        where += [f"image id {self.image_id!r}"] if self.image_id is not None else []
        where += [f"annotation id {self.annotation_id!r}"] if self.annotation_id is not None else []
        return f"{', '.join(where)}: {self.what}"


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its objects, everything in source pixels, all checked.

    Attributes:
        image_id: as the json gives it.
        path: of the image file.
        height, width: of the image as decoded.
        boxes: float32 `[G, 4]`, (x1, y1, x2, y2), inside the image, of positive area.
        classes: int32 `[G]`, index into the data set's categories.
        crowd: bool `[G]`, True for a region that holds an unknown number of objects.
        segmentations: list of G; each a list of polygons `[x1, y1, x2, y2, ...]`, an RLE dict (`size`,
            `counts` as list, str or bytes), or None for an object with a box only.
        annotation_ids: list of G; the position in the json for an annotation without an id.
        areas: float32 `[G]`, pixels; as the json gives them, else computed from the segmentation or the box.
        keypoints: float32 `[G, K, 3]`, (x, y, v), pixels where pixel i covers [i, i + 1], so COCO's x + 0.5;
            v 0: not labelled, x and y are 0; 1: labelled and hidden; 2: seen. K is the most of a category,
            the rest is not labelled. None in a data set whose categories have no keypoints.
        mirrored: int32 `[G, K]`, the place of each keypoint's partner in a mirror image; None as keypoints.
    """

    image_id: int | str
    path: str
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    segmentations: list
    annotation_ids: list
    areas: np.ndarray
    keypoints: np.ndarray | None = None
    mirrored: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """Records in the order of the json, categories in the order of the class index, and what was left out."""

    records: list[Record]
    categories: list[Category]
    skipped: list[Problem]

    def summary(self, examples=3):
        """What is there and what was left out, in words, with the first `examples` of each kind."""
        classes = [index for record in self.records for index in record.classes[~record.crowd]]
        counts = np.bincount(np.array(classes, np.int64), minlength=len(self.categories))
        empty = sum(not (~record.crowd).any() for record in self.records)
        crowds = sum(int(record.crowd.sum()) for record in self.records)
        box_only = sum(
            segmentation is None and not crowd
            for record in self.records
            for segmentation, crowd in zip(record.segmentations, record.crowd, strict=True)
        )
        per_category = ", ".join(
            f"{category.name} {count}" for category, count in zip(self.categories, counts, strict=True)
        )
        lines = [
            f"{len(self.records)} images ({empty} without an object to learn from), {len(classes)} objects "
            f"in {len(self.categories)} categories ({per_category}), {box_only} of them with a box only; "
            f"{crowds} crowd regions. Left out: {len(self.skipped)}."
        ]
        with_points = [record for record in self.records if record.keypoints is not None]
        if with_points:
            labelled = np.concatenate([r.keypoints[~r.crowd, :, 2] > 0 for r in with_points])
            lines.append(f"{labelled.any(axis=1).sum()} objects have keypoints, {labelled.sum()} in all.")
        by_kind = collections.defaultdict(list)
        for problem in self.skipped:
            by_kind[problem.kind].append(problem)
        for kind, problems in by_kind.items():
            lines.append(f"- {kind}: {len(problems)}")
            lines += [f"    {problem}" for problem in problems[:examples]]
            lines += [f"    and {len(problems) - examples} more"] if len(problems) > examples else []
        return "\n".join(lines)
