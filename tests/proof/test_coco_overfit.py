"""Real COCO photographs, ResNet-50-FPN: what cannot learn eight images by heart is wrong somewhere."""

import json

import keras
import pytest

from keras_mrcnn import config
from keras_mrcnn.train import run

IMAGES = 8


@pytest.mark.proof
def test_eight_coco_images_are_learnt_by_heart(shared, tmp_path):
    folder = shared / "data" / "coco_sample"
    content = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    content["images"] = sorted(content["images"], key=lambda image: image["id"])[:IMAGES]
    chosen = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in chosen]
    annotations = tmp_path / "eight.json"
    annotations.write_text(json.dumps(content))

    settings = config.load("coco_overfit_r50_fpn")
    settings.data.train_annotations = settings.data.val_annotations = str(annotations)
    settings.data.train_images = settings.data.val_images = str(folder / "train2017")
    settings.training.output = str(tmp_path / "run")
    losses, scores = [], {}

    def keep(epoch, logs):
        losses.append(logs["loss"])
        scores.update(logs)

    run(settings, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)])
    print(f"segm AP50 {scores['val_segm_AP50']:.3f}, mean loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert scores["val_segm_AP50"] >= 0.90
    assert losses[-1] <= losses[0] / 10
