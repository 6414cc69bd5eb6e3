"""Instance masks between the M x M frame of a box and the pixels of an image.

In come mask probabilities on the grid that a mask head predicts (M x M cells over a box) and the box in
pixels; out go binary masks in image pixels, whole, as the patch that is not empty, or as run lengths.
Letters: M mask side, H and W image height and width, h and w patch height and width.
"""

import numpy as np

ROUNDING = 1e-9  # below the threshold still counts: exact ties come out alike in any order of summation


def paste(probabilities, box, height, width, threshold=0.5):
    """The binary mask of one object in image pixels.

    The centre (j + 0.5, i + 0.5) of an image pixel is mapped to the grid as
    `u = (j + 0.5 - x1) / (x2 - x1) * M - 0.5`, `v` likewise; the value there is the bilinear
    interpolation of the grid, with zeros around it.

    Args:
        probabilities: float `[M, M]`, row-major (first axis is y), in 0..1.
        box: float `(4,)`, (x1, y1, x2, y2), pixels; may leave the image.
        height, width: size of the image, pixels.
        threshold: pixels with a value of at least this belong to the object; at least 0.5.

    Returns:
        bool `[H, W]`; all False for a box without area.
    """
    mask = np.zeros((height, width), bool)
    top, left, patch = paste_patch(probabilities, box, height, width, threshold)
    mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return mask


def paste_patch(probabilities, box, height, width, threshold=0.5):
    """`paste`, computed and returned only for the pixels that can be part of the object.

    Bilinear interpolation is separable, so the patch is `rows @ probabilities @ columns.T` with two
    weight matrices. Half a cell outside of the grid a probability of at most 1 has fallen to 0.5, hence
    only pixels with their centre in the box can reach the threshold.

    Args:
        probabilities, box, height, width, threshold: as in `paste`.

    Returns:
        Tuple `(top, left, patch)`: row and column of the patch's first pixel in the image, and the patch,
        bool `[h, w]`; h and w may be 0.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2:
        raise ValueError(
            "`probabilities` must be the grid of one object, of shape [M, M]. "
            f"Received: probabilities.shape={probabilities.shape}"
        )
    if threshold < 0.5:
        raise ValueError(f"`threshold` must be at least 0.5. Received: threshold={threshold}")
    x1, y1, x2, y2 = (float(value) for value in box)
    if not (x2 > x1 and y2 > y1):
        return 0, 0, np.zeros((0, 0), bool)
    top, rows = _axis_weights(y1, y2, probabilities.shape[0], height)
    left, columns = _axis_weights(x1, x2, probabilities.shape[1], width)
    return top, left, rows @ probabilities @ columns.T >= threshold - ROUNDING


def widened(box, cells):
    """The box that makes `paste` do what torchvision does.

    torchvision puts one cell of zeros around the grid, widens the box by as much, rounds its corners towards
    zero and stretches the grid over the pixels from the first corner to the last, that one included.

    Args:
        box: float `(4,)`, (x1, y1, x2, y2), pixels.
        cells: int, M.

    Returns:
        float64 `(4,)`: where the M x M cells come to lie.
    """
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    wide, high = (x2 - x1) / 2 * (cells + 2) / cells, (y2 - y1) / 2 * (cells + 2) / cells
    left, top, right, bottom = np.trunc([x - wide, y - high, x + wide, y + high])
    width, height = max(right - left + 1, 1), max(bottom - top + 1, 1)
    cell_x, cell_y = width / (cells + 2), height / (cells + 2)
    return np.array([left + cell_x, top + cell_y, left + width - cell_x, top + height - cell_y])


def _axis_weights(start, end, cells, size):
    """First pixel with its centre in [start, end] and the weights `[pixels, cells]` of these pixels."""
    first = max(int(np.ceil(start - 0.5)), 0)
    last = min(int(np.floor(end - 0.5)), size - 1)
    if last < first:
        return 0, np.zeros((0, cells))
    centres = np.arange(first, last + 1) + 0.5
    position = (centres - start) / (end - start) * cells - 0.5
    return first, np.maximum(1.0 - np.abs(position[:, None] - np.arange(cells)), 0.0)


def run_lengths(patch, top, left, height, width):
    """COCO run lengths of an image that is empty but for one patch.

    Args:
        patch: bool `[h, w]`, inside the image.
        top, left: row and column of the patch's first pixel in the image.
        height, width: size of the image, pixels.

    Returns:
        list of int: lengths of the runs of the image read column by column, beginning with a run of
        zeros (of length 0 when the first pixel is set); their sum is `height * width`.
    """
    columns = np.zeros((patch.shape[1], patch.shape[0] + 2), np.int8)
    columns[:, 1:-1] = np.asarray(patch, np.int8).T
    steps = np.diff(columns, axis=1)
    column, row = np.nonzero(steps)  # starts and ends take turns: every run ends in its own column
    edges = (column + left) * height + row + top
    starts, ends = edges[0::2], edges[1::2]
    # a run down to the last row goes on at the top of the next column
    joined = ends[:-1] == starts[1:]
    starts = starts[np.concatenate([[True], ~joined])] if len(starts) else starts
    ends = ends[np.concatenate([~joined, [True]])] if len(ends) else ends
    borders = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [height * width]])
    lengths = np.diff(borders)
    if len(lengths) > 1 and lengths[-1] == 0:
        lengths = lengths[:-1]
    return lengths.tolist()
