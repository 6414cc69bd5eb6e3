"""Scores of a tiny model between epochs, of one process or of several workers: run by `test_workers.py`."""

import json
import sys

import keras
import numpy as np

from keras_mrcnn import MaskRCNN, config, replicas, train

THRESHOLD = "detections.score_threshold="


def compile_with_averages(model):
    """With averages unlike the weights. Their scores differ among the images; those of new weights do not."""
    model.compile(keras.optimizers.SGD(use_ema=True))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(1)
    averages = model.optimizer._model_variables_moving_average
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        average.assign(1.2 * variable)


def scored(settings, strategy):
    """Logs of this worker, scores and the rows that were scored, if it is the chief, and its images' ids."""
    keras.utils.set_random_seed(0)
    valid = train.load_data(settings.data, "val")
    with strategy.scope():
        model = MaskRCNN(settings.model, valid.categories, seed=0)
        compile_with_averages(model)
    before = [weight.copy() for weight in model.get_weights()]
    dataset = train.evaluation_dataset(valid.records, settings.data, settings.model.input)
    scores = train._scores(settings, model, strategy, valid, dataset)
    rows, add = [], scores.evaluator.add_coco
    scores.evaluator.add_coco = lambda found: [rows.extend(found), add(found)]
    scores.set_model(model)
    scores.set_params({"epochs": 1})
    logs = {}
    scores.on_epoch_end(0, logs)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    return {"logs": logs, "rows": rows, "images": [record.image_id for record in scores.records]}


def main(config_file, output):
    """Write what `scored` gives."""
    strategy = replicas.strategy()
    found = scored(config.load(config_file), strategy)
    with open(output, "w") as file:
        json.dump(found, file)
    replicas.meet(strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
