"""What `mrcnn doctor` says: which operations are in use and why, and what is installed."""

import importlib.metadata
import importlib.util
import platform
import re
import subprocess

from keras_mrcnn.ops import build, library

_OPTIONAL = (
    *("hotcoco", "cv2", "matplotlib", "tensorboard", "keras_hub", "supervision", "tensorflow_serving"),
    *("tf2onnx", "onnxruntime", "openvino"),
)


def report():
    """Lines of a name and what is to be said about it."""
    there = {name: importlib.util.find_spec(name) is not None for name in _OPTIONAL}
    return "\n".join(
        [
            *implementation(),
            _line("GPU", ", ".join(library.gpus()) or "none that TensorFlow sees"),
            _line("Python", platform.python_version()),
            *(_line(name, importlib.metadata.version(name.lower())) for name in ("TensorFlow", "Keras")),
            _line("C++", _version(build.compiler()) or "no g++, and no other in CXX"),
            _line("nvcc", _version(build.cuda_compiler()) or "none in the PATH, none in CUDA_HOME"),
            _line("optional", ", ".join(name for name in _OPTIONAL if there[name]) or "none"),
            _line("not installed", ", ".join(name for name in _OPTIONAL if not there[name]) or "-"),
        ]
    )


def implementation():
    """The lines about RoIAlign and what goes with it: the resize and the mask crops of the input pipeline."""
    try:
        chosen = library.choice()
    except (OSError, ValueError) as error:
        return [_line("operations", f"none. {error}")]
    if not chosen.module:
        return [_line("operations", "TensorFlow's own"), _line("because", chosen.reason)]
    compiled = f"compiled: RoIAlign for {' and '.join(chosen.devices)}, resize and mask crops for CPU"
    lines = [_line("operations", compiled), _line("from", chosen.reason)]
    if "GPU" not in chosen.devices:
        missing = "made without nvcc; `mrcnn build-ops`" if build.cuda_compiler() else "there is no nvcc"
        lines.append(_line("not for GPU", missing))
    return lines


def _line(name, text):
    return f"{name:<14} {text}"


def _version(compiler):
    if not compiler:
        return None
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    numbers = re.findall(r"\d+(?:\.\d+)+", said)
    return f"{numbers[-1] if numbers else 'unknown version'} ({compiler})"
