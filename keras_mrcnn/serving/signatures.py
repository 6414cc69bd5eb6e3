"""The endpoints of a served model: requests to answers, inside the graph.

encoded bytes → source images → network frames → detections → answers

Images of one request that have one padded size in the network frame go through the network together, others
one group after the other. So each image has the padding that it has alone, and the answer does not depend on
its neighbours: features near the right and the lower edge see the padding.
"""

import tensorflow as tf

from keras_mrcnn.data.images import STRIDE, network_size, pad_to_stride, resize
from keras_mrcnn.ops import library
from keras_mrcnn.serving import images
from keras_mrcnn.serving.answers import answer

ON_ERROR = ("raise", "empty")
FEATURE = "image/encoded"  # of a tf.Example


class Endpoints:
    """Functions to be traced, one for each signature.

    Args:
        model: `MaskRCNN`, float32.
        masks: one of `answers.MASKS`.
        max_pixels: int, of a source image.
        on_error: "raise": an image that cannot be read fails the request; "empty": it has no detections and
            its reason in the output `error`.
    """

    def __init__(self, model, masks, max_pixels, on_error):
        self.model = model
        self.masks = masks
        self.max_pixels = max_pixels
        self.on_error = on_error
        self.input = model.config.input
        self.channels = len(self.input.mean)
        self.pixel = tf.float32 if self.input.resize == "plain" else tf.uint8
        frames = tf.TensorSpec([None, None, None, self.channels], self.pixel)
        self.network = _traced(self._network, frames, tf.TensorSpec([None, 2], tf.int32))

    def signatures(self):
        """{name: concrete function of one argument}; a model of other than RGB images takes tensors only."""
        pixels = tf.TensorSpec([None, None, None, self.channels], tf.uint8, name="images")
        tensor = _traced(self.image_tensor, pixels)
        if self.channels != 3:
            return {"serving_default": tensor}
        self.bytes = _traced(self.image_bytes, tf.TensorSpec([None], tf.string, name="image_bytes"))
        example = _traced(self.tf_example, tf.TensorSpec([None], tf.string, name="examples"))
        return {"serving_default": self.bytes, "image_tensor": tensor, "tf_example": example}

    def image_bytes(self, image_bytes):
        """string `[B]`, encoded images of any sizes and formats."""
        frames, network_sizes, source_sizes, reasons = self._read(image_bytes)
        found = self._detect_groups(frames, network_sizes)
        return self._answer(found, network_sizes, source_sizes, reasons)

    def image_tensor(self, images):
        """uint8 `[B, H, W, 3]`, source images of one size."""
        batch, height, width = tf.unstack(tf.shape(images)[:3])
        size = tf.stack([height, width])
        reason = tf.where(height * width < 1, "`images` have no pixels", "")
        with tf.control_dependencies([tf.debugging.Assert(reason == "", [reason])]):
            resized = self._resize(images, size)
        network_sizes = tf.tile(tf.shape(resized)[None, 1:3], [batch, 1])
        found = self.network(tf.map_fn(pad_to_stride, resized), network_sizes)
        return self._answer(found, network_sizes, tf.tile(size[None], [batch, 1]), tf.fill([batch], ""))

    def tf_example(self, examples):
        """string `[B]`, serialised `tf.Example`s with encoded images."""

        def encoded(example):
            feature = {FEATURE: tf.io.FixedLenFeature([], tf.string)}
            parsed = images.attempt(
                lambda given: tf.io.parse_single_example(given, feature)[FEATURE], example, ""
            )
            return parsed[1]

        return self.bytes(tf.map_fn(encoded, examples))

    def _network(self, frames, sizes):
        return self.model({"images": frames, "image_sizes": sizes}, training=False)

    def _resize(self, image, size):
        edges = self.input.short_edge, self.input.long_edge
        with library.stock_operations():  # the same bits; the native ones are RoIAlign's
            return resize(image, network_size(size[0], size[1], *edges, self.input.resize), self.input.resize)

    def _read(self, encoded):
        """`TensorArray` of padded network frames, their valid sizes, the source sizes, and the reasons."""
        count = tf.size(encoded)

        def frame(image):
            resized = self._resize(image, tf.shape(image)[:2])
            return pad_to_stride(resized), tf.shape(resized)[:2]

        def body(index, frames, network_sizes, source_sizes, reasons):
            image, reason = images.read(encoded[index], self.max_pixels)
            nothing = tf.zeros([0, 0, 3], self.pixel), tf.zeros([2], tf.int32)
            padded, size = tf.cond(reason == "", lambda: frame(image), lambda: nothing)
            return (
                index + 1,
                frames.write(index, padded),
                network_sizes.write(index, size),
                source_sizes.write(index, tf.shape(image)[:2]),
                reasons.write(index, reason),
            )

        arrays = [
            tf.TensorArray(self.pixel, count, infer_shape=False, element_shape=[None, None, 3]),
            tf.TensorArray(tf.int32, count, element_shape=[2]),
            tf.TensorArray(tf.int32, count, element_shape=[2]),
            tf.TensorArray(tf.string, count, element_shape=[]),
        ]
        _, frames, *others = tf.while_loop(lambda index, *_: index < count, body, (0, *arrays))
        network_sizes, source_sizes, reasons = (array.stack() for array in others)
        if self.on_error == "raise":
            with tf.control_dependencies([_assert_none(reasons)]):
                network_sizes = tf.identity(network_sizes)
        return frames, network_sizes, source_sizes, reasons

    def _detect_groups(self, frames, sizes):
        """What the network finds in frames of several padded sizes; nothing in those of size 0."""
        batch = tf.shape(sizes)[0]
        padded = sizes + -sizes % STRIDE
        _, group = tf.unique(padded[:, 0] * 2**16 + padded[:, 1])
        outputs = self.network.structured_outputs
        nothing = {name: tf.zeros([batch, *spec.shape[1:]], spec.dtype) for name, spec in outputs.items()}

        def body(number, found):
            rows = tf.where((group == number) & (sizes[:, 0] > 0))[:, 0]

            def detected():
                some = self.network(frames.gather(tf.cast(rows, tf.int32)), tf.gather(sizes, rows))
                return {
                    name: tf.tensor_scatter_nd_update(found[name], rows[:, None], some[name])
                    for name in found
                }

            return number + 1, tf.cond(tf.size(rows) > 0, detected, lambda: found)

        groups = tf.reduce_max(group) + 1
        return tf.while_loop(lambda number, _: number < groups, body, (0, nothing), parallel_iterations=1)[1]

    def _answer(self, found, network_sizes, source_sizes, reasons):
        paste = self.model.config.mask_head.paste
        outputs = answer(found, network_sizes, source_sizes, self.model.categories, self.masks, paste)
        return outputs | ({"error": reasons} if self.on_error == "empty" else {})


def _traced(function, *specs):
    return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()


def _assert_none(reasons):
    """Fails and names every image that has a reason."""
    bad = tf.where(reasons != "")[:, 0]
    named = tf.strings.join(["image ", tf.strings.as_string(bad), ": ", tf.gather(reasons, bad)])
    return tf.debugging.Assert(tf.size(bad) == 0, [tf.strings.reduce_join(named, separator="; ")])
