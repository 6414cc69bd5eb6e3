"""Keypoints: between points in pixels and one heat map for each, over a region.

A keypoint is (x, y, v), in pixels where pixel i covers [i, i + 1]; v is COCO's visibility: 0 not labelled, 1
labelled and hidden, 2 labelled and seen. Letters: N regions, K keypoints, S side of a heat map.
"""

from keras import ops

BICUBIC = -0.75  # torch's and OpenCV's coefficient; TensorFlow's resize has -0.5
ROWS = 256  # of one region that `decode` holds in memory at once


def encode(keypoints, boxes, size):
    """The cell of the heat map that each keypoint lies in (section 5, "one-hot").

    Args:
        keypoints: float32 `[N, K, 3]`, (x, y, v), pixels.
        boxes: float32 `[N, 4]`, the regions, pixels.
        size: int, S.

    Returns:
        indices: int32 `[N, K]`, row * S + column, 0 where not valid.
        valid: bool `[N, K]`, labelled (v > 0) and in the region. The right and the lower edge of the region
            belong to its last column and row.
    """
    columns, inside_x = _cells(keypoints[..., 0], boxes[:, None, 0], boxes[:, None, 2], size)
    rows, inside_y = _cells(keypoints[..., 1], boxes[:, None, 1], boxes[:, None, 3], size)
    valid = inside_x & inside_y & (keypoints[..., 2] > 0)
    return ops.where(valid, rows * size + columns, 0), valid


def _cells(positions, start, end, size):
    """int32 cells along one axis, and bool whether a position is in one."""
    extent = end - start
    scale = size / ops.where(extent > 0, extent, 1.0)
    cells = ops.where(positions == end, size - 1.0, ops.floor((positions - start) * scale))
    inside = (extent > 0) & (cells >= 0) & (cells < size)
    return ops.cast(ops.where(inside, cells, 0.0), "int32"), inside


def decode(maps, boxes):
    """The most likely position of each keypoint, in pixels.

    Each map is enlarged to its region, width and height rounded up, by bicubic interpolation as torch does
    it; the point is the centre of the highest pixel there. No more than `ROWS` rows of one region are made
    at once.

    Args:
        maps: float32 `[N, S, S, K]`, logits.
        boxes: float32 `[N, 4]`, pixels; sides below one pixel count as one.

    Returns:
        float32 `[N, K, 4]`: x, y, the enlarged map's logit there, and the score: its exponential divided by
        the sum of those of the map's S * S cells. Where the enlarged map is higher than every cell of a
        steep one, a score exceeds 1. Of equal pixels the first in reading order counts.
    """
    count, side, points = ops.shape(maps)[0], maps.shape[1], maps.shape[3]
    maps = ops.transpose(ops.cast(maps, "float32"), [0, 3, 1, 2])  # [N, K, S, S]
    sizes = ops.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)  # [N, 2], width and height
    whole = ops.cast(ops.ceil(sizes), "int32")

    def unfinished(region, start, *best):
        return region < count

    def part(region, start, values, columns, rows):
        """The next rows of one region; the last ones lead on to the next region."""
        width, height = whole[region, 0], whole[region, 1]
        end = ops.minimum(start + ROWS, height)
        vertical = _bicubic(ops.arange(start, end, dtype="int32"), height, side)  # [rows, S]
        horizontal = _bicubic(ops.arange(0, width, dtype="int32"), width, side)  # [columns, S]
        enlarged = ops.matmul(ops.matmul(vertical, maps[region]), ops.transpose(horizontal))
        enlarged = ops.reshape(enlarged, [points, -1])
        most, place = (found[:, 0] for found in ops.top_k(enlarged, 1))  # [K]
        found = most, place % width, place // width + start
        better = (start == 0) | (found[0] > values[region])
        at = ops.reshape(region, [1, 1])
        best = [
            ops.scatter_update(all_, at, ops.where(better, new, all_[region])[None])
            for all_, new in zip((values, columns, rows), found, strict=True)
        ]
        finished = end >= height
        return ops.where(finished, region + 1, region), ops.where(finished, 0, end), *best

    nothing = ops.zeros_like(maps[:, :, 0, 0])
    zero = ops.convert_to_tensor(0, "int32")
    start = zero, zero, nothing, ops.cast(nothing, "int32"), ops.cast(nothing, "int32")
    _, _, values, columns, rows = ops.while_loop(unfinished, part, start)
    centres = ops.cast(ops.stack([columns, rows], axis=-1), "float32") + 0.5  # [N, K, 2]
    pixels = sizes / ops.cast(whole, "float32")  # of the enlarged map
    centres = centres * pixels[:, None] + boxes[:, None, :2]
    sums = ops.sum(ops.exp(maps - values[..., None, None]), axis=(2, 3))
    return ops.concatenate([centres, values[..., None], 1.0 / sums[..., None]], axis=-1)


def _bicubic(pixels, size, side):
    """Weights `[P, side]` of a map's cells in some `pixels` of an axis of `size` pixels (Keys 1981, eq. 4).

    Pixel centres lie at halves; the outermost cells stand in for those beyond the map.
    """
    scale = side / ops.cast(size, "float32")
    position = scale * (ops.cast(pixels, "float32") + 0.5) - 0.5
    first = ops.floor(position)
    weights = 0.0
    for neighbour in (-1, 0, 1, 2):
        distance = ops.abs(position - (first + neighbour))
        near = ((BICUBIC + 2) * distance - (BICUBIC + 3)) * distance * distance + 1
        far = ((BICUBIC * distance - 5 * BICUBIC) * distance + 8 * BICUBIC) * distance - 4 * BICUBIC
        cell = ops.cast(ops.clip(first + neighbour, 0, side - 1), "int32")
        taps = near if neighbour in (0, 1) else far
        weights = weights + ops.one_hot(cell, side) * taps[:, None]
    return weights
