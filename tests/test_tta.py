"""Test-time augmentation against a written-out reference: views, greedy suppression, maps one by one."""

import keras
import numpy as np
import pytest

from keras_mrcnn import MaskRCNN, config
from keras_mrcnn.data.images import network_frame
from keras_mrcnn.data.shapes import draw_image
from tests.geometry.test_keypoints import slow_decode

EDGES = [64, 96]
SQUARE = {"id": 2, "name": "square", "keypoints": ["top", "left", "right"]}  # circles have none


@pytest.fixture(scope="module")
def model():
    settings = config.Model()
    settings.input.short_edge, settings.input.long_edge = 64, 128
    settings.backbone = config.Backbone("resnet18", "batch", frozen_stages=0, blocks=[1, 1, 1, 1])
    settings.fpn.channels = settings.rpn.channels = settings.mask_head.channels = 8
    settings.anchors.sizes = [8.0, 16.0, 32.0, 64.0, 128.0]
    settings.proposals = config.Proposals(50, 50, 30, 30)
    settings.box_head.units = 16
    settings.mask_head.convs = 1
    settings.keypoint_head = config.KeypointHead(enabled=True, pool_size=3, convs=1, channels=8)
    settings.detections = config.Detections(score_threshold=0.0, max_detections=12)
    keras.utils.set_random_seed(1)
    model = MaskRCNN(settings, ["circle", SQUARE])
    for head, scale in ((model.box_head.classes, 1.0), (model.box_head.deltas, 0.5)):
        head.kernel.assign(np.random.default_rng(0).normal(0, scale, head.kernel.shape))
    model.mask_head.logits.kernel.assign(np.random.default_rng(1).normal(0, 2, (1, 1, 8, 2)))
    model.box_head.classes.bias.assign([2.5, 0, 0])  # circles, too
    model.keypoint_head.upsample.kernel.assign(np.random.default_rng(2).normal(0, 2, (4, 4, 3, 8)))
    return model


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def frame(image, edge):
    inputs = network_frame([image], config.Input(edge, 2 * edge))
    return inputs, *(inputs["image_sizes"][0] / image.shape[:2])


def view(model, image, edge):
    """What the heads see of an image, and network pixels per source pixel."""
    inputs, *scales = frame(image, edge)
    return model.fpn(model.backbone(model.normalize(inputs["images"], inputs["image_sizes"]))), *scales


def maps(model, features, scale_y, scale_x, box, label):
    """The mask and the heat maps of one box of one view, from the layers."""
    box = np.float32([[[box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y]]])
    logits = model.mask_head(model.mask_pooling(features, box, np.array([[True]]))).numpy()
    heatmaps = model.keypoint_head(model.keypoint_pooling(features, box, np.array([[True]]))).numpy()
    return 1 / (1 + np.exp(-logits[0, ..., label])), heatmaps[0]


def reference(model, image, edges, flip):
    """[(box, score, class, mask, heat maps)], best first."""
    width, found = image.shape[1], []
    for edge in edges:
        for mirrored in (False, True) if flip else (False,):
            inputs, scale_y, scale_x = frame(image[:, ::-1] if mirrored else image, edge)
            outputs = model.predict_on_batch(inputs)
            for n in range(outputs["num_detections"][0]):
                x1, y1, x2, y2 = outputs["boxes"][0, n] / [scale_x, scale_y, scale_x, scale_y]
                if mirrored:
                    x1, x2 = width - x2, width - x1
                found.append((np.array([x1, y1, x2, y2]), outputs["scores"][0, n], outputs["classes"][0, n]))
    kept = []
    for box, score, label in sorted(found, key=lambda one: -one[1]):
        if all(label != other[2] or iou(box, other[0]) <= 0.5 for other in kept):
            kept.append((box, score, label))
    answer = []
    views = [(view(model, image, edge), view(model, image[:, ::-1], edge)) for edge in edges]
    for box, score, label in kept[:12]:
        seen = []
        for straight, turned in views:
            seen.append(maps(model, *straight, box, label))
            if flip:
                mirror = [width - box[2], box[1], width - box[0], box[3]]
                mask, heatmaps = maps(model, *turned, mirror, label)
                seen.append((mask[:, ::-1], heatmaps[:, ::-1, [0, 2, 1]]))  # left and right change places
        answer.append(
            (box, score, label, *(np.mean(of_views, axis=0) for of_views in zip(*seen, strict=True)))
        )
    return answer


@pytest.mark.parametrize("flip", [pytest.param(False, marks=pytest.mark.proof), True])
def test_equals_the_written_out_reference(model, flip):
    image, _ = draw_image((80, 104), 4, np.random.default_rng(3))
    results = model.detect(image, short_edges=EDGES, flip=flip)
    expected = reference(model, image, EDGES, flip)
    assert len(results) == len(expected) == 12
    for n, (box, score, label, probabilities, _) in enumerate(expected):
        np.testing.assert_allclose(results.boxes[n], box, atol=1e-3)
        assert results.scores[n] == pytest.approx(score, abs=1e-6) and results.classes[n] == label
        np.testing.assert_allclose(results.mask_probabilities[n], probabilities, atol=1e-4)
    # the masks of the views differ, so their mean is none of them
    box, _, label, probabilities, heatmaps = expected[0]
    for alone, joined in zip(
        maps(model, *view(model, image, 64), box, label), (probabilities, heatmaps), strict=True
    ):
        assert np.abs(alone - joined).max() > 1e-3
    squares = np.flatnonzero(results.classes)
    assert 2 <= len(squares) < 12 and not results.keypoints[results.classes == 0].any()
    for n in squares[:2]:
        for point, found in enumerate(results.keypoints[n]):
            x, y, _, score = slow_decode(expected[n][4][..., point].astype(float), expected[n][0])
            np.testing.assert_allclose(found, [x, y, score], rtol=1e-3, atol=1e-2)


def test_one_view_is_the_plain_detection_and_a_list_gives_a_list(model, tmp_path):
    image, _ = draw_image((64, 96), 4, np.random.default_rng(3))
    plain, (viewed,) = model.detect(image), model.detect([image], short_edges=[64])
    np.testing.assert_allclose(viewed.boxes, plain.boxes, atol=1e-4)
    np.testing.assert_allclose(viewed.mask_probabilities, plain.mask_probabilities, atol=1e-5)
    np.testing.assert_allclose(viewed.keypoints, plain.keypoints, atol=1e-3)  # pixels of the same size
    assert len(model.detect(image, flip=True)) == 12
