"""Files of every kind, whole and broken: read as `data.images.decode` reads them, or refused and why."""

import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.data.images import decode, load_image
from keras_mrcnn.serving import images
from tests.serving.conftest import encode

pytest.importorskip("PIL.Image")
MOST = 1_000_000  # pixels


@pytest.fixture(scope="module")
def read():
    """Function of bytes to the image and the reason, in a graph."""
    specs = [tf.TensorSpec([], tf.string)]
    traced = tf.function(lambda given: images.read(given, MOST), input_signature=specs, autograph=False)

    def call(encoded):
        image, reason = traced(encoded)
        image, reason = image.numpy(), reason.numpy().decode()
        assert (image.size == 0) == (reason != ""), reason
        return image, reason

    return call


def picture(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def animation(kind):
    from PIL import Image

    frames = [Image.fromarray(picture(seed=seed)) for seed in range(4)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def whole():
    """{name: bytes} of files that are to be read."""
    found = {kind: encode(picture(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP")}
    found |= {f"{kind} 1x1": encode(picture(1, 1), kind) for kind in found}
    found |= {f"{kind} grey": encode(picture(), kind, "L") for kind in ("JPEG", "PNG", "GIF", "BMP")}
    found |= {f"PNG {mode}": encode(picture(), "PNG", mode) for mode in ("RGBA", "LA", "P", "1")}
    found |= {"JPEG CMYK": encode(picture(), "JPEG", "CMYK"), "BMP RGBA": encode(picture(), "BMP", "RGBA")}
    found |= {"JPEG progressive": encode(picture(), "JPEG", progressive=True)}
    found |= {"WebP lossless": encode(picture(), "WEBP", lossless=True)}
    found |= {"WebP RGBA": encode(picture(), "WEBP", "RGBA", lossless=True)}
    deep = np.random.default_rng(0).integers(0, 2**16, (9, 8, 3)).astype(np.uint16)
    found |= {"PNG 16 bit": tf.io.encode_png(deep).numpy()}
    found |= {"PNG 16 bit grey": tf.io.encode_png(deep[..., :1]).numpy()}
    return found | {"GIF animated": animation("GIF"), "PNG animated": animation("PNG")}


def png_that_says(width, height):
    """A small PNG file with a true checksum whose header says another size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rest = encode(picture(), "PNG")[33:]
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + rest
    )


@pytest.mark.parametrize("name", whole())
def test_whole_files(read, name):
    image, reason = read(whole()[name])
    assert reason == ""
    np.testing.assert_array_equal(image, decode(whole()[name]).numpy())


def test_modes_are_those_of_pillow(read):
    pixels = picture()
    for kind, mode in (("PNG", "P"), ("PNG", "LA"), ("GIF", "RGB"), ("BMP", "RGBA"), ("JPEG", "CMYK")):
        file = encode(pixels, kind, mode)
        np.testing.assert_array_equal(read(file)[0], load_with_pillow(file), err_msg=f"{kind} {mode}")
    deep = np.arange(0, 2**16, 91, dtype=np.uint16)[:720].reshape(20, 36, 1)
    np.testing.assert_array_equal(read(tf.io.encode_png(deep).numpy())[0], np.repeat(deep >> 8, 3, axis=2))


def load_with_pillow(file):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


@pytest.mark.parametrize(
    "file, says",
    [
        (b"", "there are no bytes"),
        (b"x", "none of JPEG, PNG, GIF, BMP, WebP"),
        (b"<!DOCTYPE html><html>", "none of JPEG"),
        (encode(picture(), "TIFF"), "none of JPEG"),
        (b"\xff\xd8\xff", "its JPEG header is broken"),
        (b"GIF89a", "its GIF header is broken"),
        (b"BM", "its BMP header says 0 x 0 pixels"),
        (png_that_says(60_000, 60_000), "says 60000 x 60000 pixels, and 1000000 are allowed"),
        (png_that_says(4_000_000_000, 1), "an edge may have 65535"),
        (png_that_says(100_000, 2), "its PNG header says 100000 x 2 pixels, and an edge may have 65535"),
        (png_that_says(0, 5), "its PNG header says 0 x 5 pixels"),
        (png_that_says(61, 40), "its PNG data are corrupt"),
        (animation("WEBP"), "an animated WebP"),
        (encode(picture(), "BMP", "1"), "its BMP data are corrupt"),
        *[
            (encode(np.zeros((1001, 1001, 3), np.uint8), kind), f"its {name} header says 1001 x 1001 pixels")
            for kind, name in zip(("JPEG", "PNG", "GIF", "BMP", "WEBP"), images._FORMATS, strict=True)
        ],
        (encode(np.zeros((1001, 1001, 3), np.uint8), "WEBP", lossless=True), "WebP header says 1001"),
        *[
            (encode(picture(), kind)[:-30], f"its {kind} data end too early, or are corrupt")
            for kind in ("JPEG", "PNG", "GIF")
        ],
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(read, file, says):
    assert says in read(file)[1]


def test_a_gif_whose_later_frames_are_huge(read):
    # the frame's own size counts, not the screen's, and what follows the first frame is not looked at
    file = bytearray(encode(picture(), "GIF"))
    start = file.index(b"\x2c\0\0\0\0")
    huge = b"\x2c" + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x08\x01\x00\x00"
    image, reason = read(bytes(file[:-1]) + huge + b";")
    assert reason == ""
    np.testing.assert_array_equal(image, decode(bytes(file)).numpy())
    file[start + 5 : start + 9] = struct.pack("<HH", 60_000, 60_000)
    assert "says 60000 x 60000 pixels" in read(bytes(file))[1]


def test_a_gif_of_tiny_parts(read):
    # walking it part by part would take a step for each two bytes
    file = encode(picture(), "GIF")
    start = file.index(b"\x2c\0\0\0\0")
    comment = b"\x21\xfe" + b"\x01x\x02xy" * 3_000 + b"\x00"
    assert read(file[:start] + comment + file[start:])[1] == "its GIF header is broken"


def test_animated_webp_is_refused_everywhere():
    # the decoder of TensorFlow 2.21 would write behind its buffer
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_image(animation("WEBP"))


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.proof)])
def test_broken_files(read, count):
    """Cut, changed bytes, exchanged beginnings, rubbish behind: an image or a reason, and never a crash."""
    random = np.random.default_rng(0)
    sound = list(whole().values())
    reasons = set()
    for number in range(count):
        file = bytearray(sound[number % len(sound)])
        how = number % 5
        if how == 0:
            file = file[: random.integers(0, len(file))]
        elif how in (1, 2):  # anywhere, or in the header
            for at in random.integers(0, len(file) if how == 1 else min(40, len(file)), 5):
                file[at] = random.integers(0, 256)
        elif how == 3:
            other = sound[random.integers(len(sound))]
            file[:12] = other[:12]
        else:
            file += random.bytes(200)
        image, reason = read(bytes(file))
        assert image.shape[0] * image.shape[1] <= MOST
        reasons.add(reason.split(" (")[0])
    assert "" in reasons and len(reasons) > 5
