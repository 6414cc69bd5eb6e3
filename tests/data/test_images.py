"""Decoding, resizing and padding."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn import config
from keras_mrcnn.data import images
from tests.golden import filling

RANDOM = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8):
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def png(array):
    return tf.io.encode_png(array).numpy()


class TestDecode:
    def test_rgb_png_is_exact(self):
        image = pixels(5, 7, 3)
        np.testing.assert_array_equal(images.decode(png(image)), image)

    def test_grey_is_repeated(self):
        image = pixels(5, 7, 1)
        np.testing.assert_array_equal(images.decode(png(image)), np.repeat(image, 3, axis=2))

    def test_alpha_is_dropped(self):
        image = pixels(5, 7, 4)
        np.testing.assert_array_equal(images.decode(png(image)), image[:, :, :3])
        grey = pixels(5, 7, 2)
        np.testing.assert_array_equal(images.decode(png(grey)), np.repeat(grey[:, :, :1], 3, axis=2))

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_16_bit_keeps_the_high_byte(self, channels):
        image = pixels(5, 7, channels, dtype=np.uint16)
        expected = np.broadcast_to((image >> 8)[:, :, :3], (5, 7, 3))
        np.testing.assert_array_equal(images.decode(png(image)), expected)

    def test_jpeg_equals_pillow(self, shared_data):
        image = pytest.importorskip("PIL.Image")
        for name in ("000000000086.jpg", "000000000257.jpg"):  # one channel, three channels
            path = shared_data / "coco_sample/train2017" / name
            expected = np.asarray(image.open(path).convert("RGB"))
            np.testing.assert_array_equal(images.decode(path.read_bytes()), expected)

    def test_other_formats(self, tmp_path):
        image = pytest.importorskip("PIL.Image")
        array = pixels(6, 9, 3)
        for suffix in ("bmp", "gif"):
            image.fromarray(array).save(tmp_path / f"a.{suffix}")
            expected = np.asarray(image.open(tmp_path / f"a.{suffix}").convert("RGB"))
            np.testing.assert_array_equal(images.decode((tmp_path / f"a.{suffix}").read_bytes()), expected)
        image.fromarray(array[:, :, 0]).save(tmp_path / "grey.bmp")
        decoded = images.decode((tmp_path / "grey.bmp").read_bytes())
        np.testing.assert_array_equal(decoded, np.repeat(array[:, :, :1], 3, axis=2))

    def test_in_a_graph(self):
        image = pixels(5, 7, 3)
        decode = tf.function(images.decode, input_signature=[tf.TensorSpec([], tf.string)])
        np.testing.assert_array_equal(decode(png(image)), image)
        assert decode(tf.io.encode_jpeg(image)).shape == (5, 7, 3)
        assert decode.get_concrete_function().structured_outputs.shape.as_list() == [None, None, 3]


class TestNetworkSize:
    @pytest.mark.parametrize(
        ("size", "edges", "expected"),
        [
            ((480, 640), (800, 1333), (800, 1067)),  # 640 * 800 / 480 = 1066.67
            ((640, 480), (800, 1333), (1067, 800)),
            ((400, 1000), (800, 1333), (533, 1333)),  # 800 / 400 would give 2000; 400 * 1.333 = 533.2
            ((800, 1333), (800, 1333), (800, 1333)),
            ((1, 5000), (800, 1333), (1, 1333)),  # 1 * 0.2666 + 0.5 rounds to 0: at least 1
            ((1, 1), (800, 1333), (800, 800)),
            ((3, 5), (10, 100), (10, 17)),  # 16.67
        ],
    )
    def test_by_hand(self, size, edges, expected):
        assert images.network_size(*size, *edges) == expected
        in_graph = tf.function(images.network_size)(tf.constant(size[0]), tf.constant(size[1]), *edges)
        assert in_graph.dtype == tf.int32 and tuple(in_graph.numpy()) == expected

    def test_the_rule_as_it_is_written(self):
        for height, width in RANDOM.integers(1, 3000, (300, 2)).tolist():
            scale = 800 / min(height, width)
            if scale * max(height, width) > 1333:
                scale = 1333 / max(height, width)
            expected = max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)
            assert images.network_size(height, width, 800, 1333) == expected

    def test_parity_of_both_rules(self, shared):
        for row in np.load(shared / "parity/ops/resize.npz")["sizes_800_1333/table"].tolist():
            assert images.network_size(*row[:2], 800, 1333) == tuple(row[2:4])
            assert images.network_size(*row[:2], 800, 1333, "plain") == tuple(row[4:6])


class TestResize:
    def test_halving_averages(self):
        # the triangle has radius 2; pixel 5 (centre 5.5) weighs 3/8 at 5.0 and 1/8 at 7.0
        image = np.zeros((4, 12, 3), np.uint8)
        image[:, 5] = 80
        np.testing.assert_array_equal(images.resize(image, (2, 6)).numpy()[0, :, 0], [0, 0, 30, 10, 0, 0])

    def test_equals_pillow_within_one_level(self):
        pillow = pytest.importorskip("PIL.Image")
        image = pixels(60, 90, 3)
        for size in ((31, 47), (95, 131), (60, 20)):
            expected = pillow.fromarray(image).resize(size[::-1], pillow.Resampling.BILINEAR)
            difference = images.resize(image, size).numpy().astype(int) - np.asarray(expected).astype(int)
            assert np.abs(difference).max() <= 1

    def test_plain_by_hand(self):
        # 4 to 2 pixels: centres at 0.5 and 2.5 of the old, halfway between two neighbours, others not seen
        image = np.repeat(np.uint8([[0, 10, 100, 255]])[..., None], 3, axis=2)
        output = images.resize(image, (1, 2), "plain")
        assert output.dtype == tf.float32
        np.testing.assert_allclose(output[0, :, 0], [5, 177.5])

    @pytest.mark.parametrize("case", ["tv0", "tv1", "tv2", "tv3"])
    def test_plain_parity(self, shared, case):
        data = np.load(shared / "parity/ops/resize.npz")
        about = json.loads((shared / "parity/ops/resize.json").read_text())[case]
        size = images.network_size(48, 61, about["min_size"], about["max_size"], "plain")
        assert size == tuple(data[f"{case}/out_size"])
        output = images.resize(filling.image(48, 61, 2022), size, "plain") / 255
        np.testing.assert_allclose(output, data[f"{case}/output"], atol=1e-5)

    def test_the_same_size_is_the_same_image(self):
        image = pixels(9, 5, 3)
        np.testing.assert_array_equal(images.resize(image, (9, 5)), image)

    def test_extreme_sizes(self):
        assert images.resize(pixels(1, 5000, 3), (1, 1333)).shape == (1, 1333, 3)
        one = images.resize(np.full((1, 1, 3), 77, np.uint8), (800, 800)).numpy()
        assert one.min() == one.max() == 77

    @pytest.mark.parametrize("size", [(32, 64), (33, 1), (1, 1)])
    def test_pad_to_stride(self, size):
        padded = images.pad_to_stride(tf.ones([*size, 3], tf.uint8)).numpy()
        assert padded.shape[0] % 32 == padded.shape[1] % 32 == 0
        assert padded.shape[0] - size[0] < 32 and padded.shape[1] - size[1] < 32
        assert padded[: size[0], : size[1]].min() == 1 and padded.sum() == 3 * size[0] * size[1]


def test_network_frame():
    # 20 x 30 to a short edge of 40: 40 x 60; 30 x 20: 60 x 40; both in 64 x 64
    sources = [np.full((20, 30, 3), 7, np.uint8), np.full((30, 20, 3), 9, np.uint8)]
    frame = images.network_frame(sources, config.Input(short_edge=40, long_edge=100))
    assert frame["images"].shape == (2, 64, 64, 3) and frame["image_sizes"].dtype == np.int32
    np.testing.assert_array_equal(frame["image_sizes"], [[40, 60], [60, 40]])
    assert (frame["images"][0, :40, :60] == 7).all() and frame["images"][0].sum() == 7 * 40 * 60 * 3


class TestLoadImage:
    def test_paths_and_bytes(self, tmp_path):
        image = pixels(5, 7, 3)
        (tmp_path / "a.png").write_bytes(png(image))
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), png(image)):
            loaded = images.load_image(source)
            assert isinstance(loaded, np.ndarray) and loaded.dtype == np.uint8
            np.testing.assert_array_equal(loaded, image)

    def test_arrays(self):
        image = pixels(5, 7, 3)
        for source in (
            image,
            image.astype(np.float32),
            (image / 255).astype(np.float32),
            image.astype(np.int64),
            image.astype(np.uint16) << 8,
            np.dstack([image, image[:, :, 0]]),
            tf.constant(image),
        ):
            np.testing.assert_array_equal(images.load_image(source), image)

    def test_grey_arrays(self):
        grey = pixels(5, 7)
        expected = np.repeat(grey[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(images.load_image(grey), expected)
        np.testing.assert_array_equal(images.load_image(grey[:, :, None]), expected)
        assert images.load_image(grey > 99).max() == 255

    def test_pillow_images(self):
        pillow = pytest.importorskip("PIL.Image")
        image = pillow.fromarray(pixels(5, 7, 3))
        for mode in ("RGB", "RGBA", "L", "P", "CMYK"):
            expected = np.asarray(image.convert(mode).convert("RGB"))
            np.testing.assert_array_equal(images.load_image(image.convert(mode)), expected)
        deep = pixels(5, 7, dtype=np.uint16)
        loaded = images.load_image(pillow.fromarray(deep))
        np.testing.assert_array_equal(loaded[:, :, 0], deep >> 8)

    def test_the_caller_keeps_the_array(self):
        image = pixels(5, 7, 3)
        before = image.copy()
        images.load_image(image)[:] = 0
        np.testing.assert_array_equal(image, before)

    @pytest.mark.parametrize(
        ("image", "says"),
        [
            (np.zeros((3, 20, 20)), r"shape=\(3, 20, 20\)"),
            (np.zeros((1, 20, 20, 3)), "must be one image"),
            (np.zeros((0, 20, 3)), "not empty"),
            (np.full((4, 4), np.nan), "NaN"),
            (np.full((4, 4), -1.0), "0-255"),
            (np.full((4, 4), 300), "max=300"),
            (np.full((4, 4), "a"), "numbers"),
            (b"text", "cannot be decoded"),
            (None, "must be one image"),
        ],
    )
    def test_what_is_no_image(self, image, says):
        with pytest.raises(ValueError, match=says):
            images.load_image(image)

    def test_missing_and_broken_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no\.png"):
            images.load_image(tmp_path / "no.png")
        (tmp_path / "half.png").write_bytes(png(pixels(50, 70, 3))[:500])
        with pytest.raises(ValueError, match=r"half\.png"):
            images.load_image(tmp_path / "half.png")
