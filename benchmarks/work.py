"""The work that all sides are timed on, and how a worker talks with the driver. Needs numpy only.

A worker reads one command per line ("inference" or "train"), does one timed iteration and answers with one
line of JSON. It stands still in between: the driver stops the process, so no idle thread takes time from the
others.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import time

import numpy as np

CLASSES = 80
PROPOSALS = 1000
CANDIDATES = 1000  # (region, class) pairs above the score threshold
DETECTIONS = 100
REGIONS = 512
FOREGROUND_FRACTION = 0.25
# With random weights boxes do not find objects. Boxes of a quarter of their anchor's side, objects wider than
# most of them, and any overlap counted as foreground give the sampling all the foreground and all the
# background that it asks for, wherever the random scores are highest.
BOX_DELTAS = (0.0, 0.0, float(np.log(0.25)), float(np.log(0.25)))
FOREGROUND_IOU = 0.001
OBJECT_ROWS, OBJECT_COLUMNS, OBJECT_SHARE = 2, 4, 0.42
COMMANDS = ("inference", "train")


def image(height, width):
    """uint8 RGB `[height, width, 3]`, noise with structure at several scales."""
    random = np.random.default_rng(0)
    total = np.zeros((height, width, 3))
    for side in (4, 16, 64):
        coarse = random.normal(size=(-(-height // side), -(-width // side), 3))
        total += coarse.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    return np.clip(128 + 32 * total, 0, 255).astype(np.uint8)


def objects(height, width):
    """True objects, one amid each cell of a grid: boxes float32 `[8, 4]` and classes int32 `[8]`."""
    high, wide = height / OBJECT_ROWS, width / OBJECT_COLUMNS
    low, up = (1 - OBJECT_SHARE) / 2, (1 + OBJECT_SHARE) / 2
    boxes = [
        ((column + low) * wide, (row + low) * high, (column + up) * wide, (row + up) * high)
        for row in range(OBJECT_ROWS)
        for column in range(OBJECT_COLUMNS)
    ]
    return np.array(boxes, np.float32), np.arange(len(boxes), dtype=np.int32)


def threshold(scores, count=CANDIDATES):
    """The score that exactly `count` of `scores` (float, any shape, without background) exceed."""
    ordered = np.sort(np.ravel(scores))[::-1]
    if not ordered[count - 1] > ordered[count]:
        raise RuntimeError(
            f"No threshold keeps exactly {count} scores: both neighbours are {ordered[count]}."
        )
    return float((ordered[count - 1] + ordered[count]) / 2)


@contextlib.contextmanager
def recorded(layer, seen):
    """Within, `seen` collects the output of each call of `layer`, of either Keras."""
    call = layer.call

    def recording(*arguments, **named):
        output = call(*arguments, **named)
        seen.append(output)
        return output

    layer.call = recording
    try:
        yield
    finally:
        layer.call = call


def arguments():
    """What the driver tells a worker: precision, threads, height, width, and which features."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--features", choices=("fpn", "c4"), default="fpn")
    return parser.parse_args()


def busy_seconds():
    """Processor seconds that were used so far: by the whole machine, by this process."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    own = resource.getrusage(resource.RUSAGE_SELF)
    machine = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return machine, own.ru_utime + own.ru_stime


def timed(iteration):
    """Runs `iteration` once: wall seconds, cores that others kept busy meanwhile, peak MiB so far."""
    machine, own = busy_seconds()
    start = time.perf_counter()
    iteration()
    seconds = time.perf_counter() - start
    machine_after, own_after = busy_seconds()
    others = max(0.0, (machine_after - machine) - (own_after - own)) / seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts kB
    return {"seconds": seconds, "others": round(others, 2), "peak_mib": round(peak)}


def serve(prepare):
    """Answer the driver's commands until its pipe closes.

    Args:
        prepare: function of a command that returns (iteration, facts): a function without arguments, and a
            dictionary of how much work it does. It is called at the first use of a command, untimed, and so
            is the first iteration.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    ready = {}
    for line in sys.stdin:
        command = line.strip()
        if command not in ready:
            iteration, facts = ready[command] = prepare(command)
            iteration()
        iteration, facts = ready[command]
        print(json.dumps({**timed(iteration), **facts}), file=answers, flush=True)
