"""bfloat16 learns what float32 learns, on nuclei from scratch."""

import json

import keras
import numpy as np
import pytest
from keras.src import backend

from keras_mrcnn import config, replicas
from keras_mrcnn.train import run

STEPS_PER_EPOCH, EPOCHS = 50, 4


def products_in_float32(monkeypatch):
    """What processors with bfloat16 do: factors of it, sums in float32, results rounded to it."""

    def patch(module, name):
        function = getattr(module, name)

        def in_float32(one, other, *args, **kwargs):
            half = backend.standardize_dtype(one.dtype) == "bfloat16"
            if half:
                one, other = backend.cast(one, "float32"), backend.cast(other, "float32")
            result = function(one, other, *args, **kwargs)
            return backend.cast(result, "bfloat16") if half else result

        monkeypatch.setattr(module, name, in_float32)

    patch(backend.nn, "conv")
    patch(backend.nn, "conv_transpose")
    patch(backend.numpy, "matmul")


@pytest.mark.proof
def test_bfloat16_ends_where_float32_does(shared, native, tmp_path, monkeypatch):
    nuclei = shared / "data" / "nuclei"
    labels = json.loads((nuclei / "annotations" / "instances_train.json").read_text())
    labels["images"] = labels["images"][: 2 * STEPS_PER_EPOCH]
    kept = {image["id"] for image in labels["images"]}
    labels["annotations"] = [one for one in labels["annotations"] if one["image_id"] in kept]
    (tmp_path / "train.json").write_text(json.dumps(labels))

    def train(precision):
        settings = config.load("nuclei_r18_fpn")
        settings.data.train_annotations = str(tmp_path / "train.json")
        settings.data.val_annotations = str(nuclei / "annotations" / "instances_val.json")
        settings.data.train_images = settings.data.val_images = str(nuclei / "images")
        settings.training.precision = precision
        settings.training.epochs = settings.training.evaluate_every = EPOCHS
        settings.training.output = str(tmp_path / precision)
        found = {}
        run(
            settings,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: found.update(logs))],
        )
        return found

    exact = train("float32")
    if replicas.bfloat16_is_emulated():  # by TensorFlow: a quarter of a minute for each step
        products_in_float32(monkeypatch)
    half = train("mixed_bfloat16")
    for name in exact:
        print(f"{name}: float32 {exact[name]:.4f}, bfloat16 {half[name]:.4f}")
    losses = ["loss", "rpn_objectness", "rpn_box", "class", "box", "mask"]
    ratios = {name: half[name] / exact[name] for name in losses}
    assert np.abs(np.array(list(ratios.values())) - 1).max() <= 0.03, ratios
    for kind in ("bbox", "segm"):
        assert abs(half[f"val_{kind}_AP"] - exact[f"val_{kind}_AP"]) <= 0.02
