"""The command line on shapes: check, train, resume, eval, predict, export."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from pycocotools import mask as coco_mask

from keras_mrcnn import config
from keras_mrcnn.cli import main
from keras_mrcnn.data.coco import load_coco
from keras_mrcnn.data.shapes import make_shapes
from keras_mrcnn.train import run
from keras_mrcnn.visualize import write_image

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(
        tmp_path_factory.mktemp("shapes"), images=12, val_images=5, size=(64, 64), max_objects=2
    )


def settings(shapes, output, **training):
    tiny = config.load("shapes_r18_fpn")
    tiny.model.input.short_edge = tiny.model.input.long_edge = 64
    tiny.model.fpn.channels = tiny.model.rpn.channels = tiny.model.mask_head.channels = 16
    tiny.model.mask_head.convs, tiny.model.box_head.units = 1, 16
    tiny.model.backbone.blocks = [1, 1, 1, 1]
    tiny.data.short_edges = [64]
    for name, path in shapes.items():
        setattr(tiny.data, name, str(path))
    tiny.training.output = str(output)
    tiny.training.evaluate_every = 1
    tiny.training.optimizer, tiny.training.learning_rate, tiny.training.warmup_steps = "sgd", 0.01, 0
    for name, value in training.items():
        setattr(tiny.training, name, value)
    return tiny


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(settings(shapes, output, epochs=2))
    return output


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_train_leaves_what_it_promises(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "last.keras", "log.csv", "scores_epoch_1.json", "scores_epoch_2.json"} <= names
    header, *rows = (trained / "log.csv").read_text().splitlines()
    assert {"loss", "val_loss", "val_segm_AP", "val_mask"} <= set(header.split(","))
    assert len(rows) == 2
    scores = json.loads((trained / "scores_epoch_2.json").read_text())
    assert set(scores["per_class"]) == {"circle", "triangle", "square"}


LOAD = """
import sys, numpy as np
image = np.full([64, 64, 3], 128, "uint8")
if sys.argv[2] == "keras":
    import keras
    from keras_mrcnn import MaskRCNN
    model = keras.models.load_model(sys.argv[1])
    assert model.optimizer is not None
else:
    from keras_mrcnn import load_model
    model = load_model(sys.argv[1])
model.detect(image)
assert [category.name for category in model.categories] == ["circle", "triangle", "square"]
"""


@pytest.mark.parametrize("how", ["keras", pytest.param("keras_mrcnn", marks=pytest.mark.proof)])
def test_the_file_alone_restores_the_model_in_a_fresh_process(trained, how):
    subprocess.run([sys.executable, "-c", LOAD, trained / "last.keras", how], check=True)


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_last_good_file(shapes, tmp_path):
    diverging = settings(shapes, tmp_path / "run", epochs=2, learning_rate=1e20, clip_norm=0)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        run(diverging)
    assert not (tmp_path / "run" / "last.keras").exists()
    noted = json.loads((tmp_path / "run" / "nonfinite" / "nonfinite.json").read_text())
    assert (noted["epoch"], noted["batch"]) == (0, 1) and "loss" in noted["losses"]
    records = {
        record.image_id: record
        for record in load_coco(shapes["train_annotations"], shapes["train_images"]).records
    }
    chosen = [records[image_id] for image_id in noted["image_ids"]]
    assert len(chosen) == 4  # 12 images in batches of 8
    with np.load(tmp_path / "run" / "nonfinite" / "batch.npz") as batch:
        for row, record in enumerate(chosen):
            classes = batch["targets/classes"][row][batch["targets/valid"][row]]
            np.testing.assert_array_equal(classes, record.classes)


def test_a_run_is_resumed_with_its_own_settings(shapes, trained):
    with pytest.raises(ValueError, match="These differ"):
        run(settings(shapes, trained, epochs=2, weight_decay=0.5), resume=True)


def test_an_earlier_run_is_not_overwritten(shapes, trained):
    with pytest.raises(ValueError, match="--resume"):
        run(settings(shapes, trained))


def test_nothing_to_resume(shapes, tmp_path):
    with pytest.raises(FileNotFoundError, match="Nothing to resume"):
        run(settings(shapes, tmp_path / "new"), resume=True)


def test_eval_prints_the_table_of_the_last_epoch(shapes, trained, tmp_path):
    path = tmp_path / "scores.json"
    result = invoke(
        "eval", trained / "last.keras", shapes["val_annotations"], shapes["val_images"], "--output", path
    )
    assert result.exit_code == 0, result.output
    assert "segm" in result.output and "AP50" in result.output
    expected = json.loads((trained / "scores_epoch_2.json").read_text())
    assert json.loads(path.read_text())["segm"]["AP"] == pytest.approx(expected["segm"]["AP"], abs=0.02)


def test_predict_draws_and_writes_results_that_pycocotools_reads(shapes, trained, tmp_path):
    result = invoke("predict", trained / "last.keras", shapes["val_images"], "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found
    for detection in found[:20]:
        assert coco_mask.decode(detection["segmentation"]).shape == (64, 64)
        assert detection["category_id"] in (1, 2, 3)
    assert len(list((tmp_path / "out").glob("*_found.png"))) == 17


def test_predict_leaves_out_what_it_cannot_read_and_says_so(shapes, trained, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(next(pathlib.Path(shapes["val_images"]).glob("*.png")).read_bytes())
    result = invoke("predict", trained / "last.keras", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 1 and "1 of 2 images" in result.output
    assert (tmp_path / "out" / "b_found.png").is_file() and (tmp_path / "out" / "results.json").is_file()


@pytest.mark.proof
def test_export_writes_a_saved_model_once(trained, tmp_path):
    result = invoke("export", trained / "last.keras", tmp_path / "saved")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "saved" / "1" / "saved_model.pb").is_file()
    again = invoke("export", trained / "last.keras", tmp_path / "saved")
    assert again.exit_code == 1 and "next free version is 2" in again.output


def test_check_says_what_is_there(shapes):
    result = invoke("check", shapes["train_annotations"], shapes["train_images"])
    assert result.exit_code == 0 and "12 images" in result.output


def test_shapes_prints_the_command_to_train_on_them(tmp_path):
    result = invoke("shapes", tmp_path / "made", "--train", 2, "--val", 1)
    assert result.exit_code == 0
    assert "mrcnn train shapes_r18_fpn data.train_annotations=" in result.output


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["train", "no_such_config"], "No config file"),
        (["train", "shapes_r18_fpn", "data.batchsize=2"], "Did you mean `data.batch_size`"),
        (["train", "shapes_r18_fpn"], "train_annotations"),
    ],
)
def test_wrong_input_is_told_in_a_line(arguments, expected):
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert expected in result.output and "Traceback" not in result.output


@pytest.mark.proof
def test_a_folder_full_of_mistakes_trains_on_what_is_left(shapes, tmp_path, capsys):
    content = json.loads(pathlib.Path(shapes["train_annotations"]).read_text())
    images = pathlib.Path(shapes["train_images"])
    content["images"] += [
        {"id": 900, "file_name": "missing.png", "height": 64, "width": 64},
        {"id": 901, "file_name": str(tmp_path / "cut.png"), "height": 64, "width": 64},
        {"id": 902, "file_name": str(tmp_path / "line.png"), "height": 1, "width": 300},
        {"id": 903, "file_name": str(tmp_path / "dot.png"), "height": 1, "width": 1},
    ]
    whole = next(images.glob("*.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, size in (("line.png", (1, 300)), ("dot.png", (1, 1))):
        write_image(tmp_path / name, np.full((*size, 3), 90, "uint8"))
    nan, image_id = float("nan"), content["images"][0]["id"]
    for number, (where, category, box) in enumerate(
        [
            (image_id, 1, [nan, 2, 10, 10]),
            (image_id, 1, [500, 500, 10, 10]),
            (image_id, 1, [5, 5, 0, 10]),
            (image_id, 77, [5, 5, 10, 10]),
            (12345, 1, [5, 5, 10, 10]),
            (902, 2, [10, 0, 200, 1]),
            (903, 3, [0, 0, 1, 1]),
        ]
    ):
        annotation = {"id": 5000 + number, "image_id": where, "category_id": category, "bbox": box}
        content["annotations"].append({**annotation, "iscrowd": 0, "area": 1})
    content["annotations"].append(
        {"id": 6000, "image_id": image_id, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1]]}
    )
    broken = {**shapes, "train_annotations": tmp_path / "broken.json"}
    broken["train_annotations"].write_text(json.dumps(content))
    model = run(settings(broken, tmp_path / "run", epochs=1))
    assert model.epochs_done == 1
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)
    printed = capsys.readouterr().out
    assert "14 images" in printed  # 12, the line and the dot
    for found in ("missing.png", "cut.png", "5000", "5001", "5002", "5003", "5004", "6000"):
        assert found in printed, f"{found} was left out without a word"

    strict = settings(broken, tmp_path / "strict", epochs=1)
    strict.data.invalid = "error"
    with pytest.raises(ValueError, match="broken.json, image id 12345, annotation id 5004"):
        run(strict)
