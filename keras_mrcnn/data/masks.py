"""Segmentations to mask crops: what the mask head learns from, at a size that no resize can change.

Comes in: polygons or RLE in the source frame, and the object's box. Goes out: a 112 x 112 binary crop of that
box. A crop costs the same for a large image as for a small one, and a flip of the image is a flip of the
crop.
"""

import numpy as np
from pycocotools import mask as coco_mask

CROP_SIZE = 112  # four times the 28 x 28 of the mask head


def object_crop(segmentation, box, size=CROP_SIZE):
    """Binary crop of one object's box.

    Args:
        segmentation: list of polygons `[x1, y1, x2, y2, ...]`, an RLE dict, or None; source pixels.
        box: float `[4]`, (x1, y1, x2, y2), source pixels, of positive area.
        size: side of the crop.

    Returns:
        uint8 `[size, size]`, 0 or 1. All 0 when there is no segmentation, or when it is so thin that it
        covers half of no cell of the crop.
    """
    if segmentation is None:
        return np.zeros((size, size), np.uint8)
    if isinstance(segmentation, dict):
        return rle_crop(segmentation, box, size)
    return polygon_crop(segmentation, box, size)


def polygon_crop(polygons, box, size=CROP_SIZE):
    """Crop of polygons: moved and scaled into the crop, then rasterised there by COCO's own routine.

    Args:
        polygons: list of `[x1, y1, x2, y2, ...]`, source pixels, taken as float32, as they are in TFRecords
            and in the compiled operation; the object is their union.
        box: float `[4]`, (x1, y1, x2, y2), source pixels, of positive area.
        size: side of the crop.

    Returns:
        uint8 `[size, size]`, 0 or 1.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    scaled = []
    for polygon in polygons:
        points = np.asarray(polygon, np.float32).astype(np.float64).reshape(-1, 2)
        points = (points - (x1, y1)) * (size / (x2 - x1), size / (y2 - y1))
        if points.min() < -size or points.max() > 2 * size:
            points = _clip_polygon(
                points, -size, 2 * size
            )  # the rasteriser walks along every pixel of an edge
        if len(points) >= 3:
            scaled.append(points.ravel().tolist())
    if not scaled:
        return np.zeros((size, size), np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(scaled, size, size)))


def _clip_polygon(points, low, high):
    """Clips a polygon to the square [low, high]^2 (Sutherland and Hodgman 1974); float64 `[P, 2]`."""
    for axis, bound, sign in ((0, low, 1), (0, high, -1), (1, low, 1), (1, high, -1)):
        if len(points) == 0:
            break
        following = np.roll(points, -1, axis=0)
        depth, next_depth = sign * (points[:, axis] - bound), sign * (following[:, axis] - bound)
        clipped = []
        for start, end, here, there in zip(points, following, depth, next_depth, strict=True):
            if here >= 0:
                clipped.append(start)
            if (here >= 0) != (there >= 0):
                clipped.append(start + (end - start) * (here / (here - there)))
        points = np.array(clipped).reshape(-1, 2)
    return points


def rle_crop(rle, box, size=CROP_SIZE):
    """Crop of a bitmap: the share of each cell that the mask covers, at least half.

    Where a cell is smaller than a pixel this repeats the pixels exactly; where it is larger it is the exact
    area average, so no pixel is skipped.

    Args:
        rle: dict with `size` [height, width] and `counts` (list, str or bytes), source pixels.
        box: float `[4]`, (x1, y1, x2, y2), source pixels, of positive area, inside the image.
        size: side of the crop.

    Returns:
        uint8 `[size, size]`, 0 or 1.
    """
    height, width = rle["size"]
    x1, y1, x2, y2 = (float(value) for value in box)
    left, right = int(np.floor(x1)), min(int(np.ceil(x2)), width)
    top, bottom = int(np.floor(y1)), min(int(np.ceil(y2)), height)
    region = decode_columns(rle, left, right)[top:bottom]
    rows = _means(region, np.linspace(y1 - top, y2 - top, size + 1))
    cells = _means(rows.T, np.linspace(x1 - left, x2 - left, size + 1)).T
    return (cells >= 0.5 - 1e-6).astype(np.uint8)


def _means(values, edges):
    """Mean along the first axis between each two of N + 1 equally distant positions in 0..P.

    (By sums, not by a product with a matrix: the threads of numpy's BLAS go on spinning after a product, and
    took a seventh of the processor from a training.)

    Args:
        values: `[P, Q]`, constant over each pixel of size 1.
        edges: float64 `[N + 1]`.

    Returns:
        float64 `[N, Q]`.
    """
    pixels = np.minimum(edges.astype(int), len(values) - 1)
    sums = np.cumsum(values, axis=0, dtype=np.float64)[pixels]
    sums += (edges - pixels - 1)[:, None] * values[pixels]
    return np.diff(sums, axis=0) / (edges[1] - edges[0])


def decode_columns(rle, left, right):
    """Decodes the columns `left` to `right` of an RLE; uint8 `[height, right - left]`."""
    height = rle["size"][0]
    ends = np.concatenate([[0], np.cumsum(rle_runs(rle["counts"]))])
    runs = np.diff(np.clip(ends, left * height, right * height))
    values = np.arange(len(runs)) % 2  # runs of 0 and of 1 take turns, 0 first
    return np.repeat(values.astype(np.uint8), runs).reshape(right - left, height).T


def rle_runs(counts):
    """Run lengths of an RLE, column by column, starting with a run of 0.

    Args:
        counts: list of integers, or COCO's compressed str or bytes.

    Returns:
        int64 `[N]`.

    Raises:
        ValueError: `counts` is neither, or is damaged.
    """
    if isinstance(counts, str | bytes):
        runs = _decompress(counts.encode("latin-1", "replace") if isinstance(counts, str) else counts)
    elif isinstance(counts, list | tuple | np.ndarray) and all(
        isinstance(count, int | np.integer) and not isinstance(count, bool) for count in counts
    ):
        runs = np.array(counts, np.int64)
    else:
        raise ValueError(
            f"RLE counts must be a list of integers, a str or bytes, not {type(counts).__name__}"
        )
    if len(runs) and runs.min() < 0:
        raise ValueError("RLE counts hold a negative run length")
    return runs


def _decompress(encoded):
    """COCO's compressed counts: characters from "0" on hold 5 bits of data and one "more follows"."""
    code = np.frombuffer(encoded, np.uint8).astype(np.int64) - 48
    if len(code) == 0:
        return np.zeros(0, np.int64)
    if code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise ValueError("compressed RLE counts hold a character that does not belong there or end too early")
    last = (code & 32) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 11:
        raise ValueError("compressed RLE counts hold a number of more than 60 bits")
    position = np.arange(len(code)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((code & 31) << (5 * position), starts)
    negative = (code[ends] & 16) != 0
    values -= negative.astype(np.int64) << (5 * (ends - starts + 1))
    runs = values.copy()  # from the fourth on, each is the difference to the one before the last
    for first in (1, 2):
        runs[first::2] = np.cumsum(values[first::2])
    return runs


def rle_box_and_area(rle):
    """Tight box and area of an RLE, without decoding it.

    Returns:
        `(box, area)`: float64 `[4]`, (x1, y1, x2, y2), and the number of pixels; `(None, 0)` for an empty
        mask.
    """
    height = int(rle["size"][0])
    ends = np.cumsum(rle_runs(rle["counts"]))
    starts, ends = ends[0::2][: len(ends) // 2], ends[1::2]
    keep = ends > starts
    starts, ends = starts[keep], ends[keep]
    if len(starts) == 0:
        return None, 0
    first_column, last_column = starts // height, (ends - 1) // height
    crosses = last_column > first_column  # such a run touches the top and the bottom
    top = 0 if crosses.any() else (starts % height).min()
    bottom = height if crosses.any() else ((ends - 1) % height).max() + 1
    box = np.array([first_column.min(), top, last_column.max() + 1, bottom], np.float64)
    return box, int((ends - starts).sum())


def polygon_area(polygons, height, width):
    """Area of the union of polygons as COCO counts it, in pixels of an image of this size."""
    return float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))))
