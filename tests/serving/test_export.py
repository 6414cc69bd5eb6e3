"""The SavedModel: stock operations, and the model's own numbers in a process that knows TensorFlow alone."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import MaskRCNN, config
from keras_mrcnn.serving.export import export_saved_model, foreign_operations

FRESH = """
import sys, numpy as np, tensorflow as tf
signature = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
given = np.load(sys.argv[2])
for case in ("a", "b"):
    images, sizes = (tf.constant(given[case + name]) for name in ("_images", "_sizes"))
    found = signature(images=images, image_sizes=sizes)
    np.savez(sys.argv[3] + "_" + case, **{name: value.numpy() for name, value in found.items()})
assert not any(name.startswith("keras_mrcnn") for name in sys.modules), "not TensorFlow alone"
"""


@pytest.fixture(
    scope="module", params=[2, pytest.param(0, marks=pytest.mark.proof)], ids=["fixed", "adaptive"]
)
def model(request):
    keras.utils.set_random_seed(1)
    settings = config.Model()
    settings.roi_align.sampling_ratio = request.param
    settings.backbone = config.Backbone("resnet18", "batch", frozen_stages=0)
    settings.fpn.channels = settings.rpn.channels = settings.mask_head.channels = 16
    settings.mask_head.convs, settings.box_head.units = 1, 32
    settings.detections = config.Detections(score_threshold=0.0, max_detections=20)
    model = MaskRCNN(settings, [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}])
    # Scores far apart, so that rounding cannot change their order.
    for layer in (model.rpn_head.objectness, model.box_head.classes, model.rpn_head.deltas):
        layer.kernel.assign(50 * layer.kernel)
    return model


def cases():
    random = np.random.default_rng(0)
    return {
        "a": (random.integers(0, 256, (1, 96, 64, 3)).astype("uint8"), np.array([[90, 60]], "int32")),
        "b": (
            random.integers(0, 256, (3, 64, 128, 3)).astype("uint8"),
            np.array([[64, 128], [40, 100], [64, 50]], "int32"),
        ),
    }


def test_fresh_process_gives_the_same_numbers(model, tmp_path):
    export_saved_model(model, tmp_path / "saved")
    arrays = {}
    for name, (images, sizes) in cases().items():
        arrays |= {f"{name}_images": images, f"{name}_sizes": sizes}
    np.savez(tmp_path / "given.npz", **arrays)
    subprocess.run(
        [sys.executable, "-c", FRESH, tmp_path / "saved", tmp_path / "given.npz", tmp_path / "found"],
        check=True,
        cwd=tmp_path,
    )
    for name, (images, sizes) in cases().items():
        expected = model.predict_on_batch({"images": images, "image_sizes": sizes})
        assert expected["num_detections"].min() > 0
        found = np.load(tmp_path / f"found_{name}.npz")
        assert set(found) == set(expected)
        for key, value in expected.items():
            scale = 128 if key == "boxes" else 1  # pixels as parts of the image
            np.testing.assert_allclose(found[key] / scale, value / scale, atol=1e-5, err_msg=f"{name} {key}")


def test_only_stock_operations_and_the_label_map(model, tmp_path):
    export_saved_model(model, tmp_path / "saved")
    assert foreign_operations(tmp_path / "saved") == []
    categories = json.loads((tmp_path / "saved" / "assets" / "categories.json").read_text())
    assert categories == [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}]


def test_the_lint_finds_a_foreign_operation(tmp_path):
    module = tf.Module()
    module.call = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec([2])])
    tf.saved_model.save(module, tmp_path / "saved")
    assert foreign_operations(tmp_path / "saved") == []
    path = tmp_path / "saved" / "saved_model.pb"
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    saved.meta_graphs[0].graph_def.library.function[0].node_def.add(name="own", op="KerasMrcnn>RoiAlign")
    path.write_bytes(saved.SerializeToString())
    assert foreign_operations(tmp_path / "saved") == ["KerasMrcnn>RoiAlign"]


def test_a_model_of_mixed_precision_is_served_in_float32(model, tmp_path):
    mixed = MaskRCNN(model.config, model.categories, dtype="mixed_bfloat16")
    mixed.set_weights(model.get_weights())
    export_saved_model(mixed, tmp_path / "saved")
    images, sizes = cases()["a"]
    signature = tf.saved_model.load(tmp_path / "saved").signatures["serving_default"]
    found = signature(images=tf.constant(images), image_sizes=tf.constant(sizes))
    expected = model.predict_on_batch({"images": images, "image_sizes": sizes})
    np.testing.assert_allclose(found["scores"].numpy(), expected["scores"], atol=1e-5)


def test_nothing_is_overwritten(model, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "precious").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        export_saved_model(model, tmp_path / "saved")
