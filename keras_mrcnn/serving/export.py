"""A trained model as a SavedModel for TensorFlow Serving, of stock operations unless told otherwise."""

import contextlib
import pathlib
import shutil

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_mrcnn.ops import library
from keras_mrcnn.serving import documents, warmup
from keras_mrcnn.serving.answers import MASKS
from keras_mrcnn.serving.signatures import ON_ERROR, Endpoints

MAX_PIXELS = 64_000_000  # of a source image; 192 MB when decoded


def export_saved_model(
    model,
    folder,
    version=1,
    masks="rle",
    max_pixels=MAX_PIXELS,
    on_error="raise",
    operations="stock",
    pictures=(),
):
    """Write `model` to `folder/version`, for TensorFlow Serving and any process that knows TensorFlow alone.

    The signatures take encoded images (`serving_default`: `image_bytes`; `tf_example`: `examples`) or pixels
    (`image_tensor`: `images`) and answer in the source frame; `assets/README.md` of the export says what
    comes out. A batch is answered as its images would be one by one. It computes in float32, also when the
    model was trained in mixed precision.

    Args:
        model: `MaskRCNN`.
        folder: path, what TensorFlow Serving calls base path.
        version: int, the name of the folder in it.
        masks: `rle`: COCO's compressed run lengths at source size; `box`: probabilities over the box; `png`:
            a file of each mask at source size, as `detection_masks_bytes`; `none`.
        max_pixels: int; larger images are refused before they are decoded.
        on_error: `raise`: an image that cannot be read fails the request and is named; `empty`: it has no
            detections, and the output `error` says why.
        operations: `stock`, or `native`: with the compiled operations. Then only a process that has loaded
            their library (`keras_mrcnn.ops.library.choice()` does) can run it; TensorFlow Serving cannot.
        pictures: paths of image files like those to come, at most 1000: what TensorFlow Serving warms up with
            when it loads the model; none: two made-up ones.

    Returns:
        pathlib.Path: the folder of the version.

    Raises:
        FileExistsError: the version is there already.
        ValueError: an argument is none of the above; `native`, and the compiled operations are not in use; or
            an operation in the graph is of neither kind. Nothing is written then.
    """
    _check(version, masks, max_pixels, on_error, operations)
    folder = pathlib.Path(folder)
    target = folder / str(version)
    if target.exists():
        taken = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        raise FileExistsError(f"{target} is there already. The next free version is {max(taken) + 1}.")

    # A server may watch the folder: it must not see a version that is half written.
    partial = folder / f".{version}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(in_float32(model), partial, masks, max_pixels, on_error, operations)
        warmup.write(partial, folder.resolve().name, len(model.config.input.mean), pictures)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _check(version, masks, max_pixels, on_error, operations):
    for name, value, known in (
        ("masks", masks, MASKS),
        ("on_error", on_error, ON_ERROR),
        ("operations", operations, ("stock", "native")),
    ):
        if value not in known:
            raise ValueError(f"`{name}` is one of {', '.join(known)}. Received: {value!r}")
    for name, value in (("version", version), ("max_pixels", max_pixels)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` is a positive whole number. Received: {value!r}")
    if operations == "native" and not library.choice().module:
        raise ValueError(
            f"There are no compiled operations to export: {library.choice().reason}. "
            "KERAS_MRCNN_OPS=native builds and uses them."
        )


def _write(model, folder, masks, max_pixels, on_error, operations):
    kind = library.stock_operations() if operations == "stock" else contextlib.nullcontext()
    with kind:
        signatures = Endpoints(model, masks, max_pixels, on_error).signatures()
        served = tf.Module()  # of the variables alone: Keras would trace the model once more for itself
        served.weights = [variable.value for variable in model.variables]
        tf.saved_model.save(served, folder, signatures)
    known = library.OPERATIONS if operations == "native" else ()
    foreign = [operation for operation in foreign_operations(folder) if operation not in known]
    if foreign:
        raise ValueError(f"The export holds operations that stock TensorFlow lacks: {', '.join(foreign)}.")
    what = "fails its request" if on_error == "raise" else "has no detections and an `error`"
    limits = f"An image that cannot be read or has more than {max_pixels} pixels {what}."
    documents.write(folder / "assets", signatures, model.categories, masks, limits)


def in_float32(model):
    """The model, or its twin that computes in float32; a backbone of the user's own stays as it is."""
    if model.box_head.compute_dtype == "float32":
        return model
    twin = type(model)(model.config, model.categories, dtype="float32", backbone=model.own_backbone)
    twin.set_weights(model.get_weights())
    return twin


def foreign_operations(folder):
    """Names of the operations in a SavedModel that TensorFlow by itself does not have, sorted."""
    saved = saved_model_pb2.SavedModel.FromString(pathlib.Path(folder, "saved_model.pb").read_bytes())
    used = set()
    for meta in saved.meta_graphs:
        functions = {function.signature.name for function in meta.graph_def.library.function}
        used |= {node.op for node in meta.graph_def.node}
        for function in meta.graph_def.library.function:
            used |= {node.op for node in function.node_def}
        used -= functions
    return sorted(operation for operation in used if not hasattr(tf.raw_ops, operation))
