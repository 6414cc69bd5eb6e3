"""Mask crops and RLE."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from keras_mrcnn.data import masks


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def full_size(segmentation, height, width):
    """The oracle: the whole image, rasterised or decoded by pycocotools."""
    if isinstance(segmentation, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation)


def paste(crop, box, height, width):
    """The crop back in the image: each pixel takes the cell that its centre lies in."""
    x1, y1, x2, y2 = box
    column = np.floor((np.arange(width) + 0.5 - x1) / (x2 - x1) * crop.shape[1]).astype(int)
    row = np.floor((np.arange(height) + 0.5 - y1) / (y2 - y1) * crop.shape[0]).astype(int)
    columns, rows = (np.flatnonzero((i >= 0) & (i < len(crop))) for i in (column, row))
    mask = np.zeros((height, width), np.uint8)
    mask[np.ix_(rows, columns)] = crop[np.ix_(row[rows], column[columns])]
    return mask


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


class TestByHand:
    def test_a_rectangle_fills_its_box(self):
        polygon = [10.0, 20.0, 50.0, 20.0, 50.0, 40.0, 10.0, 40.0]
        assert masks.object_crop([polygon], [10, 20, 50, 40]).all()

    def test_the_left_half(self):
        polygon = [10.0, 20.0, 30.0, 20.0, 30.0, 40.0, 10.0, 40.0]
        crop = masks.object_crop([polygon], [10, 20, 50, 40])
        assert crop.shape == (112, 112) and crop.dtype == np.uint8
        assert crop[:, :56].all() and not crop[:, 56:].any()

    def test_two_polygons_are_united(self):
        left, right = [0, 0, 1, 0, 1, 4, 0, 4], [3, 0, 4, 0, 4, 4, 3, 4]
        crop = masks.object_crop([left, right], [0, 0, 4, 4])
        assert crop[:, :28].all() and crop[:, 84:].all() and not crop[:, 28:84].any()

    def test_rle_pixels_are_repeated(self):
        mask = np.array([[1, 0], [1, 1]], np.uint8)  # one pixel is 56 cells wide
        expected = np.kron(mask, np.ones((56, 56), np.uint8))
        image = np.zeros((10, 12), np.uint8)
        image[3:5, 6:8] = mask
        for rle in (encode(image), {"size": [10, 12], "counts": [63, 2, 9, 1, 45]}):
            np.testing.assert_array_equal(masks.object_crop(rle, [6, 3, 8, 5]), expected)

    def test_rle_of_a_box_between_pixels(self):
        # cells 0.5-1, 1-1.5, 1.5-2; column 1 is set
        image = np.zeros((4, 4), np.uint8)
        image[:, 1] = 1
        crop = masks.object_crop(encode(image), [0.5, 0, 2, 4], size=3)
        np.testing.assert_array_equal(crop, [[0, 1, 1]] * 3)

    def test_shrinking_is_the_share_of_the_area(self):
        # 224 columns to 112 cells of two: both set, one set (half counts), none
        image = np.zeros((224, 224), np.uint8)
        image[:, 0:2], image[:, 3] = 1, 1
        crop = masks.object_crop(encode(image), [0, 0, 224, 224])
        assert crop[:, 0].all() and crop[:, 1].all() and not crop[:, 2:].any()
        image[:, 3] = 0
        image[::2, 3] = 1  # a quarter
        crop = masks.object_crop(encode(image), [0, 0, 224, 224])
        assert not crop[:, 1:].any()

    def test_nothing(self):
        assert not masks.object_crop(None, [0, 0, 5, 5]).any()
        assert not masks.object_crop([[20, 20, 30, 20, 30, 30]], [0, 0, 5, 5]).any()
        assert not masks.object_crop(encode(np.zeros((9, 9))), [0, 0, 5, 5]).any()

    def test_a_polygon_that_goes_far_beyond_its_box(self):
        # what is inside the box stays right and is quick to make
        polygon = [-1e5, -1e5, 1e5, -1e5, 1e5, 5.0, -1e5, 5.0]
        crop = masks.object_crop([polygon], [0, 0, 10, 10])
        assert crop[:56].all() and not crop[56:].any()

    def test_one_pixel_images(self):
        one = encode(np.ones((1, 1)))
        assert masks.object_crop(one, [0, 0, 1, 1]).all()
        assert masks.object_crop(encode(np.ones((1, 5000))), [0, 0, 5000, 1]).all()


class TestOracle:
    def test_nuclei(self, nuclei):
        for record in nuclei.records[:20]:
            for segmentation, box in zip(record.segmentations, record.boxes, strict=True):
                crop = masks.object_crop(segmentation, box)
                expected = full_size(segmentation, record.height, record.width)
                score = iou(paste(crop, box, record.height, record.width), expected)
                exact = max(box[2] - box[0], box[3] - box[1]) <= 56  # two cells or more in each pixel
                assert score == 1 if exact else score >= 0.97

    def test_coco_sample(self, coco_sample):
        """Polygons of more than 1000 pixels; boundaries of thin ones are a matter of the grid."""
        scores = []
        for record in coco_sample.records:
            for k in np.flatnonzero(~record.crowd & (record.areas > 1000)):
                crop = masks.object_crop(record.segmentations[k], record.boxes[k])
                expected = full_size(record.segmentations[k], record.height, record.width)
                scores.append(iou(paste(crop, record.boxes[k], record.height, record.width), expected))
        assert len(scores) > 300 and np.mean(scores) > 0.98 and np.min(scores) > 0.9
        assert np.mean(np.array(scores) >= 0.97) > 0.85

    @pytest.mark.parametrize("sides", [3, 4, 7])
    def test_convex_polygons_have_iou_97(self, sides):
        random = np.random.default_rng(sides)
        for _ in range(50):
            angles = np.sort(random.uniform(0, 2 * np.pi, 1)) + 2 * np.pi * np.arange(sides) / sides
            points = np.stack([150 + random.uniform(60, 120) * np.cos(angles), 150 + 80 * np.sin(angles)], 1)
            box = [*points.min(axis=0), *points.max(axis=0)]
            expected = full_size([points.ravel().tolist()], 300, 300)
            assert iou(paste(masks.object_crop([points.ravel()], box), box, 300, 300), expected) >= 0.97

    def test_polygon_equals_rle_of_the_same_shape(self):
        polygon = [20.0, 20.0, 90.0, 30.0, 70.0, 95.0, 25.0, 80.0]
        box = [20, 20, 90, 95]
        rle = encode(full_size([polygon], 120, 120))
        assert iou(masks.object_crop([polygon], box), masks.object_crop(rle, box)) > 0.97

    def test_a_crop_does_not_depend_on_the_scale(self):
        polygon = np.array([20.0, 20.0, 90.0, 30.0, 70.0, 95.0, 25.0, 80.0])
        box = np.array([20, 20, 90, 95.0])
        crop = masks.object_crop([polygon], box)
        np.testing.assert_array_equal(crop, masks.object_crop([polygon * 4], box * 4))

    def test_rle_area_average_against_a_loop(self):
        random = np.random.default_rng(0)
        image = (random.random((40, 50)) < 0.6).astype(np.uint8)
        x1, y1, x2, y2 = box = [3.3, 5.6, 44.1, 33.9]
        crop = masks.object_crop(encode(image), box, size=6)
        for row in range(6):
            for column in range(6):
                left, right = (x1 + (x2 - x1) * c / 6 for c in (column, column + 1))
                top, bottom = (y1 + (y2 - y1) * r / 6 for r in (row, row + 1))
                covered = sum(
                    image[i, j]
                    * max(0, min(bottom, i + 1) - max(top, i))
                    * max(0, min(right, j + 1) - max(left, j))
                    for i in range(40)
                    for j in range(50)
                )
                share = covered / ((right - left) * (bottom - top))
                assert abs(share - 0.5) < 1e-5 or crop[row, column] == (share >= 0.5)


class TestRLE:
    @pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (37, 53), (600, 400)])
    def test_agrees_with_pycocotools(self, shape, density):
        random = np.random.default_rng(1)
        mask = (random.random(shape) < density).astype(np.uint8)
        rle = encode(mask)
        runs = masks.rle_runs(rle["counts"])
        assert runs.sum() == mask.size
        np.testing.assert_array_equal(masks.rle_runs(rle["counts"].decode()), runs)
        np.testing.assert_array_equal(masks.decode_columns(rle, 0, shape[1]), mask)
        left, right = shape[1] // 3, shape[1] // 3 * 2
        np.testing.assert_array_equal(masks.decode_columns(rle, left, right), mask[:, left:right])
        uncompressed = {"size": list(shape), "counts": runs.tolist()}
        assert coco_mask.frPyObjects(uncompressed, *shape)["counts"] == rle["counts"]
        box, area = masks.rle_box_and_area(uncompressed)
        assert area == mask.sum()
        if area == 0:
            assert box is None
        else:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            np.testing.assert_array_equal(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])

    @pytest.mark.parametrize(
        "counts", ["~~~", b"o", "\x00", 5, None, [1.5], [-1, 2], ["1"], "o" * 20 + "0", "é"]
    )
    def test_damaged_counts(self, counts):
        with pytest.raises(ValueError, match="RLE counts"):
            masks.rle_runs(counts)

    def test_area_of_polygons(self):
        # two squares of 100 that share 50
        a, b = [0, 0, 10, 0, 10, 10, 0, 10], [5, 0, 15, 0, 15, 10, 5, 10]
        assert masks.polygon_area([a, b], 20, 20) == 150
