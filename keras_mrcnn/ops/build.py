"""Compiles `custom_ops/` for the TensorFlow that is installed, into a cache.

A library works with one version of TensorFlow only. Its name says which, for which devices it has kernels,
and from what it was made: `roi_align-tensorflow-2.21.0-cpu-0123456789ab.so`.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import tempfile

import tensorflow as tf

DEVICES = {"cuda": ("CPU", "GPU"), "cpu": ("CPU",)}  # by variant; the one with more first

# The border rule of RoIAlign decides on the last bit: no fused multiplication and addition in the kernels.
_KERNEL = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=off")
# Without -march, with which Eigen's headers do not compile; -w: TensorFlow's headers warn of themselves.
_OP = ("-O2", "-fPIC", "-w")
_CUDA = ("-O3", "-std=c++17", "-Xcompiler=-fPIC,-ffp-contract=off", "--threads=0")
_CUDA += tuple(f"-gencode=arch=compute_{number},code=sm_{number}" for number in (75, 80, 86, 89, 90))
_CUDA += ("-gencode=arch=compute_90,code=compute_90",)  # PTX, for devices to come
# -z defs: a symbol that is nowhere is an error now, not when the library is loaded.
_LINK = ("-shared", "-Xlinker", "-z", "-Xlinker", "defs", "-Xlinker", "--exclude-libs", "-Xlinker", "ALL")
# Before TensorFlow's libraries, which export stubs of the CUDA runtime.
_LINK_CUDA = ("-cudart", "none", "-lcudart_static", "-ldl", "-lrt", "-lpthread")


def cache_folder():
    """Where libraries are kept: `ops` in `$KERAS_MRCNN_CACHE`, else in `~/.cache/keras_mrcnn`."""
    return pathlib.Path(os.environ.get("KERAS_MRCNN_CACHE") or "~/.cache/keras_mrcnn").expanduser() / "ops"


def compiler():
    """Path of the C++ compiler, `$CXX` or g++, or None."""
    return shutil.which(os.environ.get("CXX") or "g++")


def cuda_compiler():
    """Path of nvcc, from the PATH or `$CUDA_HOME/bin`, or None."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which(f"{home}/bin/nvcc") if home else None)


def find():
    """Path of the library of these sources for this TensorFlow, or None where it is not built."""
    libraries = (cache_folder() / _name(variant) for variant in DEVICES)
    return next((path for path in libraries if path.is_file()), None)


def described(path):
    """(version of TensorFlow, variant) that the name of a library tells, or None where it tells nothing."""
    match = re.fullmatch(r"roi_align-tensorflow-(.+)-(cpu|cuda)-[0-9a-f]{12}\.so", pathlib.Path(path).name)
    return match and match.groups()


def build(force=False):
    """Compile the ops, unless the cache has them; with CUDA kernels where there is an nvcc.

    Several processes may build at once: a library appears under its name when it is complete.

    Args:
        force: bool, compile also what the cache has.

    Returns:
        Path of the library.

    Raises:
        FileNotFoundError: no C++ compiler.
        ChildProcessError: a compiler failed; the message holds its command and what it said.
    """
    variant = "cuda" if cuda_compiler() and _sources("cuda/*.cu") else "cpu"
    library = cache_folder() / _name(variant)
    if library.is_file() and not force:
        return library
    if not compiler():
        raise FileNotFoundError(
            f"No C++ compiler: `{os.environ.get('CXX') or 'g++'}` is not there. Install one (Debian, Ubuntu: "
            "apt install g++), name another in CXX, or stay with KERAS_MRCNN_OPS=portable."
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=library.parent) as folder:
        commands = []
        for number, command in enumerate(_compilations(variant)):
            commands.append([*command, "-o", os.path.join(folder, f"{number}.o")])
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        complete = os.path.join(folder, library.name)
        _run([*_linker(variant, [command[-1] for command in commands]), "-o", complete])
        os.replace(complete, library)
    return library


def _folder():
    """`custom_ops/`, inside the installed package or beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parents[1]
    installed = package / "custom_ops"
    return installed if installed.is_dir() else package.parent / "custom_ops"


def _sources(*patterns):
    return sorted(path for pattern in patterns for path in _folder().glob(pattern))


def _name(variant):
    """The name of the library: it changes with whatever would change the library."""
    version = tf.version.VERSION
    made_from = (version, tf.version.GIT_VERSION, tf.sysconfig.CXX11_ABI_FLAG, platform.machine(), variant)
    digest = hashlib.sha256(repr((made_from, _KERNEL, _OP, _CUDA, _LINK, _LINK_CUDA)).encode())
    for path in _sources("*.h", "*/*.h", "*/*.cc", "*/*.cu"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"roi_align-tensorflow-{version}-{variant}-{digest.hexdigest()[:12]}.so"


def _compilations(variant):
    """The command for each source, without the output."""
    ops = [path for path in _sources("tensorflow/*.cc") if variant == "cuda" or path.stem[-5:] != "_cuda"]
    commands = [[compiler(), *_OP, *tf.sysconfig.get_compile_flags(), "-c", path] for path in ops]
    commands += [[compiler(), *_KERNEL, "-c", path] for path in _sources("cpu/*.cc")]
    if variant == "cuda":
        nvcc = [cuda_compiler(), "-ccbin", compiler(), *_CUDA]
        commands += [[*nvcc, "-c", path] for path in _sources("cuda/*.cu")]
    return commands


def _linker(variant, objects):
    """The command that links, without the output. nvcc knows where its static runtime lies."""
    tensorflow = tf.sysconfig.get_link_flags()
    if variant == "cuda":
        return [cuda_compiler(), "-ccbin", compiler(), *objects, *_LINK, *_LINK_CUDA, *tensorflow]
    return [compiler(), *objects, *_LINK, *tensorflow]


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[:30])
        raise ChildProcessError(f"A compiler failed:\n{shlex.join(map(str, command))}\n{said}")
