"""FPN against its figure written out, at odd sizes (NUMERICS section 3)."""

import keras
import numpy as np
import pytest

from keras_mrcnn.backbones.fpn import FPN

SIZES = ((13, 17), (7, 9), (4, 5), (2, 3))


def conv(images, kernel, bias):
    """1x1 or 3x3 convolution with symmetric padding, written out."""
    half = kernel.shape[0] // 2
    padded = np.pad(images.astype(np.float64), [(0, 0), (half, half), (half, half), (0, 0)])
    output = np.zeros((*images.shape[:3], kernel.shape[3]))
    for i, j in np.ndindex(images.shape[1:3]):
        window = padded[:, i : i + kernel.shape[0], j : j + kernel.shape[0]]
        output[:, i, j] = np.tensordot(window, kernel, 3) + bias
    return output


def identity(fpn):
    """Lateral and output convolutions that pass on what they get."""
    for layer in (*fpn.laterals, *fpn.outputs):
        kernel = np.zeros(layer.kernel.shape)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = np.eye(*kernel.shape[2:])
        layer.kernel.assign(kernel)


def test_against_the_figure_written_out():
    rng = np.random.default_rng(0)
    features = [
        rng.normal(size=(2, *size, width)).astype(np.float32) for size, width in zip(SIZES, (2, 3, 4, 5))
    ]
    fpn = FPN(channels=3)
    fpn(features)
    for weight in fpn.weights:
        weight.assign(rng.normal(size=weight.shape))
    merged = [conv(c, *(w.numpy() for w in layer.weights)) for c, layer in zip(features, fpn.laterals)]
    for level in (2, 1, 0):
        for i, j in np.ndindex(SIZES[level]):
            merged[level][:, i, j] += merged[level + 1][:, i // 2, j // 2]
    expected = [conv(m, *(w.numpy() for w in layer.weights)) for m, layer in zip(merged, fpn.outputs)]
    outputs = [output.numpy() for output in fpn(features)]
    assert len(outputs) == 5
    for output, wanted in zip(outputs, expected):
        np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(outputs[4], outputs[3][:, ::2, ::2])
    assert outputs[4].shape == (2, 1, 2, 3)


def test_unknown_sizes():
    outputs = FPN(6)([keras.Input((None, None, channels)) for channels in (8, 16, 32, 64)])
    assert [output.shape for output in outputs] == [(None, None, None, 6)] * 5


def test_initial_values():
    fpn = FPN(channels=64)
    fpn([np.zeros([1, 8 // k, 8 // k, 32], np.float32) for k in (8, 4, 2, 1)][::-1])
    for layers, fan_in in ((fpn.laterals, 32), (fpn.outputs, 9 * 64)):
        for layer in layers:
            # U(-limit, limit), limit = sqrt(3 / fan_in)
            limit, kernel = (3 / fan_in) ** 0.5, layer.kernel.numpy()
            assert 0.98 * limit < np.abs(kernel).max() <= limit
            assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.05)
            assert not layer.bias.numpy().any()


def test_parity_of_nearest_upsampling_to_an_odd_size(shared):
    data = np.load(shared / "parity/ops/resize.npz")
    small, large = (np.moveaxis(data[f"nearest_up_odd/{name}"], 1, 3) for name in ("input", "output"))
    fpn = FPN(channels=3)
    features = [np.zeros([1, *size, 3], np.float32) for size in SIZES]
    fpn(features)
    identity(fpn)
    features[1] = small
    np.testing.assert_array_equal(fpn(features)[0], large)


def test_parity_of_p6(shared):
    data = np.load(shared / "parity/ops/layers.npz")
    c5, p6 = (np.moveaxis(data[f"subsample/{name}"], 1, 3) for name in ("input", "output"))
    fpn = FPN(channels=8)
    features = [np.zeros([2, 15 * k, 18 * k, 8], np.float32) for k in (8, 4, 2, 1)]
    fpn(features)
    identity(fpn)
    features[3] = c5
    np.testing.assert_array_equal(fpn(features)[4], p6)
