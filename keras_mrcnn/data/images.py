"""Encoded files to network frames: decode, resize, pad.

Comes in: encoded bytes, a path, or an array in any of the usual pixel formats. Goes out: uint8 RGB.
"""

import os

import numpy as np
import tensorflow as tf

from keras_mrcnn.ops import library

STRIDE = 32  # pixels; the coarsest backbone stage, height and width of a batch are multiples of it


def decode(encoded):
    """Decodes one image to uint8 RGB; runs eagerly and inside a graph.

    JPEG is decoded with the accurate integer DCT, so that the pixels equal those of other libraries. Grey
    images are repeated over three channels, an alpha channel is dropped, 16-bit images keep the high byte, of
    an animation the first frame is taken. The orientation tag of EXIF is not applied.

    Args:
        encoded: string scalar, the bytes of a JPEG, PNG, BMP, GIF or, where TensorFlow decodes it, WebP
            file that is not animated.

    Returns:
        uint8 `[H, W, 3]`, RGB.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are not an image, or end too early.
    """
    # TensorFlow 2.21 writes behind its buffer when it decodes an animated WebP.
    encoded = tf.where(is_animated_webp(encoded), b"an animated WebP", encoded)
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: _to_rgb(tf.io.decode_image(encoded, channels=0, expand_animations=False)),
    )
    image.set_shape([None, None, 3])
    return image


def is_animated_webp(encoded):
    """bool scalar: whether the bytes, a string scalar, are a WebP file with the mark of an animation."""
    header = tf.strings.substr(encoded + b"\0" * 21, 0, 21)
    container = tf.strings.substr(header, 0, 4) + tf.strings.substr(header, 8, 8)
    flags = tf.io.decode_raw(header, tf.uint8)[20]
    return (container == b"RIFFWEBPVP8X") & (flags // 2 % 2 == 1)


def _to_rgb(image):
    """uint8 `[H, W, 1..4]` (grey, grey + alpha, RGB, RGBA) to `[H, W, 3]`."""
    is_grey = tf.shape(image)[2] < 3
    return tf.cond(is_grey, lambda: tf.repeat(image[:, :, :1], 3, axis=2), lambda: image[:, :, :3])


def network_size(height, width, short_edge, long_edge, rule="pillow"):
    """Size of an image in the network frame, before padding.

    The short edge becomes `short_edge`, unless the long edge would exceed `long_edge`; no edge is below 1.

    Args:
        height, width: size of the source image, pixels; Python integers or integer scalar tensors.
        short_edge, long_edge: pixels; numbers or scalar tensors.
        rule: "pillow" rounds each edge, `int(x + 0.5)`; "plain" rounds down, as torchvision does.

    Returns:
        `(height, width)`: two Python integers when `height` and `width` are, else an int32 tensor `[2]`.
    """
    edges = tf.cast(tf.stack([height, width]), tf.float64)
    scale = tf.cast(short_edge, tf.float64) / tf.reduce_min(edges)
    scale = tf.minimum(scale, tf.cast(long_edge, tf.float64) / tf.reduce_max(edges))
    size = edges * scale + (0.0 if rule == "plain" else 0.5)
    size = tf.maximum(tf.cast(size, tf.int32), 1)
    if tf.is_tensor(height) or tf.is_tensor(width):
        return size
    return tuple(int(edge) for edge in size)


def resize(image, size, rule="pillow"):
    """Bilinear resize. With "pillow" the compiled operation where there is one, which gives the same bits.

    Args:
        image: uint8 `[H, W, 3]`.
        size: int32 `[2]` or a pair, new (height, width), pixels, each at least 1.
        rule: "pillow" widens the filter's support when shrinking and rounds to uint8: within one grey level
            of Pillow's bilinear filter. "plain" does neither, as torchvision.

    Returns:
        `[height, width, 3]`, uint8, or float32 with "plain".
    """
    if rule == "plain":
        return tf.image.resize(image, size, method="bilinear")
    module = library.choice().module
    if module:
        return module.keras_mrcnn_resize(image=image, size=size)
    resized = tf.image.resize(image, size, method="bilinear", antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def pad_to_stride(image):
    """Pads `[H, W, 3]` right and below with 0 to multiples of 32."""
    size = tf.shape(image)[:2]
    right_and_below = -size % STRIDE
    return tf.pad(image, [[0, right_and_below[0]], [0, right_and_below[1]], [0, 0]])


def network_frame(sources, input_config):
    """Source images of any sizes as one batch of the model's inputs.

    Args:
        sources: list of uint8 `[H, W, C]`.
        input_config: `config.Input`; short and long edge, and how to resize.

    Returns:
        dictionary of numpy arrays: images uint8 (float32 when resized "plain") `[B, H', W', C]`, padded right
        and below with 0 to multiples of 32, and image_sizes int32 `[B, 2]`, the valid height and width.
    """
    rule = input_config.resize
    edges = input_config.short_edge, input_config.long_edge
    sizes = [network_size(*source.shape[:2], *edges, rule) for source in sources]
    height, width = (-(-edge // STRIDE) * STRIDE for edge in np.max(sizes, axis=0))
    shape = len(sources), height, width, sources[0].shape[2]
    batch = np.zeros(shape, np.float32 if rule == "plain" else np.uint8)
    for image, source, size in zip(batch, sources, sizes, strict=True):
        image[: size[0], : size[1]] = resize(source, size, rule)
    return {"images": batch, "image_sizes": np.array(sizes, np.int32)}


def load_image(image, channels=3):
    """Brings whatever a caller has to uint8 RGB.

    Args:
        channels: int; unless 3, only an array or tensor uint8 `[H, W, channels]` is taken, as it is.
        image: path of an image file; encoded bytes; a PIL image; or an array or tensor `[H, W]`, `[H, W, 1]`,
            `[H, W, 3]` (RGB) or `[H, W, 4]` (alpha is dropped) of bool, uint8, uint16 (the high byte is
            kept), any other integer type holding 0-255, or float holding 0-1 or 0-255 (0-1 when nothing
            exceeds 1).

    Returns:
        uint8 numpy `[H, W, channels]`, RGB when these are 3, a fresh array.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file or the bytes cannot be decoded, or the array has another shape, type or range.
    """
    if channels != 3:
        return _array_of(channels, image)
    if isinstance(image, str | os.PathLike):
        return _load_file(os.fspath(image))
    if isinstance(image, bytes):
        return _decode_or_explain(image, "the bytes given as `image`")
    if callable(getattr(image, "convert", None)) and not getattr(image, "mode", "").startswith(("I", "F")):
        image = image.convert("RGB")
    return _rgb_array(np.asarray(image))


def path_of(image):
    """The path that `load_image` was given, as a string; None of anything else."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _array_of(channels, image):
    array = None if isinstance(image, str | bytes | os.PathLike) else np.array(image)
    if array is None or array.ndim != 3 or array.shape[2] != channels or array.dtype != np.uint8:
        received = repr(image) if array is None else f"shape={array.shape}, dtype={array.dtype}"
        raise ValueError(
            f"This model's images have {channels} channels: `image` must be an array uint8 "
            f"[height, width, {channels}]. Received: {received}"
        )
    return array


def _load_file(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`image` is a path and must name an image file. There is no file: {path}")
    with open(path, "rb") as file:
        return _decode_or_explain(file.read(), path)


def _decode_or_explain(encoded, where):
    try:
        return decode(encoded).numpy()
    except tf.errors.OpError as error:
        raise ValueError(
            f"Expected a complete JPEG, PNG, BMP or GIF image. {where} cannot be decoded ({len(encoded)} "
            f"bytes): {first_line(error.message)}. Open it with an image viewer and save it again."
        ) from error


def first_line(message):
    """The part of a TensorFlow error message that says something to a user."""
    return message.split("[Op:")[0].removeprefix("{{function_node").split("}}")[-1].strip().split("\n")[0]


def _rgb_array(array):
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            "`image` must be one image [height, width], [height, width, 1], [height, width, 3] (RGB) or "
            f"[height, width, 4], channels last, not empty. "
            f"Received: shape={array.shape}, dtype={array.dtype}"
        )
    array = _to_uint8(array)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array[:, :, :3])


def _to_uint8(array):
    if array.dtype == np.uint8:
        return array.copy()
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"`image` must hold numbers or booleans. Received: dtype={array.dtype}")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # false for NaN too
        raise ValueError(
            "`image` must hold values in 0-255, or 0-1 when it is of a float type, and no NaN. "
            f"Received: dtype={array.dtype}, min={low}, max={high}"
        )
    if array.dtype.kind == "f":
        array = np.round(array.astype(np.float64) * (255 if high <= 1 else 1))
    return array.astype(np.uint8)
