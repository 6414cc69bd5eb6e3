"""Records to batches in the network frame.

Every element is `(inputs, targets)`; letters: B images, G true boxes (padded to the most of the batch, at
least 1), H and W the common size (multiples of 32), M the side of a mask crop.

    inputs  = {"images": uint8 [B, H, W, 3] RGB, padded right and below with 0,
               "image_sizes": int32 [B, 2] valid (height, width)}
    targets = {"boxes": float32 [B, G, 4] (x1, y1, x2, y2), pixels of the network frame,
               "classes": int32 [B, G], "valid": bool [B, G], False for padding,
               "masks": uint8 [B, G, M, M] 0 or 1, crops of the boxes,
               "has_mask": bool [B, G], False where an object has a box only,
               "keypoints": float32 [B, G, K, 3] (x, y, v), pixels of the network frame; v 0: not labelled;
                            only where the records have keypoints}
"""

import itertools

import numpy as np
import tensorflow as tf

from keras_mrcnn.data import images, order, shards, transforms
from keras_mrcnn.data.augment import Augmentation
from keras_mrcnn.data.objects import Objects

PREFETCH = 2  # batches that wait, finished, for the training step


def trainable(records):
    """The records that have something to learn from: those with at least one object that is no crowd."""
    return [record for record in records if (~record.crowd).any()]


def images_per_epoch(records, data_config):
    """Images of an epoch of `training_dataset`."""
    factors = order.repeat_factors(trainable(records), data_config.repeat_threshold)
    return len(order.epoch_images(factors, 0, 0)[0])


def steps_per_epoch(records, data_config):
    """Batches of an epoch of `training_dataset`."""
    return -(-images_per_epoch(records, data_config) // data_config.batch_size)


def epoch_images(records, data_config, seed, epoch):
    """The images of one epoch in the order of its batches, each with its number among the image's own.

    Args:
        records: list of `Record`, all of them `trainable`.
        data_config, seed: as for `training_dataset`.
        epoch: integer, at least 0.

    Returns:
        int32 `[2, M]`: index into the records, and which time the epoch has it, from 0.
    """
    factors = order.repeat_factors(records, data_config.repeat_threshold)
    chosen = np.stack(order.epoch_images(factors, seed, epoch))
    wide = np.array([record.width >= record.height for record in records])
    return chosen[:, order.epoch_order(wide[chosen[0]], data_config.batch_size, seed, epoch)]


def training_dataset(
    records, data_config, input_config, seed=0, first_epoch=0, first_batch=0, workers=1, worker=0
):
    """Shuffled and augmented batches; every iteration over the dataset is the next epoch.

    An epoch holds every trainable image once, or more often where `data_config.repeat_threshold` asks for it.
    Batches hold images of one orientation (wide or tall), except those filled with what the two groups leave
    over; only the last batch may be smaller. Order and augmentation are functions of (seed, epoch, image)
    alone: a dataset made with `first_epoch=k` repeats what an uninterrupted run saw from epoch k on.

    Memory: besides the records and `Objects`, `PREFETCH` finished batches and the one that is being put
    together, and for each core two images in the making.

    Args:
        records: list of `Record`; those without an object to learn from are not used (see `trainable`).
        data_config: `config.Data`; `batch_size` counts the images of all workers.
        input_config: `config.Input`; caps the long edge.
        seed: integer, at least 0.
        first_epoch: number of the epoch that the first iteration gives.
        first_batch: batches of that epoch that are passed over, without reading their images. The dataset is
            then the rest of that epoch and is iterated once; the epochs after it take another dataset.
        workers: number of workers that train together, a divisor of the batch size.
        worker: which of them this is, from 0. Each gets its own part of every batch, so that the workers'
            parts, one after the other, are the batches of one worker. Where the last batch has fewer images
            than there are workers, some get an image of it that another has, too: all count the same steps.

    Returns:
        `tf.data.Dataset` of `(inputs, targets)` with a cardinality of `steps_per_epoch` less `first_batch`.

    Raises:
        ValueError: No record has an object to learn from, records differ in their number of keypoints, the
            batch cannot be divided, or there is no such batch or worker.
    """
    records = trainable(records)
    if not records:
        raise ValueError(
            "`records` must hold at least one image with an object that is no crowd. Received none."
        )
    batch_size, steps = data_config.batch_size, steps_per_epoch(records, data_config)
    _check_part(first_batch, steps, workers, worker, batch_size)

    def images_of(epoch):
        epoch_of_all = epoch_images(records, data_config, seed, epoch)
        rest = np.arange(first_batch * batch_size, epoch_of_all.shape[1])
        index, copy = epoch_of_all[:, order.worker_order(rest, batch_size, workers, worker)]
        return index, np.full_like(index, epoch), copy

    augmentation = Augmentation(data_config, input_config, seed, len(records))
    elements = _elements(images_of, first_epoch)
    return _batches(records, elements, augmentation, batch_size // workers, steps - first_batch)


def _elements(images_of, first_epoch):
    """Dataset of (index, epoch, copy), int32, with the next epoch at every iteration."""
    epochs = itertools.count(first_epoch)
    # Not `from_generator`: with it TensorFlow gives memory that is free back to the system at once, and steps
    # take up to twice as long.
    columns = tf.data.Dataset.from_tensors(0).map(
        lambda _: tf.numpy_function(lambda: images_of(next(epochs)), [], [tf.int32, tf.int32, tf.int32])
    )
    return columns.map(lambda *one: [tf.ensure_shape(column, [None]) for column in one]).unbatch()


def _check_part(first_batch, steps, workers, worker, batch_size):
    if batch_size % workers or not 0 <= worker < workers:
        raise ValueError(
            "`workers` must divide the batch size, and `worker` is one of them, counted from 0. Received: "
            f"workers={workers}, worker={worker}, batch_size={batch_size}"
        )
    if not 0 <= first_batch < steps:
        raise ValueError(
            f"`first_batch` must be one of the {steps} batches of an epoch, counted from 0. "
            f"Received: first_batch={first_batch}"
        )


def evaluation_dataset(records, data_config, input_config):
    """Batches of every record in the given order, without augmentation, images without objects included.

    Args:
        records: list of `Record`, at least one.
        data_config: `config.Data`.
        input_config: `config.Input`; short and long edge.

    Returns:
        `tf.data.Dataset` of `(inputs, targets)` with a cardinality of ceil(images / batch size).

    Raises:
        ValueError: `records` is empty, or records differ in their number of keypoints.
    """
    if not records:
        raise ValueError("`records` must hold at least one image. Received none.")

    def scale(read, index):
        edges = input_config.short_edge, input_config.long_edge
        return transforms.resize(read(index), *edges, input_config.resize)

    elements = tf.data.Dataset.range(len(records), output_type=tf.int32).map(lambda index: (index,))
    steps = -(-len(records) // data_config.batch_size)
    return _batches(records, elements, scale, data_config.batch_size, steps)


def _batches(records, elements, transform, batch_size, steps):
    """`steps` padded batches of `transform(read, *element)`; `read` gives the example of an index."""
    paths = tf.constant([record.path for record in records])
    any_shards = any(record.path != shards.file_of(record.path) for record in records)
    objects = Objects(records)

    def read(index):
        image = images.decode(shards.read_encoded(paths[index], any_shards))
        message = (
            "The size of an image is not that of its record: load the data set again with check_images=True."
        )
        size = tf.shape(image)[:2]
        check = tf.debugging.assert_equal(size, objects.sizes[index], message=message, summarize=2)
        with tf.control_dependencies([check]):
            return {"image": tf.identity(image), **objects.of(index)}

    batches = elements.map(
        lambda *element: _pack(transform(read, *element)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    batches = batches.padded_batch(batch_size)  # with 0 and False
    return batches.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(PREFETCH)


def _pack(example):
    """One unbatched element; an image without objects gets one column of padding."""
    image, classes = example["image"], example["classes"]
    inputs = {"images": images.pad_to_stride(image), "image_sizes": tf.shape(image)[:2]}
    targets = {
        "boxes": example["boxes"],
        "classes": classes,
        "valid": tf.ones_like(classes, tf.bool),
        "masks": example["masks"],
        "has_mask": tf.reduce_any(example["masks"] > 0, axis=[1, 2]),
    }
    if "keypoints" in example:
        targets["keypoints"] = example["keypoints"]
    missing = tf.maximum(1 - tf.shape(classes)[0], 0)
    for name, value in targets.items():
        targets[name] = tf.pad(value, [[0, missing]] + [[0, 0]] * (value.shape.rank - 1))
    return inputs, targets
