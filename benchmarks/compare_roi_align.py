"""The compiled RoIAlign beside the one of stock TensorFlow operations, in one process, in turns.

    python benchmarks/compare_roi_align.py [--repeats 7]

1000 regions on P2..P5 of an image of 800 x 1344, 256 channels, float32, as `ops.multilevel_roi_align` sees
them; forward alone, and forward with the gradient to the maps. Medians, milliseconds.
"""

import argparse
import os
import statistics
import time

import numpy as np
import tensorflow as tf

from keras_mrcnn.ops import library, multilevel_roi_align

HEIGHT, WIDTH, CHANNELS, REGIONS = 800, 1344, 256, 1000
STRIDES = 4, 8, 16, 32
CASES = [(size, ratio) for size in (7, 14) for ratio in (2, 0)]


def regions(random):
    """float32 `[R, 4]`: boxes of 16 to 700 pixels, of various shapes."""
    side = np.exp(random.uniform(np.log(16), np.log(700), REGIONS))
    aspect = np.exp(random.normal(0, 0.4, REGIONS))
    extent = np.minimum(np.stack([side * aspect, side / aspect], 1), (WIDTH, HEIGHT))
    corner = random.uniform(0, 1, (REGIONS, 2)) * (np.array([WIDTH, HEIGHT]) - extent)
    return tf.constant(np.concatenate([corner, corner + extent], 1), tf.float32)


def traced(mode, maps, boxes, size, ratio):
    """Forward, and forward with gradient, with the implementation that `mode` asks for."""
    images = tf.zeros([REGIONS], tf.int32)

    @tf.function
    def forward():
        return multilevel_roi_align(maps, boxes, images, size, STRIDES, sampling_ratio=ratio)

    @tf.function
    def both():
        with tf.GradientTape() as tape:
            tape.watch(maps)
            pooled = multilevel_roi_align(maps, boxes, images, size, STRIDES, sampling_ratio=ratio)
        return pooled, tape.gradient(pooled, maps)

    os.environ[library.VARIABLE] = mode
    return forward.get_concrete_function(), both.get_concrete_function()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    random = np.random.default_rng(0)
    maps = [
        tf.constant(random.normal(size=(1, HEIGHT // stride, WIDTH // stride, CHANNELS)), tf.float32)
        for stride in STRIDES
    ]
    boxes = regions(random)
    for size, ratio in CASES:
        both_sides = [traced(mode, maps, boxes, size, ratio) for mode in ("native", "portable")]
        for work, calls in zip(("forward", "forward + gradient"), zip(*both_sides, strict=True), strict=True):
            times = [[], []]
            for _ in range(repeats + 1):
                for call, spent in zip(calls, times, strict=True):
                    start = time.perf_counter()
                    call()
                    spent.append(1000 * (time.perf_counter() - start))
            native, portable = (statistics.median(spent[1:]) for spent in times)
            print(
                f"{size:2}x{size:<2} sampling {ratio or 'adaptive':>8} {work:18} compiled {native:7.1f} ms  "
                f"stock {portable:8.1f} ms  {portable / native:6.1f} times",
                flush=True,
            )


if __name__ == "__main__":
    main()
