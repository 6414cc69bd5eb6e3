"""Windows, large-scale jitter and copy-paste: boxes stay those of their own masks."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.data import copy_paste, masks, transforms
from tests.data.test_transforms import full_mask


def make_example(boxes, crops=None, size=(100, 100), value=0):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    crops = np.ones((len(boxes), 112, 112), np.uint8) if crops is None else np.stack(crops)
    return {
        "image": tf.fill([*size, 3], tf.constant(value, tf.uint8)),
        "boxes": tf.constant(boxes),
        "classes": tf.range(len(boxes)),
        "masks": tf.constant(crops),
    }


def triangle():
    """The lower left half of a crop."""
    return np.tril(np.ones((112, 112), np.uint8))


class TestCrop:
    def test_by_hand(self):
        boxes = [[10, 10, 30, 30], [50, 50, 70, 70], [0, 0, 5, 5], [10, 10, 66, 66]]
        example = make_example(boxes, [np.ones((112, 112), np.uint8)] * 3 + [triangle()])
        after = transforms.crop(example, tf.constant([20, 0, 70, 60]))
        # the first is cut at 20, the second at 60 below and whole at the right, the third is outside; of the
        # triangle a triangle is left, whose corner is at 20, 20
        expected = [[0, 10, 10, 30], [30, 50, 50, 60], [0, 20, 40, 60]]
        np.testing.assert_allclose(after["boxes"], expected, atol=1e-4)
        assert after["classes"].numpy().tolist() == [0, 1, 3] and after["image"].shape == (60, 50, 3)
        assert after["masks"].numpy()[:2].all()
        assert after["masks"].numpy()[2].mean() == pytest.approx(0.5, abs=0.02)

    def test_a_window_that_cuts_nothing(self):
        example = make_example([[10, 10, 30, 30.5]], [triangle()])
        after = transforms.crop(example, tf.constant([5, 6, 40, 40]))
        np.testing.assert_array_equal(after["boxes"], [[5, 4, 25, 24.5]])
        np.testing.assert_array_equal(after["masks"], example["masks"])

    def test_boxes_without_masks_are_clipped(self):
        example = make_example([[10, 10, 30, 30], [10, 10, 20.5, 30]], [np.zeros((112, 112), np.uint8)] * 2)
        after = transforms.crop(example, tf.constant([20, 0, 50, 20]))
        np.testing.assert_array_equal(after["boxes"], [[0, 10, 10, 20]])  # half a pixel is nothing
        assert not after["masks"].numpy().any()

    def test_the_empty_part_of_a_mask(self):
        example = make_example([[0, 0, 56, 56]], [triangle()])
        after = transforms.crop(example, tf.constant([40, 0, 60, 30]))  # above the diagonal
        assert len(after["boxes"]) == 0 and after["masks"].shape == (0, 112, 112)

    def test_keypoints(self):
        points = [[[15, 15, 2], [25, 15, 1], [45, 15, 2]], [[1, 1, 2], [0, 0, 0], [0, 0, 0]]]
        example = make_example([[10, 10, 50, 30], [0, 0, 5, 5]])
        example |= {"keypoints": tf.constant(points, tf.float32), "mirrored": tf.constant([[0, 2, 1]] * 2)}
        after = transforms.crop(example, tf.constant([20, 5, 40, 50]))
        np.testing.assert_array_equal(after["keypoints"], [[[0, 0, 0], [5, 10, 1], [0, 0, 0]]])
        assert after["mirrored"].shape == (1, 3)


class TestLargeScaleJitter:
    def test_size_padding_and_places(self):
        example = make_example([[0, 0, 50, 60]], size=(60, 50), value=7)
        run = tf.function(lambda seed: transforms.large_scale_jitter(example, (0.5, 2.0), 64, seed))
        shares = []
        for seed in range(60):
            after = run(tf.constant([0, seed]))
            assert after["image"].shape == (64, 64, 3)
            image, box = after["image"].numpy()[..., 0], after["boxes"].numpy()[0]
            assert set(np.unique(image)) <= {7, 128}
            rows, columns = np.nonzero(image == 7)
            np.testing.assert_allclose(box, [0, 0, columns.max() + 1, rows.max() + 1], atol=1e-3)
            assert columns.min() == rows.min() == 0
            shares.append(rows.max() + 1)
        assert min(shares) < 40 and shares.count(64) > 20  # half as large at least; cut two times of three

    def test_every_place_is_cut(self):
        image = np.arange(80, dtype=np.uint8)[:, None, None] * np.ones((1, 80, 3), np.uint8)
        example = make_example([[0, 0, 80, 80]]) | {"image": tf.constant(image)}
        run = tf.function(lambda seed: transforms.large_scale_jitter(example, (80 / 77,) * 2, 77, seed))
        assert {int(run(tf.constant([0, seed]))["image"][0, 0, 0]) for seed in range(40)} == {0, 1, 2, 3}


class TestCopyPaste:
    SEED = 2  # takes the first of two objects and leaves the second

    def pasted(self, example, other):
        return copy_paste.copy_paste(example, other, tf.constant([0, self.SEED]))

    def test_by_hand(self):
        chosen = tf.random.stateless_uniform([2], [0, self.SEED]).numpy() < 0.5
        assert chosen.tolist() == [True, False]
        boxes = [[10, 10, 50, 50], [60, 60, 90, 90], [30, 30, 49, 49], [20, 20, 60, 60]]
        crops = [np.ones((112, 112), np.uint8)] * 3 + [np.zeros((112, 112), np.uint8)]
        example, other = make_example(boxes, crops), make_example([[30, 0, 80, 50], [0, 0, 9, 9]], value=9)
        after = self.pasted(example, other)
        # the first loses its right half, the second nothing, the third all; the box without a mask stays
        expected = [[10, 10, 30, 50], [60, 60, 90, 90], [20, 20, 60, 60], [30, 0, 80, 50]]
        np.testing.assert_allclose(after["boxes"], expected, atol=0.5)
        assert after["classes"].numpy().tolist() == [0, 1, 3, 0]
        image = after["image"].numpy()[..., 0]
        assert (image[:50, 30:80] == 9).all() and (image == 9).sum() == 50 * 50

    def test_small_remains_and_small_objects(self):
        example, other = make_example([[10, 10, 30, 30]]), make_example([[10, 10, 17, 30]] * 2)
        assert len(self.pasted(example, other)["boxes"]) == 1  # 140 pixels are not pasted
        other = make_example([[10, 10, 26, 30], [0, 0, 9, 9]])
        after = self.pasted(example, other)  # 4 * 20 of 20 * 20 are left: too few
        np.testing.assert_array_equal(after["boxes"], [[10, 10, 26, 30]])

    def test_keypoints_below_are_hidden(self):
        points = tf.constant([[[15.0, 15, 2], [25, 45, 2], [0, 0, 0]]])
        keypoints = {"keypoints": points, "mirrored": tf.constant([[0, 2, 1]])}
        other = make_example([[10, 10, 30, 30], [0, 0, 5, 5]])
        other |= {"keypoints": tf.zeros([2, 3, 3]), "mirrored": tf.constant([[0, 2, 1]] * 2)}
        after = self.pasted(make_example([[10, 10, 50, 50]]) | keypoints, other)
        np.testing.assert_array_equal(after["keypoints"][0], [[15, 15, 1], [25, 45, 2], [0, 0, 0]])
        assert after["keypoints"].shape == (2, 3, 3)

    @pytest.mark.parametrize("size", [(40, 200), (100, 100), (300, 20)])
    def test_sizes_and_no_objects(self, size):
        none, some = make_example([]), make_example([[0, 0, 90, 90], [0, 0, 9, 9]], size=size, value=9)
        some["boxes"] = tf.minimum(some["boxes"], tf.constant([*size[::-1], *size[::-1]], tf.float32))
        for example, other in ((none, none), (some, none), (none, some)):
            after = tf.function(self.pasted)(example, other)
            assert after["image"].shape == example["image"].shape
            assert len(after["boxes"]) == len(after["masks"]) == len(after["classes"])
        assert (after["image"].numpy() == 9).any() and len(after["boxes"]) == 1


class Pixels:
    """The slow oracle: a full-size mask as one rectangle for each pixel, which move by plain sums."""

    def __init__(self, mask, grow=0.0):
        """`grow`: by how much each rectangle is larger on every side."""
        y, x = np.nonzero(mask)
        self.corners = np.stack([x - grow, y - grow, x + 1 + grow, y + 1 + grow], axis=-1)

    def flip(self, width):
        self.corners[:, [0, 2]] = width - self.corners[:, [2, 0]]

    def turn(self):
        self.corners = self.corners[:, [1, 0, 3, 2]]

    def scale(self, factors):
        self.corners *= np.tile(factors, 2)

    def cut(self, window):
        low, high = np.tile(window[:2], 2), np.tile(window[2:], 2)
        corners = np.clip(self.corners, low, high) - low
        self.corners = corners[(corners[:, 2:] > corners[:, :2]).all(axis=1)]

    def box(self):
        return np.concatenate([self.corners[:, :2].min(axis=0), self.corners[:, 2:].max(axis=0)])


def eroded(mask, radius):
    """The pixels whose neighbours up to `radius` away along both axes are all of the mask."""
    padded = np.pad(mask, radius)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0).min(axis=-1)
    return np.lib.stride_tricks.sliding_window_view(windows, 2 * radius + 1, axis=1).min(axis=-1)


def random_step(example, oracles, random):
    """One of the transforms, on the example and on every oracle."""
    height, width = example["image"].shape[:2]
    choice = random.integers(0, 4)
    if choice == 0:
        [one.flip(width) for one in oracles]
        return transforms.horizontal_flip(example)
    if choice == 1:
        [one.turn() for one in oracles]
        return transforms.transpose(example)
    if choice == 2:
        example = transforms.resize(example, int(random.integers(60, 500)), 700)
        [one.scale(np.array(example["image"].shape[1::-1]) / [width, height]) for one in oracles]
        return example
    x, y = (np.sort(random.choice(edge + 1, 2, replace=False)) for edge in (width, height))
    window = np.array([x[0], y[0], x[1], y[1]])
    if min(window[2:] - window[:2]) < 20:
        return example
    [one.cut(window) for one in oracles]
    return transforms.crop(example, tf.constant(window, tf.int32))


@pytest.mark.parametrize("name", ["nuclei", "coco_sample"])
def test_random_chains_keep_boxes_tight(name, request):
    """Flips, turns, resizes and cuts in any order on real objects.

    A crop moves the outline of a mask by up to a cell and a pixel, and a cut through a flat outline can make
    much of that: so the box, and the tight box of its own crop, must lie between those of the oracle's mask
    made thinner and thicker by as much.
    """
    random = np.random.default_rng(0)
    compared = dropped = cut = 0
    for record in request.getfixturevalue(name).records[:30]:
        inner, outer, crops = {}, {}, {}
        for k in np.flatnonzero(~record.crowd)[:8].tolist():
            mask, box = full_mask(record, k), record.boxes[k]
            if mask.any() and np.abs(Pixels(mask).box() - box).max() <= 1:  # else the annotator's box is not
                slack = 1 + max(box[2:] - box[:2]) / 112  # that of the mask
                outer[k], inner[k] = Pixels(mask, slack), Pixels(eroded(mask, int(np.ceil(2 * slack))))
                crops[k] = masks.object_crop(record.segmentations[k], box)
        if not outer:
            continue
        example = make_example(record.boxes[list(outer)], list(crops.values()), (record.height, record.width))
        example["classes"] = tf.constant(list(outer), tf.int32)
        for _ in range(5):
            example = random_step(example, [*inner.values(), *outer.values()], random)
        height, width = example["image"].shape[:2]
        boxes = dict(zip(example["classes"].numpy().tolist(), example["boxes"].numpy(), strict=True))
        own = dict(zip(boxes, example["masks"].numpy(), strict=True))
        for k in outer:
            if k not in boxes:  # the thinner mask is gone, too, or a sliver
                dropped += 1
                corners = inner[k].corners
                assert len(corners) == 0 or min(np.diff(inner[k].box().reshape(2, 2), axis=0)[0]) < 3
                continue
            compared += 1
            largest = np.clip(outer[k].box(), 0, [width, height, width, height])
            assert (boxes[k] * [1, 1, -1, -1] >= largest * [1, 1, -1, -1] - 0.01).all(), (record.image_id, k)
            if len(inner[k].corners):
                smallest = inner[k].box()
                assert (boxes[k] * [1, 1, -1, -1] <= smallest * [1, 1, -1, -1] + 0.01).all()
                rows, columns = np.flatnonzero(own[k].any(axis=1)), np.flatnonzero(own[k].any(axis=0))
                filled = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 112
                tight = np.tile(boxes[k][:2], 2) + filled * np.tile(boxes[k][2:] - boxes[k][:2], 2)
                assert (tight * [1, 1, -1, -1] <= smallest * [1, 1, -1, -1] + 0.01).all()
            cut += (boxes[k][:2] == 0).any() or (boxes[k][2:] == [width, height]).any()
    assert compared > 60 and dropped > 10 and cut > 20
