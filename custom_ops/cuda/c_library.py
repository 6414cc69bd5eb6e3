"""The C library of the CUDA kernels from numpy or torch, for tests and benchmarks: building and calling it.

Built for a device by nvcc, or for the host by g++ (`roi_align_host.cc`), where the same bodies run thread
after thread on numpy arrays.
"""

import ctypes
import pathlib
import subprocess

import numpy as np

from custom_ops.c_library import MOST_LEVELS, Level, Parameters

FOLDER = pathlib.Path(__file__).resolve().parent
ARCHITECTURES = (75, 80, 86, 89, 90)
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "uint16": 2}  # RoiType; numpy has bfloat16 by its bits
INVALID_PARAMETERS = -1


def compile_for_devices(path, architectures=ARCHITECTURES, libraries=(), compiler="nvcc"):
    """Compiles for these compute capabilities (90: 9.0), and PTX of the newest for more; returns `path`.

    `libraries` are linked too, after the static CUDA runtime: TensorFlow's framework library exports stubs of
    the same names, and whichever stands first is taken. The runtime's own names stay inside the result.
    """
    codes = [f"-gencode=arch=compute_{k},code=sm_{k}" for k in architectures]
    codes.append(f"-gencode=arch=compute_{max(architectures)},code=compute_{max(architectures)}")
    options = ["-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC,-ffp-contract=off"]
    object_file = pathlib.Path(f"{path}.o")
    subprocess.run([compiler, *options, *codes, "-c", FOLDER / "roi_align.cu", "-o", object_file], check=True)
    runtime = ["-cudart=none", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
    link = [compiler, "-shared", "-Xlinker=--exclude-libs=ALL", object_file, *runtime, *libraries, "-o", path]
    subprocess.run(link, check=True)
    object_file.unlink()
    return path


def compile_for_host(path, *options, compiler="g++"):
    """Compiles the bodies for the processor; returns `path`."""
    command = [compiler, "-O2", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", *options]
    subprocess.run([*command, FOLDER / "roi_align_host.cc", "-o", path], check=True)
    return path


def address(array):
    """Address of the first element of a numpy array or torch tensor, or None for None."""
    if array is None:
        return None
    return array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data


def addresses(arrays):
    return (ctypes.c_void_p * len(arrays))(*map(address, arrays))


def parameters(settings, features, regions):
    """RoiAlignParameters of a call over `regions` regions of `features`, a list of `[B, H, W, C]`."""
    maps = [Level(*map_.shape[1:3], scale) for map_, scale in zip(features, settings.scales)]
    type_ = TYPES[str(features[0].dtype).removeprefix("torch.")]
    counts = features[0].shape[0], features[0].shape[3], regions
    levels = (Level * MOST_LEVELS)(*maps)
    return Parameters(*counts, *settings.size, *settings[2:], type_, len(settings.scales), levels)


class CudaError(RuntimeError):
    """A call returned an error; `status` is its number."""

    def __init__(self, status, message):
        super().__init__(f"status {status}: {message}")
        self.status = status


class Functions:
    """The functions of the library at `path`, which write into arrays given; `CudaError` for a status but 0.

    `settings` is `custom_ops.c_library.Settings`, `case` is (features, boxes, images, levels or None). Arrays
    are contiguous, in device memory for a library made by `compile_for_devices`. `stream` is the number of a
    cudaStream_t.
    """

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.keras_mrcnn_roi_align_cuda_message.restype = ctypes.c_char_p
        self._library.keras_mrcnn_roi_align_cuda_workspace.restype = ctypes.c_int64

    def _call(self, name, settings, case, *arguments, stream):
        features, boxes, images, levels = case
        function = getattr(self._library, f"keras_mrcnn_roi_align_cuda_{name}")
        status = function(
            ctypes.byref(parameters(settings, features, len(boxes))), *arguments, ctypes.c_void_p(stream)
        )
        if status:
            raise CudaError(status, self._library.keras_mrcnn_roi_align_cuda_message(status).decode())

    @staticmethod
    def _inputs(case):
        features, *others = case
        return addresses(features), *map(ctypes.c_void_p, map(address, others))

    def check(self, settings, case, bad_region, stream=None):
        """Writes the first region that is nowhere, or -1, to `bad_region`, int32."""
        arrays = [ctypes.c_void_p(address(array)) for array in (*case[2:], bad_region)]
        self._call("check", settings, case, *arrays, stream=stream)

    def forward(self, settings, case, output, stream=None):
        """Writes `output`."""
        self._call(
            "forward", settings, case, *self._inputs(case), ctypes.c_void_p(address(output)), stream=stream
        )

    def workspace(self, settings, case):
        """Bytes that `backward` needs."""
        features, boxes, *_ = case
        given = ctypes.byref(parameters(settings, features, len(boxes)))
        return self._library.keras_mrcnn_roi_align_cuda_workspace(given)

    def backward(self, settings, case, output_gradient, gradients, workspace, stream=None):
        """Writes `gradients`, a list."""
        arrays = (
            ctypes.c_void_p(address(output_gradient)),
            addresses(gradients),
            ctypes.c_void_p(address(workspace)),
        )
        self._call("backward", settings, case, *self._inputs(case), *arrays, stream=stream)


class HostLibrary:
    """Calls of a library made by `compile_for_host`, as those of `custom_ops.c_library.Library`."""

    def __init__(self, path):
        self.functions = Functions(path)

    def forward(self, settings, features, boxes, images, levels=None):
        """Regions `[R, rows, columns, C]` of `features`, a list of `[B, H, W, C]`."""
        output = self._unwritten((len(boxes), *settings.size, features[0].shape[3]), features[0].dtype)
        self.functions.forward(settings, (features, boxes, images, levels), output)
        return output

    def backward(self, settings, features, boxes, images, output_gradient, levels=None):
        """The gradients to the features, a list."""
        case = features, boxes, images, levels
        gradients = [self._unwritten(map_.shape, map_.dtype) for map_ in features]
        workspace = self._unwritten((self.functions.workspace(settings, case) // 4,), np.uint32)
        self.functions.backward(settings, case, output_gradient, gradients, workspace)
        return gradients

    @staticmethod
    def _unwritten(shape, dtype):
        """An array of bytes that are no sensible number, aligned to 16 bytes."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(count + 16, 0xAB, np.uint8)
        start = -memory.ctypes.data % 16
        return memory[start : start + count].view(dtype).reshape(shape)
