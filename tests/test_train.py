"""A run on Cityscapes' folders, from the weights of a model of other classes; and with keypoints."""

import csv
import json
import zipfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing import event_accumulator

from keras_mrcnn import MaskRCNN, config, train
from keras_mrcnn.cli import main
from keras_mrcnn.data.cityscapes import FROM_COCO
from keras_mrcnn.data.shapes import make_shapes
from keras_mrcnn.data.stick_figures import make_stick_figures
from keras_mrcnn.train import run
from tests.evaluation import streets
from tests.test_cli import settings
from tests.test_paper import TINY

pytestmark = pytest.mark.usefixtures("compiled")
ONE_EPOCH = [*TINY, "training.epochs=1", "training.optimizer=sgd", "training.learning_rate=0.0001"]


def logged(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))[-1]


@pytest.mark.proof
def test_cityscapes_from_a_model_of_other_classes(tmp_path):
    streets.make(tmp_path / "city", 0)
    own = [f"training.output={tmp_path / 'run'}", f"training.weights={tmp_path / 'coco.keras'}"]
    own += [f"data.{split}_images={tmp_path / 'city'}" for split in ("train", "val")]
    settings = config.load("paper/cityscapes_r50_fpn_coco", [*ONE_EPOCH, *own, "data.train_annotations=val"])
    assert settings.training.class_mapping == {name: other or "" for name, other in FROM_COCO.items()}
    coco = MaskRCNN(settings.model, ["bicycle", "car", "truck", "bus", "train", "motorcycle", "person"])
    coco.save(tmp_path / "coco.keras")

    model = run(settings)
    before = coco.box_head.classes.kernel.numpy()
    person = [category.name for category in model.categories].index("person")
    learnt = model.box_head.classes.kernel.numpy()
    # a small rate for few steps: still near where it came from
    assert abs(learnt[:, person] - before[:, 6]).max() < 1e-2 < abs(learnt[:, person] - before[:, 0]).max()
    assert "val_segm_AP" in logged(tmp_path / "run")
    arguments = [str(tmp_path / "run" / "last.keras"), "val", str(tmp_path / "city")]
    done = CliRunner().invoke(main, ["eval", *arguments, "--metric", "cityscapes"])
    assert done.exit_code == 0 and "rider" in done.output, done.output
    settings.training.output, settings.training.class_mapping = str(tmp_path / "other"), {"person": "person"}
    with pytest.raises(ValueError, match="`mapping` must have an entry for every category"):
        run(settings)


def test_other_data_cannot_finish_an_epoch(tmp_path):
    with zipfile.ZipFile(tmp_path / "last.keras", "w") as file:
        file.writestr("progress.json", json.dumps({"epochs": 2, "batches": 7, "steps": 50}))
    assert train._progress(tmp_path / "last.keras", 50).next_batch() == (2, 7)
    with pytest.raises(ValueError, match="an epoch of 50 batches, and the data give 49 now"):
        train._progress(tmp_path / "last.keras", 49)


@pytest.mark.proof
def test_the_dump_of_a_loss_that_is_not_finite_comes_to_the_same_step(tmp_path):
    data = make_shapes(tmp_path / "shapes", images=12, val_images=2, size=(64, 64), max_objects=2)
    diverging = settings(
        data, tmp_path / "run", epochs=2, learning_rate=1e20, clip_norm=0, checkpoint_steps=1
    )
    diverging.data.batch_size = 4
    with pytest.raises(FloatingPointError):
        run(diverging)
    dump = tmp_path / "run" / "nonfinite"
    told = CliRunner().invoke(main, ["train", str(dump / "config.yaml"), "--resume"])
    assert told.exit_code == 1 and "Step 2 of epoch 1: the loss is not finite" in told.output, told.output
    model = keras.models.load_model(dump / "before.keras")
    assert model.optimizer.iterations == 1
    given = {"inputs": {}, "targets": {}}
    with np.load(dump / "batch.npz") as batch:
        for name in batch:
            room, key = name.split("/")
            given[room][key] = batch[name]
    named = model.compute_losses(**given)
    went = json.loads((dump / "nonfinite.json").read_text())["losses"]
    assert {name for name, value in named.items() if not np.isfinite(value)} == set(went) - {"loss"}


def test_keypoints_are_scored_and_logged(tmp_path):
    data = make_stick_figures(tmp_path / "figures", images=8, val_images=4)
    own = [f"training.output={tmp_path / 'run'}", *(f"data.{name}={path}" for name, path in data.items())]
    own += ["training.tensorboard=true", "model.keypoint_head.sigmas=[0.05]"]
    run(config.load("paper/keypoints_masks_r50_fpn", [*ONE_EPOCH, *own]))
    row = logged(tmp_path / "run")
    assert float(row["keypoint"]) > 0 and float(row["val_keypoint"]) > 0
    assert {"val_bbox_AP", "val_segm_AP", "val_keypoints_AP50"} <= set(row)
    shown = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(shown.Tags()["images"]) == 4 and "epoch/val_keypoints_AP" in shown.Tags()["scalars"]
    arguments = [str(tmp_path / "run" / "last.keras"), data["val_annotations"], data["val_images"]]
    done = CliRunner().invoke(main, ["eval", *arguments, "--scales", "64", "--flip"])
    assert done.exit_code == 0 and "keypoints" in done.output, done.output
