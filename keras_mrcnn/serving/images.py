"""Encoded bytes to source images, inside a graph: the first station of a served model.

In come the bytes of a request; out goes a uint8 RGB image, or the reason why there is none. Sizes are read
from the header and checked before anything is decoded.
"""

import tensorflow as tf

from keras_mrcnn.data.images import decode

LONGEST_EDGE = 65535  # pixels; what a JPEG can have
_HEADER = 64  # bytes that hold the size of every format but JPEG
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP")
_UNKNOWN = len(_FORMATS)


def read(encoded, max_pixels):
    """One image, or why it is none; never raises when it runs.

    Args:
        encoded: string scalar, the bytes of a JPEG, PNG, GIF (of an animation the first frame), BMP, or,
            where the TensorFlow that runs the graph decodes it, WebP.
        max_pixels: int; an image whose header says more is refused before it is decoded.

    Returns:
        Tuple of uint8 `[H, W, 3]`, as `data.images.decode` gives it, `[0, 0, 3]` of a refused image, and the
        reason, a string scalar, empty of an image that is fine.
    """
    header = _bytes_of(tf.strings.substr(encoded + b"\0" * _HEADER, 0, _HEADER))
    kind = _kind(header)
    height, width = tf.unstack(_size(encoded, header, kind))
    reason = _refusal(encoded, kind, height, width, max_pixels)
    nothing = tf.zeros([0, 0, 3], tf.uint8)
    decoded, image = tf.cond(
        reason == "", lambda: attempt(decode, encoded, nothing), lambda: (tf.constant(False), nothing)
    )
    failure = _decoding_failure(encoded, kind)
    return image, tf.where((reason == "") & ~decoded, failure, reason)


def attempt(function, argument, otherwise):
    """`(True, function(argument))`, or `(False, otherwise)` where that raises.

    Nothing else in a graph goes on after an error: a data set that drops the elements that fail.

    Args:
        function: of one tensor to one tensor.
        argument: tensor.
        otherwise: tensor of the result's type and rank.
    """
    tried = tf.data.Dataset.from_tensors(argument).map(lambda given: (True, function(given)))
    return tried.ignore_errors().reduce((False, otherwise), lambda _, result: result)


def _bytes_of(string):
    return tf.cast(tf.io.decode_raw(string, tf.uint8), tf.int64)


def _begins(header, text, at=0):
    return tf.reduce_all(header[at : at + len(text)] == tf.constant(list(text), tf.int64))


def _kind(header):
    """Position in `_FORMATS`, int32 scalar; `_UNKNOWN` of anything else."""
    begins = [
        _begins(header, b"\xff\xd8\xff"),
        _begins(header, b"\x89PNG\r\n\x1a\n") & _begins(header, b"IHDR", 12),
        _begins(header, b"GIF8"),
        _begins(header, b"BM"),
        _begins(header, b"RIFF") & _begins(header, b"WEBP", 8),
    ]
    return tf.argmax(tf.stack([*begins, True]), output_type=tf.int32)


def _integer(header, at, count, big_endian=False):
    places = range(count)[::-1] if big_endian else range(count)
    return sum(header[at + index] * 2 ** (8 * place) for index, place in enumerate(places))


def _size(encoded, header, kind):
    """(height, width) as the header says, int64 `[2]`; 0 where it cannot be read."""

    jpeg = tf.cond(
        kind == 0,
        lambda: attempt(tf.io.extract_jpeg_shape, encoded, tf.zeros([3], tf.int32))[1][:2],
        lambda: tf.zeros([2], tf.int32),
    )
    bmp = tf.stack([_integer(header, 22, 4), _integer(header, 18, 4)])
    sizes = [
        tf.cast(jpeg, tf.int64),
        [_integer(header, 20, 4, big_endian=True), _integer(header, 16, 4, big_endian=True)],
        [_integer(header, 8, 2), _integer(header, 6, 2)],
        tf.abs(tf.where(bmp >= 2**31, bmp - 2**32, bmp)),  # upside down when negative
        _webp_size(header),
        tf.zeros([2], tf.int64),
    ]
    return tf.gather(tf.stack(sizes), kind)


def _webp_size(header):
    """Of the three forms of a WebP file: lossy, lossless, extended."""
    lossless = _integer(header, 21, 4)
    sizes = {
        b"VP8 ": (_integer(header, 28, 2) & 0x3FFF, _integer(header, 26, 2) & 0x3FFF),
        b"VP8L": ((lossless // 2**14 & 0x3FFF) + 1, (lossless & 0x3FFF) + 1),
        b"VP8X": (_integer(header, 27, 3) + 1, _integer(header, 24, 3) + 1),
    }
    size = tf.zeros([2], tf.int64)
    for name, found in sizes.items():
        size = tf.where(_begins(header, name, 12), tf.stack(found), size)
    return size


def _refusal(encoded, kind, height, width, max_pixels):
    """Why an image is not even decoded, a string scalar; empty when nothing speaks against it."""
    name = tf.gather([*_FORMATS, ""], kind)
    says = ["its ", name, " header says ", _text(width), " x ", _text(height), " pixels"]
    says = tf.strings.join(says)
    most = f", more than the {max_pixels} that are allowed"
    reason = tf.where(height * width > max_pixels, says + most, "")
    too_long = tf.maximum(height, width) > LONGEST_EDGE
    reason = tf.where(too_long, says + f"; an edge has at most {LONGEST_EDGE}", reason)
    reason = tf.where(tf.minimum(height, width) < 1, "the size in its " + name + " header is 0", reason)
    reason = tf.where((kind == 0) & (height < 1), "its JPEG header is broken", reason)
    reason = tf.where(kind == _UNKNOWN, f"it is none of {', '.join(_FORMATS)}", reason)
    return tf.where(tf.strings.length(encoded) == 0, "there are no bytes", reason)


def _decoding_failure(encoded, kind):
    """What to say of an image that could not be decoded."""
    length = tf.strings.length(encoded)
    end = tf.strings.substr(encoded, tf.maximum(length - 8, 0), 8)
    # what stands at the end of a whole file; BMP and WebP have nothing
    last = tf.gather([b"\xff\xd9", b"IEND\xaeB`\x82", b";", b"", b"", b""], kind)
    whole = tf.strings.substr(end, tf.maximum(tf.strings.length(end) - tf.strings.length(last), 0), 8) == last
    why = tf.where(whole, " data are corrupt", " data end too early, or are corrupt")
    why = tf.where(kind == 4, " data are corrupt, or of a kind that this TensorFlow does not decode", why)
    return tf.strings.join(["its ", tf.gather([*_FORMATS, ""], kind), why, " (", _text(length), " bytes)"])


def _text(number):
    return tf.strings.as_string(number)
