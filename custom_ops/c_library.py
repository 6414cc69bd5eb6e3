"""The C library of the CPU kernels from numpy: for tests and benchmarks, without TensorFlow.

bfloat16 arrays are uint16 here, by their bits.
"""

import ctypes
import pathlib
import shlex
import subprocess
from typing import NamedTuple

import numpy as np

SOURCES = pathlib.Path(__file__).resolve().parent
ALIGN, LEGACY, WARP, POOL = range(4)  # RoiMethod
AVERAGE, MAXIMUM = range(2)  # RoiReduction
OK, INVALID_PARAMETERS, INVALID_IMAGE, INVALID_LEVEL = range(4)  # RoiAlignStatus
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}  # RoiType
MOST_LEVELS = 8


def compile_library(path, *options, compiler="g++"):
    """Compiles the library by the command in the README, with more options if given; returns `path`."""
    readme = (SOURCES / "README.md").read_text(encoding="utf-8")
    command = next(shlex.split(line) for line in readme.splitlines() if line.startswith("g++ "))
    subprocess.run([compiler, *command[1:-1], path, *options], cwd=SOURCES, check=True)
    return path


class Level(ctypes.Structure):
    """RoiLevel."""

    _fields_ = [("height", ctypes.c_int64), ("width", ctypes.c_int64), ("scale", ctypes.c_float)]


class Parameters(ctypes.Structure):
    """RoiAlignParameters."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "regions")),
        *((name, ctypes.c_int64) for name in ("output_height", "output_width", "sampling_ratio")),
        *((name, ctypes.c_int32) for name in ("method", "reduction", "type", "levels")),
        ("level", Level * MOST_LEVELS),
    ]


class Parallel(ctypes.Structure):
    """RoiParallel."""

    _fields_ = [("context", ctypes.c_void_p), ("parallel_for", ctypes.c_void_p)]


class Settings(NamedTuple):
    """What the calls of one layer have in common."""

    size: tuple  # bins: rows, columns
    scales: tuple  # of each level
    ratio: int = 2
    method: int = ALIGN
    reduction: int = AVERAGE


def _pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def _pointers(arrays):
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


class Library:
    """The two functions of the library at `path`; `threads` 0: without a parallel loop."""

    def __init__(self, path, threads=0):
        self._library = ctypes.CDLL(str(path))
        self._threads = ctypes.c_int64(threads)
        loop = ctypes.cast(self._library.keras_mrcnn_parallel_for, ctypes.c_void_p)
        parallel = Parallel(ctypes.addressof(self._threads), loop)
        self._parallel = ctypes.byref(parallel) if threads else None

    def _call(self, function, settings, features, boxes, images, levels, *arrays):
        """(status, bad region)."""
        maps = [Level(*map_.shape[1:3], scale) for map_, scale in zip(features, settings.scales)]
        parameters = Parameters(
            features[0].shape[0],
            features[0].shape[3],
            len(boxes),
            *settings.size,
            *settings[2:],
            TYPES[features[0].dtype],
            len(settings.scales),
            (Level * MOST_LEVELS)(*maps[:MOST_LEVELS]),
        )
        for array in (*features, boxes, images, *(() if levels is None else (levels,))):
            assert array.flags.c_contiguous
        assert boxes.dtype == np.float32 and images.dtype == np.int32
        bad = ctypes.c_int64(-1)
        arguments = _pointers(features), _pointer(boxes), _pointer(images), _pointer(levels), *arrays
        status = function(ctypes.byref(parameters), self._parallel, *arguments, ctypes.byref(bad))
        return status, bad.value

    def status(self, settings, features, boxes, images, output, levels=None):
        """(status, bad region) of a forward call that writes into `output`."""
        function = self._library.keras_mrcnn_roi_align_forward
        return self._call(function, settings, features, boxes, images, levels, _pointer(output))

    def forward(self, settings, features, boxes, images, levels=None):
        """Regions `[R, rows, columns, C]` of `features`, a list of `[B, H, W, C]`."""
        output = np.empty((len(boxes), *settings.size, features[0].shape[3]), features[0].dtype)
        status = self.status(settings, features, boxes, images, output, levels)
        if status != (OK, -1):
            raise ValueError(f"status and region: {status}")
        return output

    def backward(self, settings, features, boxes, images, output_gradient, levels=None):
        """The gradients to the features, a list."""
        gradients = [np.empty_like(map_) for map_ in features]
        function = self._library.keras_mrcnn_roi_align_backward
        arrays = _pointer(output_gradient), _pointers(gradients)
        status = self._call(function, settings, features, boxes, images, levels, *arrays)
        if status != (OK, -1):
            raise ValueError(f"status and region: {status}")
        return gradients
