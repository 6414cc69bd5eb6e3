"""Anchors: shapes, order and places (NUMERICS section 4)."""

import json

import keras
import numpy as np
import pytest

from keras_mrcnn.rpn.anchors import Anchors, cell_anchors


def zeros(*sizes):
    return [np.zeros([1, *size, 1], np.float32) for size in sizes]


class TestByHand:
    def test_a_square(self):
        np.testing.assert_allclose(cell_anchors(32, [1.0]), [[-16, -16, 16, 16]])

    def test_the_ratio_is_height_over_width_at_the_same_area(self):
        # 32 / sqrt(4) = 16 wide, 64 high; 32 / sqrt(1 / 4) = 64 wide, 16 high: 1024 each
        np.testing.assert_allclose(cell_anchors(32, [4.0, 0.25]), [[-8, -32, 8, 32], [-32, -8, 32, 8]])

    def test_no_rounding(self):
        # 32 / sqrt(2) = 22.627, twice that 45.255
        np.testing.assert_allclose(
            cell_anchors(32, [2.0]), [[-11.3137, -22.6274, 11.3137, 22.6274]], atol=1e-4
        )

    def test_the_first_centre_is_the_origin_and_the_next_one_stride_to_the_right(self):
        level = Anchors([[32], [64]], [4, 8], [1.0])(zeros((2, 3), (1, 2)))
        np.testing.assert_allclose(level[0][0], [-16, -16, 16, 16])
        np.testing.assert_allclose(level[0][1], [4 - 16, -16, 4 + 16, 16])
        np.testing.assert_allclose(level[0][3], [-16, 4 - 16, 16, 4 + 16])  # the next row
        np.testing.assert_allclose(level[1][1], [8 - 32, -32, 8 + 32, 32])  # P3 has stride 8


def test_against_loops():
    sizes, ratios = [20.0, 50.0, 70.0], [0.5, 1.0, 3.0]
    shapes = (3, 4), (2, 2), (1, 1)
    levels = Anchors([[size] for size in sizes], [4, 8, 16], ratios)(zeros(*shapes))
    for level, (height, width) in enumerate(shapes):
        expected = []
        for i in range(height):
            for j in range(width):
                for ratio in ratios:
                    w = (sizes[level] ** 2 / ratio) ** 0.5
                    x, y = j * 4 * 2**level, i * 4 * 2**level
                    expected.append([x - w / 2, y - w * ratio / 2, x + w / 2, y + w * ratio / 2])
        assert levels[level].dtype == "float32"
        np.testing.assert_allclose(levels[level], expected, rtol=1e-5)


def test_a_larger_map_begins_with_the_rows_of_a_narrower_one():
    narrow, wide = (Anchors([[32]], [4])(zeros((2, width)))[0].numpy() for width in (3, 5))
    np.testing.assert_array_equal(wide.reshape(2, 5, 3, 4)[:, :3], narrow.reshape(2, 3, 3, 4))


def test_one_size_for_each_level():
    with pytest.raises(ValueError):
        Anchors([[32], [64]], [4, 8])(zeros((4, 4), (2, 2), (1, 1)))


def test_unknown_sizes_and_numbers_of_channels():
    levels = Anchors([[32], [64]], [4, 8])([keras.Input((None, None, 7)), keras.Input((None, None, 9))])
    assert [level.shape for level in levels] == [(None, 4), (None, 4)]
    # odd sizes: the shape that is promised is the shape that comes
    maps = [keras.Input((25, 33, 1)), keras.Input((13, 17, 1))]
    promised = [tuple(level.shape) for level in Anchors([[32], [64]], [4, 8])(maps)]
    given = [level.shape for level in Anchors([[32], [64]], [4, 8])(zeros((25, 33), (13, 17)))]
    assert given == [(25 * 33 * 3, 4), (13 * 17 * 3, 4)]
    assert all(p[0] in (None, g[0]) and p[1] == 4 for p, g in zip(promised, given))


def test_mixed_precision_keeps_places_exact():
    layer = Anchors([[10]], [4], [1.0], dtype="mixed_bfloat16")
    anchors = layer([keras.ops.zeros([1, 2, 300, 1], "bfloat16")])[0]
    np.testing.assert_array_equal(anchors[299], [299 * 4 - 5, -5, 299 * 4 + 5, 5])


def test_rounded_corners_by_hand():
    # 32 at ratio 0.5: 45.25 x 22.63, half of it 22.63 and 11.31; at ratio 1 16; at 2 the first turned
    expected = [(-23, -11, 23, 11), (-16, -16, 16, 16), (-11, -23, 11, 23)]
    assert cell_anchors(32, [0.5, 1.0, 2.0], rounded=True) == expected


def test_fitted_strides_by_hand():
    # 96 x 160: P5 is 3 x 5, P6 2 x 3, so 96 // 2 = 48 down and 160 // 3 = 53 across, and not 64
    grids = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    anchors = Anchors(aspect_ratios=[1.0], fitted_strides=True)(zeros(*grids))
    np.testing.assert_array_equal(anchors[4][1] - anchors[4][0], [53, 0, 53, 0])
    np.testing.assert_array_equal(anchors[4][3] - anchors[4][0], [0, 48, 0, 48])
    np.testing.assert_array_equal(anchors[3], Anchors(aspect_ratios=[1.0])(zeros(*grids))[3])


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("of_torchvision", [False, True])
def test_parity(shared, number, of_torchvision):
    case = f"tv_fpn{number}" if of_torchvision else f"d2_fpn{number}_offset0"
    about = json.loads((shared / "parity/ops/anchors.json").read_text())[case]
    expected = np.load(shared / "parity/ops/anchors.npz")[f"{case}/anchors"]
    layer = Anchors(rounded=of_torchvision, fitted_strides=of_torchvision)
    anchors = np.concatenate(layer(zeros(*about["grids"])))
    assert len(anchors) == about["count"]
    assert anchors.sum(dtype=np.float64) == pytest.approx(about["sum"], rel=1e-6)
    np.testing.assert_allclose(anchors[:: about["step"]], expected, atol=1e-3)


def test_all_sizes_on_one_map_of_stride_16():
    (level,) = Anchors([[32, 64]], [16], [0.5, 2.0])(zeros((2, 3)))
    cells = level.numpy().reshape(2, 3, 2, 2, 4)  # positions, sizes, ratios
    for row, column, size, ratio in np.ndindex(2, 3, 2, 2):
        x1, y1, x2, y2 = cells[row, column, size, ratio]
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == (16 * column, 16 * row)
        assert (x2 - x1) * (y2 - y1) == pytest.approx([32, 64][size] ** 2)
        assert (y2 - y1) / (x2 - x1) == pytest.approx([0.5, 2.0][ratio])
