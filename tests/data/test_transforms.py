"""Image, boxes, masks and keypoints move together."""

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from keras_mrcnn.data import images, masks, transforms


def make_example():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    crop = np.zeros((1, 112, 112), np.uint8)
    crop[0, :56, :28] = 1  # above and left
    return {
        "image": tf.constant(image),
        "boxes": tf.constant([[1.0, 0.0, 3.0, 1.0]]),
        "masks": tf.constant(crop),
    }


def with_keypoints():
    """Three points; the second and the third are partners."""
    points = tf.constant([[[1.5, 0.5, 2.0], [2.5, 3.5, 1.0], [0.0, 0.0, 0.0]]])
    return make_example() | {"keypoints": points, "mirrored": tf.constant([[0, 2, 1]])}


def same(a, b):
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


class TestByHand:
    def test_horizontal_flip(self):
        before, after = make_example(), transforms.horizontal_flip(make_example())
        np.testing.assert_array_equal(after["boxes"], [[3, 0, 5, 1]])  # 6 - 3, 6 - 1
        np.testing.assert_array_equal(after["image"], before["image"][:, ::-1])
        assert after["masks"].numpy()[0, :56, 84:].all() and after["masks"].numpy().sum() == 56 * 28

    def test_vertical_flip(self):
        before, after = make_example(), transforms.vertical_flip(make_example())
        np.testing.assert_array_equal(after["boxes"], [[1, 3, 3, 4]])  # 4 - 1, 4 - 0
        np.testing.assert_array_equal(after["image"], before["image"][::-1])
        assert after["masks"].numpy()[0, 56:, :28].all() and after["masks"].numpy().sum() == 56 * 28

    def test_transpose(self):
        before, after = make_example(), transforms.transpose(make_example())
        np.testing.assert_array_equal(after["boxes"], [[0, 1, 1, 3]])
        np.testing.assert_array_equal(after["image"], before["image"].numpy().swapaxes(0, 1))
        assert after["masks"].numpy()[0, :28, :56].all() and after["masks"].numpy().sum() == 56 * 28

    def test_resize(self):
        after = transforms.resize(make_example(), 8, 100)
        np.testing.assert_array_equal(after["boxes"], [[2, 0, 6, 2]])
        assert after["image"].shape == (8, 12, 3)
        same({"masks": after["masks"]}, make_example())

    def test_each_axis_has_its_own_scale(self):
        # 4 x 6 to a short edge of 3: 3 x 4.5, rounded to 5; x by 5 / 6, y by 3 / 4
        after = transforms.resize(make_example(), 3, 100)
        assert after["image"].shape == (3, 5, 3)
        np.testing.assert_allclose(after["boxes"], [[5 / 6, 0, 15 / 6, 0.75]], rtol=1e-6)


class TestKeypoints:
    def test_horizontal_flip(self):
        after = transforms.horizontal_flip(with_keypoints())["keypoints"]
        # 6 - x; the second takes the third's place, which is not labelled
        np.testing.assert_array_equal(after, [[[4.5, 0.5, 2], [0, 0, 0], [3.5, 3.5, 1]]])

    def test_vertical_flip(self):
        after = transforms.vertical_flip(with_keypoints())["keypoints"]
        np.testing.assert_array_equal(after, [[[1.5, 3.5, 2], [0, 0, 0], [2.5, 0.5, 1]]])

    def test_transpose(self):
        after = transforms.transpose(with_keypoints())["keypoints"]
        np.testing.assert_array_equal(after, [[[0.5, 1.5, 2], [0, 0, 0], [3.5, 2.5, 1]]])

    def test_resize(self):
        # 4 x 6 to 3 x 5: x by 5 / 6, y by 3 / 4
        after = transforms.resize(with_keypoints(), 3, 100)["keypoints"]
        expected = [[[1.25, 0.375, 2], [2.5 * 5 / 6, 3.5 * 0.75, 1], [0, 0, 0]]]
        np.testing.assert_allclose(after, expected, rtol=1e-6)

    def test_a_half_turn_exchanges_nothing(self):
        turned = transforms.vertical_flip(transforms.horizontal_flip(with_keypoints()))["keypoints"]
        np.testing.assert_array_equal(turned, [[[4.5, 3.5, 2], [3.5, 0.5, 1], [0, 0, 0]]])

    def test_a_chain_on_random_points_can_be_undone(self):
        random = np.random.default_rng(0)
        for _ in range(20):
            height, width = random.integers(30, 90, 2)
            points = np.concatenate(
                [random.uniform(0, [width, height], (5, 7, 2)), random.integers(0, 3, (5, 7, 1))], axis=-1
            )
            points = np.where(points[..., 2:] > 0, points, 0).astype(np.float32)
            partners = np.arange(7) if random.random() < 0.2 else np.array([0, 2, 1, 4, 3, 6, 5])
            given = {
                "image": tf.zeros([height, width, 3], tf.uint8),
                "boxes": tf.zeros([5, 4]),
                "masks": tf.zeros([5, 112, 112], tf.uint8),
                "keypoints": tf.constant(points),
                "mirrored": tf.constant(np.tile(partners, (5, 1)).astype(np.int32)),
            }
            flips = [
                (transforms.horizontal_flip, transforms.vertical_flip)[i] for i in random.integers(0, 2, 3)
            ]
            after = given
            for step in (*flips, lambda example: transforms.resize(example, 41, 1000), *flips[::-1]):
                after = step(after)
            scale = np.array(after["image"].shape[1::-1]) / [width, height]
            np.testing.assert_array_equal(after["keypoints"][..., 2], points[..., 2])
            np.testing.assert_allclose(after["keypoints"][..., :2] / scale, points[..., :2], atol=1e-3)


class TestRules:
    @pytest.mark.parametrize(
        "flip", [transforms.horizontal_flip, transforms.vertical_flip, transforms.transpose]
    )
    def test_twice_is_the_identity(self, flip):
        same(flip(flip(with_keypoints())), with_keypoints())

    @pytest.mark.parametrize(
        "transform",
        [
            transforms.horizontal_flip,
            transforms.vertical_flip,
            transforms.transpose,
            lambda example: transforms.resize(example, 7, 20),
            lambda example: transforms.random_resize(example, [5, 9], 20, tf.constant([1, 2])),
            lambda example: transforms.randomly(transforms.vertical_flip, example, 0.5, tf.constant([1, 2])),
        ],
    )
    def test_no_objects_and_other_entries_and_graphs(self, transform):
        example = make_example() | {"name": tf.constant("a")}
        example |= {"boxes": tf.zeros([0, 4]), "masks": tf.zeros([0, 112, 112], tf.uint8)}
        points = {"keypoints": tf.zeros([0, 9, 3]), "mirrored": tf.zeros([0, 9], tf.int32)}
        for run in (transform, tf.function(transform)):
            assert run(example | points)["keypoints"].shape == (0, 9, 3)
            after = run(example)
            assert "keypoints" not in after
            assert after["boxes"].shape == (0, 4) and after["masks"].shape == (0, 112, 112)
            assert after["image"].dtype == tf.uint8 and after["name"] == b"a"

    def test_the_probability_is_kept(self):
        run = tf.function(
            lambda seed: transforms.randomly(transforms.horizontal_flip, make_example(), 0.3, seed)
        )
        flipped = sum(int(run(tf.constant([0, i]))["boxes"][0, 0] == 3) for i in range(1000))
        assert 250 < flipped < 350  # 0.3 * 1000, standard deviation 14.5
        for probability, x1 in ((0.0, 1), (1.0, 3)):
            after = transforms.randomly(transforms.horizontal_flip, make_example(), probability, [0, 1])
            assert after["boxes"][0, 0] == x1

    def test_every_short_edge_is_drawn(self):
        run = tf.function(lambda seed: transforms.random_resize(make_example(), [5, 9, 13], 100, seed))
        drawn = [int(tf.shape(run(tf.constant([0, i]))["image"])[0]) for i in range(90)]
        assert {drawn.count(edge) > 15 for edge in (5, 9, 13)} == {True}


def tight_box(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


def centre(image):
    """Centre of mass, (x, y), pixels."""
    rows, columns = np.nonzero(image)
    return np.average(np.stack([columns, rows], axis=-1) + 0.5, axis=0, weights=image[rows, columns])


def tight_box_of_crop(crop, box):
    """Tight box of a crop that lies in `box`."""
    cell = np.array([box[2] - box[0], box[3] - box[1]]) / len(crop)
    return np.tile(box[:2], 2) + tight_box(crop) * np.tile(cell, 2)


@pytest.mark.parametrize(("name", "images_taken"), [("nuclei", 15), ("coco_sample", 30)])
def test_a_box_is_the_tight_box_of_its_own_mask(name, images_taken, request):
    """Random chains on real objects; the full-size mask goes the same way by plain NumPy."""
    random = np.random.default_rng(0)
    dataset = request.getfixturevalue(name)
    compared = 0
    for record in dataset.records[:images_taken]:
        chosen = np.flatnonzero(~record.crowd)[:12]
        if len(chosen) == 0:
            continue
        full = [full_mask(record, k) for k in chosen]
        crops = [masks.object_crop(record.segmentations[k], record.boxes[k]) for k in chosen]
        image = np.stack([full[0]] * 3, axis=-1) * 255  # the first object is the image: it must move along
        example = {"image": tf.constant(image), "boxes": record.boxes[chosen], "masks": np.stack(crops)}
        for choice in random.integers(0, 3, 4):
            short_edge = int(random.integers(100, 900))
            if choice == 2:
                example = transforms.resize(example, short_edge, 1333)
            else:
                flip = (transforms.horizontal_flip, transforms.vertical_flip)[choice]
                example = flip(example)
                full = [mask[:, ::-1] if choice == 0 else mask[::-1] for mask in full]
        height, width = example["image"].shape[:2]
        scale = np.tile([width / record.width, height / record.height], 2)
        for index, (box, crop) in enumerate(
            zip(example["boxes"].numpy(), example["masks"].numpy(), strict=True)
        ):
            true_box = tight_box(full[index]) * scale
            cell = np.tile([box[2] - box[0], box[3] - box[1]], 2) / 112
            if (np.abs(tight_box(full_mask(record, chosen[index])) - record.boxes[chosen[index]]) > 1).any():
                continue  # the annotator's box is not that of the mask
            compared += 1
            assert (np.abs(box - true_box) <= np.maximum(scale, 1) + 1e-3).all()
            assert (np.abs(tight_box_of_crop(crop, box) - box) <= np.maximum(scale, 1) + cell).all()
        shown = example["image"].numpy()[:, :, 0]
        if full[0].sum() > 100:
            assert (np.abs(centre(shown) - centre(full[0]) * scale[:2]) <= np.maximum(scale[:2], 1)).all()
    assert compared > 120


def full_mask(record, index):
    segmentation = record.segmentations[index]
    if isinstance(segmentation, dict):
        return masks.decode_columns(segmentation, 0, record.width)
    polygons = coco_mask.frPyObjects(segmentation, record.height, record.width)
    return coco_mask.decode(coco_mask.merge(polygons))


def test_sizes_agree_with_network_size():
    for short_edge in (3, 5, 11):
        size = transforms.resize(make_example(), short_edge, 13)["image"].shape[:2]
        assert tuple(size) == images.network_size(4, 6, short_edge, 13)
