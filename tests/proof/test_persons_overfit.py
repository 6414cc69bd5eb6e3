"""Persons in real COCO photographs: masks and keypoints of one model, eight images by heart."""

import json

import keras
import pytest

from keras_mrcnn import config
from keras_mrcnn.train import run

IMAGES = 8
WEIGHTS = "resnet18_imagenet_stem_layer123_bnfolded.npz"


@pytest.mark.proof
def test_eight_images_with_persons_are_learnt_by_heart(shared, tmp_path):
    folder = shared / "data" / "coco_sample"
    content = json.loads((folder / "annotations" / "person_keypoints_train2017.json").read_text())
    labelled = {a["image_id"] for a in content["annotations"] if a["num_keypoints"]}
    chosen = sorted(labelled)[:IMAGES]
    for part, key in (("images", "id"), ("annotations", "image_id")):
        content[part] = [entry for entry in content[part] if entry[key] in chosen]
    annotations = tmp_path / "eight.json"
    annotations.write_text(json.dumps(content))

    settings = config.load("coco_persons_overfit_r18_fpn")
    settings.data.train_annotations = settings.data.val_annotations = str(annotations)
    settings.data.train_images = settings.data.val_images = str(folder / "train2017")
    settings.training.backbone = str(shared / "data" / "weights" / WEIGHTS)
    settings.training.output = str(tmp_path / "run")
    scores = {}
    run(
        settings, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: scores.update(logs))]
    )
    keypoints, masks = scores["val_keypoints_AP50"], scores["val_segm_AP50"]
    print(f"OKS AP50 {keypoints:.3f}, segm AP50 {masks:.3f}")
    assert keypoints >= 0.90
    assert masks >= 0.90
