"""Images a second, and the share of time that a step waits for its batch."""

import math
import time

import keras
import pytest
import tensorflow as tf

from keras_mrcnn.data.delivery import noting
from keras_mrcnn.training.checkpoints import Progress
from keras_mrcnn.training.pace import Pace


class Model(keras.Model):
    """Works for some seconds on each batch."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def train_step(self, data):
        with tf.control_dependencies([data[0]["image_sizes"]]):
            worked = tf.numpy_function(lambda: [time.sleep(self.seconds), 0.0][1], [], tf.double)
        return {"loss": tf.ensure_shape(worked, [])}


def paced(fetch, work, prefetch, epochs=1, sizes=(3, 3, 3, 3, 2)):
    def slow(index):
        time.sleep(fetch)
        return index

    data = tf.data.Dataset.range(len(sizes))
    data = data.map(lambda index: tf.ensure_shape(tf.numpy_function(slow, [index], tf.int64), []))
    data = data.map(lambda index: ({"image_sizes": tf.zeros([tf.constant(sizes)[index], 2], tf.int32)}, {}))
    data = data.prefetch(2) if prefetch else data
    progress = Progress()
    pace = Pace(progress)
    found = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: found.append(dict(logs)))
    forget = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: progress.pace.clear())
    model = Model(work)
    model.compile("sgd")
    model.fit(
        noting(data, pace.delivered), epochs=epochs, callbacks=[pace, keep, forget], verbose=0, shuffle=False
    )
    return found


def test_a_step_that_waits_for_each_batch():
    # 0.3 s for the batch and 0.1 s of work: 0.75 of the time
    first, second = paced(fetch=0.3, work=0.1, prefetch=False, epochs=2)
    assert first["images"] == 14 and second["images"] == 28
    for found, images, steps in (
        (first, 11, 4),
        (second, 14, 5),
    ):  # not the first step, which builds the graph
        assert 0.5 < found["input_wait"] < 0.8
        assert found["images_per_second"] == pytest.approx(images / (0.4 * steps), rel=0.4)
    assert second["learning_rate"] == pytest.approx(0.01)


def test_batches_that_are_there_in_time():
    _, second = paced(fetch=0.01, work=0.3, prefetch=True, epochs=2)
    assert second["input_wait"] < 0.15


def test_nothing_but_the_step_that_builds_the_graph():
    [only] = paced(fetch=0, work=0, prefetch=False, sizes=(4,))
    assert only["images"] == 4 and math.isnan(only["input_wait"]) and math.isnan(only["images_per_second"])
