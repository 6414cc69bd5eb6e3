"""What the heads learn from the sampled regions (NUMERICS sections 9 to 11)."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from keras_mrcnn.data.masks import object_crop
from keras_mrcnn.roi.targets import box_targets, crop_masks, keypoint_targets, mask_targets


class TestBoxTargets:
    # two images, three places each: foreground, foreground (empty in the second), background
    REGIONS = (
        np.float32(
            [[[0, 0, 10, 20], [4, 4, 8, 8], [50, 50, 60, 60]], [[2, 2, 12, 12], [0] * 4, [7, 7, 9, 9]]]
        ),
        np.int32([[1, 0, 0], [0, 0, 0]]),
        np.array([[True, True, False], [True, False, False]]),
        np.array([[False, False, True], [False, False, True]]),
    )
    TARGETS = {
        "boxes": np.float32([[[4, 4, 12, 8], [5, 10, 25, 20]], [[2, 4, 12, 14], [0] * 4]]),
        "classes": np.int32([[2, 1], [0, 0]]),
    }

    def test_by_hand(self):
        classes, deltas, foreground = (
            x.numpy() for x in box_targets(self.REGIONS, self.TARGETS, 3, (10, 10, 5, 5))
        )
        assert foreground.tolist() == [True, True, False, True, False]
        assert classes.tolist() == [1, 2, 3, 0, 3]  # background is the last
        # centre (5, 10), 10 x 20 to (15, 15), 20 x 10: 10 * 1, 10 * .25, 5 log 2, 5 log 1/2
        np.testing.assert_allclose(deltas[0], [10, 2.5, 5 * math.log(2), -5 * math.log(2)], rtol=1e-5)
        # centre (6, 6), 4 x 4 to (8, 6), 8 x 4
        np.testing.assert_allclose(deltas[1], [5, 0, 5 * math.log(2), 0], rtol=1e-5, atol=1e-6)
        # the same size, two pixels lower
        np.testing.assert_allclose(deltas[3], [0, 2, 0, 0], rtol=1e-5, atol=1e-6)
        assert np.isfinite(deltas).all()

    def test_other_weights(self):
        deltas = box_targets(self.REGIONS, self.TARGETS, 3, (20, 10, 10, 5))[1].numpy()
        np.testing.assert_allclose(deltas[0], [20, 2.5, 10 * math.log(2), -5 * math.log(2)], rtol=1e-5)

    def test_nothing_sampled(self):
        boxes, matched, nobody, _ = self.REGIONS
        nobody = np.zeros_like(nobody)
        classes, deltas, foreground = box_targets(
            (boxes, matched, nobody, nobody), self.TARGETS, 3, (1, 1, 1, 1)
        )
        assert classes.shape == foreground.shape == (0,) and deltas.shape == (0, 4)


def corners(position, size):
    """The two pixels of a bilinear sample and their weights; nothing beyond one pixel outside."""
    if not -1 <= position <= size:
        return []
    position = max(position, 0.0)
    low = int(position)
    if low >= size - 1:
        return [(size - 1, 1.0)]
    return [(low, 1 - (position - low)), (low + 1, position - low)]


def aligned_mean(crop, true_box, roi, size):
    """RoIAlign (aligned, 2 x 2 samples) of a mask that is `crop` inside of its true box and 0 outside."""
    crop, side = np.pad(crop.astype(np.float64), 1), crop.shape[0]
    scale = side / (np.float64(true_box[2:]) - true_box[:2])
    x1, y1 = (np.float64(roi[:2]) - true_box[:2]) * scale + 0.5  # - 0.5 + 1 of padding
    step_x, step_y = (np.float64(roi[2:]) - roi[:2]) * scale / size / 2
    output = np.zeros((size, size))
    for i, j in np.ndindex(2 * size, 2 * size):
        for row, wy in corners(y1 + (i + 0.5) * step_y, side + 2):
            for column, wx in corners(x1 + (j + 0.5) * step_x, side + 2):
                output[i // 2, j // 2] += wy * wx * crop[row, column] / 4
    return output


def crop_one(crop, true_box, roi, size):
    return crop_masks(crop[None], np.float32([true_box]), np.float32([roi]), size).numpy()[0]


class TestCropMasks:
    BOX = [100, 50, 212, 106]

    def test_the_true_box_gives_its_mask_back(self):
        small = np.random.default_rng(0).integers(0, 2, (28, 28))
        crop = small.repeat(4, 0).repeat(4, 1).astype(np.uint8)
        np.testing.assert_array_equal(crop_one(crop, self.BOX, self.BOX, 28), small)

    def test_the_upper_left_quarter(self):
        small = np.random.default_rng(1).integers(0, 2, (28, 28))
        crop = small.repeat(4, 0).repeat(4, 1).astype(np.uint8)
        quarter = crop_one(crop, self.BOX, [100, 50, 156, 78], 14)
        np.testing.assert_array_equal(quarter, small[:14, :14])

    def test_half_outside_is_zero_outside(self):
        # the region begins half a width to the left and ends in the middle; height as the box
        masks = crop_one(np.ones([112, 112], np.uint8), self.BOX, [44, 50, 156, 106], 28)
        np.testing.assert_array_equal(masks[:, :14], np.zeros([28, 14]))
        np.testing.assert_array_equal(masks[:, 14:], np.ones([28, 14]))
        masks = crop_one(np.ones([112, 112], np.uint8), self.BOX, [100, 78, 212, 134], 28)
        np.testing.assert_array_equal(masks[:14], np.ones([14, 28]))
        np.testing.assert_array_equal(masks[14:], np.zeros([14, 28]))

    def test_wholly_outside(self):
        full = np.ones([112, 112], np.uint8)
        for roi in ([300, 50, 400, 106], [100, 110, 212, 160], [0, 0, 90, 40]):
            assert not crop_one(full, self.BOX, roi, 28).any()

    def test_half_is_inside(self):
        # one bin: exactly half of its four samples on the mask, and less than half
        crop = np.zeros([4, 4], np.uint8)
        crop[:, :2] = 1
        np.testing.assert_array_equal(crop_one(crop, [0, 0, 4, 4], [0, 0, 4, 4], 1), [[1]])
        crop[2:, :2] = 0
        np.testing.assert_array_equal(crop_one(crop, [0, 0, 4, 4], [0, 0, 4, 4], 1), [[0]])

    def test_against_samples_written_out(self):
        rng = np.random.default_rng(2)
        y, x = np.mgrid[:32, :32] + 0.5
        crops = np.stack(
            [((x - 16) / a) ** 2 + ((y - 15) / b) ** 2 < 1 for a, b in ((15, 9), (8, 14), (16, 16))]
        )
        true_boxes = np.float32([[10, 20, 50, 44], [0, 0, 17, 33], [5, 5, 105, 65]])
        size = true_boxes[:, 2:] - true_boxes[:, :2]
        rois = true_boxes + rng.uniform(-0.25, 0.25, (3, 4)) * np.tile(size, 2)
        rois = rois.astype(np.float32)
        masks = crop_masks(crops.astype(np.uint8), true_boxes, rois, 9).numpy()
        assert masks.dtype == np.float32
        for given, crop, true_box, roi in zip(masks, crops, true_boxes, rois):
            mean = aligned_mean(crop, true_box, roi, 9)
            clear = np.abs(mean - 0.5) > 1e-3
            assert clear.sum() > 75 and 0.1 < mean.mean() < 0.95
            np.testing.assert_array_equal(given[clear], (mean >= 0.5)[clear])

    def test_flipped(self):
        crop = np.random.default_rng(3).integers(0, 2, (28, 28)).astype(np.uint8)
        roi, mirrored = [92, 47, 180, 100], [312 - 180, 47, 312 - 92, 100]  # about the middle of the box
        np.testing.assert_array_equal(
            crop_one(crop[:, ::-1], self.BOX, mirrored, 7), crop_one(crop, self.BOX, roi, 7)[:, ::-1]
        )

    def test_nothing(self):
        none = np.zeros([0, 4], np.float32)
        assert crop_masks(np.zeros([0, 8, 8], np.uint8), none, none, 28).shape == (0, 28, 28)
        empty_box = crop_one(np.ones([8, 8], np.uint8), [5, 5, 5, 5], [0, 0, 10, 10], 4)
        assert np.isfinite(empty_box).all()

    @pytest.mark.parametrize("case", ["targets28", "targets14"])
    def test_parity_with_targets_from_bitmaps(self, shared, case):
        """The reference samples the bitmap itself; crops of 112 x 112 agree up to pixels on the outline."""
        data = np.load(shared / "parity/ops/masks.npz")
        about = json.loads((shared / "parity/ops/masks.json").read_text())[case]
        height, width = about["image"]
        y, x = np.mgrid[:height, :width] + 0.5
        crops = []
        for x1, y1, x2, y2 in about["gt_boxes"]:
            radius = ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2
            ellipse = coco_mask.encode(np.asfortranarray(radius <= 0.25, np.uint8))
            crops.append(object_crop(ellipse, [x1, y1, x2, y2]))
        matched, expected = data[f"{case}/matched"], data[f"{case}/detectron2"].astype(bool)
        true_boxes = np.float32(about["gt_boxes"])[matched]
        masks = crop_masks(np.stack(crops)[matched], true_boxes, data[f"{case}/proposals"], about["size"])
        masks = masks.numpy().astype(bool)
        assert (masks != expected).mean() < 0.01
        for mask, wanted in zip(masks, expected):
            assert not wanted.any() or (mask & wanted).sum() / (mask | wanted).sum() > 0.94
        soft = crop_masks(
            np.stack(crops)[matched], true_boxes, data[f"{case}/proposals"], about["size"], True
        )
        difference = np.abs(soft.numpy() - data[f"{case}/torchvision"])
        assert difference.mean() < 0.01
        assert 0.01 < ((soft.numpy() > 0.01) & (soft.numpy() < 0.99)).mean()


class TestMaskTargets:
    def test_each_region_gets_the_mask_of_its_own_object(self):
        rng = np.random.default_rng(4)
        crops = rng.integers(0, 2, (2, 3, 8, 8)).astype(np.uint8)
        true_boxes = np.float32(
            [[[0, 0, 16, 16], [20, 20, 52, 36], [0] * 4], [[8, 8, 40, 40], [0] * 4, [5, 5, 9, 9]]]
        )
        targets = {
            "boxes": true_boxes,
            "classes": np.int32([[4, 5, 0], [6, 0, 7]]),
            "masks": crops,
            "has_mask": np.array([[True, False, False], [True, False, True]]),
        }
        matched = np.int32([[1, 0, 0, 0], [2, 0, 0, 0]])
        foreground = np.array([[True, True, False, False], [True, False, True, False]])
        boxes = np.take_along_axis(true_boxes, matched[..., None], 1)
        regions = boxes, matched, foreground, ~foreground
        classes, masks, has_mask = (x.numpy() for x in mask_targets(regions, targets, 4))
        expected = [(0, 1), (0, 0), (1, 2), (1, 0)]
        assert classes.tolist() == [5, 4, 7, 6] and classes.dtype == np.int32
        assert has_mask.tolist() == [False, True, True, True]
        for mask, (image, index) in zip(masks, expected):
            wanted = crop_one(crops[image, index], true_boxes[image, index], true_boxes[image, index], 4)
            np.testing.assert_array_equal(mask, wanted)

    def test_no_foreground(self):
        targets = {
            "boxes": np.zeros([2, 1, 4], np.float32),
            "classes": np.zeros([2, 1], np.int32),
            "masks": np.zeros([2, 1, 8, 8], np.uint8),
            "has_mask": np.zeros([2, 1], bool),
        }
        nobody = np.zeros([2, 5], bool)
        regions = np.zeros([2, 5, 4], np.float32), np.zeros([2, 5], np.int32), nobody, ~nobody
        classes, masks, has_mask = mask_targets(regions, targets, 28)
        assert classes.shape == has_mask.shape == (0,) and masks.shape == (0, 28, 28)


class TestKeypointTargets:
    """Heat maps of 4 x 4 cells; two images with three true objects each, two keypoints."""

    KEYPOINTS = np.float32(
        [
            [[[5, 5, 2], [0, 0, 0]], [[30, 30, 1], [35, 38, 2]], [[0, 0, 0], [0, 0, 0]]],
            [[[9, 3, 2], [70, 70, 2]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]],
        ]
    )
    BOXES = np.float32(
        [
            [[20, 20, 40, 40], [0, 0, 8, 8], [6, 6, 14, 14], [0, 0, 8, 8], [50, 50, 60, 60]],
            [[0, 0, 12, 4], [20, 20, 40, 40], [0, 0, 12, 4], [0, 0, 12, 4], [0, 0, 0, 0]],
        ]
    )
    MATCHED = np.int32([[1, 0, 0, 0, 2], [0, 1, 2, 0, 0]])
    FOREGROUND = np.array([[True, True, True, False, True], [True, True, True, False, False]])

    def targets(self, matched=MATCHED, foreground=FOREGROUND):
        regions = self.BOXES, matched, foreground, ~foreground
        return [x.numpy() for x in keypoint_targets(regions, {"keypoints": self.KEYPOINTS}, 4)]

    def test_by_hand(self):
        chosen, indices, valid = self.targets()
        # image 0: region 2 misses its point, region 3 is background, region 4's object has no labels
        assert chosen.tolist() == [[True, True, False, False, False], [True, False, False, False, False]]
        assert valid.tolist() == [[True, True], [True, False], [True, False]]
        # (30 - 20) / 5, both: 2 * 4 + 2; (35, 38): column 3, row 3; (5, 5) / 2: 2 * 4 + 2; (9, 3): column 3
        # of 12 / 4, row 3 of 4 / 4
        assert indices.tolist() == [[10, 15], [10, 0], [15, 0]]
        assert indices.dtype == np.int32

    def test_nothing_chosen(self):
        for foreground in (self.FOREGROUND & False, self.FOREGROUND):
            chosen, indices, valid = self.targets(np.full_like(self.MATCHED, 2), foreground)
            assert not chosen.any() and indices.shape == valid.shape == (0, 2)

    def test_in_a_graph_of_unknown_sizes(self):
        @tf.function(input_signature=[tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None, 2, 3])])
        def run(boxes, points):
            regions = boxes, self.MATCHED, self.FOREGROUND, ~self.FOREGROUND
            return keypoint_targets(regions, {"keypoints": points}, 4)

        for given, expected in zip(run(self.BOXES, self.KEYPOINTS), self.targets(), strict=True):
            np.testing.assert_array_equal(given, expected)

    @pytest.mark.parametrize("name", ["tv_mini_keypoint", "d2_keypointrcnn_r50_fpn"])
    def test_parity(self, shared, name):
        """The regions of the stored training steps; there all of the foreground has a keypoint inside."""
        data = np.load(shared / f"parity/models/{name}.npz")
        about = json.loads((shared / f"parity/models/{name}.json").read_text())["cases"]["train"]
        for image, (size, true) in enumerate(zip(about["images"], about["targets"], strict=True)):
            labels, boxes = (data[f"train/roi/{part}/{image}"] for part in ("labels", "proposals"))
            if name.startswith("tv"):
                foreground, matched = labels > 0, data[f"train/roi/matched_idx/{image}"]
            else:
                distance = np.abs(data[f"train/roi/gt_boxes/{image}"][:, None] - np.array(true["boxes"]))
                foreground, matched = labels == 0, distance.sum(-1).argmin(-1)
            matched = np.where(foreground, matched, 0).astype(np.int32)
            regions = (x[None] for x in (boxes, matched, foreground, ~foreground))
            points = np.float32([true["keypoints"]])
            height, width, _ = size
            if name.startswith("tv"):  # it resizes inside the model
                scale = about["min_size"] / min(height, width)
                points[..., 0] *= np.float32(int(width * scale) / width)
                points[..., 1] *= np.float32(int(height * scale) / height)
            chosen, indices, valid = keypoint_targets(regions, {"keypoints": points}, 56)
            np.testing.assert_array_equal(chosen[0], foreground)
            np.testing.assert_array_equal(indices, data[f"train/keypoint/target_index/{image}"])
            np.testing.assert_array_equal(valid, data[f"train/keypoint/target_valid/{image}"])
