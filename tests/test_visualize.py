"""Drawing: what is touched and what is not, sizes, crowded and empty pictures, files."""

import numpy as np
import pytest

from keras_mrcnn import visualize

cv2 = pytest.importorskip("cv2")

GREY = np.full((200, 300, 3), 100, np.uint8)
BOX = [[50, 60, 150, 140]]


def disc(height, width, box):
    y, x = np.mgrid[:height, :width] + 0.5
    x1, y1, x2, y2 = box
    return ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2 <= 0.25


def changed(picture, image=GREY):
    return (picture != image).any(axis=-1)


def test_without_objects_the_image_comes_back():
    picture = visualize.draw(GREY, np.zeros((0, 4)), np.zeros((0, 200, 300), bool), [], [])
    np.testing.assert_array_equal(picture, GREY)
    assert picture is not GREY


def test_the_image_is_not_changed():
    image = GREY.copy()
    visualize.draw(image, BOX, [disc(200, 300, BOX[0])], ["nut"], [0.9])
    np.testing.assert_array_equal(image, GREY)


def test_a_box_is_a_thin_frame_on_its_own_pixels():
    touched = changed(visualize.draw(GREY, BOX))
    expected = np.zeros((200, 300), bool)
    expected[60:140, 50:150] = True  # the pixels that the box covers
    expected[61:139, 51:149] = False
    np.testing.assert_array_equal(touched, expected)


def test_a_mask_is_tinted_in_its_colour_and_its_outside_left_alone():
    mask = disc(200, 300, BOX[0])
    picture = visualize.draw(GREY, BOX, [mask], opacity=0.5)
    np.testing.assert_allclose(picture[100, 100], (100 + np.array(visualize.colour(0))) / 2, atol=1)
    np.testing.assert_array_equal(picture[62, 52], GREY[62, 52])  # in the box, not in the mask
    assert not changed(picture)[:60].any() and not changed(picture)[:, 150:].any()


def test_a_small_object_lies_on_top_of_a_large_one():
    boxes = [[100, 90, 120, 110], [20, 20, 280, 180]]
    masks = [disc(200, 300, box) for box in boxes]
    picture = visualize.draw(GREY, boxes, masks, opacity=1)
    np.testing.assert_array_equal(picture[100, 110], visualize.colour(0))
    np.testing.assert_array_equal(picture[100, 200], visualize.colour(1))


def test_labels_are_written_in_the_image_even_at_its_corner():
    corner = [[0, 0, 60, 60]]
    without = visualize.draw(GREY, corner)
    labelled = visualize.draw(GREY, corner, labels=["nut"], scores=[0.87])
    touched = changed(labelled, without)
    assert touched.sum() > 100
    assert touched[:60].sum() == touched.sum()
    np.testing.assert_array_equal(visualize.draw(GREY, corner, labels=[""]), without)


def test_a_tiny_object_gets_no_text():
    tiny = [[50, 60, 56, 66]]
    np.testing.assert_array_equal(visualize.draw(GREY, tiny, labels=["nut"]), visualize.draw(GREY, tiny))


def test_a_tiny_mask_is_not_hidden_by_its_box():
    tiny = [50, 60, 62, 72]
    mask = disc(200, 300, tiny)
    touched = changed(visualize.draw(GREY, [tiny], [mask], ["nut"]))
    np.testing.assert_array_equal(touched, mask)


def test_labels_do_not_cover_each_other():
    boxes = [[50, 60, 150, 140]] * 2
    one = changed(visualize.draw(GREY, boxes, labels=["nut", ""]), visualize.draw(GREY, boxes))
    both = visualize.draw(GREY, boxes, labels=["nut", "fig"])
    first = visualize.draw(GREY, boxes, labels=["nut", ""])
    np.testing.assert_array_equal(both[one], first[one])
    assert (both != first).any()


def test_many_objects_are_drawn_without_text_and_boxes():
    boxes = [[x, y, x + 25, y + 25] for y in range(0, 180, 30) for x in range(0, 300, 30)]
    masks = [disc(200, 300, box) for box in boxes]
    touched = changed(visualize.draw(GREY, boxes, masks, ["nut"] * len(boxes)))
    assert touched.any() and not (touched & ~np.any(masks, axis=0)).any()
    assert changed(visualize.draw(GREY, boxes, None, ["nut"] * len(boxes)))[0, 0]  # boxes where no mask is


@pytest.mark.parametrize("image", [GREY[..., 0], GREY[..., :1], GREY])
def test_grey_and_coloured_images(image):
    picture = visualize.draw(image, BOX)
    assert picture.shape == (200, 300, 3) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, visualize.draw(GREY, BOX))


def test_boxes_and_masks_that_leave_the_image_or_are_empty():
    boxes = [[-20, -10, 500, 400], [10, 10, 10, 10]]
    masks = [np.ones((200, 300), bool), None]
    assert visualize.draw(GREY, boxes, masks, ["a", "b"], [1, 0]).shape == GREY.shape


def test_labels_of_any_alphabet():
    assert visualize.draw(GREY, BOX, labels=["клетка"]).shape == GREY.shape


def test_scale_enlarges_the_picture():
    picture = visualize.draw(GREY, BOX, [disc(200, 300, BOX[0])], ["nut"], scale=3)
    assert picture.shape == (600, 900, 3)
    assert changed(picture, np.full_like(picture, 100))[181, 300]  # upper edge: row 60 became 180


def test_colours_are_stable_and_distinct():
    colours = [visualize.colour(index) for index in range(30)]
    assert colours == [visualize.colour(index) for index in range(30)]
    assert len(set(colours)) == 30
    for one, other in zip(colours, colours[1:], strict=False):
        assert np.abs(np.subtract(one, other)).sum() > 150


class TestKeypoints:
    POINTS = [[[70.5, 80.5, 0.9], [130.5, 120.5, 0.2], [100.5, 70.5, 0.01], [0, 0, 0]]]
    SKELETON = [[(0, 1), (1, 2), (0, 3)]]

    def test_points_and_lines_above_the_threshold(self):
        touched = changed(visualize.draw(GREY, BOX, keypoints=self.POINTS, skeletons=self.SKELETON))
        touched ^= changed(visualize.draw(GREY, BOX))
        assert touched[80, 70] and touched[120, 130] and touched[100, 100]  # both ends and the middle
        assert not touched[70, 100] and not touched[95, 115] and not touched[:60].any()
        # within 4 pixels of the line from (70, 80) to (130, 120)
        rows, columns = np.nonzero(touched)
        assert (np.abs((columns - 70) * 40 - (rows - 80) * 60) / np.hypot(40, 60) < 4).all()

    def test_another_threshold(self):
        draw = {"keypoints": self.POINTS, "skeletons": self.SKELETON}
        low = changed(visualize.draw(GREY, BOX, **draw, keypoint_threshold=0))
        assert low[70, 100] and low[95, 115]
        assert not low[:30, :30].any()  # a score of 0 is no point
        high = visualize.draw(GREY, BOX, **draw, keypoint_threshold=0.95)
        np.testing.assert_array_equal(high, visualize.draw(GREY, BOX))

    def test_without_a_skeleton_there_are_points_only(self):
        touched = changed(visualize.draw(GREY, BOX, keypoints=self.POINTS))
        assert touched[80, 70] and touched[120, 130] and not touched[100, 100]

    def test_visibility_in_place_of_scores(self):
        true = np.array(self.POINTS)
        true[..., 2] = [2, 1, 0, 0]
        same = {"skeletons": self.SKELETON}
        np.testing.assert_array_equal(
            visualize.draw(GREY, BOX, keypoints=true, **same),
            visualize.draw(GREY, BOX, keypoints=self.POINTS, **same),
        )

    def test_scale(self):
        touched = changed(
            visualize.draw(GREY, BOX, keypoints=self.POINTS, scale=3), np.full((600, 900, 3), 100)
        )
        assert touched[241, 211] and touched[361, 391]

    def test_points_outside_nothing_and_numbers(self):
        outside = [[[-50, 900, 1.0], [1e6, 3, 1.0]]]
        assert visualize.draw(GREY, BOX, keypoints=outside, skeletons=[[(0, 1)]]).shape == GREY.shape
        empty = visualize.draw(GREY, np.zeros((0, 4)), keypoints=np.zeros((0, 4, 3)), skeletons=[])
        np.testing.assert_array_equal(empty, GREY)
        with pytest.raises(ValueError, match="`keypoints` must be as many as `boxes`, 1. Received: 2"):
            visualize.draw(GREY, BOX, keypoints=self.POINTS * 2)


def test_side_by_side():
    left, right = visualize.draw(GREY, BOX), GREY[:120, :, 0]
    whole = visualize.side_by_side(left, right, ("true", "found"))
    head = whole.shape[0] - 200
    gap = whole.shape[1] - 600
    assert 0 < head < 60 and 0 < gap < 20
    np.testing.assert_array_equal(whole[head:, :300], left)
    np.testing.assert_array_equal(whole[head : head + 120, 300 + gap :], GREY[:120])
    assert (whole[head + 120 :, 300 + gap :] == 255).all()
    assert (whole[:head, :300] < 128).any() and (whole[:head, 300:] < 128).any()  # both titles


def test_errors_say_what_came():
    with pytest.raises(ValueError, match="dtype=float64"):
        visualize.draw(GREY / 255, BOX)
    with pytest.raises(ValueError, match="`labels` must be as many as `boxes`, 1. Received: 2"):
        visualize.draw(GREY, BOX, labels=["a", "b"])
    with pytest.raises(ValueError, match="a mask of 28x28, an image of 200x300"):
        visualize.draw(GREY, BOX, np.ones((1, 28, 28), bool))
    with pytest.raises(ValueError, match="picture.xyz"):
        visualize.write_image("picture.xyz", GREY)


def test_write_image_keeps_the_order_of_colours(tmp_path):
    picture = np.zeros((8, 9, 3), np.uint8)
    picture[..., 0] = 250  # red
    visualize.write_image(tmp_path / "red.png", picture)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "red.png"))[0, 0], [0, 0, 250])
    with pytest.raises(OSError):
        visualize.write_image(tmp_path / "absent" / "red.png", picture)
