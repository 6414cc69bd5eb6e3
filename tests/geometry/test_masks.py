"""Pasting masks into the image: hand-worked cases, a slow oracle, detectron2's own answers, run lengths."""

import math
import pathlib

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from keras_mrcnn.geometry import masks

PARITY = pathlib.Path(__file__).parents[3] / "shared" / "parity" / "ops" / "masks.npz"


def slow_paste(probabilities, box, height, width):
    """The rule pixel by pixel, in the whole image."""
    side = len(probabilities)

    def cell(row, column):
        return probabilities[row][column] if 0 <= row < side and 0 <= column < side else 0.0

    result = np.zeros((height, width), bool)
    x1, y1, x2, y2 = (float(value) for value in box)
    for i in range(height):
        for j in range(width):
            u = (j + 0.5 - x1) / (x2 - x1) * side - 0.5
            v = (i + 0.5 - y1) / (y2 - y1) * side - 0.5
            column, row = math.floor(u), math.floor(v)
            right, down = u - column, v - row
            value = (
                (1 - down) * (1 - right) * cell(row, column)
                + (1 - down) * right * cell(row, column + 1)
                + down * (1 - right) * cell(row + 1, column)
                + down * right * cell(row + 1, column + 1)
            )
            result[i, j] = value >= 0.5 - masks.ROUNDING
    return result


def smooth_probabilities(random, side):
    grid = random.normal(size=(side, side))
    for _ in range(3):
        grid = grid + np.roll(grid, 1, 0) + np.roll(grid, 1, 1)
    return 1 / (1 + np.exp(-grid))


def test_box_of_the_grid_size_copies_the_grid():
    # a 4 x 4 grid over 4 x 4 pixels: every pixel centre is a cell centre
    grid = np.array([[1, 0, 0, 0.5], [0, 1, 0.49, 0], [0, 0, 1, 0], [0.51, 0, 0, 1]])
    expected = np.zeros((8, 9), bool)
    expected[2:6, 3:7] = grid >= 0.5
    np.testing.assert_array_equal(masks.paste(grid, [3, 2, 7, 6], 8, 9), expected)


def test_edge_between_two_cells_lies_where_the_line_between_them_crosses_one_half():
    # cells 1 and 0.2 side by side over 8 pixels, 4 pixels a cell: cell centres at x = 2 and x = 6.
    # 1 - 0.8 * (x - 2) / 4 >= 0.5 up to x = 4.5, that is for the pixel centres 0.5 .. 4.5: five pixels
    mask = masks.paste([[1, 0.2], [1, 0.2]], [0, 0, 8, 8], 8, 8)
    np.testing.assert_array_equal(mask[4], [1, 1, 1, 1, 1, 0, 0, 0])


def test_a_full_grid_fills_the_pixels_with_their_centre_in_the_box():
    # centres 2.5 and 5.5 lie on the border, where a probability of 1 has just fallen to 0.5
    mask = masks.paste(np.ones((28, 28)), [2.5, 1.6, 5.5, 3.4], 6, 8)
    np.testing.assert_array_equal(np.argwhere(mask), [[2, 2], [2, 3], [2, 4], [2, 5]])
    # at 0.99 the border itself is out
    mask = masks.paste(np.full((28, 28), 0.99), [2.5, 1.6, 5.5, 3.4], 6, 8)
    np.testing.assert_array_equal(np.argwhere(mask), [[2, 3], [2, 4]])


@pytest.mark.parametrize("side", [1, 2, 7, 14, 28])
def test_slow_oracle(side):
    random = np.random.default_rng(side)
    boxes = [
        [3.2, 4.1, 17.9, 20.3],
        [-6.5, -2.25, 9.5, 30.125],
        [20.1, 15.7, 50.3, 44.4],
        [5.3, 5.3, 6.1, 6.2],
    ]
    for box in boxes:
        grid = smooth_probabilities(random, side)
        np.testing.assert_array_equal(masks.paste(grid, box, 24, 32), slow_paste(grid, box, 24, 32))


@pytest.mark.parametrize(
    "box",
    [
        [5, 5, 5, 9],
        [5, 5, 9, 5],
        [9, 9, 5, 5],
        [0, 0, 0, 0],
        [-9, -9, -1, -1],
        [40, 3, 50, 9],
        [5.6, 5.6, 6.4, 6.4],
        [math.nan, 0, 5, 5],
    ],
)
def test_nothing_to_paste(box):
    mask = masks.paste(np.ones((28, 28)), box, 20, 30)
    assert mask.shape == (20, 30) and mask.dtype == bool and not mask.any()
    top, left, patch = masks.paste_patch(np.ones((28, 28)), box, 20, 30)
    assert masks.run_lengths(patch, top, left, 20, 30) == [600]


def test_moving_box_and_window_by_whole_pixels_moves_the_mask():
    random = np.random.default_rng(0)
    grid, box = smooth_probabilities(random, 28), np.array([10.5, 4.25, 40.75, 31.5])
    here = masks.paste(grid, box, 40, 60)
    there = masks.paste(grid, box - [7, 3, 7, 3], 40, 60)
    np.testing.assert_array_equal(there[:30, :50], here[3:33, 7:57])
    np.testing.assert_array_equal(masks.paste(grid.T, box[[1, 0, 3, 2]], 60, 40), here.T)


def test_threshold():
    grid = np.full((4, 4), 0.7)
    assert masks.paste(grid, [0, 0, 4, 4], 4, 4).all()
    assert not masks.paste(grid, [0, 0, 4, 4], 4, 4, threshold=0.8).any()
    with pytest.raises(ValueError, match="threshold=0.3"):
        masks.paste(grid, [0, 0, 4, 4], 4, 4, threshold=0.3)


def test_the_grids_of_several_objects_are_refused():
    with pytest.raises(ValueError, match=r"shape=\(3, 28, 28\)"):
        masks.paste(np.ones((3, 28, 28)), [0, 0, 4, 4], 4, 4)


@pytest.mark.skipif(not PARITY.exists(), reason="the shared parity data are not here")
@pytest.mark.parametrize("case", ["paste0", "paste1"])
@pytest.mark.parametrize("source", ["d2", "tv"])
def test_detectron2_and_torchvision_pixel_for_pixel(case, source):
    arrays = np.load(PARITY)
    expected = np.unpackbits(arrays[f"{case}/{source}_binary"], axis=-1)[..., :150].astype(bool)
    grids, boxes = arrays[f"{case}/masks"], arrays[f"{case}/boxes"]
    if source == "tv":
        boxes = [masks.widened(box, grids.shape[-1]) for box in boxes]
    pasted = [masks.paste(grid, box, 120, 150) for grid, box in zip(grids, boxes, strict=True)]
    np.testing.assert_array_equal(pasted, expected)


def test_widened_by_hand():
    # 2 cells over [10, 20] are 5 wide; with one more on each side [5, 25]; these are 21 pixels, 5.25 a cell
    np.testing.assert_allclose(masks.widened([10, 10, 20, 20], 2), [10.25, 10.25, 20.75, 20.75])
    # [-2.5, 3.5] with 2 cells: [-5.5, 6.5], towards zero -5 and 6: 12 pixels, 3 a cell
    np.testing.assert_allclose(masks.widened([-2.5, 0, 3.5, 1], 2)[[0, 2]], [-2, 4])


def lengths_of(mask):
    return masks.run_lengths(mask, 0, 0, *mask.shape)


def test_run_lengths_by_hand():
    # columns: 0 1 1, 1 0 1, 0 0 0: one zero, three ones (across the columns), one zero, one one, three zeros
    assert lengths_of(np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]], bool)) == [1, 3, 1, 1, 3]
    assert lengths_of(np.ones((2, 3), bool)) == [0, 6]
    assert lengths_of(np.zeros((2, 3), bool)) == [6]
    assert masks.run_lengths(np.ones((1, 2), bool), 1, 2, 3, 4) == [7, 1, 2, 1, 1]


def test_run_lengths_equal_those_of_pycocotools():
    random = np.random.default_rng(1)
    for _ in range(60):
        height, width = random.integers(1, 12, 2)
        top, left = random.integers(0, height), random.integers(0, width)
        shape = random.integers(0, [height - top + 1, width - left + 1])
        patch = random.random(shape) < random.choice([0.2, 0.5, 0.9, 1.0])
        whole = np.zeros((height, width), bool)
        whole[top : top + shape[0], left : left + shape[1]] = patch
        counts = masks.run_lengths(patch, top, left, height, width)
        assert sum(counts) == height * width
        ours = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        assert ours == coco_mask.encode(np.asfortranarray(whole, dtype=np.uint8))
