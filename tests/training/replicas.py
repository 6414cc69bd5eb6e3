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
MOST = STEPS * BATCH + 1
OVERRIDES = [
    "backbone.name=resnet18",
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


def make_model(strategy, training, norm="group"):
    """A compiled model of the strategy."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        settings = config.override(config.Model(), [*OVERRIDES, f"backbone.norm={norm}"])
        model = MaskRCNN(settings, ["square"], seed=0, dtype=training.precision)
        model.compile(schedule.optimizer(training, STEPS))
        model.build_optimizer()
        replicas.synchronize(model)
    schedule.regularize(model, training.weight_decay)
    model.micro_batches = training.accumulate
    return model


def images(number, seed=1):
    """`(inputs, targets)` of the first so many images, each of other pixels and with two objects."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 12, [MOST, 2, 2]) + np.int64([[0, 0], [2, 8]])
    boxes = np.concatenate([corners, corners + random.integers(6, 12, [MOST, 2, 2])], -1)
    valid = np.ones([MOST, 2], bool)
    inputs = {
        "images": random.integers(0, 256, [MOST, SIDE, SIDE, 3]).astype(np.uint8),
        "image_sizes": np.full([MOST, 2], SIDE, np.int32),
    }
    targets = {
        "boxes": boxes.astype(np.float32),
        "classes": np.zeros([MOST, 2], np.int32),
        "valid": valid,
        "masks": random.integers(0, 2, [MOST, 2, 112, 112]).astype(np.uint8),
        "has_mask": valid,
    }
    return tf.nest.map_structure(lambda value: value[:number], (inputs, targets))


def train(strategy, model, number):
    """Steps on images in batches of four, the last one maybe smaller.

    Returns:
        Losses of every step, and all weights after `STEPS` of them.
    """

    def make_dataset(workers=1, worker=0):
        mine = np.arange(number) * workers // BATCH % workers == worker
        chosen = tf.nest.map_structure(lambda value: value[mine], images(number))
        return tf.data.Dataset.from_tensor_slices(chosen).batch(BATCH // workers)

    weights = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: weights.append(flat(model)))
    dataset = replicas.distribute(strategy, make_dataset)
    options = {"steps_per_epoch": 1, "shuffle": False, "verbose": 0, "callbacks": [keep]}
    history = model.fit(dataset, epochs=-(-number // BATCH), **options).history
    return np.array([history[name] for name in ("loss", *model.loss_names)]), weights[STEPS - 1]


def flat(model):
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()])


def apply_unlike(strategy):
    """What one step makes of a variable of zeros whose gradients differ between two replicas.

    Returns:
        Values for the gradients (3, 0) and (0, 4), clipped; for (3, 0) and (infinite, 4) with a scaled loss,
        and the scale and the number of steps then; and for (3, 0) and (0, 4) with that scale.
    """
    with strategy.scope():
        clipped = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
        scaled = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
        scaled = keras.optimizers.LossScaleOptimizer(scaled, initial_scale=8.0)
        variables = [keras.Variable(np.zeros(2, np.float32)) for _ in range(2)]
        for optimizer, variable in zip((clipped, scaled), variables, strict=True):
            optimizer.build([variable])

    @tf.function
    def step(which, first):
        def of_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            optimizer = (clipped, scaled)[which]
            gradient = tf.where(replica == 0, [3.0, 0.0], tf.stack([first, 4.0]))
            gradients = replicas.reduced([optimizer.scale_loss(gradient), None], optimizer)
            optimizer.apply(gradients[:1], [variables[which]])

        strategy.run(of_replica)

    step(0, 0.0)
    found = [variables[0].numpy()]
    step(1, np.inf)
    found += [variables[1].numpy(), [scaled.dynamic_scale.numpy(), scaled.iterations.numpy()]]
    step(1, 0.0)
    return np.array([*found, variables[1].numpy()])


def main(number, size, norm, overrides, output):
    """Write what `train` or, without images, `apply_unlike` gives, as one process on so many devices."""
    strategy = replicas.strategy(int(number) or None)
    if int(size):
        model = make_model(strategy, config.Training(**json.loads(overrides)), norm)
        losses, weights = train(strategy, model, int(size))
        found = {"losses": losses, "weights": weights}
        if replicas.is_chief(strategy):  # alone, and it need not wait for the others
            model.save(output.replace(".npz", ".keras"))
            found |= model.predict_on_batch(images(2)[0])
    else:
        found = {"unlike": apply_unlike(strategy)}
    if replicas.is_chief(strategy):
        np.savez(output, **found)
    replicas.meet(strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
