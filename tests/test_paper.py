"""Every row of the paper's tables: its config builds, takes a training step, and is saved and exported."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import MaskRCNN, ablation, config
from keras_mrcnn.serving.export import export_saved_model

TINY = (
    *(line for line in ablation.SMALL if "own_features" not in line),
    *ablation.SCRATCH,
    "model.fpn.channels=8",
    "model.rpn.channels=8",
    "model.proposals.post_nms_train=20",
    "model.proposals.post_nms_test=12",
    "model.box_head.units=8",
    "model.mask_head.channels=8",
    "model.mask_head.units=8",
    "model.keypoint_head.convs=1",
    "model.keypoint_head.channels=8",
    "model.sampling.rois=16",
    "model.detections.score_threshold=0.0",
    "model.detections.max_detections=5",
    "model.detections.nms_iou=0.5",
    "model.input.std=[1,1,1]",
)
BODIES = {"r101": "resnet101", "x101": "resnext101_32x8d"}  # of some rows the paper's, with a block a stage


def rows():
    """The paper's rows at a tiny scale; those that are one model then, once."""
    found = {}
    for path in sorted((config.folder("configs") / "paper").glob("*.yaml")):
        body = next((name for key, name in BODIES.items() if key in path.stem), "resnet18")
        settings = config.load(path, [*TINY, f"model.backbone.name={body}"]).model
        if settings not in found.values():
            found[path.stem] = settings
    return found


ROWS = rows()
# One of each kind; the others with the slow proofs.
QUICK = {"keypoints_masks_r50_fpn", "r50_c4_softmax"}
assert QUICK <= set(ROWS)


def batch():
    random = np.random.default_rng(0)
    inputs = {
        "images": random.integers(0, 256, [2, 64, 96, 3]).astype(np.uint8),
        "image_sizes": np.array([[64, 96], [50, 80]], np.int32),
    }
    targets = {
        "boxes": np.float32([[[8, 8, 40, 40], [50, 10, 80, 50]], [[5, 5, 45, 45], [0, 0, 0, 0]]]),
        "classes": np.int32([[0, 2], [1, 0]]),
        "valid": np.array([[True, True], [True, False]]),
        "masks": random.integers(0, 2, [2, 2, 112, 112]).astype(np.uint8),
        "has_mask": np.array([[True, True], [True, False]]),
        "keypoints": np.zeros([2, 2, 3, 3], np.float32),
    }
    targets["keypoints"][0, 0] = [[10, 10, 2], [30, 20, 1], [0, 0, 0]]
    return inputs, targets


@pytest.mark.parametrize(
    "row", [row if row in QUICK else pytest.param(row, marks=pytest.mark.proof) for row in ROWS]
)
def test_a_row_trains_and_is_saved_and_exported(row, tmp_path):
    settings = ROWS[row]
    pointed = {"id": 1, "name": "person", "keypoints": ["head", "left_hand", "right_hand"]}
    model = MaskRCNN(settings, [pointed, "square", "triangle"], seed=0)
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
    inputs, targets = batch()
    before = [variable.numpy() for variable in model.trainable_variables]
    losses = model.train_step((inputs, targets))
    assert all(np.isfinite(value) for value in losses.values()) and losses["rpn_objectness"] > 0
    moved = [np.abs(v.numpy() - b).max() > 0 for v, b in zip(model.trainable_variables, before, strict=True)]
    assert np.mean(moved) > 0.8
    assert ("mask" in losses) == settings.mask_head.enabled
    assert ("keypoint" in losses) == settings.keypoint_head.enabled

    images = inputs["images"]
    found = model.detect(list(images))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    folder = export_saved_model(again, tmp_path / "exported", masks="box")
    outputs = tf.saved_model.load(folder).signatures["image_tensor"](images=tf.constant(images))
    for image, results in enumerate(found):
        assert outputs["num_detections"][image] == len(results) > 0
        pairs = {"boxes_pixels": results.boxes, "scores": results.scores}
        if results.mask_probabilities is not None:
            pairs["masks"] = results.mask_probabilities
        if results.keypoints is not None:
            pairs["keypoints_pixels"] = results.keypoints[..., :2]
        for name, value in pairs.items():
            served = outputs[f"detection_{name}"][image, : len(results)]
            np.testing.assert_allclose(served, value, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", ablation.TABLES)
def test_the_rows_of_a_table_are_configs_whose_header_has_the_published_scores(name):
    for row in ablation.TABLES[name].rows:
        header = config.find(row.config).read_text().split("\nmodel:")[0].split("\nbase:")[0]
        published = [str(value) for value in row.paper if value is not None]
        assert all(value in header for value in published), (row.label, header)
        for body in (ablation.SCRATCH, ablation.PRETRAINED):
            config.load(row.config, [*ablation.SMALL, *body, *row.change])


def test_the_table_has_ours_and_the_papers_scores():
    found = [[(1.0, 2.0, 3.0), (3.0, 2.0, 5.0)], [(10.0, 20.0, 30.0)], [(0.0, 0.0, 0.0)]]
    lines = ablation.format_table("2b", found).splitlines()
    assert lines[4] == "| softmax | 2.0 ± 1.4 | 2.0 ± 0.0 | 4.0 ± 1.4 | 24.8 | 44.1 | 25.1 |"
    assert lines[5] == "| sigmoid | 10.0 | 20.0 | 30.0 | 30.3 | 51.2 | 31.5 |"
    assert lines[6].endswith("| 29.7 | - | - |")
    with pytest.raises(ValueError, match="one of 2a, 2b"):
        ablation.ablate("9", {})


def test_a_row_is_trained_once_and_not_taken_for_another(tmp_path, monkeypatch):
    trained = []

    def run(settings, callbacks):
        trained.append(settings)
        folder = pathlib.Path(settings.training.output)
        folder.mkdir(parents=True)
        config.save(settings, folder / "config.yaml")
        callbacks[0].on_epoch_end(0, {f"val_segm_{score}": len(trained) / 100 for score in ablation.SCORES})

    monkeypatch.setattr(ablation, "run", run)
    found = ablation.ablate("2e", {}, 1, tmp_path)
    assert found == [[(1.0,) * 3], [(2.0,) * 3], [(3.0,) * 3]] == ablation.ablate("2e", {}, 1, tmp_path)
    assert len(trained) == 3 and all(settings.model.backbone.norm == "batch" for settings in trained)
    with pytest.raises(ValueError, match="a run of other settings"):
        ablation.ablate("2e", {}, 1, tmp_path, ["training.epochs=3"])
    with pytest.raises(ValueError, match="compares depths"):
        ablation.ablate("2a", {}, 1, tmp_path, backbone="torchvision/resnet18_imagenet_v1")
