"""Keypoints to heat maps and back: hand-worked cells, a slow oracle of torch's bicubic, stored answers."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.geometry import keypoints


def encode_one(x, y, v=2, box=(10, 20, 30, 60), size=4):
    indices, valid = keypoints.encode(np.float32([[[x, y, v]]]), np.float32([box]), size)
    assert indices.dtype == "int32" and valid.dtype == "bool"
    return int(indices[0, 0]), bool(valid[0, 0])


class TestEncode:
    """A region of 20 x 40 pixels on 4 x 4 cells: a cell is 5 wide and 10 high."""

    @pytest.mark.parametrize(
        ("x", "y", "cell"),
        [
            (10, 20, 0),  # the upper left corner belongs to the first cell
            (14.9, 29.9, 0),
            (15, 20, 1),  # (15 - 10) / 5
            (10, 30, 4),  # row 1
            (29.9, 59.9, 15),
            (30, 59.9, 15),  # x == x2: the last column, not the fifth
            (29.9, 60, 15),
            (30, 60, 15),
            (22, 47, 10),  # column floor(2.4), row floor(2.7)
        ],
    )
    def test_by_hand(self, x, y, cell):
        assert encode_one(x, y) == (cell, True)

    @pytest.mark.parametrize(("x", "y"), [(9.9, 40), (30.1, 40), (20, 19.9), (20, 60.1), (-500, 900)])
    def test_outside_of_the_region(self, x, y):
        assert encode_one(x, y) == (0, False)

    def test_visibility(self):
        assert encode_one(22, 47, v=1) == (10, True)
        assert encode_one(22, 47, v=0) == (0, False)
        assert encode_one(0, 0, v=0, box=(0, 0, 8, 8)) == (0, False)

    def test_a_region_without_width_or_height(self):
        for box in ((22, 40, 22, 50), (20, 47, 30, 47), (30, 40, 20, 50)):
            assert encode_one(22, 47, box=box) == (0, False)

    def test_nothing(self):
        indices, valid = keypoints.encode(np.zeros([0, 3, 3], "float32"), np.zeros([0, 4], "float32"), 56)
        assert indices.shape == valid.shape == (0, 3)

    def test_parity(self, shared):
        data = np.load(shared / "parity/ops/keypoints.npz")
        indices, valid = keypoints.encode(data["encode/keypoints"], data["encode/rois"], 56)
        np.testing.assert_array_equal(indices, data["encode/index"])
        np.testing.assert_array_equal(valid, data["encode/valid"] > 0)
        assert 0.2 < valid.numpy().mean() < 0.8


def kernel(distance):
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def slow_resize(grid, height, width):
    """Bicubic with half-pixel centres, pixel by pixel."""
    side = len(grid)
    enlarged = np.zeros((height, width))
    for row, column in np.ndindex(height, width):
        v, u = (row + 0.5) * side / height - 0.5, (column + 0.5) * side / width - 0.5
        for i in range(math.floor(v) - 1, math.floor(v) + 3):
            for j in range(math.floor(u) - 1, math.floor(u) + 3):
                cell = grid[min(max(i, 0), side - 1), min(max(j, 0), side - 1)]
                enlarged[row, column] += kernel(v - i) * kernel(u - j) * cell
    return enlarged


def slow_decode(grid, box):
    width, height = max(box[2] - box[0], 1), max(box[3] - box[1], 1)
    columns, rows = math.ceil(width), math.ceil(height)
    enlarged = slow_resize(grid, rows, columns)
    row, column = np.unravel_index(enlarged.argmax(), enlarged.shape)
    x, y = (column + 0.5) * width / columns + box[0], (row + 0.5) * height / rows + box[1]
    return x, y, enlarged.max(), math.exp(0) / np.exp(grid - enlarged.max()).sum()


def random_case(count=6, side=7, points=2):
    random = np.random.default_rng(3)
    maps = random.normal(0, 2, (count, side, side, points)).astype(np.float32)
    corners = random.uniform(-5, 30, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(0.2, 33, (count, 2))], axis=1)
    return maps, boxes.astype(np.float32)


class TestDecode:
    def test_one_pixel_per_cell_is_the_highest_cell(self):
        maps = np.zeros([1, 4, 4, 2], np.float32)
        maps[0, 2, 1, 0], maps[0, 0, 3, 1] = 3, 2
        found = keypoints.decode(maps, np.float32([[10, 20, 14, 24]])).numpy()[0]
        np.testing.assert_allclose(found[0, :3], [11.5, 22.5, 3], rtol=1e-6)
        np.testing.assert_allclose(found[1, :3], [13.5, 20.5, 2], rtol=1e-6)
        # exp(3) over one exp(3) and fifteen exp(0)
        np.testing.assert_allclose(found[0, 3], math.exp(3) / (math.exp(3) + 15), rtol=1e-5)

    def test_a_width_that_is_not_whole(self):
        # 3.2 wide: four columns of 0.8 pixels; the second has its centre at 1.5 * 0.8
        maps = np.zeros([1, 4, 4, 1], np.float32)
        maps[0, 0, 1, 0] = 1
        found = keypoints.decode(maps, np.float32([[10, 20, 13.2, 24]])).numpy()[0, 0]
        np.testing.assert_allclose(found[:2], [11.2, 20.5], rtol=1e-6)

    def test_a_flat_map(self):
        found = keypoints.decode(np.full([1, 4, 4, 1], 7, np.float32), np.float32([[0, 0, 9, 9]])).numpy()
        np.testing.assert_allclose(found[0, 0, 2:], [7, 1 / 16], rtol=1e-5)

    def test_against_the_slow_oracle(self):
        maps, boxes = random_case()
        found = keypoints.decode(maps, boxes).numpy()
        for region, point in np.ndindex(6, 2):
            expected = slow_decode(maps[region, :, :, point].astype(np.float64), boxes[region].astype(float))
            np.testing.assert_allclose(found[region, point], expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("rows", [1, 7, 1000])
    def test_pieces_of_any_height_give_the_same(self, monkeypatch, rows):
        maps, boxes = random_case()
        whole = keypoints.decode(maps, boxes).numpy()
        monkeypatch.setattr(keypoints, "ROWS", rows)
        np.testing.assert_allclose(keypoints.decode(maps, boxes), whole, rtol=1e-5, atol=1e-5)

    def test_of_equal_pixels_the_first_counts(self, monkeypatch):
        monkeypatch.setattr(keypoints, "ROWS", 2)
        found = keypoints.decode(np.zeros([1, 4, 4, 1], np.float32), np.float32([[0, 0, 4, 6]])).numpy()
        np.testing.assert_array_equal(found[0, 0, :2], [0.5, 0.5])

    def test_a_region_without_size_counts_as_one_pixel(self):
        maps = np.float32(np.random.default_rng(0).normal(size=(2, 5, 5, 3)))
        found = keypoints.decode(maps, np.float32([[5, 6, 5, 6], [5, 6, 4, 9]])).numpy()
        np.testing.assert_allclose(found[0, :, :2], np.tile([5.5, 6.5], (3, 1)))
        np.testing.assert_allclose(found[1, :, 0], 5.5)

    def test_mirrored(self):
        maps, _ = random_case()
        boxes = np.float32([[3, 4, 20, 37]] * 6)
        there = keypoints.decode(maps, boxes).numpy()
        back = keypoints.decode(maps[:, :, ::-1], boxes).numpy()
        np.testing.assert_allclose(back[..., 0], 23 - there[..., 0], rtol=1e-5)
        np.testing.assert_allclose(back[..., 1:], there[..., 1:], rtol=1e-4)

    def test_nothing_and_a_graph_of_unknown_sizes(self):
        signature = [tf.TensorSpec([None, 7, 7, 2]), tf.TensorSpec([None, 4])]
        run = tf.function(keypoints.decode, input_signature=signature)
        maps, boxes = random_case()
        np.testing.assert_allclose(run(maps, boxes), keypoints.decode(maps, boxes), rtol=1e-5)
        for decode in (run, keypoints.decode):
            assert decode(maps[:0], boxes[:0]).shape == (0, 2, 4)

    def test_what_encode_gave_comes_back_within_half_a_cell(self):
        random = np.random.default_rng(1)
        box = np.float32([[7, 9, 63, 121]])  # cells of 1 x 2 pixels
        points = np.concatenate([random.uniform([7, 9], [63, 121], (1, 40, 2)), np.full((1, 40, 1), 2)], -1)
        indices, valid = keypoints.encode(points.astype(np.float32), box, 56)
        assert valid.numpy().all()
        maps = np.moveaxis(20 * np.eye(56 * 56, dtype=np.float32)[indices[0]], 0, -1).reshape(1, 56, 56, 40)
        found = keypoints.decode(maps, box).numpy()
        # half a cell, and along y half a pixel: two pixels of a cell are equally high
        assert (np.abs(found[0, :, :2] - points[0, :, :2]) <= [0.5, 1.5]).all()

    def test_parity(self, shared):
        data = np.load(shared / "parity/ops/keypoints.npz")
        maps = np.moveaxis(data["decode/maps"], 1, 3)
        found = keypoints.decode(maps, data["decode/rois"]).numpy()
        np.testing.assert_allclose(found[..., :2], data["decode/tv_xyv"][..., :2], atol=0.05)
        np.testing.assert_allclose(found[..., 2], data["decode/tv_scores"], rtol=1e-4)
        np.testing.assert_allclose(found[..., :2], data["decode/d2"][..., :2], atol=0.05)
        np.testing.assert_allclose(found[..., 3], data["decode/d2"][..., 3], rtol=1e-4)

    @pytest.mark.parametrize("name", ["tv_mini_keypoint", "d2_keypointrcnn_r50_fpn"])
    @pytest.mark.parametrize("case", "ab")
    def test_parity_of_models(self, shared, name, case):
        data = np.load(shared / f"parity/models/{name}.npz")
        maps = np.moveaxis(data[f"{case}/keypoint/heatmap_first"], 0, 2)[None]
        found = keypoints.decode(maps, data[f"{case}/det/boxes_input/0"][:1]).numpy()[0]
        # the stored points are in the frame of the output: undo the scale that its boxes have
        inside, outside = (data[f"{case}/det/{kind}/0"][0] for kind in ("boxes_input", "boxes"))
        scale = (outside[2:] - outside[:2]) / (inside[2:] - inside[:2])
        expected = data[f"{case}/keypoint/keypoints/0"][0]
        assert (np.abs(found[:, :2] * scale - expected[:, :2]) <= 0.05).all()
        scores = data[f"{case}/keypoint/scores/0"][0] if name.startswith("tv") else expected[:, 2]
        np.testing.assert_allclose(found[:, 2 if name.startswith("tv") else 3], scores, rtol=1e-3)
