"""A run on Cityscapes' folders, from the weights of a model of other classes; and with keypoints."""

import csv

import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing import event_accumulator

from keras_mrcnn import MaskRCNN, config
from keras_mrcnn.cli import main
from keras_mrcnn.data.cityscapes import FROM_COCO
from keras_mrcnn.data.stick_figures import make_stick_figures
from keras_mrcnn.train import run
from tests.evaluation import streets
from tests.test_paper import TINY

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
    for views in ([], ["--scales", "64,96", "--flip"]):
        done = CliRunner().invoke(main, ["eval", *arguments, *views])
        assert done.exit_code == 0 and "keypoints" in done.output, done.output
