"""ResNet: numbers of parameters, sizes of C2 to C5, what is frozen (NUMERICS sections 2 and 3)."""

import keras
import numpy as np
import pytest

from keras_mrcnn.backbones.resnet import ResNet
from keras_mrcnn.conv_norm import ConvNorm
from tests.test_residual import conv, relu


class TestNetwork:
    @pytest.mark.parametrize("size", [(65, 97), (64, 96), (33, 31)])
    def test_sizes_are_rounded_up(self, size):
        maps = ResNet("resnet18")(np.zeros([1, *size, 3], np.float32))
        for features, stride, channels in zip(maps, (4, 8, 16, 32), (64, 128, 256, 512)):
            assert features.shape == (1, -(-size[0] // stride), -(-size[1] // stride), channels)

    def test_unknown_sizes_and_the_numbers_of_the_paper(self):
        network = ResNet("resnet50", frozen_stages=0)
        maps = network(keras.Input((None, None, 3)))
        assert [features.shape for features in maps] == [
            (None, None, None, channels) for channels in (256, 512, 1024, 2048)
        ]
        # 25,557,032 of the published ResNet-50, without 2,049,000 of the classifier, with 53,120 statistics
        assert network.count_params() == 25_557_032 - 2_049_000 + 53_120
        # 53 convolutions, one for each 3 x 3 of Table 1 and the 4 shortcuts
        assert len(network.trainable_variables) == 1 + 3 * (3 + 4 + 6 + 3) + 4

    def test_resnet18_has_a_shortcut_convolution_where_the_size_changes_only(self):
        network = ResNet("resnet18")
        network(keras.Input((None, None, 3)))
        # 11,689,512 without 513,000 of the classifier, with 9,600 statistics
        assert network.count_params() == 11_689_512 - 513_000 + 9_600

    @pytest.mark.parametrize(
        "depth, parameters, statistics",
        [
            ("resnet152", 60_192_808, 151_424),
            ("resnext101_32x8d", 88_791_336, 202_880),
            ("resnext101_64x4d", 83_455_272, 202_880),
        ],
    )
    @pytest.mark.proof
    def test_parameters_of_the_published_ones(self, depth, parameters, statistics):
        """torchvision's number of parameters, without its classifier, with its running statistics."""
        network = ResNet(depth)
        network(keras.Input((None, None, 3)))
        assert network.count_params() == parameters - 2_049_000 + statistics

    def test_blocks_of_the_deeper_ones(self):
        depths = {
            "resnet34": (3, 4, 6, 3),
            "resnet101": (3, 4, 23, 3),
            "resnet152": (3, 8, 36, 3),
            "resnext101_64x4d": (3, 4, 23, 3),
        }
        for depth, blocks in depths.items():
            network = ResNet(depth)
            stages = network.c2, network.c3, network.c4, network.c5
            assert tuple(map(len, stages)) == blocks
            assert [stage[0].strides for stage in stages] == [1, 2, 2, 2]
            assert all(block.strides == 1 and not block.project for stage in stages for block in stage[1:])

    def test_an_unknown_depth_is_named(self):
        with pytest.raises(ValueError, match="resnet50.*'resnet42'"):
            ResNet("resnet42")

    def test_an_unknown_stage_is_named(self):
        with pytest.raises(ValueError, match="2, 3, 4 or 5.*last_stage=6"):
            ResNet(last_stage=6)

    def test_any_number_of_channels(self):
        network = ResNet("resnet18")
        assert network(np.zeros([1, 33, 31, 5], np.float32))[3].shape == (1, 2, 1, 512)
        assert network.stem.kernel.shape == (7, 7, 5, 64)

    def test_it_ends_with_c4(self):
        whole, part = (ResNet("resnet18", last_stage=last, name="backbone") for last in (5, 4))
        images = np.random.default_rng(0).normal(size=(1, 65, 40, 3)).astype(np.float32)
        expected = whole(images)[:3]
        assert [features.shape for features in part(images)] == [features.shape for features in expected]
        assert {weight.path for weight in whole.weights} - {weight.path for weight in part.weights} == {
            weight.path for block in whole.c5 for weight in block.weights
        }
        part.set_weights(whole.get_weights()[: len(part.weights)])
        for found, wanted in zip(part(images), expected):
            np.testing.assert_array_equal(found, wanted)

    @pytest.mark.parametrize("depth, groups, width", [("32x8d", 32, 8), ("64x4d", 64, 4)])
    def test_resnext_is_the_table_of_its_paper(self, depth, groups, width):
        network = ResNet(f"resnext101_{depth}", blocks=[1, 1, 1, 1])
        maps = network(keras.Input((None, None, 3)))
        assert [features.shape[-1] for features in maps] == [256, 512, 1024, 2048]
        for scale, stage in zip((1, 2, 4, 8), (network.c2, network.c3, network.c4, network.c5)):
            first, second, third = stage[0].convs
            assert first.filters == second.filters == groups * width * scale
            assert second.kernel.shape == (3, 3, width * scale, groups * width * scale)
            assert third.filters == 256 * scale
            assert (first.strides, second.strides) == (1, 1 if scale == 1 else 2)  # in the 3x3


class TestDilated:
    def test_sizes_and_variables(self):
        images = np.zeros([1, 65, 97, 3], np.float32)
        dilated, plain = (ResNet("resnet18", dilated=dilated, name="backbone") for dilated in (True, False))
        shapes = [features.shape for features in dilated(images)]
        assert shapes[:3] == [features.shape for features in plain(images)[:3]]
        assert shapes[3] == (1, 5, 7, 512)
        assert [weight.path for weight in dilated.weights] == [weight.path for weight in plain.weights]

    def test_every_block_of_stage_5_sees_twice_as_far(self):
        """A bright pixel of C4 reaches two pixels for each 3x3 convolution of C5, in even steps."""
        network = ResNet("resnet50", dilated=True, blocks=[1, 1, 1, 2])
        network(np.zeros([1, 32, 32, 3], np.float32))
        features = np.zeros([1, 13, 13, 1024], np.float32)
        dark = features.copy()
        features[0, 6, 6] = np.random.default_rng(0).normal(size=1024)
        for block, reach in zip(network.c5, (2, 4)):
            features, dark = (block(one, dilation=2).numpy() for one in (features, dark))
            rows = np.abs(features - dark).max((0, 2, 3)) > 0
            assert rows.nonzero()[0].tolist() == list(range(6 - reach, 7 + reach, 2))

    def test_the_call_dilates_stage_5_only(self):
        """Against the blocks one by one."""
        network = ResNet("resnet50", dilated=True, blocks=[1, 1, 1, 2])
        images = np.random.default_rng(0).normal(size=(1, 70, 90, 3)).astype(np.float32)
        c2, c3, c4, c5 = network(images)
        np.testing.assert_array_equal(c4, network.c4[0](c3))
        expected = network.c5[1](network.c5[0](c4, dilation=2), dilation=2)
        assert np.abs(expected - network.c5[1](network.c5[0](c4, dilation=2))).max() > 1e-3
        np.testing.assert_array_equal(c5, expected)

    def test_the_walk_goes_through_every_stage_once(self):
        """Zero residuals leave C2 = pooled stem; each later stage is its own shortcuts."""
        network = ResNet("resnet18", frozen_stages=0)
        images = np.random.default_rng(0).normal(size=(1, 33, 40, 3)).astype(np.float32)
        network(images)
        for stage in (network.c2, network.c3, network.c4, network.c5):
            for block in stage:
                block.convs[-1].normalization.gamma.assign(np.zeros(block.width))
        c2, c3, c4, c5 = (features.numpy() for features in network(images))
        stem = relu(conv(images, network.stem, 2))
        np.testing.assert_allclose(c2, max_pool(stem), atol=1e-4)
        for before, after, stage in ((c2, c3, network.c3), (c3, c4, network.c4), (c4, c5, network.c5)):
            np.testing.assert_allclose(after, relu(conv(before, stage[0].shortcut, 2)), atol=1e-4)


def max_pool(images):
    """3x3 maximum at stride 2, over what lies inside one pixel of padding."""
    height, width = images.shape[1:3]
    output = np.zeros((len(images), -(-height // 2), -(-width // 2), images.shape[3]))
    for i, j in np.ndindex(output.shape[1:3]):
        rows, columns = slice(max(2 * i - 1, 0), 2 * i + 2), slice(max(2 * j - 1, 0), 2 * j + 2)
        output[:, i, j] = images[:, rows, columns].max((1, 2))
    return output


class TestFrozen:
    @pytest.mark.parametrize("stages, convolutions", [(0, 20), (1, 19), (2, 15), (3, 10), (4, 5), (5, 0)])
    def test_stages_have_no_trainable_variable(self, stages, convolutions):
        # ResNet-18: stem 1, C2 4, C3 to C5 5 each (with the shortcut)
        network = ResNet("resnet18", frozen_stages=stages)
        network(keras.Input((None, None, 3)))
        assert len(network.trainable_variables) == convolutions
        parts = [[network.stem], network.c2, network.c3, network.c4, network.c5]
        for number, part in enumerate(parts):
            trained = [variable for layer in part for variable in layer.trainable_variables]
            assert bool(trained) == (number >= stages)

    def test_batch_statistics_of_frozen_stages_stay(self):
        network = ResNet("resnet18", norm="batch", frozen_stages=3)
        images = np.random.default_rng(0).normal(2, 3, (1, 64, 64, 3)).astype(np.float32)
        network(images)
        before = {weight.path: weight.numpy() for weight in network.weights}
        network(images, training=True)
        moved = {path for path, value in before.items() if (network_value(network, path) != value).any()}
        assert moved and all("c4" in path or "c5" in path for path in moved)
        assert len(moved) == 2 * 10  # mean and variance of the ten normalisations of C4 and C5

    def test_a_copy_is_frozen_too(self):
        network = ResNet.from_config(ResNet("resnet18", frozen_stages=4).get_config())
        network(keras.Input((None, None, 3)))
        assert len(network.trainable_variables) == 5


def network_value(network, path):
    return next(weight.numpy() for weight in network.weights if weight.path == path)


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called")
def test_parity_of_the_stem_with_its_pooling(shared):
    data = np.load(shared / "parity/ops/layers.npz")
    images = np.moveaxis(data["stem/input"], 1, 3)
    network = ResNet("resnet18")
    network.stem = ConvNorm(4, 7, 2, relu=True, epsilon=0.0)
    network.c2 = network.c3 = network.c4 = network.c5 = []
    network(images)
    network.stem.kernel.assign(np.transpose(data["stem/weight"], (2, 3, 1, 0)))
    conv, pool = (np.moveaxis(data[f"stem/{name}"], 1, 3) for name in ("conv", "pool"))
    np.testing.assert_allclose(network(images)[0], max_pool(np.maximum(conv, 0)), atol=1e-4)
    network.stem.normalization.beta.assign(-3 * np.ones(4))  # the reference pooled conv - 3
    expected = np.maximum(pool, 0)  # ReLU and maximum commute
    assert (expected > 0).sum() >= 10
    np.testing.assert_allclose(network(images)[0], expected, atol=1e-4)
