"""Convolution and normalisation of a block (NUMERICS sections 2 and 3)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mrcnn.conv_norm import ConvNorm, FrozenNormalization, grouped_conv


def correlate(images, kernel, strides):
    """Convolution written out, with `kernel_size // 2` zeros on every side."""
    size, half = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(images.astype(np.float64), [(0, 0), (half, half), (half, half), (0, 0)])
    batch, height, width = (padded.shape[0], padded.shape[1] - size + 1, padded.shape[2] - size + 1)
    output = np.zeros((batch, -(-height // strides), -(-width // strides), kernel.shape[3]))
    for i, j in np.ndindex(output.shape[1:3]):
        window = padded[:, i * strides : i * strides + size, j * strides : j * strides + size]
        output[:, i, j] = np.tensordot(window, kernel, 3)
    return output


def random_constants(rng, channels):
    """gamma, beta, moving mean, moving variance: some variances as small as epsilon."""
    variance = np.geomspace(1e-5, 2, channels)
    return [
        array.astype(np.float32)
        for array in (
            rng.normal(1, 0.3, channels) * np.sqrt(variance),
            rng.normal(size=channels),
            rng.normal(size=channels) * np.sqrt(variance),
            variance,
        )
    ]


@pytest.fixture
def rng():
    return np.random.default_rng(4)


class TestPadding:
    @pytest.mark.parametrize("kernel_size, strides", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
    @pytest.mark.parametrize("size", [(8, 10), (9, 7), (8, 7)])
    def test_symmetric_at_even_and_odd_sizes(self, rng, kernel_size, strides, size):
        layer = ConvNorm(5, kernel_size, strides, epsilon=0.0)
        images = rng.normal(size=(2, *size, 3)).astype(np.float32)
        output = layer(images)
        assert output.shape == (2, -(-size[0] // strides), -(-size[1] // strides), 5)
        expected = correlate(images, layer.kernel.numpy(), strides)
        np.testing.assert_allclose(output, expected, atol=1e-5)

    def test_stride_two_by_hand(self):
        # ones under a 3x3 kernel of ones, padding 1: windows at rows -1..1, 1..3 hold 2 and 3 of the 4 rows
        layer = ConvNorm(1, 3, 2, epsilon=0.0)
        layer.build((1, 4, 4, 1))
        layer.kernel.assign(np.ones([3, 3, 1, 1]))
        output = layer(np.ones([1, 4, 4, 1], np.float32))
        np.testing.assert_allclose(output[0, :, :, 0], [[4, 6], [6, 9]], rtol=1e-6)

    def test_unknown_sizes(self):
        layer = ConvNorm(4, 3, 2)
        assert layer(keras.Input((None, None, 3))).shape == (None, None, None, 4)


class TestDilation:
    def test_by_hand(self):
        # a 1 in the middle of 5 x 5 under a 3x3 kernel of 1..9, two apart: the kernel turned, two apart
        layer = ConvNorm(1, 3, epsilon=0.0)
        layer.build((1, 5, 5, 1))
        layer.kernel.assign(np.arange(1.0, 10).reshape(3, 3, 1, 1))
        image = np.zeros([1, 5, 5, 1], np.float32)
        image[0, 2, 2] = 1
        expected = np.zeros([5, 5])
        expected[::2, ::2] = [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
        np.testing.assert_allclose(layer(image, dilation=2)[0, :, :, 0], expected, rtol=1e-6)

    @pytest.mark.parametrize("size", [(8, 10), (9, 7), (1, 2)])
    def test_equals_a_wider_kernel_with_zeros(self, rng, size):
        layer = ConvNorm(5, 3, epsilon=0.0)
        images = rng.normal(size=(2, *size, 3)).astype(np.float32)
        layer(images)
        wide = np.zeros([7, 7, 3, 5])
        wide[::3, ::3] = layer.kernel
        np.testing.assert_allclose(layer(images, dilation=3), correlate(images, wide, 1), atol=1e-5)

    def test_a_pixel_wide_kernel_has_none(self, rng):
        layer = ConvNorm(5, 1, strides=2)
        images = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
        np.testing.assert_array_equal(layer(images, dilation=2), layer(images))


class TestGroups:
    """The wide ones are computed one by one, narrow ones together with zeros between them."""

    CASES = [(2, 1, 1, 3), (3, 2, 1, 3), (4, 40, 36, 3), (12, 8, 4, 3), (64, 4, 4, 1), (5, 16, 8, 1)]

    @staticmethod
    def slow(images, kernel, groups, strides):
        parts = np.split(images, groups, -1), np.split(kernel, groups, -1)
        return np.concatenate([correlate(part, own, strides) for part, own in zip(*parts)], -1)

    @pytest.mark.parametrize("groups, inputs, outputs, size", CASES)
    @pytest.mark.parametrize("strides", [1, 2])
    def test_each_sees_its_own_channels(self, rng, groups, inputs, outputs, size, strides):
        layer = ConvNorm(groups * outputs, size, strides, groups=groups, epsilon=0.0)
        images = rng.normal(size=(2, 5, 6, groups * inputs)).astype(np.float32)
        found = layer(images)
        assert layer.kernel.shape == (size, size, inputs, groups * outputs)
        expected = self.slow(images, layer.kernel.numpy(), groups, strides)
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_gradients_in_a_graph(self, rng):
        """Of the sum of outputs * weights, against finite differences of the slow one (it is linear)."""
        images = rng.normal(size=(1, 4, 5, 8)).astype(np.float32)
        kernel = rng.normal(size=(3, 3, 2, 12)).astype(np.float32)
        weights = rng.normal(size=(1, 4, 5, 12)).astype(np.float32)

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 8]), tf.TensorSpec([3, 3, 2, 12])])
        def gradients(images, kernel):
            with tf.GradientTape() as tape:
                tape.watch([images, kernel])
                value = tf.reduce_sum(grouped_conv(images, kernel, 4, padding="same") * weights)
            return tape.gradient(value, [images, kernel])

        of_images, of_kernel = gradients(images, kernel)

        def slope(position, array, other, value):
            step = np.zeros(array.shape)
            step[position] = 1
            return (value(step, other) * weights).sum()

        for position in [(0, 0, 0, 0), (0, 1, 2, 3), (0, 3, 4, 7)]:
            expected = slope(position, images, kernel, lambda x, k: self.slow(x, k, 4, 1))
            np.testing.assert_allclose(of_images[position], expected, rtol=1e-4)
        for position in [(0, 0, 0, 0), (1, 2, 1, 5), (2, 2, 1, 11)]:
            expected = slope(position, kernel, images, lambda k, x: self.slow(x, k, 4, 1))
            np.testing.assert_allclose(of_kernel[position], expected, rtol=1e-4)

    def test_no_compiler_is_needed(self, rng):
        """Keras's own grouped convolution goes through XLA, which compiles it for every size."""
        layer = ConvNorm(64, 3, groups=32)
        images = rng.normal(size=(1, 5, 6, 64)).astype(np.float32)
        graph = tf.function(layer).get_concrete_function(images).graph
        nodes = [*graph.get_operations()]
        for name in graph._functions:
            nodes += graph._functions[name].cached_definition.node_def
        assert not any("_XlaMustCompile" in str(node) for node in nodes)
        # 32 groups of 2 channels, 16 at a time
        assert sum(getattr(node, "type", "") == "Conv2D" for node in nodes) == 2

    def test_half_precision(self, rng):
        layer = ConvNorm(64, 3, groups=16, dtype="mixed_bfloat16")
        images = rng.normal(size=(1, 5, 6, 32)).astype(np.float32)
        found = layer(images)
        assert found.dtype == "bfloat16"
        expected = self.slow(images, layer.kernel.numpy(), 16, 1)
        np.testing.assert_allclose(keras.ops.cast(found, "float32"), expected, atol=0.1)

    def test_what_does_not_divide_is_refused(self):
        with pytest.raises(ValueError, match="groups=3, filters=8"):
            ConvNorm(8, 3, groups=3)
        with pytest.raises(ValueError, match="groups=0"):
            ConvNorm(8, 3, groups=0)
        with pytest.raises(ValueError, match=r"multiple of `groups`.*groups=4, input shape \(1, 5, 5, 6\)"):
            ConvNorm(8, 3, groups=4).build((1, 5, 5, 6))


class TestFrozen:
    def test_by_hand(self):
        # (3 - 1) * 2 / sqrt(3.75 + .25) + 10 = 12
        layer = ConvNorm(1, 1, epsilon=0.25)
        layer.build((1, 1, 1, 1))
        layer.set_weights([np.ones([1, 1, 1, 1]), *np.float32([[2], [10], [1], [3.75]])])
        np.testing.assert_allclose(
            layer(np.full([1, 1, 1, 1], 3.0, np.float32)).numpy().ravel(), [12], rtol=1e-6
        )

    @pytest.mark.parametrize("kernel_size, strides, relu", [(3, 2, True), (1, 1, False)])
    def test_equals_batch_normalisation_at_inference(self, rng, kernel_size, strides, relu):
        images = rng.normal(size=(2, 7, 8, 3)).astype(np.float32)
        frozen, batch = (ConvNorm(16, kernel_size, strides, norm, relu) for norm in ("frozen", "batch"))
        frozen(images), batch(images)
        names = [[weight.name for weight in layer.weights] for layer in (frozen, batch)]
        assert names[0] == names[1] == ["kernel", "gamma", "beta", "moving_mean", "moving_variance"]
        batch.set_weights([batch.kernel.numpy(), *random_constants(rng, 16)])
        frozen.set_weights(batch.get_weights())
        expected = batch(images, training=False).numpy()
        assert (expected > 1).any() and (not relu or (expected == 0).any())
        np.testing.assert_allclose(frozen(images, training=True), expected, atol=1e-5)

    def test_only_the_kernel_is_trained(self, rng):
        layer = ConvNorm(16, 3)
        images = rng.normal(size=(2, 5, 5, 3)).astype(np.float32)
        layer(images)
        layer.set_weights([layer.kernel.numpy(), *random_constants(rng, 16)])
        assert [weight.name for weight in layer.trainable_variables] == ["kernel"]
        before = layer.get_weights()
        layer(images, training=True)
        for was, now in zip(before, layer.get_weights()):
            np.testing.assert_array_equal(was, now)

    def test_shifts_the_border_too(self):
        # Normalisation comes after the zero padding: a zero kernel leaves exactly the shift everywhere.
        layer = ConvNorm(2, 3)
        layer.build((1, 4, 4, 1))
        layer.set_weights([np.zeros([3, 3, 1, 2]), *np.float32([[1, 1], [5, -7], [0, 0], [1, 1]])])
        np.testing.assert_allclose(
            layer(np.ones([1, 4, 4, 1])), np.tile([5.0, -7.0], (1, 4, 4, 1)), rtol=1e-4
        )

    def test_alone_equals_the_folded_form(self, rng):
        layer = FrozenNormalization(epsilon=1e-3)
        images = rng.normal(size=(2, 3, 4, 16)).astype(np.float32)
        layer(images)
        gamma, beta, mean, variance = random_constants(rng, 16)
        layer.set_weights([gamma, beta, mean, variance])
        expected = (images - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        np.testing.assert_allclose(layer(images), expected, atol=1e-5)
        assert not layer.trainable_variables

    def test_mixed_precision_folds_in_float32(self, rng):
        layer = ConvNorm(16, 3, dtype="mixed_bfloat16")
        images = rng.normal(size=(1, 6, 6, 3)).astype(np.float32)
        assert layer(images).dtype == "bfloat16"
        layer.set_weights([layer.kernel.numpy(), *random_constants(rng, 16)])
        assert all(weight.dtype == "float32" for weight in layer.weights)
        exact = ConvNorm(16, 3)
        exact(images)
        exact.set_weights(layer.get_weights())
        difference = np.abs(keras.ops.cast(layer(images), "float32") - exact(images))
        assert difference.max() < 0.1
        # shift = 1002 - 1001 * 1 = 1; bfloat16 has 1000 for both
        layer.set_weights([np.zeros([3, 3, 3, 16]), *np.ones([16, 4]).T * [[1], [1002], [1001], [1 - 1e-5]]])
        np.testing.assert_allclose(
            keras.ops.cast(layer(images), "float32"), np.ones([1, 6, 6, 16]), atol=1e-2
        )
        alone = layer.normalization(keras.ops.zeros([1, 2, 2, 16], "bfloat16"))
        np.testing.assert_allclose(keras.ops.cast(alone, "float32"), np.ones([1, 2, 2, 16]), atol=1e-2)


class TestOtherNorms:
    def test_batch_statistics_in_training(self, rng):
        layer = ConvNorm(4, 1, norm="batch", epsilon=1e-5)
        images = rng.normal(3, 2, (4, 6, 5, 4)).astype(np.float32)
        layer(images)
        layer.kernel.assign(np.eye(4)[None, None])
        mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
        output = layer(images, training=True)
        np.testing.assert_allclose(output, (images - mean) / np.sqrt(variance + 1e-5), atol=1e-4)
        # momentum 0.9 from mean 0 and variance 1
        np.testing.assert_allclose(layer.normalization.moving_mean, 0.1 * mean, rtol=1e-4)
        np.testing.assert_allclose(layer.normalization.moving_variance, 0.9 + 0.1 * variance, rtol=1e-2)
        assert len(layer.trainable_variables) == 3

    def test_groups_of_channels_of_each_image(self, rng):
        layer = ConvNorm(64, 1, norm="group", epsilon=1e-2)
        images = rng.normal(2, 3, (2, 3, 4, 64)).astype(np.float32)
        layer(images)
        layer.kernel.assign(np.eye(64)[None, None])
        grouped = images.reshape(2, 3, 4, 32, 2)
        mean, variance = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
        expected = ((grouped - mean) / np.sqrt(variance + 1e-2)).reshape(images.shape)
        np.testing.assert_allclose(layer(images, training=True), expected, atol=1e-4)
        np.testing.assert_allclose(layer(images, training=False), expected, atol=1e-4)

    def test_an_unknown_one_is_named(self):
        with pytest.raises(ValueError, match="frozen, batch, group.*'layer'"):
            ConvNorm(4, 3, norm="layer")


def test_initial_kernel_is_he_normal_by_outgoing_connections():
    layer = ConvNorm(256, 3)
    layer.build((None, None, None, 8))
    # sqrt(2 / (3 * 3 * 256)) = 0.02946; 18432 values: relative error of the deviation 1 / sqrt(2 n) = .5 %
    assert layer.kernel.numpy().std() == pytest.approx(0.02946, rel=0.03)
    assert np.abs(layer.kernel.numpy()).max() > 3 * 0.02946  # not truncated


class TestParity:
    @pytest.mark.parametrize("case, output, strides, groups, dilation", [
        ("stem", "conv", 2, 1, 1),
        ("conv3_s2", "output", 2, 1, 1),
        ("conv1_s2", "output", 2, 1, 1),
        ("conv3_dilated", "output", 1, 1, 2),
        ("conv3_groups4_s2", "output", 2, 4, 1),
    ])  # fmt: skip
    def test_convolutions(self, shared, case, output, strides, groups, dilation):
        data = np.load(shared / "parity/ops/layers.npz")
        filters, _, size, _ = data[f"{case}/weight"].shape
        layer = ConvNorm(filters, size, strides, epsilon=0.0, groups=groups)
        images = np.moveaxis(data[f"{case}/input"], 1, 3)
        layer(images)
        layer.kernel.assign(np.transpose(data[f"{case}/weight"], (2, 3, 1, 0)))
        expected = np.moveaxis(data[f"{case}/{output}"], 1, 3)
        found = layer(images, dilation=dilation)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize("case, epsilon", [("frozen_bn_eps0", 0.0), ("frozen_bn_eps1e-05", 1e-5)])
    def test_frozen_normalisation_of_small_variances(self, shared, case, epsilon):
        data = np.load(shared / "parity/ops/layers.npz")
        images, expected = (np.moveaxis(data[f"{case}/{name}"], 1, 3) for name in ("input", "output"))
        layer = ConvNorm(8, 1, epsilon=epsilon)
        layer(images)
        constants = [data[f"{case}/{name}"] for name in ("weight", "bias", "mean", "var")]
        layer.set_weights([np.eye(8)[None, None], *constants])
        np.testing.assert_allclose(layer(images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
