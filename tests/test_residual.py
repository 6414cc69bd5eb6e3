"""Blocks of a ResNet against numpy, and what each network consists of."""

import numpy as np
import pytest

from keras_mrcnn.conv_norm import ConvNorm
from keras_mrcnn.residual import BasicBlock, Bottleneck, stage_blocks


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

    def test_bottleneck_of_resnext(self):
        """Groups of two channels, written out as convolutions of two channels each."""
        block = Bottleneck(width=8, groups=4, expansion=1)
        block(self.IMAGES)
        randomise(block, np.random.default_rng(5))
        first, second, third = block.convs
        assert second.kernel.shape == (3, 3, 2, 8) and third.kernel.shape == (1, 1, 8, 8)
        kernel = np.zeros((3, 3, 8, 8))
        for group in range(4):
            own = slice(2 * group, 2 * group + 2)
            kernel[:, :, own, own] = second.kernel.numpy()[..., own]
        dense = ConvNorm(8, 3)
        dense.build((None, None, None, 8))
        dense.set_weights([kernel, *second.get_weights()[1:]])
        hidden = relu(conv(relu(conv(self.IMAGES, first, 1)), dense, 1))
        expected = relu(conv(hidden, third, 1) + self.IMAGES)
        np.testing.assert_allclose(block(self.IMAGES), expected, rtol=1e-4, atol=1e-4)

    def test_basic_block_has_its_stride_in_the_first(self):
        block = BasicBlock(width=6, strides=2, project=True)
        block(self.IMAGES)
        randomise(block, np.random.default_rng(4))
        hidden = relu(conv(self.IMAGES, block.convs[0], 2))
        expected = relu(conv(hidden, block.convs[1], 1) + conv(self.IMAGES, block.shortcut, 2))
        assert expected.shape == (2, 4, 3, 6)
        np.testing.assert_allclose(block(self.IMAGES), expected, rtol=1e-4, atol=1e-4)


class TestStages:
    def test_the_first_block_has_the_stride_and_projects(self):
        blocks = stage_blocks("resnet50", 4, (), 2, True, norm="group", epsilon=0.25)
        assert [block.name for block in blocks] == [f"c4_block{n}" for n in range(1, 7)]
        assert [(block.strides, block.project) for block in blocks] == [(2, True)] + 5 * [(1, False)]
        assert {(block.width, block.norm, block.epsilon, block.stride_in_1x1) for block in blocks} == {
            (256, "group", 0.25, True)
        }

    @pytest.mark.parametrize("depth, project", [("resnet18", False), ("resnet50", True)])
    def test_c2_projects_where_the_width_changes(self, depth, project):
        assert stage_blocks(depth, 2, (), 1, False)[0].project == project

    def test_given_numbers_of_blocks(self):
        assert [len(stage_blocks("resnet18", stage, [4, 3, 2, 1], 1, False)) for stage in range(2, 6)] == [
            4, 3, 2, 1,
        ]  # fmt: skip
