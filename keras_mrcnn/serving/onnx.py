"""A trained model as an ONNX file, or as an OpenVINO model made of one.

ONNX has no operation that decodes an image or resizes as Pillow does. So an ONNX model begins where the
network does: images that have been resized and padded go in, detections in the network frame come out, as
from `MaskRCNN` itself. Suppression and RoIAlign become ONNX's own operations of that meaning.
"""

import json
import pathlib

import numpy as np
import tensorflow as tf

from keras_mrcnn.ops import library
from keras_mrcnn.ops.roi_align import roi_levels
from keras_mrcnn.serving.export import in_float32

OPSET = 18  # the first with everything used here; onnxruntime 1.14, OpenVINO 2024
_LEAST = -1e30  # below every score
_MARKER = "PyFuncStateless"
_TF2ONNX_END = 10**9


def export_onnx(model, path):
    """Write `model` as an ONNX file.

    Inputs: `images`, uint8 (float32 where `config.input.resize` is "plain") `[B, H, W, C]`, RGB 0-255,
    network frame, H and W multiples of 32; `image_sizes`, int32 `[B, 2]`, valid height and width;
    `data.images.network_frame` makes both. Outputs: those of `MaskRCNN`, in the network frame. It computes
    in float32. The file's metadata has `categories` and `input` (how to resize), both as json.

    Args:
        model: `MaskRCNN` of any architecture whose RoIAlign averages (`roi_align.operation` is "align").
        path: of a file that does not exist yet.

    Raises:
        FileExistsError: something is there already.
        ImportError: tf2onnx is not installed.
        ValueError: the model pools in another way.
    """
    path = _new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx_model(model).SerializeToString())


def export_openvino(model, path):
    """Write `model` as an OpenVINO model: `path`, which ends in `.xml`, and a `.bin` beside it.

    Inputs, outputs and errors are those of `export_onnx`; models with keypoints are refused, too.

    By itself OpenVINO computes in bfloat16 where the processor can: compile the model with
    `{"INFERENCE_PRECISION_HINT": "f32"}` for the numbers of `model.detect`.
    """
    path = _new(path)
    if path.suffix != ".xml":
        raise ValueError(f"The name of an OpenVINO model ends in .xml. Received: {path}")
    if model.keypoint_head:
        # 2026.4 reads the loop over the regions' enlarged maps, and finds other points in them.
        raise ValueError(
            "OpenVINO gets the keypoints wrong. onnxruntime runs the same model: use --format onnx."
        )
    try:
        import openvino
    except ImportError as error:
        raise ImportError('OpenVINO is not installed: pip install "keras_mrcnn[onnx,openvino]"') from error
    converted = openvino.Core().read_model(onnx_model(model).SerializeToString())
    openvino.save_model(converted, path, compress_to_fp16=False)


def _new(path):
    path = pathlib.Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists. Export to another file, or remove it first.")
    return path


def onnx_model(model):
    """The `onnx.ModelProto` of a `MaskRCNN`; see `export_onnx`."""
    try:
        import tf2onnx
    except ImportError as error:
        raise ImportError('tf2onnx is not installed: pip install "keras_mrcnn[onnx]"') from error
    config = model.config
    if config.roi_align.operation != "align" or config.roi_align.reduction != "average":
        raise ValueError(
            "ONNX has RoIAlign with the average of samples only. This model pools with "
            f"operation={config.roi_align.operation!r}, reduction={config.roi_align.reduction!r}."
        )
    model = in_float32(model)
    dtype = tf.float32 if config.input.resize == "plain" else tf.uint8
    signature = [
        tf.TensorSpec([None, None, None, len(config.input.mean)], dtype, name="images"),
        tf.TensorSpec([None, 2], tf.int32, name="image_sizes"),
    ]

    @tf.function(input_signature=signature)
    def detect(images, image_sizes):
        return model({"images": images, "image_sizes": image_sizes}, training=False)

    with library.operations(library.Choice(_OnnxOperations, (), "they are exported to ONNX")):
        detect.get_concrete_function()
    proto, _ = tf2onnx.convert.from_function(
        detect, signature, OPSET, custom_op_handlers={_MARKER: (_unmark, [])}
    )
    _check(proto.graph, signature)
    _open_slices(proto.graph)
    categories = [category.to_dict() for category in model.categories]
    for key, value in (("categories", categories), ("input", vars(config.input))):
        proto.metadata_props.add(key=key, value=json.dumps(value))
    return proto


def _check(graph, signature):
    """tf2onnx writes what it cannot convert as it is, and asks for tensors that are no weights as inputs."""
    import onnx

    foreign = {node.op_type for node in _nodes(graph) if not onnx.defs.has(node.op_type, node.domain)}
    if foreign:
        raise ValueError(f"ONNX has no operation for {', '.join(sorted(foreign))} of this model.")
    more = {given.name for given in graph.input} - {spec.name for spec in signature}
    if more:
        raise ValueError(f"The model holds tensors that are no weights: {', '.join(sorted(more))}.")


def _nodes(graph):
    """All nodes, those of loops and branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _open_slices(graph):
    """Slices to the end of an axis go on to ONNX's own number for that, not to tf2onnx's.

    OpenVINO takes 1e9 for a bound of the shape, and its product of two such bounds is negative.
    """
    from onnx import numpy_helper

    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        given = [constants.get(name) for name in node.input[1:]]
        if node.op_type != "Slice" or None in given:
            continue
        values = [numpy_helper.to_array(constant).astype(np.int64) for constant in given]
        if values[1].max() < _TF2ONNX_END:
            continue
        values[1] = np.where(values[1] >= _TF2ONNX_END, np.iinfo(np.int64).max, values[1])
        for place, value in enumerate(values, 1):
            node.input[place] = f"{node.name}/{place}"
            graph.initializer.append(numpy_helper.from_array(value, node.input[place]))
    used = {name for node in _nodes(graph) for name in node.input} | {output.name for output in graph.output}
    for constant in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(constant)


class _OnnxOperations:
    """What the layers call instead of TensorFlow's operations while a model is traced for ONNX."""

    @staticmethod
    def keras_mrcnn_roi_align(
        features,
        boxes,
        images,
        levels,
        scales,
        output_height,
        output_width,
        sampling_ratio,
        method,
        reduction,
    ):
        """RoIAlign, see `ops.library.pool`; levels are those that the size of a box gives."""
        count, channels = tf.shape(boxes)[0], features[0].shape[-1]
        level_of = roi_levels(boxes, len(features))
        # One region more on each level, behind all others: OpenVINO does not pool without any.
        boxes, images = tf.pad(boxes, [[0, len(features)], [0, 0]]), tf.pad(images, [[0, len(features)]])
        places, pooled = [], []
        for level, (of_level, scale) in enumerate(zip(features, scales)):
            place = tf.cast(tf.where(level_of == level)[:, 0], tf.int32)
            place = tf.concat([place, [count + level]], 0)
            regions = _marked(
                "RoiAlign",
                [
                    tf.transpose(of_level, [0, 3, 1, 2]),
                    tf.gather(boxes, place),
                    tf.cast(tf.gather(images, place), tf.int64),
                ],
                tf.float32,
                [None, channels, output_height, output_width],
                mode="avg",
                output_height=output_height,
                output_width=output_width,
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
                coordinate_transformation_mode="half_pixel" if method == "align" else "output_half_pixel",
            )
            places.append(place)
            pooled.append(regions)
        pooled = tf.transpose(tf.concat(pooled, 0), [0, 2, 3, 1])
        return tf.tensor_scatter_nd_update(pooled, tf.concat(places, 0)[:, tf.newaxis], pooled)[:count]

    @staticmethod
    def keras_mrcnn_nms(boxes, scores, valid, max_outputs, iou_threshold):
        """Suppression in all images at once.

        Args:
            boxes: float32 `[B, N, 4]`, those of different groups apart.
            scores: float32 `[B, N]`; valid: bool `[B, N]`.

        Returns:
            indices int32 and kept bool `[B, max_outputs]`, see `ops.nms`.
        """
        scores = tf.where(valid, scores, 2 * _LEAST)
        chosen = _marked(
            "NonMaxSuppression",
            [
                boxes,
                scores[:, tf.newaxis],
                tf.constant([max_outputs], tf.int64),
                tf.constant([iou_threshold], tf.float32),
                tf.constant([_LEAST], tf.float32),
            ],
            tf.int64,
            [None, 3],
        )
        chosen = tf.cast(chosen, tf.int32)
        image, index = chosen[:, 0], chosen[:, 2]
        batch = tf.shape(boxes)[0]
        counts = tf.reduce_sum(tf.cast(image == tf.range(batch)[:, tf.newaxis], tf.int32), axis=1)
        rank = tf.range(tf.size(image)) - tf.gather(tf.cumsum(counts) - counts, image)
        indices = tf.scatter_nd(tf.stack([image, rank], axis=1), index, [batch, max_outputs])
        return indices, tf.range(max_outputs) < counts[:, tf.newaxis]


def _marked(operation, inputs, dtype, shape, **attributes):
    """A place in a TensorFlow graph where an operation of ONNX will be; it cannot run."""
    token = json.dumps({"operation": operation, **attributes})
    marker = tf.raw_ops.PyFuncStateless(input=inputs, token=token, Tout=[dtype])[0]
    return tf.ensure_shape(marker, shape)


def _unmark(context, node, name, arguments):
    attributes = json.loads(node.get_attr_value("token"))
    node.type, node.domain = attributes.pop("operation"), ""
    for key in list(node.attr):
        del node.attr[key]
    for key, value in attributes.items():
        node.set_attr(key, value)
