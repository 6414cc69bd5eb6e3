"""How fast a run goes, and how much of its time it waits for data."""

import collections
import math
import time

import keras


class Pace(keras.callbacks.Callback):
    """Of each epoch, in its logs:

        learning_rate: after its last step.
        images: seen since the first epoch.
        images_per_second: over the steps, without scoring and checkpoints.
        input_wait: share of the steps' time, 0 to 1, until their batch was there.

    The first step of a process builds the graph, so it is left out of the last two; NaN if there is no other.
    Stands before `Checkpoints`.

    Args:
        progress: `checkpoints.Progress`; kept up to date.
    """

    COLUMNS = ("learning_rate", "images", "images_per_second", "input_wait")

    def __init__(self, progress):
        super().__init__()
        self.progress = progress
        self.deliveries = collections.deque()  # (time, images), of batches not trained on yet
        self.began = 0.0
        self.built = False

    def delivered(self, images):
        """Note that a batch is there; batches may come ahead of their steps."""
        self.deliveries.append((time.perf_counter(), images))

    def on_train_batch_begin(self, batch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch < self.progress.batches:  # done before a resume
            return
        float(logs["loss"])  # a device may still be at work
        ended = time.perf_counter()
        came, images = self.deliveries.popleft()
        done = {"images": images, "seconds": ended - self.began, "waited": max(0.0, came - self.began)}
        self.progress.images += images
        if not self.built:
            self.built = True
            return
        for name, value in done.items():
            self.progress.pace[name] = self.progress.pace.get(name, 0) + value

    def on_epoch_end(self, epoch, logs=None):
        pace = self.progress.pace
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        logs["images"] = self.progress.images
        logs["images_per_second"] = pace["images"] / pace["seconds"] if pace else math.nan
        logs["input_wait"] = pace["waited"] / pace["seconds"] if pace else math.nan
