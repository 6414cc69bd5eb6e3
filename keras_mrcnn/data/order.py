"""Which images an epoch holds, and in which order: functions of (seed, epoch) alone."""

import numpy as np


def repeat_factors(records, threshold):
    """How often an epoch holds each image, so that rare categories are seen more often (Gupta et al. 2019,
    *LVIS*, section 5.2, "Repeat factor sampling").

    Args:
        records: list of `Record`.
        threshold: share of the images below which a category is rare; 0: every image once.

    Returns:
        float `[N]`, at least 1: the most of max(1, sqrt(threshold / share)) over the image's categories.
    """
    classes = [np.unique(record.classes[~record.crowd]) for record in records]
    images = np.bincount(np.concatenate(classes)) if classes else np.zeros(0)
    of_class = np.sqrt(np.maximum(threshold * len(records) / np.maximum(images, 1), 1))
    return np.array([of_class[own].max(initial=1.0) for own in classes])


def epoch_images(factors, seed, epoch):
    """The images of one epoch, of which those with a fraction in their factor are drawn.

    Args:
        factors: float `[N]`, see `repeat_factors`.
        seed, epoch: integers, at least 0.

    Returns:
        `(index, copy)`: int32 `[M]` each, the image and its number among the image's own in this epoch, from
        0; M is the sum of the factors, rounded up, in every epoch. Image i is there floor(factors[i]) times
        at least, and factors[i] times on the average of many epochs, but for the rounding of M.
    """
    random = np.random.default_rng([seed, epoch, 1])
    shuffled = random.permutation(len(factors))
    extra, length = factors % 1, int(np.ceil(factors.sum() - 1e-9))
    wanted = length - int(np.floor(factors).sum())
    # systematic sampling: marks at equal distances on the fractions in a row, `wanted` of them in all
    counts = np.floor(factors).astype(int)
    if wanted:
        ends, start = np.cumsum(extra[shuffled]) * (wanted / extra.sum()), random.random()
        ends[-1] = wanted  # and not a rounding less
        counts[shuffled] += np.diff(np.floor(ends + start), prepend=0).astype(int)
    index = np.repeat(np.arange(len(factors)), counts)
    first = np.cumsum(counts) - counts
    return index.astype(np.int32), (np.arange(len(index)) - first[index]).astype(np.int32)


def epoch_order(wide, batch_size, seed, epoch):
    """Order of the images in one epoch, so that consecutive runs of `batch_size` are the batches.

    Args:
        wide: bool `[N]`, the group of each image.
        batch_size: images in a batch.
        seed, epoch: integers, at least 0; the order depends on nothing else.

    Returns:
        int `[N]`, a permutation. Batches are of one group as far as the groups go; what is left over is mixed
        in further batches; all are shuffled, the partial one comes last.
    """
    random = np.random.default_rng([seed, epoch])
    full, leftovers = [], []
    for group in (np.flatnonzero(wide), np.flatnonzero(~wide)):
        random.shuffle(group)
        whole = len(group) // batch_size * batch_size
        full += list(group[:whole].reshape(-1, batch_size))
        leftovers += list(group[whole:])
    leftovers = random.permutation(np.array(leftovers, np.int64))
    whole = len(leftovers) // batch_size * batch_size
    full += list(leftovers[:whole].reshape(-1, batch_size))
    batches = [full[position] for position in random.permutation(len(full))]
    return np.concatenate([*batches, leftovers[whole:]]).astype(np.int64)


def worker_order(order, batch_size, workers, worker):
    """One worker's part of an epoch.

    Args:
        order: int `[N]`, of which consecutive runs of `batch_size` are the batches of all workers.
        batch_size: images in a batch, a multiple of `workers`.
        workers, worker: how many there are, and which this is, from 0.

    Returns:
        int `[M]`, of which consecutive runs of `batch_size / workers` are the batches of this worker.
    """
    whole = len(order) // batch_size * batch_size
    last = order[whole:]
    if 0 < len(last) < workers:
        last = np.resize(last, workers)  # repeats them
    parts = order[:whole].reshape(-1, workers, batch_size // workers)[:, worker]
    return np.concatenate([parts.reshape(-1), np.array_split(last, workers)[worker]])
