"""Regions that the heads learn from (NUMERICS section 7)."""

import keras
import numpy as np
import tensorflow as tf

from keras_mrcnn.roi.sampling import RoISampling

TRUE = np.float32([[[10, 10, 30, 30], [60, 60, 100, 100], [0, 0, 0, 0]], [[0, 0, 20, 20], [0] * 4, [0] * 4]])
TRUE_VALID = np.array([[True, True, False], [True, False, False]])


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def proposals(rng, count=60):
    """Half of them around the true boxes of each image, half anywhere; the last ten are not valid."""
    near = np.stack([TRUE[i, rng.integers(0, n, count // 2)] for i, n in enumerate((2, 1))])
    near = near + rng.uniform(-4, 4, near.shape)
    corner = rng.uniform(0, 90, (2, count - count // 2, 2))
    far = np.concatenate([corner, corner + rng.uniform(5, 30, corner.shape)], 2)
    boxes = np.concatenate([near, far], 1).astype(np.float32)[:, rng.permutation(count)]
    return boxes, np.arange(count)[None] < [[count - 10], [count - 10]]


def sample(layer, boxes, valid, true_boxes=TRUE, true_valid=TRUE_VALID):
    return [x.numpy() for x in layer(boxes, valid, true_boxes, true_valid)]


def test_a_sample_written_out():
    rng = np.random.default_rng(0)
    boxes, valid = proposals(rng)
    layer = RoISampling(rois=24, foreground_fraction=0.25, foreground_iou=0.5, seed=0)
    regions, matched, foreground, background = sample(layer, boxes, valid)
    assert regions.shape == (2, 6 + 24, 4)
    assert matched.shape == foreground.shape == background.shape == (2, 30)
    assert regions.dtype == np.float32 and matched.dtype == np.int32
    assert not foreground[:, 6:].any() and not background[:, :6].any()
    for image in range(2):
        real = np.flatnonzero(TRUE_VALID[image])
        candidates = [*boxes[image][valid[image]], *TRUE[image, real]]
        assert foreground[image].sum() == 6 and background[image].sum() == 18
        taken = set()
        rows = zip(regions[image], matched[image], foreground[image], background[image])
        for box, match, front, back in rows:
            if not front and not back:
                continue
            places = [i for i, candidate in enumerate(candidates) if (candidate == box).all()]
            assert places, "a region that is no candidate"
            taken.add(places[0])
            overlaps = [iou(box.astype(float), TRUE[image, g].astype(float)) for g in real]
            assert front == (max(overlaps) >= 0.5)
            assert not front or match == real[np.argmax(overlaps)]
        assert len(taken) == 24, "a candidate was chosen twice"


def test_background_fills_up_what_foreground_leaves():
    # one proposal far away four times over; foreground is only the true box itself
    boxes = np.float32([[[200, 200 + i, 210, 210 + i] for i in range(9)]])
    _, _, foreground, background = sample(
        RoISampling(rois=8, foreground_fraction=0.5, seed=0),
        boxes,
        np.ones([1, 9], bool),
        TRUE[1:],
        TRUE_VALID[1:],
    )
    assert foreground.sum() == 1 and background.sum() == 7


def test_fewer_candidates_than_places():
    boxes, valid = np.float32([[[200, 200, 210, 210], [0, 0, 0, 0]]]), np.array([[True, False]])
    regions, _, foreground, background = sample(RoISampling(seed=0), boxes, valid, TRUE[1:], TRUE_VALID[1:])
    # 2 proposals and 3 true boxes, most of them padding
    assert foreground.sum() == 1 and background.sum() == 1
    np.testing.assert_array_equal(regions[foreground], [[0, 0, 20, 20]])
    np.testing.assert_array_equal(regions[background], [[200, 200, 210, 210]])


def test_true_boxes_are_candidates_without_any_proposal():
    none = np.zeros([2, 0, 4], np.float32), np.zeros([2, 0], bool)
    regions, matched, foreground, background = sample(
        RoISampling(rois=8, foreground_fraction=0.5, seed=0), *none
    )
    assert not background.any()
    for image, count in enumerate((2, 1)):
        order = matched[image][foreground[image]]
        assert sorted(order) == list(range(count))
        np.testing.assert_array_equal(regions[image][foreground[image]], TRUE[image][order])


def test_an_image_without_objects_gives_background_only():
    boxes, valid = proposals(np.random.default_rng(1))
    boxes[:, 0] = 0  # a valid proposal as empty as the padded true boxes
    nothing = np.zeros_like(TRUE), np.zeros_like(TRUE_VALID)
    _, _, foreground, background = sample(RoISampling(rois=16, seed=0), boxes, valid, *nothing)
    assert not foreground.any()
    np.testing.assert_array_equal(background.sum(1), [16, 16])


def test_a_padded_true_box_is_never_matched_nor_chosen():
    boxes = np.float32([[[40, 40, 60, 60], [41, 41, 61, 61]]])
    true_boxes = np.float32([[[40, 40, 60, 60], [200, 200, 220, 220]]])  # the first is padding
    regions, matched, foreground, background = sample(
        RoISampling(rois=8, seed=0), boxes, np.ones([1, 2], bool), true_boxes, np.array([[False, True]])
    )
    np.testing.assert_array_equal(regions[foreground], [[200, 200, 220, 220]])
    assert matched[foreground].tolist() == [1]
    assert sorted(map(tuple, regions[background])) == [(40, 40, 60, 60), (41, 41, 61, 61)]


def test_at_the_threshold_is_foreground():
    # 20 x 20 and its upper half: IoU exactly 1/2; a little less for the second
    boxes = np.float32([[[0, 0, 20, 10], [0, 0, 20, 9.9]]])
    regions, _, foreground, background = sample(
        RoISampling(rois=16, foreground_fraction=0.5, seed=0),
        boxes,
        np.ones([1, 2], bool),
        TRUE[1:],
        TRUE_VALID[1:],
    )
    assert sorted(map(tuple, regions[foreground])) == [(0, 0, 20, 10), (0, 0, 20, 20)]
    np.testing.assert_array_equal(regions[background], np.float32([[0, 0, 20, 9.9]]))


def test_every_candidate_is_as_likely():
    boxes = np.float32([[[200 + 30 * i, 200, 210 + 30 * i, 210] for i in range(10)]])
    layer = RoISampling(rois=4, foreground_fraction=0.25, seed=3)
    counts = np.zeros(10)
    for _ in range(200):
        regions, _, _, background = sample(layer, boxes, np.ones([1, 10], bool), TRUE[1:], TRUE_VALID[1:])
        counts[((regions[background][:, 0] - 200) / 30).astype(int)] += 1
    # 3 of 10, 200 times: 60 with a standard deviation of sqrt(200 * .3 * .7) = 6.5
    assert np.abs(counts - 60).max() < 5 * 6.5 and counts.sum() == 600


def test_no_gradient_flows_to_the_proposals():
    boxes, valid = proposals(np.random.default_rng(0))
    boxes = tf.Variable(boxes)
    with tf.GradientTape() as tape:
        regions = RoISampling(rois=8, seed=0)(boxes, valid, TRUE, TRUE_VALID)[0]
    assert tape.gradient(regions, boxes) is None


def test_mixed_precision_keeps_coordinates():
    boxes = np.float32([[[1001, 1003, 1101, 1107], [3, 5, 7, 9]]])
    true_boxes = np.float32([[[1001, 1001, 1101, 1107]]])
    layer = RoISampling(rois=8, foreground_fraction=0.5, seed=0, dtype="mixed_bfloat16")
    regions, _, foreground, _ = sample(layer, boxes, np.ones([1, 2], bool), true_boxes, np.ones([1, 1], bool))
    assert regions.dtype == np.float32
    expected = [(1001, 1001, 1101, 1107), (1001, 1003, 1101, 1107)]
    assert sorted(map(tuple, regions[foreground])) == expected


def test_unknown_sizes():
    boxes, matched, foreground, background = RoISampling()(
        keras.Input((None, 4)),
        keras.Input((None,), dtype="bool"),
        keras.Input((None, 4)),
        keras.Input((None,), dtype="bool"),
    )
    assert boxes.shape == (None, None, 4)
    assert matched.shape == foreground.shape == background.shape == (None, None)
    assert (matched.dtype, foreground.dtype, background.dtype) == ("int32", "bool", "bool")
