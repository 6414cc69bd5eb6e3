"""A model on the compiled operations: the same training step, stock operations in what it exports."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_mrcnn import MaskRCNN, config
from keras_mrcnn.cli import main
from keras_mrcnn.ops import library
from keras_mrcnn.serving.export import export_saved_model, foreign_operations

pytestmark = pytest.mark.usefixtures("native")


def tiny_model():
    settings = config.Model()
    settings.backbone = config.Backbone("resnet18", "group", frozen_stages=0, blocks=[1, 1, 1, 1])
    settings.anchors.sizes = [8.0, 16.0, 32.0, 64.0, 128.0]
    settings.fpn.channels = settings.rpn.channels = settings.mask_head.channels = 16
    settings.proposals = config.Proposals(100, 100, 50, 50)
    settings.sampling.rois, settings.box_head.units, settings.mask_head.convs = 32, 32, 1
    settings.detections = config.Detections(score_threshold=0.0, max_detections=10)
    settings.input.short_edge, settings.input.long_edge = 90, 120
    model = MaskRCNN(settings, [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}], seed=3)
    # Scores far apart, so that rounding cannot change their order.
    for layer in (model.rpn_head.objectness, model.box_head.classes, model.rpn_head.deltas):
        layer.kernel.assign(50 * layer.kernel)
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return tiny_model()


def picture():
    images = np.random.default_rng(0).integers(0, 256, (1, 128, 96, 3)).astype("uint8")
    return {"images": images, "image_sizes": np.array([[120, 90]], "int32")}


def source():
    """The picture without its padding."""
    return picture()["images"][:, :120, :90]


def targets():
    boxes = np.float32([[[10, 10, 60, 70], [30, 40, 80, 100]]])
    valid = np.ones([1, 2], bool)
    masks = np.ones([1, 2, 112, 112], "uint8")
    return {
        "boxes": boxes,
        "classes": np.int32([[0, 1]]),
        "valid": valid,
        "masks": masks,
        "has_mask": valid,
    }


def one_training_step():
    """Losses of a step from the same start, and the weights after it."""
    keras.utils.set_random_seed(1)
    model = tiny_model()
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    dataset = tf.data.Dataset.from_tensors((picture(), targets()))
    losses = model.fit(dataset, epochs=1, verbose=0).history
    return losses, {weight.path: weight.numpy() for weight in model.trainable_weights}


# What a process that knows TensorFlow alone finds.
FRESH = """
import sys, numpy as np, tensorflow as tf
signature = tf.saved_model.load(sys.argv[1]).signatures["image_tensor"]
found = signature(images=tf.constant(np.load(sys.argv[2])))
np.savez(sys.argv[3], **{name: value.numpy() for name, value in found.items()})
assert not any(name.startswith("keras_mrcnn") for name in sys.modules), "not TensorFlow alone"
"""


def served(folder, place):
    """The answer of the SavedModel in another process, and what that process said."""
    np.save(place / "given.npy", source())
    arguments = folder, place / "given.npy", place / "found.npz"
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *arguments], cwd=place, capture_output=True, text=True
    )
    found = np.load(place / "found.npz", allow_pickle=True) if done.returncode == 0 else None
    return found, done.stderr


class TestModel:
    def test_a_training_step_is_the_same(self):
        losses, weights = one_training_step()
        with library.stock_operations():
            stock_losses, stock_weights = one_training_step()
        assert losses["mask"][0] > 0 and losses["box"][0] > 0
        for name, value in stock_losses.items():
            np.testing.assert_allclose(losses[name], value, rtol=1e-4, err_msg=name)
        for path, value in stock_weights.items():
            np.testing.assert_allclose(weights[path], value, rtol=1e-3, atol=1e-4, err_msg=path)

    def test_an_export_is_of_stock_operations(self, model, tmp_path):
        expected = model.detect(source()[0])  # also traced with the compiled operation
        folder = export_saved_model(model, tmp_path / "saved")
        assert foreign_operations(folder) == []
        found, said = served(folder, tmp_path)
        assert found is not None, said
        assert found["num_detections"] == len(expected) > 0
        for name, value in {"boxes_pixels": expected.boxes / 128, "scores": expected.scores}.items():
            scale = 128 if name == "boxes_pixels" else 1  # pixels as parts of the image
            served_value = found[f"detection_{name}"][0, : len(expected)] / scale
            np.testing.assert_allclose(served_value, value, atol=1e-4, err_msg=name)

    @pytest.mark.proof
    def test_an_export_with_the_compiled_operation(self, model, tmp_path):
        folder = export_saved_model(model, tmp_path / "saved", operations="native")
        assert foreign_operations(folder) == ["KerasMrcnn>RoiAlign"]
        found, said = served(folder, tmp_path)
        assert found is None and "Op type not registered 'KerasMrcnn>RoiAlign'" in said
        found = tf.saved_model.load(folder).signatures["image_tensor"](images=tf.constant(source()))
        expected = model.detect(source()[0]).scores
        np.testing.assert_allclose(found["detection_scores"][0, : len(expected)], expected, atol=1e-5)

    def test_no_export_with_what_is_not_in_use(self, model, tmp_path, monkeypatch):
        monkeypatch.setenv("KERAS_MRCNN_OPS", "portable")
        with pytest.raises(ValueError, match="KERAS_MRCNN_OPS=portable"):
            export_saved_model(model, tmp_path / "saved", operations="native")
        assert not (tmp_path / "saved").exists()

    @pytest.mark.proof
    def test_the_command_line_says_what_it_exports(self, model, tmp_path):
        model.save(tmp_path / "model.keras")
        result = CliRunner().invoke(
            main, ["export", str(tmp_path / "model.keras"), str(tmp_path / "saved"), "--ops", "native"]
        )
        assert result.exit_code == 0, result.output
        assert "stock TensorFlow Serving cannot load it" in result.output
        assert foreign_operations(tmp_path / "saved" / "1") == ["KerasMrcnn>RoiAlign"]

    def test_the_file_of_a_model_is_the_same_either_way(self, model, tmp_path):
        model.save(tmp_path / "native.keras")
        with library.stock_operations():
            keras.models.load_model(tmp_path / "native.keras").save(tmp_path / "stock.keras")
        native, stock = (zipfile.ZipFile(tmp_path / f"{name}.keras") for name in ("native", "stock"))
        assert native.namelist() == stock.namelist()
        assert json.loads(native.read("config.json")) == json.loads(stock.read("config.json"))
