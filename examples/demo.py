"""The whole walk on real images: train, score, draw, export, predict from the export.

    make demo

Trains on the nuclei images beside this file for at most ten minutes on two CPU cores, prints the COCO scores
beside those of Otsu's threshold, and leaves pictures and a SavedModel in runs/nuclei_demo.
"""

import pathlib
import shutil
import subprocess
import sys
import time

import keras
import numpy as np
from otsu import score as otsu_score
from pycocotools import mask as coco_mask

from keras_mrcnn import config, load_coco, replicas
from keras_mrcnn.cli import load_model
from keras_mrcnn.data.images import load_image
from keras_mrcnn.serving.export import export_saved_model
from keras_mrcnn.train import run
from keras_mrcnn.visualize import draw, side_by_side, write_image

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE / "data" / "nuclei"
MINUTES = 10
PICTURES = 6


class StopAfter(keras.callbacks.Callback):
    """Ends training when the time is up, on machines slower than the one this was tuned on."""

    def __init__(self, minutes):
        super().__init__()
        self.deadline = time.monotonic() + 60 * minutes

    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() > self.deadline:
            self.model.stop_training = True


def true_masks(record):
    """bool `[G, H, W]` of a record whose objects are all RLE."""
    return np.array([coco_mask.decode(rle) for rle in record.segmentations], bool)


def draw_pictures(model, records, folder):
    """True and predicted masks side by side, one picture for each record."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        image = load_image(record.path)
        found = model.detect(image).above(0.5)
        # No labels: one class, many small objects.
        names = [model.categories[index].name for index in record.classes]
        true = draw(image, record.boxes, true_masks(record), names, scale=2, max_labels=0)
        predicted = found.plot(scale=2, max_labels=0)
        picture = side_by_side(true, predicted, (f"{len(names)} true", f"{len(found)} predicted"))
        write_image(folder / f"{pathlib.Path(record.path).stem}.png", picture)


def main():
    """Runs the demonstration."""
    settings = config.load("nuclei_demo")
    output = pathlib.Path(settings.training.output)
    shutil.rmtree(output, ignore_errors=True)
    settings.data.train_annotations = str(DATA / "annotations" / "instances_train.json")
    settings.data.val_annotations = str(DATA / "annotations" / "instances_val.json")
    if replicas.bfloat16_is_emulated():
        settings.training.precision = "float32"
    settings.data.train_images, settings.data.val_images = str(DATA / "train"), str(DATA / "val")

    started = time.monotonic()
    trained = run(settings, callbacks=[StopAfter(MINUTES)])
    minutes = (time.monotonic() - started) / 60
    if trained.epochs_done < settings.training.epochs:
        print(f"Stopped after {trained.epochs_done} of {settings.training.epochs} epochs: the time was up.")
    model = load_model(output / "last.keras")
    records = load_coco(settings.data.val_annotations, settings.data.val_images, model.categories).records
    draw_pictures(model, records[:: max(len(records) // PICTURES, 1)][:PICTURES], output / "pictures")
    served = export_saved_model(model, output / "saved_model")

    otsu = otsu_score(settings.data.val_annotations, settings.data.val_images)["segm"]
    print(f"\nTrained and scored in {minutes:.1f} minutes. On the same images, Otsu's threshold:")
    print("segm  " + "  ".join(f"{name} {100 * otsu[name]:.1f}" for name in ("AP", "AP50", "AP75")))
    print("\nA fresh process that knows TensorFlow alone, on the SavedModel:", flush=True)
    subprocess.run([sys.executable, HERE / "predict_saved_model.py", served, records[0].path], check=True)
    print(
        f"""
Made in {output}:
  pictures/        true and predicted masks, side by side: look at them first
  last.keras       the model with its category names: keras_mrcnn.load_model
  saved_model/     the same for TensorFlow Serving: image files in, answers in their pixels out
  log.csv, scores_epoch_*.json, config.yaml

Next:
  mrcnn predict {output}/last.keras YOUR_IMAGE.png
  mrcnn check YOUR_LABELS.json YOUR_IMAGES/
  mrcnn train nuclei_r18_fpn data.train_annotations=YOUR_LABELS.json data.train_images=YOUR_IMAGES/ \\
      data.val_annotations=YOUR_OTHER_LABELS.json data.val_images=YOUR_IMAGES/ training.output=runs/mine"""
    )


if __name__ == "__main__":
    main()
