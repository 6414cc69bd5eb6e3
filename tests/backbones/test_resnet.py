"""ResNet: blocks against numpy, sizes of C2 to C5, what is frozen (NUMERICS sections 2 and 3)."""

import keras
import numpy as np
import pytest

from keras_mrcnn.backbones.resnet import ResNet
from keras_mrcnn.conv_norm import ConvNorm
from keras_mrcnn.residual import BasicBlock, Bottleneck


def conv(images, layer, strides):
    """Convolution and normalisation of a frozen `ConvNorm`, written out."""
    kernel, gamma, beta, mean, variance = (weight.numpy().astype(np.float64) for weight in layer.weights)
    size = kernel.shape[0]
    half = size // 2
    padded = np.pad(images, [(0, 0), (half, half), (half, half), (0, 0)])
    height, width = (padded.shape[1] - size) // strides + 1, (padded.shape[2] - size) // strides + 1
    output = np.zeros((len(images), height, width, kernel.shape[3]))
    for i, j in np.ndindex(height, width):
        window = padded[:, i * strides : i * strides + size, j * strides : j * strides + size]
        output[:, i, j] = np.tensordot(window, kernel, 3)
    return (output - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def randomise(layer, rng):
    for weight in layer.weights:
        value = rng.normal(0.1, 0.5, weight.shape)
        weight.assign(np.abs(value) + 0.3 if "variance" in weight.name else value)


def relu(values):
    return np.maximum(values, 0)


class TestBlocks:
    IMAGES = np.random.default_rng(1).normal(size=(2, 7, 5, 8)).astype(np.float32)

    def test_bottleneck_has_its_stride_in_the_3x3(self):
        block = Bottleneck(width=3, strides=2, project=True)
        block(self.IMAGES)
        randomise(block, np.random.default_rng(2))
        first, second, third = block.convs
        hidden = relu(conv(self.IMAGES, first, 1))
        hidden = relu(conv(hidden, second, 2))
        expected = relu(conv(hidden, third, 1) + conv(self.IMAGES, block.shortcut, 2))
        assert expected.shape == (2, 4, 3, 12) and (expected == 0).any()
        np.testing.assert_allclose(block(self.IMAGES), expected, rtol=1e-4, atol=1e-4)

    def test_bottleneck_adds_its_input_as_it_is(self):
        block = Bottleneck(width=2)
        block(self.IMAGES)
        randomise(block, np.random.default_rng(3))
        hidden = relu(conv(relu(conv(self.IMAGES, block.convs[0], 1)), block.convs[1], 1))
        expected = relu(conv(hidden, block.convs[2], 1) + self.IMAGES)
        np.testing.assert_allclose(block(self.IMAGES), expected, rtol=1e-4, atol=1e-4)
        assert len(block.weights) == 3 * 5

    def test_basic_block_has_its_stride_in_the_first(self):
        block = BasicBlock(width=6, strides=2, project=True)
        block(self.IMAGES)
        randomise(block, np.random.default_rng(4))
        hidden = relu(conv(self.IMAGES, block.convs[0], 2))
        expected = relu(conv(hidden, block.convs[1], 1) + conv(self.IMAGES, block.shortcut, 2))
        assert expected.shape == (2, 4, 3, 6)
        np.testing.assert_allclose(block(self.IMAGES), expected, rtol=1e-4, atol=1e-4)


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

    def test_blocks_of_the_deeper_ones(self):
        for depth, blocks in {"resnet34": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}.items():
            network = ResNet(depth)
            stages = network.c2, network.c3, network.c4, network.c5
            assert tuple(map(len, stages)) == blocks
            assert [stage[0].strides for stage in stages] == [1, 2, 2, 2]
            assert all(block.strides == 1 and not block.project for stage in stages for block in stage[1:])

    def test_an_unknown_depth_is_named(self):
        with pytest.raises(ValueError, match="resnet50.*'resnet42'"):
            ResNet("resnet42")

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
