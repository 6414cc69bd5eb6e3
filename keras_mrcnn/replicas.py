"""Which devices train, and what they share in a training step. The engine is TensorFlow's own.

Letters: N replicas (one for each device), m micro-batches.
"""

import json
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf


def strategy(devices=None):
    """The strategy of a run; called before anything else of TensorFlow.

    Without a GPU TensorFlow keeps its memory from here on, unless `TF_CPU_ALLOCATOR_USE_BFC` is set already.

    Several workers of the environment variable `TF_CONFIG` train together, each on its GPUs (or its CPU).
    Without it, several devices of this machine do: GPUs, or where there is none, parts of the CPU.

    Args:
        devices: int, GPUs of this machine; None: all in a worker of several, else one.

    Returns:
        `tf.distribute.Strategy`. Its models are made inside of `strategy.scope()`.

    Raises:
        ValueError: there are not as many, or `TF_CONFIG` gives this process no part in the training.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if devices is not None and not 1 <= devices <= (len(gpus) or devices):
        raise ValueError(f"--devices is between 1 and the {len(gpus)} GPUs here. Received: {devices}")
    if devices:
        tf.config.set_visible_devices(gpus[:devices], "GPU")
    if not gpus:
        # TensorFlow's own pool of memory: malloc asks the system for gigabytes of fresh pages in each step.
        os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    configured = json.loads(os.environ.get("TF_CONFIG") or "{}")
    cluster = configured.get("cluster", {})
    if len(cluster.get("chief", [])) + len(cluster.get("worker", [])) > 1:
        kind = configured.get("task", {}).get("type")
        if kind not in ("chief", "worker"):
            raise ValueError(f"The task of TF_CONFIG is of type chief or worker. Received: {kind!r}")
        if devices and devices > 1 and not gpus:
            raise ValueError(f"A worker without a GPU has one device. Received: --devices {devices}")
        return tf.distribute.MultiWorkerMirroredStrategy()
    if devices is None or devices == 1:
        return tf.distribute.get_strategy()
    if not gpus:
        parts = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    kind = "GPU" if gpus else "CPU"
    return tf.distribute.MirroredStrategy([f"{kind}:{index}" for index in range(devices)])


def bfloat16_is_emulated(processor="/proc/cpuinfo"):
    """Whether training is on a processor that does not multiply bfloat16 itself: several times slower.

    Args:
        processor: path of the file in which Linux lists what the processor can do; without it this is True.
    """
    if tf.config.list_physical_devices("GPU"):
        return False
    processor = pathlib.Path(processor)
    return not (processor.is_file() and "bf16" in processor.read_text())


def is_chief(strategy):
    """Whether this process writes the files; one of several workers does."""
    return strategy.extended.should_checkpoint


def place(strategy):
    """How many workers there are, and which of them this process is, from 0."""
    if not several_workers(strategy):
        return 1, 0
    here = strategy.cluster_resolver
    cluster = here.cluster_spec().as_dict()
    chiefs, workers = (len(cluster.get(kind, [])) for kind in ("chief", "worker"))
    return chiefs + workers, here.task_id + (chiefs if here.task_type == "worker" else 0)


def distribute(strategy, make_dataset):
    """What `fit` takes, with the batches that one device would see.

    Args:
        strategy: what `strategy` returned.
        make_dataset: function that returns the batches, or of `workers` and `worker` a part of each of them.
    """
    if not several_workers(strategy):
        return make_dataset()  # Keras gives each replica its part

    def of_worker(context):
        dataset = make_dataset(workers=context.num_input_pipelines, worker=context.input_pipeline_id)
        # Keras does not know its length: `fit` is told by `steps_per_epoch`, and finds no end.
        return split(dataset, context.num_replicas_in_sync // context.num_input_pipelines)

    return strategy.distribute_datasets_from_function(of_worker)


def split(dataset, number):
    """Every batch `(inputs, targets)` in so many, one after the other; of too few images some are empty.

    (`Dataset.rebatch` would fill up the last batch of an epoch from the next one.)
    """
    if number == 1:
        return dataset

    def of_batch(*batch):
        rows = tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]

        def part(index):
            rows_of = slice(rows * index // number, rows * (index + 1) // number)
            return tf.nest.map_structure(lambda value: value[rows_of], batch)

        return tf.data.Dataset.range(number).map(part)

    return dataset.flat_map(of_batch)


def synchronize(model):
    """Batch normalisation takes its statistics from the images of all replicas, where there are several.

    Called within `strategy.scope()`. Without it a file would get those of the first replica.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def parts(batch, number):
    """A replica's batch in micro-batches.

    Args:
        batch: nested tensors, B their first dimension. Under several replicas B may be 0, as in the last
            batch of an epoch.
        number: int, m.

    Returns:
        List of m pairs: part of the batch, at least one row; its share, its rows in those of all replicas'
        batches. A row that is there only because a part needs one has no share.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if number == replicas == 1:
        return [(batch, 1.0)]
    rows = tf.shape(tf.nest.flatten(batch)[0])[0]
    total = tf.cast(rows, tf.float32)
    if replicas > 1:
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, total)
        batch = tf.nest.map_structure(_never_empty, batch)

    def part(index):
        start, stop = rows * index // number, rows * (index + 1) // number
        rows_of = slice(start, tf.maximum(stop, start + 1))
        return tf.nest.map_structure(lambda value: value[rows_of], batch), tf.cast(
            stop - start, tf.float32
        ) / total

    return [part(index) for index in range(number)]


def _never_empty(value):
    """One entry of zeros along every dimension that has none."""
    missing = tf.cast(tf.equal(tf.shape(value), 0), tf.int32)
    return tf.ensure_shape(tf.pad(value, tf.stack([tf.zeros_like(missing), missing], axis=1)), value.shape)


def after(tensors, batch):
    """The same batch, once the tensors (or None) are there: what follows does not run beside them."""
    if tensors is None:
        return batch
    with tf.control_dependencies([tensor for tensor in tensors if tensor is not None]):
        return tf.nest.map_structure(tf.identity, batch)


def add(total, gradients):
    """Sum of two lists of gradients with None where there is none; `total` may be None."""
    if total is None:
        return gradients
    return [one if one is None else one + other for one, other in zip(total, gradients, strict=True)]


def reduced(gradients, optimizer):
    """Gradients that `optimizer.apply` takes, when each replica has its own.

    Keras clips those of each replica before it sums them, and asks each whether they are finite. Here they
    are summed first, then clipped by the optimizer's own rule. Each replica gets the Nth part, which Keras
    sums again; no part is so long that it would be clipped again.

    Args:
        gradients: list of tensors or None, of the replica's share of the loss, scaled by the optimizer.
        optimizer: of Keras.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return gradients
    known = [gradient for gradient in gradients if gradient is not None]
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, known))
    scale = optimizer.scale_loss(1.0)  # clipping is of gradients without it
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    clipped = inner._clip_gradients([g if g is None else next(summed) / scale for g in gradients])
    return [g if g is None else g * (scale / replicas) for g in clipped]


def logged(value):
    """A scalar of the logs as Keras can average it: under several workers it wants a dimension more."""
    return tf.reshape(value, [1]) if several_workers(tf.distribute.get_strategy()) else value


def gatherer(strategy):
    """The function with which workers give each other something.

    All of them call it at the same place, and wait there for each other. It takes what json holds, and
    returns a list of what it was given, by each worker once, in any order.
    """
    devices = strategy.num_replicas_in_sync // place(strategy)[0]  # of a worker; the first one gives

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def of_all(words):
        def of_replica():
            replica = tf.distribute.get_replica_context()
            is_first = tf.cast(replica.replica_id_in_sync_group % devices == 0, tf.int32)
            return replica.all_gather(words[: is_first * tf.size(words)], axis=0)

        return strategy.experimental_local_results(strategy.run(of_replica))[0]

    return lambda value: from_words(of_all(to_words(value)).numpy())


def to_words(value):
    """int32 `[N]`, a line of json; TensorFlow does not gather bytes."""
    line = json.dumps(value) + "\n"
    return np.frombuffer((" " * (-len(line) % 4) + line).encode("ascii"), np.int32)


def from_words(words):
    """List of what `to_words` took, of any number of its results, one after the other."""
    return [json.loads(line) for line in words.tobytes().splitlines()]


def meet(strategy):
    """Wait for all workers: the others take one that has left for one that has crashed."""
    if several_workers(strategy):
        strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: tf.constant(1.0)), axis=None)


def several_workers(strategy):
    """Whether processes train together, as `TF_CONFIG` says."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
