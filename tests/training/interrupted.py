"""`mrcnn train` in a process of its own, deterministic, that is killed at a moment.

    python -m tests.training.interrupted steps:5:0.02:KILL train CONFIG     0.02 s after the 5th step began

Of what is counted: `steps`, or `writes` of files of the run.
"""

import os
import signal
import sys
import threading

import tensorflow as tf

from keras_mrcnn import cli, train
from keras_mrcnn.training import checkpoints


def plan(what, number, delay, kind):
    """Send this process a signal `delay` seconds after the `number`-th event began."""
    count = iter(range(1, 1_000_000))

    def note():
        if next(count) == int(number):
            moment = threading.Timer(float(delay), os.kill, (os.getpid(), getattr(signal, f"SIG{kind}")))
            moment.daemon = True
            moment.start()

    if what == "steps":
        checkpoints.Checkpoints.on_train_batch_begin = lambda self, batch, logs=None: note()
        return
    write = checkpoints.replace

    def replace(*arguments):
        note()
        write(*arguments)

    checkpoints.replace = train.replace = replace


if __name__ == "__main__":
    tf.config.experimental.enable_op_determinism()
    if sys.argv[1] != "never":
        plan(*sys.argv[1].split(":"))
    cli.main(sys.argv[2:])
