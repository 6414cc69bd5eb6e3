"""The assembled model: its contract, training steps, saving, weights that do not fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import MaskRCNN, Results, config, losses
from keras_mrcnn.backbones.applications import Application
from keras_mrcnn.training import schedule

SIZE = 64
LOSSES = ["rpn_objectness", "rpn_box", "class", "box", "mask"]


def tiny_config():
    model = config.Model()
    model.input.short_edge, model.input.long_edge = SIZE, 2 * SIZE
    model.backbone = config.Backbone("resnet18", "batch", frozen_stages=0, blocks=[1, 1, 1, 1])
    model.fpn.channels = model.rpn.channels = model.mask_head.channels = 16
    model.anchors.sizes = [8.0, 16.0, 32.0, 64.0, 128.0]
    model.proposals = config.Proposals(100, 100, 50, 50)
    model.sampling.rois = 32
    model.box_head.units = 32
    model.mask_head.convs = 1
    model.detections = config.Detections(score_threshold=0.0, max_detections=10)
    return model


@pytest.fixture(scope="module")
def model():
    model = MaskRCNN(tiny_config(), ["circle", {"id": 7, "name": "square"}], seed=3)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=10.0))
    return model


def random_images(batch, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3)).astype("uint8")


def make_batch(batch=2, objects=2):
    """Images with one bright square for each object; the last image has one object less."""
    images = np.full((batch, SIZE, SIZE, 3), 40, "uint8")
    boxes = np.zeros((batch, max(objects, 1), 4), "float32")
    valid = np.zeros((batch, max(objects, 1)), bool)
    for image in range(batch):
        for place in range(objects - (image == batch - 1)):
            low = 4 + 30 * place
            boxes[image, place] = (low, low, low + 24, low + 20)
            images[image, low : low + 20, low : low + 24] = 220
            valid[image, place] = True
    inputs = {"images": images, "image_sizes": np.full((batch, 2), SIZE, "int32")}
    targets = {
        "boxes": boxes,
        "classes": np.zeros(valid.shape, "int32"),
        "valid": valid,
        "masks": np.ones((*valid.shape, 112, 112), "uint8"),
        "has_mask": valid.copy(),
    }
    return inputs, targets


def test_outputs_are_the_contract(model):
    outputs = model.predict_on_batch(make_batch()[0])
    shapes = {name: (value.shape, value.dtype.name) for name, value in outputs.items()}
    assert shapes == {
        "boxes": ((2, 10, 4), "float32"),
        "scores": ((2, 10), "float32"),
        "classes": ((2, 10), "int32"),
        "num_detections": ((2,), "int32"),
        "masks": ((2, 10, 28, 28), "float32"),
    }
    assert (outputs["num_detections"] == 10).all()
    assert (np.diff(outputs["scores"], axis=1) <= 0).all()
    assert ((outputs["masks"] >= 0) & (outputs["masks"] <= 1)).all()
    assert outputs["boxes"].min() >= 0 and outputs["boxes"].max() <= SIZE


def test_symbolic_shapes_let_everything_unknown_through(model):
    assert model.output["boxes"].shape == (None, 10, 4)
    assert model.output["masks"].shape == (None, 10, 28, 28)
    assert model.input["images"].shape == (None, None, None, 3)


@pytest.mark.parametrize("height, width", [(64, 64), (33, 95), (1, 70), (128, 32)])
def test_any_image_size(model, height, width):
    inputs = {
        "images": random_images(1, height, width),
        "image_sizes": np.array([[height, width]], "int32"),
    }
    outputs = model.predict_on_batch(inputs)
    assert all(np.isfinite(value).all() for value in outputs.values())
    assert outputs["boxes"][..., 2].max() <= width and outputs["boxes"][..., 3].max() <= height


@pytest.mark.proof
def test_predict_on_a_dataset_with_a_last_partial_batch(model):
    inputs = {"images": random_images(5, 64, 64), "image_sizes": np.full((5, 2), 64, "int32")}
    dataset = tf.data.Dataset.from_tensor_slices(inputs).batch(2)
    outputs = model.predict(dataset, verbose=0)
    assert outputs["boxes"].shape == (5, 10, 4)


def test_what_stands_in_the_padding_has_no_influence(model):
    image = random_images(1, 96, 64)
    other = random_images(1, 96, 64, seed=1)
    other[:, :48, :40] = image[:, :48, :40]
    sizes = np.array([[48, 40]], "int32")
    one, two = (model.predict_on_batch({"images": x, "image_sizes": sizes}) for x in (image, other))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    assert (one["boxes"][0, :, 2] <= 40).all() and (one["boxes"][0, :, 3] <= 48).all()


def test_keras_file_restores_everything(model, tmp_path):
    inputs = make_batch()[0]
    expected = model.predict_on_batch(inputs)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert restored.config == model.config
    assert [(c.id, c.name) for c in restored.categories] == [(1, "circle"), (7, "square")]
    for name, value in restored.predict_on_batch(inputs).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_fit_learns_and_names_its_losses():
    model = MaskRCNN(tiny_config(), ["square"], seed=3)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9, global_clipnorm=10.0))
    dataset = tf.data.Dataset.from_tensors(make_batch())
    history = model.fit(dataset.repeat(12), epochs=2, validation_data=dataset, verbose=0).history
    assert {"loss", *LOSSES, "val_loss", *(f"val_{name}" for name in LOSSES)} == set(history)
    first, last = history["loss"]
    assert last < 0.7 * first
    for epoch in range(2):
        assert history["loss"][epoch] == pytest.approx(sum(history[name][epoch] for name in LOSSES), rel=1e-4)
    assert set(model.evaluate(dataset, verbose=0, return_dict=True)) == {"loss", *LOSSES}


def test_no_objects_at_all_is_finite_and_trains_the_background_only(model):
    inputs, targets = make_batch(objects=0)
    targets["valid"][:] = False
    found = {name: float(value) for name, value in model.compute_losses(inputs, targets).items()}
    assert found["box"] == found["mask"] == found["rpn_box"] == 0
    assert found["class"] > 0 and found["rpn_objectness"] > 0
    assert np.isfinite(list(found.values())).all()


def test_objects_with_a_box_only_give_the_mask_head_no_gradient(model):
    inputs, targets = make_batch()

    def gradient():
        with tf.GradientTape() as tape:
            loss = model.compute_losses(inputs, targets)["mask"]
        return tape.gradient(loss, [w.value for w in model.mask_head.trainable_variables])

    assert max(float(tf.reduce_max(tf.abs(g))) for g in gradient()) > 0
    targets["has_mask"][:] = False
    assert all(float(tf.reduce_max(tf.abs(g))) == 0 for g in gradient())


def test_padded_true_boxes_change_nothing(model):
    inputs, targets = make_batch(batch=1, objects=2)
    wide = {name: np.concatenate([value] * 3, axis=1) for name, value in targets.items()}
    wide["valid"][:, 2:] = False
    sampled = model.rpn_targets(
        model.anchors(model.fpn(model.backbone(model.normalize(inputs["images"], inputs["image_sizes"]))))[0],
        targets["boxes"],
        targets["valid"],
    )
    padded = model.rpn_targets(
        model.anchors(model.fpn(model.backbone(model.normalize(inputs["images"], inputs["image_sizes"]))))[0],
        wide["boxes"],
        wide["valid"],
    )
    assert float(tf.reduce_sum(sampled[1] * sampled[2])) == float(tf.reduce_sum(padded[1] * padded[2]))


def test_training_on_a_line_of_pixels_is_finite(model):
    inputs, targets = make_batch(batch=1, objects=1)
    targets["valid"][:] = True
    targets["boxes"][0, 0] = (3, 0, 40, 1)
    inputs = {"images": inputs["images"][:, :1], "image_sizes": np.array([[1, SIZE]], "int32")}
    found = model.compute_losses(inputs, targets)
    assert np.isfinite([float(value) for value in found.values()]).all()


@pytest.mark.parametrize("shape", [(50, 90), (50, 90, 1), (50, 90, 4)])
def test_detect_takes_grey_and_rgba(model, shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    results = model.detect(image)
    assert isinstance(results, Results)
    assert (results.height, results.width) == (50, 90)
    assert results.masks.shape == (len(results), 50, 90)
    assert (results.boxes[:, 2] <= 90).all() and (results.boxes[:, 3] <= 50).all()
    assert set(results.category_ids) <= {1, 7}


def test_detect_in_batches_equals_one_by_one(model):
    images = [random_images(1, 60, 60, seed)[0] for seed in range(3)]
    alone, together = model.detect(images), model.detect(images, batch_size=3)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded(model, tmp_path):
    other_config = tiny_config()
    other_config.backbone.norm = "frozen"
    other = MaskRCNN(other_config, ["a", "b", "c"])
    other.save_weights(tmp_path / "other.weights.h5")
    before = [w.numpy() for w in model.weights]
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        model.load_weights(tmp_path / "other.weights.h5")
    assert "wrong shape: box_head/classes/0 is (32, 4), expected (32, 3)" in str(error.value).replace(
        "layers/", ""
    )
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_weights_that_fit_are_loaded(model, tmp_path):
    model.save_weights(tmp_path / "own.weights.h5")
    other = MaskRCNN(tiny_config(), ["circle", "square"])
    other.load_weights(tmp_path / "own.weights.h5")
    inputs = make_batch()[0]
    np.testing.assert_allclose(
        other.predict_on_batch(inputs)["scores"], model.predict_on_batch(inputs)["scores"], atol=1e-6
    )


def float_types(values):
    """Of the float tensors in nested values."""
    tensors = [value for value in tf.nest.flatten(values) if tf.is_tensor(value)]
    return {tensor.dtype.name for tensor in tensors if tensor.dtype.is_floating}


@pytest.mark.parametrize(
    "precision", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.proof)]
)
def test_half_precision_ends_before_boxes_losses_and_softmax(precision, monkeypatch):
    seen = {}

    def spy(owner, name):
        function = getattr(owner, name)

        def spied(*args, **kwargs):
            result = function(*args, **kwargs)
            seen[getattr(owner, "name", name)] = float_types(args), float_types(result)
            return result

        monkeypatch.setattr(owner, name, spied)

    settings = tiny_config()
    model = MaskRCNN(settings, ["square"], seed=3, dtype=precision)
    stations = ("anchors", "rpn_targets", "proposals", "roi_sampling", "detections", "region_masks")
    halves = ("backbone", "fpn")
    for station in (*stations, *halves):
        spy(getattr(model, station), "call")
    for loss in ("rpn_objectness", "rpn_box", "classification", "box", "mask"):
        spy(losses, loss)
    model.compile(schedule.optimizer(config.Training(precision=precision, warmup_steps=0), 1))
    before = [weight.numpy() for weight in model.trainable_variables]
    inputs, targets = make_batch()
    assert np.isfinite(model.train_on_batch(inputs, targets)).all()
    outputs = model.predict_on_batch(inputs)
    assert {value.dtype.name for value in outputs.values()} == {"float32", "int32"}
    assert model.backbone.stem.kernel.dtype == "float32"
    assert [name for name in halves if seen.pop(name)[1] != {precision.removeprefix("mixed_")}] == []
    assert seen.pop("anchors")[1] == {"float32"}  # of maps in half precision
    assert {name: types for name, types in seen.items() if set().union(*types) != {"float32"}} == {}
    assert len(seen) == len(stations) - 1 + 5
    assert int(model.optimizer.iterations) == 1
    after = [weight.numpy() for weight in model.trainable_variables]
    assert all(np.isfinite(value).all() for value in after)
    assert np.mean([np.any(new != old) for new, old in zip(after, before, strict=True)]) > 0.9


def test_no_categories_is_refused():
    with pytest.raises(ValueError, match="at least one class"):
        MaskRCNN(tiny_config(), [])


@pytest.mark.proof
def test_the_rules_of_foreign_weights_train_in_a_graph_and_are_saved(tmp_path):
    overrides = ["input.resize=plain", "backbone.norm_epsilon=0.0", "anchors.rounded=true"]
    overrides += ["anchors.fitted_strides=true", "rpn.convs=2", "rpn.smooth_l1_beta=0.1"]
    overrides += ["proposals.min_size=0.001", "roi_align.sampling_ratio=0", "roi_align.aligned=false"]
    overrides += ["box_head.convs=1", "box_head.channels=8", "box_head.fcs=1", "box_head.smooth_l1_beta=0.1"]
    overrides += [f"{station}.norm=batch" for station in ("fpn", "box_head", "mask_head")]
    overrides += ["mask_head.soft_targets=true", "mask_head.paste=widened", "detections.min_size=0.01"]
    settings = config.override(tiny_config(), overrides)
    model = MaskRCNN(settings, ["circle", "square"], seed=3)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=10.0))
    dataset = tf.data.Dataset.from_tensors(make_batch())
    first, second = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(first) and np.isfinite(second) and first != second
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.config == settings
    inputs, _ = make_batch()
    expected, found = model.predict_on_batch(inputs), again.predict_on_batch(inputs)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert model.detect(inputs["images"][0]).paste == "widened"


@pytest.mark.proof
def test_a_backbone_of_ones_own_on_images_of_five_channels(tmp_path):
    features = images = keras.Input((None, None, 5))
    for stage, strides in enumerate((4, 2, 2, 2), 2):
        features = keras.layers.Conv2D(8, 3, strides, "same", activation="relu", name=f"c{stage}")(features)
    settings = tiny_config()
    settings.input.mean, settings.input.std = [100.0] * 5, [50.0] * 5
    own = Application(keras.Model(images, features), ["c2", "c3", "c4", "c5"], channels=5)
    model = MaskRCNN(settings, ["circle", "square"], seed=0, backbone=own)
    model.compile(keras.optimizers.SGD(0.01))
    inputs, targets = make_batch()
    inputs = {**inputs, "images": np.repeat(inputs["images"], 2, axis=-1)[..., :5]}
    assert np.isfinite(model.train_on_batch(inputs, targets, return_dict=True)["loss"])

    image = np.random.default_rng(0).integers(0, 256, [40, 60, 5]).astype(np.uint8)
    found = model.detect(image)
    model.save(tmp_path / "own.keras")
    again = keras.models.load_model(tmp_path / "own.keras").detect(image)
    assert len(found) == len(again) > 0
    np.testing.assert_allclose(found.boxes, again.boxes, atol=1e-4)
    with pytest.raises(ValueError, match="uint8 .height, width, 5.*Received: shape=\\(40, 60, 3\\)"):
        model.detect(image[..., :3])
    settings.rpn.own_features = True
    with pytest.raises(ValueError, match="own_features"):
        MaskRCNN(settings, ["circle"], backbone=own)


@pytest.mark.proof
def test_keypoints_beside_masks(tmp_path):
    """Points come for the class that has some, teach nothing where unlabelled, and are saved with names."""
    settings = tiny_config()
    settings.keypoint_head = config.KeypointHead(enabled=True, convs=1, channels=8)
    settings.detections.max_detections = 60
    person = {
        "id": 1,
        "name": "person",
        "keypoints": ["head", "left_hand", "right_hand"],
        "skeleton": [[1, 2]],
    }
    model = MaskRCNN(settings, [person, "square"], seed=0)
    model.compile(keras.optimizers.SGD(0.01))
    inputs, targets = make_batch()
    shape = (*targets["classes"].shape, 3, 3)
    points = np.zeros(shape, np.float32)
    points[..., :2] = (targets["boxes"][..., None, :2] + targets["boxes"][..., None, 2:]) / 2
    points[..., 2] = targets["valid"][..., None] * 2
    for labels, learns in ((points, True), (np.zeros(shape, np.float32), False)):
        with tf.GradientTape() as tape:
            loss = model.compute_losses(inputs, {**targets, "keypoints": labels})["keypoint"]
        gradients = tape.gradient(loss, [w.value for w in model.keypoint_head.trainable_variables])
        assert all(np.any(gradient) == learns for gradient in gradients) and (float(loss) > 0) == learns
    logs = model.train_on_batch(inputs, {**targets, "keypoints": points}, return_dict=True)
    assert logs["keypoint"] == pytest.approx(np.log(56 * 56), rel=0.2)  # nothing is known yet
    with pytest.raises(ValueError, match="the targets have no `keypoints`"):
        model.compute_losses(inputs, targets)
    with pytest.raises(ValueError, match="no category has keypoints"):
        MaskRCNN(settings, ["circle"])

    kernel = model.box_head.classes.kernel
    kernel.assign(np.zeros(kernel.shape))  # every box is as much of one class as of the other
    outputs = model.predict_on_batch(inputs)
    is_person = np.arange(60) < outputs["num_detections"][:, None]
    is_person &= outputs["classes"] == 0
    assert is_person.any() and (~is_person).any()
    assert outputs["keypoints"][is_person].any(axis=(1, 2)).all()
    assert not outputs["keypoints"][~is_person].any() and outputs["masks"].any()
    model.save(tmp_path / "points.keras")
    again = keras.models.load_model(tmp_path / "points.keras")
    assert again.categories == model.categories and again.categories[0].flip_pairs == ((1, 2),)
    np.testing.assert_allclose(again.predict_on_batch(inputs)["keypoints"], outputs["keypoints"], atol=1e-3)
