"""What a model knows of some classes, carried over to a model of others."""

import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.data.cityscapes import CATEGORIES, FROM_COCO
from keras_mrcnn.model import MaskRCNN
from keras_mrcnn.weights.class_mapping import map_classes
from tests.weights import tiny
from tests.weights.tiny import TORCHVISION, values

COCO_NAMES = ["bicycle", "cat", "person", "truck", "car", "motorcycle", "bus", "train"]
MAPPING = {"dog": "cat", "wolf": None, "man": "person", "lady": "person"}


def settings(*overrides):
    return config.override(tiny.preset_model(TORCHVISION)[0], list(overrides))


def model_with_weights(*overrides):
    """A model whose weights are all different."""
    model = MaskRCNN(settings(*overrides), COCO_NAMES)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if "seed_generator" not in variable.path:
            variable.assign(random.normal(0, 0.1, variable.shape) + ("variance" in variable.path))
    return model


@pytest.fixture(scope="module")
def source():
    return model_with_weights()


@pytest.fixture(scope="module")
def animals():
    return MaskRCNN(settings(), list(MAPPING))


def of_class(weights, path, index, count, background=False, each=1):
    """The numbers of one class in a variable."""
    value = weights[path]
    return value.reshape(*value.shape[:-1], -1, count + background, each)[..., index, :]


PARTS = {"box_head/classes": (True, 1), "box_head/deltas": (False, 4), "mask_head/logits": (False, 1)}


def check_rows(source, target, before, parts):
    was, now = values(source), values(target)
    for part, (background, each) in parts.items():
        for path in (f"{part}/kernel", f"{part}/bias"):
            pairs = [(0, 1), (2, 2), (3, 2)] + ([(4, 8)] if background else [])
            for ours, theirs in pairs:
                np.testing.assert_array_equal(
                    of_class(now, path, ours, 4, background, each),
                    of_class(was, path, theirs, 8, background, each),
                    err_msg=f"{path} {ours}",
                )
            np.testing.assert_array_equal(
                of_class(now, path, 1, 4, background, each), of_class(before, path, 1, 4, background, each)
            )
    for path in now:
        if not path.startswith(tuple(parts)):
            np.testing.assert_array_equal(now[path], was[path])


def test_classes_boxes_and_masks_go_with_their_class(source, animals):
    before = values(animals)
    report = map_classes(source, animals, MAPPING)
    check_rows(source, animals, before, PARTS)
    assert str(report).splitlines() == [
        f"loaded {len(before) - 6}/{len(before)}",
        *(
            f"  initialised anew: {part}/{name}, for wolf only"
            for part in ("box_head/classes", "box_head/deltas", "mask_head/logits")
            for name in ("kernel", "bias")
        ),
    ]


@pytest.mark.proof
def test_one_box_and_one_mask_for_all_classes():
    rules = ["box_head.class_agnostic=true", "mask_head.class_agnostic=true"]
    source, target = model_with_weights(*rules), MaskRCNN(settings(*rules), list(MAPPING))
    before = values(target)
    map_classes(source, target, MAPPING)
    check_rows(source, target, before, {"box_head/classes": (True, 1)})


@pytest.mark.proof
def test_masks_that_compete_from_fully_connected_layers():
    rules = ["mask_head.kind=mlp", "mask_head.units=8", "mask_head.activation=softmax"]
    source, target = model_with_weights(*rules), MaskRCNN(settings(*rules), list(MAPPING))
    before = values(target)
    map_classes(source, target, MAPPING)
    check_rows(source, target, before, {**PARTS, "mask_head/logits": (True, 1)})


def test_the_same_classes_in_another_order_detect_the_same(source):
    target = MaskRCNN(settings(), COCO_NAMES[::-1])
    report = map_classes(source, target, {name: name for name in COCO_NAMES})
    assert str(report) == f"loaded {len(values(source))}/{len(values(source))}"
    found, again = (model.predict_on_batch(tiny.inputs()) for model in (source, target))
    assert found["num_detections"][0] > 0
    np.testing.assert_allclose(found["boxes"], again["boxes"], atol=1e-4)
    np.testing.assert_allclose(found["scores"], again["scores"], atol=1e-6)
    count = int(found["num_detections"][0])
    assert [COCO_NAMES[index] for index in found["classes"][0][:count]] == [
        COCO_NAMES[::-1][index] for index in again["classes"][0][:count]
    ]


def test_cityscapes_from_coco(source):
    target = MaskRCNN(settings(), CATEGORIES)
    report = map_classes(source, target, FROM_COCO)
    assert set(report.initialised.values()) == {"for rider only"}
    was, now = values(source)["box_head/classes/bias"], values(target)["box_head/classes/bias"]
    names = [category.name for category in CATEGORIES]
    assert now[names.index("train")] == was[COCO_NAMES.index("train")]
    assert now[names.index("rider")] == 0 and now[-1] == was[-1]


@pytest.mark.parametrize(
    "mapping, words",
    [
        ({"dog": "cat", "man": "person"}, "every category of the target model: dog, wolf, man"),
        ({**MAPPING, "bird": None}, "Received: dog, wolf, man, lady, bird"),
        ({**MAPPING, "dog": "hound"}, "The source has no 'hound'. It has: bicycle, cat"),
    ],
)
def test_a_mapping_of_other_classes_copies_nothing(mapping, words, source, animals):
    before = values(animals)
    with pytest.raises(ValueError, match=words):
        map_classes(source, animals, mapping)
    for path, value in values(animals).items():
        np.testing.assert_array_equal(value, before[path])


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["mask_head.activation=softmax", "box_head.class_agnostic=true"],
            "box_head/deltas.*mask_head/logits",
        ),
        (["mask_head.enabled=false"], "mask_head/conv1/bias"),
    ],
)
def test_models_that_differ_in_more_copy_nothing(overrides, words, source):
    other = MaskRCNN(settings(*overrides), list(MAPPING))
    before = values(other)
    with pytest.raises(ValueError, match=words):
        map_classes(source, other, MAPPING)
    for path, value in values(other).items():
        np.testing.assert_array_equal(value, before[path])
