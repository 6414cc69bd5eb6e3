"""Test-time augmentation against a written-out reference: views, greedy suppression and masks one by one."""

import keras
import numpy as np
import pytest

from keras_mrcnn import MaskRCNN, config
from keras_mrcnn.data.images import network_frame
from keras_mrcnn.data.shapes import draw_image

EDGES = [64, 96]


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
    settings.detections = config.Detections(score_threshold=0.0, max_detections=12)
    keras.utils.set_random_seed(1)
    model = MaskRCNN(settings, ["circle", "square"])
    for head, scale in ((model.box_head.classes, 1.0), (model.box_head.deltas, 0.5)):
        head.kernel.assign(np.random.default_rng(0).normal(0, scale, head.kernel.shape))
    model.mask_head.logits.kernel.assign(np.random.default_rng(1).normal(0, 2, (1, 1, 8, 2)))
    return model


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def frame(image, edge):
    inputs = network_frame([image], config.Input(edge, 2 * edge))
    return inputs, *(inputs["image_sizes"][0] / image.shape[:2])


def mask(model, image, box, label):
    """The mask of one box of one view, from the layers."""
    inputs, scale_y, scale_x = image
    maps = model.fpn(model.backbone(model.normalize(inputs["images"], inputs["image_sizes"])))
    box = np.float32([[[box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y]]])
    logits = model.mask_head(model.mask_pooling(maps, box, np.array([[True]]))).numpy()
    return 1 / (1 + np.exp(-logits[0, ..., label]))


def reference(model, image, edges, flip):
    """[(box, score, class, mask)], best first."""
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
    for box, score, label in kept[:12]:
        masks = []
        for edge in edges:
            masks.append(mask(model, frame(image, edge), box, label))
            if flip:
                mirror = [width - box[2], box[1], width - box[0], box[3]]
                masks.append(mask(model, frame(image[:, ::-1], edge), mirror, label)[:, ::-1])
        answer.append((box, score, label, np.mean(masks, axis=0)))
    return answer


@pytest.mark.parametrize("flip", [False, True])
def test_equals_the_written_out_reference(model, flip):
    image, _ = draw_image((80, 104), 4, np.random.default_rng(3))
    results = model.detect(image, short_edges=EDGES, flip=flip)
    expected = reference(model, image, EDGES, flip)
    assert len(results) == len(expected) == 12
    for n, (box, score, label, probabilities) in enumerate(expected):
        np.testing.assert_allclose(results.boxes[n], box, atol=1e-3)
        assert results.scores[n] == pytest.approx(score, abs=1e-6) and results.classes[n] == label
        np.testing.assert_allclose(results.mask_probabilities[n], probabilities, atol=1e-4)
    # the masks of the views differ, so their mean is none of them
    assert np.abs(mask(model, frame(image, 64), *expected[0][::2]) - expected[0][3]).max() > 1e-3


def test_one_view_is_the_plain_detection_and_a_list_gives_a_list(model, tmp_path):
    image, _ = draw_image((80, 104), 4, np.random.default_rng(3))
    plain, (viewed,) = model.detect(image), model.detect([image], short_edges=[64])
    np.testing.assert_allclose(viewed.boxes, plain.boxes, atol=1e-4)
    np.testing.assert_allclose(viewed.mask_probabilities, plain.mask_probabilities, atol=1e-5)
    assert len(model.detect(image, flip=True)) == 12
