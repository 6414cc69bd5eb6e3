"""Encoded bytes to source images, inside a graph: the first station of a served model.

In come the bytes of a request; out goes a uint8 RGB image, or the reason why there is none. Sizes are read
from the header and checked before anything is decoded.
"""

import tensorflow as tf

from keras_mrcnn.data.images import decode, is_animated_webp

LONGEST_EDGE = 65535  # pixels; what a JPEG can have
_HEADER = 64  # bytes that hold the size of every format but JPEG
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP")
_JPEG, _, _GIF, _, _WEBP, _UNKNOWN = range(6)
_GIF_STEPS = 2_000  # at most, from the start of a GIF to the end of its first frame


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
    needed, gif_size = tf.cond(
        kind == _GIF, lambda: first_frame(encoded), lambda: (encoded, tf.zeros([2], tf.int64))
    )
    height, width = tf.unstack(_size(encoded, header, kind, gif_size))
    reason = _refusal(encoded, kind, height, width, max_pixels)
    nothing = tf.zeros([0, 0, 3], tf.uint8)
    decoded, image = tf.cond(
        reason == "", lambda: attempt(decode, needed, nothing), lambda: (tf.constant(False), nothing)
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
    return sum(tf.cast(header[at + index], tf.int64) * 2 ** (8 * place) for index, place in enumerate(places))


def first_frame(encoded):
    """A GIF without what follows its first frame, of which a decoder would make pixels first.

    Args:
        encoded: string scalar.

    Returns:
        Tuple of the bytes and int64 `[2]`, the frame's height and width; 0 where no frame was found.
    """
    length = tf.strings.length(encoded)
    data = tf.io.decode_raw(encoded + b"\0" * _HEADER, tf.uint8)
    no_size = tf.zeros([2], tf.int64)

    def byte(at):
        return tf.cast(data[at], tf.int32)

    def table(flags):
        return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)  # bytes of a colour table

    def block(at, size):
        """An image descriptor or an extension begins here."""
        is_image = byte(at) == 0x2C
        start = tf.where(is_image, at + 11 + table(byte(at + 9)), at + 2)
        found = tf.stack([_integer(data, at + 7, 2), _integer(data, at + 5, 2)])
        known = is_image | (byte(at) == 0x21)
        return tf.where(known, start, length), known, tf.where(is_image, found, size)

    def parts(at, size):
        """Its data: parts with their length before them, up to one of length 0. All of a length at once."""
        same = tf.reshape(data[at :: byte(at) + 1] == data[at], [-1])
        count = tf.where(
            tf.reduce_all(same), tf.size(same), tf.argmin(tf.cast(same, tf.int8), output_type=tf.int32)
        )
        ends = byte(at) == 0
        return tf.where(ends, at + 1, at + count * (byte(at) + 1)), ~ends, size

    def unfinished(step, at, inside, size):
        return (step < _GIF_STEPS) & (at < length) & (inside | (size[0] == 0))

    def body(step, at, inside, size):
        return step + 1, *tf.cond(inside, lambda: parts(at, size), lambda: block(at, size))

    start = tf.constant(0), 13 + table(byte(10)), tf.constant(False), no_size
    step, end, _, size = tf.while_loop(unfinished, body, start)
    found = step < _GIF_STEPS
    return tf.strings.substr(encoded, 0, tf.minimum(end, length)) + b";", tf.where(found, size, no_size)


def _size(encoded, header, kind, gif):
    """(height, width) as the header says, int64 `[2]`; 0 where it cannot be read."""
    jpeg = tf.cond(
        kind == _JPEG,
        lambda: attempt(tf.io.extract_jpeg_shape, encoded, tf.zeros([3], tf.int32))[1][:2],
        lambda: tf.zeros([2], tf.int32),
    )
    bmp = tf.stack([_integer(header, 22, 4), _integer(header, 18, 4)])
    sizes = [
        tf.cast(jpeg, tf.int64),
        [_integer(header, 20, 4, big_endian=True), _integer(header, 16, 4, big_endian=True)],
        gif,
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
    says = tf.strings.join(["its ", name, " header says ", _text(width), " x ", _text(height), " pixels"])
    reason = tf.where(height * width > max_pixels, says + f", and {max_pixels} are allowed", "")
    too_long = tf.maximum(height, width) > LONGEST_EDGE
    reason = tf.where(too_long, says + f", and an edge may have {LONGEST_EDGE}", reason)
    reason = tf.where(tf.minimum(height, width) < 1, says, reason)
    broken = ((kind == _JPEG) | (kind == _GIF)) & (height < 1)
    reason = tf.where(broken, tf.strings.join(["its ", name, " header is broken"]), reason)
    reason = tf.where(is_animated_webp(encoded), "it is an animated WebP", reason)
    reason = tf.where(kind == _UNKNOWN, f"it is none of {', '.join(_FORMATS)}", reason)
    return tf.where(
        tf.strings.length(encoded) == 0,
        "there are no bytes (of a tf.Example: in the feature image/encoded)",
        reason,
    )


def _decoding_failure(encoded, kind):
    """What to say of an image that could not be decoded."""
    length = tf.strings.length(encoded)
    end = tf.strings.substr(encoded, tf.maximum(length - 8, 0), 8)
    # what stands at the end of a whole file; BMP and WebP have nothing
    last = tf.gather([b"\xff\xd9", b"IEND\xaeB`\x82", b";", b"", b"", b""], kind)
    whole = tf.strings.substr(end, tf.maximum(tf.strings.length(end) - tf.strings.length(last), 0), 8) == last
    why = tf.where(whole, " data are corrupt", " data end too early, or are corrupt")
    why = tf.where(kind == _WEBP, " data are corrupt, or of a kind that this TensorFlow does not decode", why)
    return tf.strings.join(["its ", tf.gather([*_FORMATS, ""], kind), why, " (", _text(length), " bytes)"])


def _text(number):
    return tf.strings.as_string(number)
