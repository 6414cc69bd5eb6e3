"""Which implementation of RoIAlign is used: the compiled library, or stock TensorFlow operations.

The environment variable `KERAS_MRCNN_OPS` decides:

- `auto` (the default): the compiled library where there is one (`mrcnn build-ops`), else stock operations.
- `native`: the compiled library; it is built where there is none, and what is in the way is an error.
- `portable`: stock operations.

The choice is made at each call, inside a `tf.function` when it is traced.
"""

import contextlib
import contextvars
import functools
import logging
import os
from typing import Any, NamedTuple

import tensorflow as tf

from keras_mrcnn.ops import build

VARIABLE = "KERAS_MRCNN_OPS"
OPERATIONS = ("KerasMrcnn>RoiAlign", "KerasMrcnn>RoiAlignGrad")
TYPES = (tf.float32, tf.float16, tf.bfloat16)  # of features, that the compiled operations take
_BUILD = "`mrcnn build-ops`"
_asked = contextvars.ContextVar("operations", default=None)


class Choice(NamedTuple):
    """The implementation in use.

    Attributes:
        module: the compiled operations as Python functions, or None for stock operations.
        devices: names of the devices for which `module` has kernels.
        reason: str, why it is this one.
    """

    module: Any
    devices: tuple
    reason: str


def choice():
    """The `Choice` for the next call.

    Raises:
        ValueError: `KERAS_MRCNN_OPS` holds something else.
        OSError: it asks for the compiled library, which cannot be built or loaded.
    """
    if _asked.get():
        return _asked.get()
    mode = os.environ.get(VARIABLE) or "auto"
    if mode == "portable":
        return Choice(None, (), f"{VARIABLE}=portable")
    if mode == "native":
        return _native()
    if mode != "auto":
        raise ValueError(f"{VARIABLE} is auto, native or portable. Received: {mode!r}")
    chosen = _auto()
    if chosen.module and "GPU" not in chosen.devices and tf.config.get_visible_devices("GPU"):
        reason = f"the library has no kernels for the GPU. {_BUILD} makes them where there is an nvcc"
        return Choice(None, (), reason)
    return chosen


def compiled():
    """The compiled operations as Python functions, or None for stock operations; `choice` says more.

    Where nobody asked for stock operations, the reason for them is told once.
    """
    chosen = choice()
    if not (chosen.module or _asked.get() or os.environ.get(VARIABLE) == "portable"):
        _tell(f"RoIAlign uses stock TensorFlow operations: {chosen.reason}.")
    return chosen.module


@functools.cache
def _tell(message):
    logging.getLogger("keras_mrcnn").warning(message)


def stock_operations():
    """Within it, whatever is called or traced consists of operations that TensorFlow by itself has."""
    return operations(Choice(None, (), "stock operations are asked for"))


@contextlib.contextmanager
def operations(asked):
    """Within it, `choice()` is this `Choice`."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def asked():
    """The module of `operations`, None outside of it."""
    return _asked.get() and _asked.get().module


def pool(module, maps, boxes, images, scales, bins, sampling_ratio, method, reduction="average", levels=None):
    """One call of the compiled operation; its gradient to the maps is registered.

    Args:
        module: of a `Choice`.
        maps: list of `[B, H_k, W_k, C]`, one of `TYPES`, the finest pyramid level first.
        boxes: float32 `[R, 4]`, (x1, y1, x2, y2), pixels of the image.
        images: int32 `[R]`, the image of each box.
        scales: list of float, pixels of each map per image pixel.
        bins: (rows, columns).
        sampling_ratio: int, samples per bin along each side, 0: adaptive.
        method: `align`, `align_legacy`, `warp` (RoIWarp) or `pool` (RoIPool).
        reduction: `average` or `maximum`; `maximum` for `pool`.
        levels: int32 `[R]`, the map of each box, or None: by the size of the box (FPN paper, eq. 1).

    Returns:
        `[R, rows, columns, C]`.
    """
    return module.keras_mrcnn_roi_align(
        features=maps,
        boxes=boxes,
        images=images,
        levels=[] if levels is None else [levels],
        scales=scales,
        output_height=bins[0],
        output_width=bins[1],
        sampling_ratio=sampling_ratio,
        method=method,
        reduction=reduction,
    )


def gpus():
    """Names of the GPUs that TensorFlow sees."""
    devices = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in devices]


def load(path):
    """The compiled operations of a library, as Python functions; registers their gradient.

    Raises:
        OSError: it is for another version of TensorFlow, or cannot be loaded.
    """
    version, variant = build.described(path) or (None, None)
    if version != tf.version.VERSION:
        raise OSError(
            f"{path} is not for TensorFlow {tf.version.VERSION}, but for {version or 'an unknown version'}. "
            f"{_BUILD} makes the right one."
        )
    try:
        module = tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError, RuntimeError) as error:
        raise OSError(
            f"{path} cannot be loaded ({error}). `mrcnn build-ops --force` makes it anew."
        ) from error
    _register_gradient(module)
    return Choice(module, build.DEVICES[variant], str(path))


def _register_gradient(module):
    def gradient(operation, upstream):
        count = operation.get_attr("N")
        maps, (boxes, images, *levels) = operation.inputs[:count], operation.inputs[count:]
        names = "scales", "output_height", "output_width", "sampling_ratio", "method", "reduction"
        attributes = {name: operation.get_attr(name) for name in names}
        spread = module.keras_mrcnn_roi_align_grad(upstream, maps, boxes, images, levels, **attributes)
        return [*spread, *[None for _ in (boxes, images, *levels)]]

    with contextlib.suppress(KeyError):  # it is registered already
        tf.RegisterGradient(OPERATIONS[0])(gradient)


@functools.cache
def _native():
    path = build.find()
    if not path:
        _tell(f"RoIAlign is compiled for TensorFlow {tf.version.VERSION}, once: {build.cache_folder()}")
    return load(path or build.build())


@functools.cache
def _auto():
    """The library that is there, or what is in the way of it."""
    path = build.find()
    try:
        if path:
            return load(path)
        return Choice(None, (), _why_none())
    except OSError as error:
        return Choice(None, (), str(error).rstrip("."))


def _why_none():
    there = build.cache_folder().glob("*.so")
    versions = sorted({named[0] for named in map(build.described, there) if named})
    if versions and tf.version.VERSION not in versions:
        is_for = f"the library is for TensorFlow {', '.join(versions)}, this is {tf.version.VERSION}"
    else:
        is_for = "no library is built"
    if not build.compiler():
        return f"{is_for}, and there is no g++ to make one"
    return f"{is_for}. {_BUILD} makes one"
