"""Conversions between array layouts, each worked by hand, and what a ResNet consists of."""

import keras
import numpy as np
import pytest

from keras_mrcnn import config
from keras_mrcnn.weights import tables


def numbers(*shape):
    """0, 1, 2, ... in this shape: no two alike."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def correlate(image, theirs):
    """PyTorch's convolution of one (channels, rows, columns) image by its definition, without padding."""
    rows, columns = image.shape[1] - theirs.shape[2] + 1, image.shape[2] - theirs.shape[3] + 1
    result = np.zeros((len(theirs), rows, columns))
    for o, y, x in np.ndindex(result.shape):
        result[o, y, x] = (image[:, y : y + theirs.shape[2], x : x + theirs.shape[3]] * theirs[o]).sum()
    return result


class TestConvolutions:
    def test_kernel(self):
        theirs = numbers(5, 2, 3, 4)
        ours = tables.kernel(theirs)
        assert ours.shape == (3, 4, 2, 5) and ours.dtype == np.float32
        assert ours[1, 2, 0, 4] == theirs[4, 0, 1, 2]
        image = np.random.default_rng(0).normal(size=(2, 6, 7))
        found = keras.ops.conv(image.transpose(1, 2, 0)[None].astype("float32"), ours)
        np.testing.assert_allclose(
            np.asarray(found)[0].transpose(2, 0, 1), correlate(image, theirs), rtol=1e-4, atol=1e-3
        )

    def test_kernel_of_groups(self):
        # two groups of one channel: outputs 0, 1 see channel 0 only, outputs 2, 3 channel 1 only
        theirs = numbers(4, 1, 1, 1) + 1
        image = np.array([10.0, 100.0], np.float32).reshape(1, 1, 1, 2)
        found = keras.ops.conv(image, tables.kernel(theirs))
        np.testing.assert_array_equal(np.ravel(found), [10, 20, 300, 400])

    def test_transposed_kernel(self):
        theirs = numbers(3, 2, 2, 2)  # (in, out, rows, columns), stride 2: each pixel becomes 2 x 2
        image = np.array([[[1.0]], [[10.0]], [[100.0]]])
        expected = np.einsum("iyx,iorc->orc", image, theirs)
        layer = keras.layers.Conv2DTranspose(2, 2, 2, use_bias=False)
        layer.build((1, 1, 1, 3))
        layer.kernel.assign(tables.kernel(theirs))
        found = np.asarray(layer(image.transpose(1, 2, 0)[None].astype("float32")))[0]
        np.testing.assert_array_equal(found.transpose(2, 0, 1), expected)

    def test_transposed_kernel_of_overlapping_4x4(self):
        theirs = numbers(1, 1, 4, 4)  # padding 1, stride 2, as the keypoint heads have it
        image = np.array([[1.0, 10.0], [100.0, 1000.0]])
        full = np.zeros((6, 6))
        for y, x in np.ndindex(2, 2):
            full[2 * y : 2 * y + 4, 2 * x : 2 * x + 4] += image[y, x] * theirs[0, 0]
        layer = keras.layers.Conv2DTranspose(1, 4, 2, padding="same", use_bias=False)
        layer.build((1, 2, 2, 1))
        layer.kernel.assign(tables.kernel(theirs))
        found = np.asarray(layer(image[None, :, :, None].astype("float32")))[0, :, :, 0]
        np.testing.assert_array_equal(found, full[1:-1, 1:-1])

    def test_bgr_kernel(self):
        theirs = numbers(1, 3, 1, 1)  # 0 for blue, 1 for green, 2 for red
        np.testing.assert_array_equal(np.ravel(tables.bgr_kernel(theirs)), [2, 1, 0])

    @pytest.mark.parametrize("convert", [tables.kernel, tables.bgr_kernel])
    def test_no_kernel(self, convert):
        with pytest.raises(ValueError, match=r"\(out, in, rows, columns\).*shape \(5, 2\)"):
            convert(numbers(5, 2))


class TestDense:
    def test_dense(self):
        np.testing.assert_array_equal(
            tables.dense([[1, 2, 3], [4, 5, 6]]), np.float32([[1, 4], [2, 5], [3, 6]])
        )

    def test_after_flattening(self):
        # two channels of 2 x 2: PyTorch sees a0 a1 a2 a3 b0 b1 b2 b3, Keras a0 b0 a1 b1 a2 b2 a3 b3
        theirs = np.array([[1, 2, 3, 4, 5, 6, 7, 8]])
        ours = tables.flattened_dense(2)(theirs)
        np.testing.assert_array_equal(ours, np.float32([[1], [5], [2], [6], [3], [7], [4], [8]]))

    def test_after_flattening_both_ways(self):
        rng = np.random.default_rng(1)
        theirs, features = rng.normal(size=(4, 3 * 5 * 5)), rng.normal(size=(3, 5, 5))
        ours = tables.flattened_dense(5)(theirs)
        assert ours.shape == (75, 4) and ours.dtype == np.float32
        np.testing.assert_allclose(
            features.transpose(1, 2, 0).ravel() @ ours, theirs @ features.ravel(), rtol=1e-4, atol=1e-5
        )

    def test_no_matrix(self):
        with pytest.raises(ValueError, match=r"\(out, in\).*shape \(3,\)"):
            tables.dense(numbers(3))
        with pytest.raises(ValueError, match=r"\(out, in\).*shape \(3,\)"):
            tables.flattened_dense(2)(numbers(3))
        with pytest.raises(ValueError, match=r"7x7, a multiple of 49 inputs.*shape \(2, 50\)"):
            tables.flattened_dense(7)(numbers(2, 50))


class TestClasses:
    def test_background_goes_last(self):
        convert = tables.background_last(2, tables.dense)
        # rows: background, first, second class
        np.testing.assert_array_equal(
            convert(np.float32([[9, 8], [1, 2], [3, 4]])), np.float32([[1, 3, 9], [2, 4, 8]])
        )
        np.testing.assert_array_equal(tables.background_last(2, tables.same)([9, 1, 3]), [1, 3, 9])

    def test_deltas_and_masks_of_the_background_are_dropped(self):
        deltas = tables.without_background(2, tables.same, 4)(numbers(12))
        np.testing.assert_array_equal(deltas, [4, 5, 6, 7, 8, 9, 10, 11])
        masks = tables.without_background(2, tables.kernel)(numbers(3, 1, 1, 1))
        np.testing.assert_array_equal(masks, np.float32([[[[1, 2]]]]))

    @pytest.mark.parametrize(
        "convert, expected",
        [
            (tables.background_last(5, tables.same), 6),
            (tables.without_background(5, tables.same, 4), 24),
            (tables.without_background(5, tables.same), 6),
            (tables.outputs(20, tables.same), 20),
        ],
    )
    @pytest.mark.parametrize("array", [numbers(5), numbers(7, 2), np.float32(1)])
    def test_other_numbers_of_classes(self, convert, expected, array):
        with pytest.raises(ValueError, match=f"Expected {expected} outputs.*`num_classes`"):
            convert(array)

    def test_number_of_classes(self):
        assert tables.number_of_classes({tables.CLASSIFIER: numbers(91, 2)}) == 90
        with pytest.raises(ValueError, match="cls_score.weight.*Received: 2 names, a, b"):
            tables.number_of_classes({"a": 0, "b": 1})


def test_constants_and_float32():
    np.testing.assert_array_equal(tables.constant(0.5, 3)(None), np.float32([0.5, 0.5, 0.5]))
    assert tables.constant(0, 1)(None).dtype == np.float32
    assert tables.same(np.array([1.5], np.float16)).dtype == np.float32


class TestResNetConvs:
    @pytest.mark.parametrize(
        "name, count",
        [("resnet18", 20), ("resnet34", 36), ("resnet50", 53), ("resnet101", 104), ("resnet152", 155)],
    )
    def test_counts_of_the_paper(self, name, count):
        # 18 layers: 17 convolutions, three projections; 50: 49 and four; less the classifier
        assert len(tables.resnet_convs(config.Backbone(name=name))) == count

    def test_order_and_widths(self):
        convs = tables.resnet_convs(config.Backbone(name="resnext101_32x8d", blocks=[1, 2, 0, 0]))
        assert [(conv.ours, conv.filters) for conv in convs] == [
            ("backbone/stem", 64),
            ("backbone/c2_block1/conv1", 256),
            ("backbone/c2_block1/conv2", 256),
            ("backbone/c2_block1/conv3", 256),
            ("backbone/c2_block1/shortcut", 256),
            ("backbone/c3_block1/conv1", 512),
            ("backbone/c3_block1/conv2", 512),
            ("backbone/c3_block1/conv3", 512),
            ("backbone/c3_block1/shortcut", 512),
            ("backbone/c3_block2/conv1", 512),
            ("backbone/c3_block2/conv2", 512),
            ("backbone/c3_block2/conv3", 512),
        ]

    def test_stage_5_of_c4_is_a_station_of_its_own(self):
        whole = [conv.ours for conv in tables.resnet_convs(config.Backbone())]
        parted = [conv.ours for conv in tables.resnet_convs(config.Backbone(features="c4"))]
        assert parted[-1] == "stage5/c5_block3/conv3" and len(parted) == 53
        assert [path.replace("stage5/", "backbone/") for path in parted] == whole
        assert not any(path.startswith("backbone/c5") for path in parted)

    def test_basic_blocks_project_from_c3_on(self):
        convs = tables.resnet_convs(config.Backbone(name="resnet18"), last_stage=3)
        assert [conv.ours for conv in convs if conv.part == "shortcut"] == ["backbone/c3_block1/shortcut"]
        assert {conv.filters for conv in convs if conv.stage == 3} == {128}


@pytest.mark.parametrize(
    "norm, names",
    [
        ("none", {"fpn/lateral2/bias": "b"}),
        (
            "group",
            {"fpn/lateral2/normalization/gamma": "n.weight", "fpn/lateral2/normalization/beta": "n.bias"},
        ),
        (
            "batch",
            {
                "fpn/lateral2/normalization/gamma": "n.weight",
                "fpn/lateral2/normalization/beta": "n.bias",
                "fpn/lateral2/normalization/moving_mean": "n.running_mean",
                "fpn/lateral2/normalization/moving_variance": "n.running_var",
            },
        ),
    ],
)
def test_rows_of_a_convolution(norm, names):
    rows = tables.conv_rows("fpn/lateral2", "w", "b", norm, "n")
    assert {row.ours: row.theirs for row in rows} == {"fpn/lateral2/kernel": "w", **names}
    assert rows[0].convert is tables.kernel and {row.convert for row in rows[1:]} == {tables.same}


def test_group_normalisation_has_no_statistics():
    with pytest.raises(ValueError, match="frozen or batch.*'group'"):
        tables.check_batch_norm(config.Backbone(norm="group"))
    tables.check_batch_norm(config.Backbone(norm="batch"))
