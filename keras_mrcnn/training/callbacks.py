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
    for results in _detections(model, dataset, records, progress):
        evaluator.add(results)
    return evaluator.result()


def _detections(model, dataset, records, progress=None):
    """Yields the `Results` of each record."""
    done = 0
    for inputs, _ in dataset:
        outputs = model.predict_on_batch(inputs)
        for row, size in enumerate(np.asarray(inputs["image_sizes"])):
            record = records[done]
            yield Results.from_detections(
                {name: value[row] for name, value in outputs.items()},
                size,
                (record.height, record.width),
                model.categories,
                image_id=record.image_id,
                paste=model.config.mask_head.paste,
            )
            done += 1
        if progress:
            progress(len(inputs["image_sizes"]))


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


def share(records, batch_size, workers, worker):
    """The records on which one of several workers detects, maybe none; each record is one worker's.

    They are whole batches of all the records, one of every `workers`: within another batch an image would be
    padded otherwise, and its scores would not be those of one worker.

    Args:
        records: list of records.
        batch_size: int, images in a batch.
        workers, worker: how many there are, and which this is, from 0.
    """
    return [record for index, record in enumerate(records) if index // batch_size % workers == worker]


class CocoScores(keras.callbacks.Callback):
    """COCO scores of the validation images, in the logs as `val_bbox_AP`, `val_segm_AP`, ... (0 to 1).

    Stands before other callbacks, so that they see the scores. Of several workers each detects on its share;
    the chief scores the detections of all, and all have its scores in their logs.

    Args:
        dataset, records, evaluator: as for `score`; of several workers the first two are a `share`, and the
            evaluator is of all records.
        every: int, epochs from one scoring to the next; the last epoch is always scored.
        folder: where `scores_epoch_N.json` go, with the scores of each class; None: nowhere.
        gather: function that all workers call with what json holds; it returns the list of what they gave.
            None: there is one worker.
        chief: bool, False for all but one of several workers: they print and write nothing.
    """

    def __init__(self, dataset, records, evaluator, every=1, folder=None, gather=None, chief=True):
        super().__init__()
        self.dataset = dataset
        self.records = records
        self.evaluator = evaluator
        self.every = every
        self.folder = folder
        self.gather = gather
        self.chief = chief

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        if (epoch + 1) % self.every and not last:
            return
        with averaged(self.model):
            scores = self._score()
        if self.chief:
            print("\n" + format_table(scores))
            if self.folder:
                write_scores(scores, pathlib.Path(self.folder, f"scores_epoch_{epoch + 1}.json"))
        for kind in self.evaluator.iou_types:
            for name in ("AP", "AP50", "AP75"):
                logs[f"val_{kind}_{name}"] = scores[kind].get(name, math.nan)

    def _score(self):
        of_images = self.model, self.dataset, self.records
        if not self.gather:
            return score(*of_images, self.evaluator)
        masks = "segm" in self.evaluator.iou_types
        found = [row for results in _detections(*of_images) for row in results.to_coco(masks)]
        found_by_all, scores = self.gather(found), None
        if self.chief:
            self.evaluator.reset()
            for rows in found_by_all:
                self.evaluator.add_coco(rows)
            scores = self.evaluator.result()
        return next(filter(None, self.gather(scores)))


def write_scores(scores, path):
    """Write scores as json; null where there was nothing to score."""
    pathlib.Path(path).write_text(json.dumps(_without_nan(scores), indent=1))


def _without_nan(scores):
    if isinstance(scores, dict):
        return {name: _without_nan(value) for name, value in scores.items()}
    return None if isinstance(scores, float) and math.isnan(scores) else scores
