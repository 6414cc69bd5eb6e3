"""The same five steps on one device, on several, and by several workers: run by `test_replicas.py`.

What each image adds to the losses is a matter of that image alone here: all anchors and all regions are in
the samples, as many of every image, of which only the true boxes are foreground.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_mrcnn import MaskRCNN, config, replicas
from keras_mrcnn.training import schedule

SIDE, BATCH, STEPS = 32, 4, 5
OVERRIDES = [
    "backbone.name=resnet18",
    "backbone.norm=group",
    "backbone.frozen_stages=0",
    "backbone.blocks=[1,1,1,1]",
    "fpn.channels=8",
    "anchors.sizes=[4,8,16,32,64]",
    "rpn.channels=8",
    "rpn.samples=1000",
    "rpn.negative_iou=0.7",
    "proposals.nms_iou=1.0",
    "sampling.rois=400",
    "sampling.foreground_iou=0.999",
    "box_head.units=8",
    "mask_head.channels=8",
    "mask_head.convs=1",
]


def make_model(strategy, training, seed=0):
    """A compiled model of the strategy."""
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        settings = config.override(config.Model(), OVERRIDES)
        model = MaskRCNN(settings, ["square"], seed=0, dtype=training.precision)
        model.compile(schedule.optimizer(training, STEPS))
        model.optimizer.build(model.trainable_variables)
    schedule.regularize(model, training.weight_decay)
    model.micro_batches = training.accumulate
    return model


def images(number, seed=1):
    """`(inputs, targets)` of as many images, each with two objects and of other pixels."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 12, [number, 2, 2]) + np.int64([[0, 0], [2, 8]])
    boxes = np.concatenate([corners, corners + random.integers(6, 12, [number, 2, 2])], -1)
    valid = np.ones([number, 2], bool)
    inputs = {
        "images": random.integers(0, 256, [number, SIDE, SIDE, 3]).astype(np.uint8),
        "image_sizes": np.full([number, 2], SIDE, np.int32),
    }
    targets = {
        "boxes": boxes.astype(np.float32),
        "classes": np.zeros([number, 2], np.int32),
        "valid": valid,
        "masks": random.integers(0, 2, [number, 2, 112, 112]).astype(np.uint8),
        "has_mask": valid,
    }
    return inputs, targets


def train(strategy, training, number=STEPS * BATCH):
    """(losses of every step, weights after them)."""
    model = make_model(strategy, training)

    def make_dataset(workers, worker):
        own = BATCH // workers
        rows = np.arange(number).reshape(-1, workers, own)[:, worker].ravel()
        chosen = tf.nest.map_structure(lambda value: value[rows], images(number))
        return tf.data.Dataset.from_tensor_slices(chosen).batch(own)

    dataset = replicas.distribute(strategy, make_dataset, BATCH)
    history = model.fit(dataset, epochs=number // BATCH, steps_per_epoch=1, shuffle=False, verbose=0).history
    losses = np.array([history[name] for name in ("loss", *model.loss_names)])
    return losses, np.concatenate([np.ravel(weight) for weight in model.get_weights()])


def main(number, overrides, output):
    """Write what `train` gives, on so many devices of this process, as one of the workers of TF_CONFIG."""
    strategy = replicas.strategy(int(number) or None)
    losses, weights = train(strategy, config.Training(**json.loads(overrides)))
    if replicas.is_chief(strategy):
        np.savez(output, losses=losses, weights=weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
