"""The CPU kernels beside `torchvision.ops.roi_align`, in one process, call after call in turn.

    python custom_ops/benchmarks/roi_align_cpu.py [--library roi_align.so] [--threads 2] [--repeats 15]

Needs numpy, torch and torchvision; compiles the library with g++ unless one is given. Work: 1000 regions on
P2 to P5 of an image of 800 x 1344, 256 channels, float32. torchvision gets its own layout and one call per
level, as its MultiScaleRoIAlign makes them (without the copy that joins the levels), and for the gradient
its gradient operation alone. Times are milliseconds, the least of all repeats, and the median in brackets;
memory is what the resident set grows by at the peak of a call, results included.
"""

import argparse
import ctypes
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import c_library

IMAGE, CHANNELS, REGIONS = (800, 1344), 256, 1000
STRIDES = (4, 8, 16, 32)
CASES = [(size, ratio) for size in (7, 14) for ratio in (2, 0)]


def regions(rng):
    """Boxes of 16 to 700 pixels, of various shapes, and the level of each."""
    side, aspect = np.exp(rng.uniform(np.log(16), np.log(700), REGIONS)), np.exp(rng.normal(0, 0.4, REGIONS))
    extent = np.minimum(np.stack([side * aspect, side / aspect], 1), IMAGE[::-1])
    corner = rng.uniform(0, 1, (REGIONS, 2)) * (np.array(IMAGE[::-1]) - extent)
    boxes = np.concatenate([corner, corner + extent], 1).astype(np.float32)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return boxes, np.clip(np.floor(4 + np.log2(np.sqrt(width * height) / 224 + 1e-8)), 2, 5).astype(
        np.int32
    ) - 2


class Ours:
    """One call for all levels, channels last."""

    def __init__(self, library, maps, boxes, size, ratio):
        scales = tuple(1 / stride for stride in STRIDES)
        self.library, self.settings = library, c_library.Settings((size, size), scales, ratio)
        self.arguments = maps, boxes, np.zeros(len(boxes), np.int32)

    def forward(self):
        return self.library.forward(self.settings, *self.arguments)

    def backward(self, output_gradient):
        return self.library.backward(self.settings, *self.arguments, output_gradient)


class Theirs:
    """One call per level, channels first."""

    def __init__(self, maps, boxes, level_of, size, ratio):
        self.maps, self.options = maps, (size, size, ratio)
        self.of_level = [torch.from_numpy(np.flatnonzero(level_of == level)) for level in range(len(maps))]
        self.boxes = [
            torch.cat([torch.zeros(len(chosen), 1), torch.from_numpy(boxes)[chosen]], 1)
            for chosen in self.of_level
        ]

    def forward(self):
        align = torch.ops.torchvision.roi_align
        return [
            align(map_, boxes, 1 / stride, *self.options, True)
            for map_, boxes, stride in zip(self.maps, self.boxes, STRIDES)
        ]

    def backward(self, output_gradients):
        backward = torch.ops.torchvision._roi_align_backward
        return [
            backward(gradient, boxes, 1 / stride, *self.options[:2], *map_.shape, self.options[2], True)
            for gradient, map_, boxes, stride in zip(output_gradients, self.maps, self.boxes, STRIDES)
        ]


def memory(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def growth(call):
    """MB that the resident set grows by at its peak."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed shall not be there for this one
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    call()
    return memory("VmHWM") - before


def measure(calls, repeats):
    """[(least ms, median ms, MB)] of calls that take turns."""
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, times):
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
    return [(min(taken), statistics.median(taken), growth(call)) for call, taken in zip(calls, times)]


def compare(library, rng, size, ratio, repeats):
    """Prints a line for the forward call and one for the gradient."""
    boxes, level_of = regions(rng)
    shapes = [(1, -(-IMAGE[0] // stride), -(-IMAGE[1] // stride), CHANNELS) for stride in STRIDES]
    maps = [rng.standard_normal(shape, np.float32) for shape in shapes]
    ours = Ours(library, maps, boxes, size, ratio)
    theirs = Theirs(
        [torch.from_numpy(map_).permute(0, 3, 1, 2).contiguous() for map_ in maps],
        boxes,
        level_of,
        size,
        ratio,
    )
    pooled, levels = ours.forward(), theirs.forward()
    gradient = rng.standard_normal(pooled.shape, np.float32)
    level_gradients = [
        torch.from_numpy(gradient)[chosen].permute(0, 3, 1, 2).contiguous() for chosen in theirs.of_level
    ]
    errors = [
        max(
            np.abs(pooled[chosen] - level.permute(0, 2, 3, 1).numpy()).max(initial=0)
            for chosen, level in zip(theirs.of_level, levels)
        ),
        max(
            np.abs(one - other.permute(0, 2, 3, 1).numpy()).max()
            for one, other in zip(ours.backward(gradient), theirs.backward(level_gradients))
        ),
    ]
    pairs = [
        ("forward", lambda: ours.forward(), lambda: theirs.forward()),
        ("gradient", lambda: ours.backward(gradient), lambda: theirs.backward(level_gradients)),
    ]
    for (name, *calls), error in zip(pairs, errors):
        (our, our_median, our_memory), (their, their_median, their_memory) = measure(calls, repeats)
        print(
            f"{size:2}x{size:<2} sampling {ratio or 'adaptive':8} {name:8}"
            f" ours {our:7.1f} ({our_median:7.1f})  torchvision {their:7.1f} ({their_median:7.1f})"
            f"  ratio {their / our:5.1f} ({their_median / our_median:5.1f})"
            f"  MB {our_memory:4.0f} {their_memory:4.0f}  difference {error:.0e}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.library or c_library.compile_library(pathlib.Path(folder) / "roi_align.so")
        library = c_library.Library(path, options.threads)
        for case in CASES:
            compare(library, np.random.default_rng(0), *case, options.repeats)


if __name__ == "__main__":
    main()
