"""What happens between epochs: COCO scores, and checkpoints to go on from."""

import dataclasses
import json
import math
import os
import pathlib

import keras
import numpy as np

from keras_mrcnn.evaluation import format_table
from keras_mrcnn.results import Results
from keras_mrcnn.training.averages import averaged


def score(model, dataset, records, evaluator, progress=None):
    """COCO scores of a model, in the source pixels of the records' images.

    Args:
        model: `MaskRCNN`.
        dataset: batches `(inputs, targets)` of the records, in their order.
        records: list of records with `image_id`, `height` and `width`.
        evaluator: `evaluation.CocoEvaluator` of the records; it is reset.
        progress: function that is called with the number of images just done, or None.

    Returns:
        What `evaluator.result` returns.
    """
    evaluator.reset()
    done = 0
    for inputs, _ in dataset:
        outputs = model.predict_on_batch(inputs)
        for row, size in enumerate(np.asarray(inputs["image_sizes"])):
            record = records[done]
            evaluator.add(
                Results.from_detections(
                    {name: value[row] for name, value in outputs.items()},
                    size,
                    (record.height, record.width),
                    model.categories,
                    image_id=record.image_id,
                    paste=model.config.mask_head.paste,
                )
            )
            done += 1
        if progress:
            progress(len(inputs["image_sizes"]))
    return evaluator.result()


def score_views(model, records, evaluator, views, progress=None):
    """COCO scores with test-time augmentation.

    Args:
        model, records, evaluator, progress: as for `score`.
        views: dictionary with short_edges and flip, see `MaskRCNN.detect`.

    Returns:
        What `evaluator.result` returns.
    """
    evaluator.reset()
    for record in records:
        results = model.detect(record.path, **views)
        evaluator.add(dataclasses.replace(results, image_id=record.image_id))
        if progress:
            progress(1)
    return evaluator.result()


class CocoScores(keras.callbacks.Callback):
    """COCO scores of the validation images, in the logs as `val_bbox_AP`, `val_segm_AP`, ... (0 to 1).

    Stands before other callbacks, so that they see the scores.

    Args:
        dataset, records, evaluator: as for `score`.
        every: int, epochs from one scoring to the next; the last epoch is always scored.
        folder: where `scores_epoch_N.json` go, with the scores of each class; None: nowhere.
    """

    def __init__(self, dataset, records, evaluator, every=1, folder=None):
        super().__init__()
        self.dataset = dataset
        self.records = records
        self.evaluator = evaluator
        self.every = every
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        if (epoch + 1) % self.every and not last:
            return
        with averaged(self.model):
            scores = score(self.model, self.dataset, self.records, self.evaluator)
        print("\n" + format_table(scores))
        if self.folder:
            write_scores(scores, pathlib.Path(self.folder, f"scores_epoch_{epoch + 1}.json"))
        for kind in self.evaluator.iou_types:
            for name in ("AP", "AP50", "AP75"):
                logs[f"val_{kind}_{name}"] = scores[kind].get(name, math.nan)


class Checkpoints(keras.callbacks.Callback):
    """`last.keras` after every epoch, with all that a run needs to go on, and `best.keras` by a score.

    A file is complete or not there: it is written under another name first. An epoch whose loss is not finite
    ends the run with a `FloatingPointError` and leaves the files of the epoch before.

    Args:
        folder: where they go; beside them `best.json`, the best score so far.
        monitor: name in the logs, more is better; NaN never is.
    """

    def __init__(self, folder, monitor="val_segm_AP"):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.monitor = monitor
        noted = self.folder / "best.json"
        self.best = json.loads(noted.read_text())[monitor] if noted.is_file() else -math.inf

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"The loss of epoch {epoch + 1} is {logs['loss']}. {self.folder / 'last.keras'} is that of "
                "the epoch before, if there was one. Lower training.learning_rate, or set training.clip_norm."
            )
        self.model.epochs_done = epoch + 1
        value = logs.get(self.monitor, math.nan)
        if value > self.best:
            self.best = float(value)
            with averaged(self.model):
                _replace(self.folder / "best.keras", self.model.save)
            noted = json.dumps({self.monitor: self.best, "epoch": epoch + 1})
            _replace(self.folder / "best.json", lambda path: path.write_text(noted))
        _replace(self.folder / "last.keras", self.model.save)


class Log(keras.callbacks.CSVLogger):
    """`log.csv`, with the same columns for every epoch, scored or not, also after a resume.

    Args:
        path: of the file.
        losses: names of the losses; the columns are they, their `val_` twins and the scores of `CocoScores`.
        iou_types: what is scored, as "bbox".
        append: bool, go on with a file that is there.
    """

    def __init__(self, path, losses, iou_types, append=False):
        super().__init__(path, append=append)
        scores = [f"val_{kind}_{name}" for kind in iou_types for name in ("AP", "AP50", "AP75")]
        self.columns = [*losses, *(f"val_{name}" for name in losses), *scores]

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.keys = list(self.columns)


def _replace(path, write):
    unfinished = path.with_name("unfinished_" + path.name)
    write(unfinished)
    os.replace(unfinished, path)


def write_scores(scores, path):
    """Write scores as json; null where there was nothing to score."""
    pathlib.Path(path).write_text(json.dumps(_without_nan(scores), indent=1))


def _without_nan(scores):
    if isinstance(scores, dict):
        return {name: _without_nan(value) for name, value in scores.items()}
    return None if isinstance(scores, float) and math.isnan(scores) else scores
