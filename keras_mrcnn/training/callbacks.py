"""COCO scores between epochs."""

import dataclasses
import json
import math
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


def write_scores(scores, path):
    """Write scores as json; null where there was nothing to score."""
    pathlib.Path(path).write_text(json.dumps(_without_nan(scores), indent=1))


def _without_nan(scores):
    if isinstance(scores, dict):
        return {name: _without_nan(value) for name, value in scores.items()}
    return None if isinstance(scores, float) and math.isnan(scores) else scores
