"""A trained model as a SavedModel, of stock TensorFlow operations unless told otherwise."""

import contextlib
import json
import pathlib
import shutil

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_mrcnn.ops import library


def export_saved_model(model, folder, operations="stock"):
    """Write `model` so that a process that knows TensorFlow alone can run it.

    The signature `serving_default` takes `images` (uint8 `[B, H, W, 3]`, RGB, network frame) and
    `image_sizes` (int32 `[B, 2]`, valid height and width), for any B, H and W, and returns what the model
    returns. It computes in float32, also when the model was trained in mixed precision.
    `assets/categories.json` holds the categories, in the order of the class indices.

    Args:
        model: `MaskRCNN`.
        folder: path that does not exist yet, or is empty.
        operations: `stock`, or `native`: with the compiled operations. Then only a process that has loaded
            their library (`keras_mrcnn.ops.library.choice()` does) can run it; TensorFlow Serving cannot.

    Raises:
        FileExistsError: something is there already.
        ValueError: `native`, and the compiled operations are not in use; or an operation in the graph is of
            neither kind. Nothing stays in the folder's place then.
    """
    if operations not in ("stock", "native"):
        raise ValueError(f"`operations` is stock or native. Received: {operations!r}")
    if operations == "native" and not library.choice().module:
        raise ValueError(
            f"There are no compiled operations to export: {library.choice().reason}. "
            "KERAS_MRCNN_OPS=native builds and uses them."
        )
    folder = pathlib.Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Export to another folder, or remove it first.")

    model = _in_float32(model)

    def detect(images, image_sizes):
        return model({"images": images, "image_sizes": image_sizes}, training=False)

    kind = library.stock_operations() if operations == "stock" else contextlib.nullcontext()
    with kind:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(
            "serving_default",
            detect,
            input_signature=[
                tf.TensorSpec([None, None, None, 3], tf.uint8, name="images"),
                tf.TensorSpec([None, 2], tf.int32, name="image_sizes"),
            ],
        )
        archive.write_out(folder, verbose=False)
    known = library.OPERATIONS if operations == "native" else ()
    foreign = [operation for operation in foreign_operations(folder) if operation not in known]
    if foreign:
        shutil.rmtree(folder)
        raise ValueError(f"The export holds operations that stock TensorFlow lacks: {', '.join(foreign)}.")
    categories = [category.to_dict() for category in model.categories]
    (folder / "assets" / "categories.json").write_text(json.dumps(categories))


def _in_float32(model):
    if model.box_head.compute_dtype == "float32":
        return model
    twin = type(model)(model.config, model.categories, dtype="float32")
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
