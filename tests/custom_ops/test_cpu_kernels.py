"""The compiled RoIAlign kernels against a slow reference, the stock operations and stored results."""

import ctypes
import json
import pathlib
import shlex
import shutil
import subprocess

import numpy as np
import pytest

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "custom_ops"
FUZZ = pathlib.Path(__file__).with_name("fuzz_roi_align.cc")
OK, INVALID_PARAMETERS, INVALID_IMAGE = 0, 1, 2


class Parameters(ctypes.Structure):
    """RoiAlignParameters."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("output_height", "output_width", "sampling_ratio")),
        ("aligned", ctypes.c_int32),
        ("maximum", ctypes.c_int32),
        ("scale", ctypes.c_float),
    ]


class RoiAlign:
    """One call's settings; `forward` and `backward` through the C interface of `library`."""

    def __init__(self, library, size, scale, ratio, aligned, maximum=False):
        self.library, self.size, self.scale = library, size, scale
        self.ratio, self.aligned, self.maximum = ratio, aligned, maximum

    def settings(self):
        return self.size, self.scale, self.ratio, self.aligned, self.maximum

    def parameters(self, features):
        return Parameters(*features.shape, *self.size, self.ratio, self.aligned, self.maximum, self.scale)

    def status(self, features, boxes, images, output):
        """(status, named region) of a forward call over all regions."""
        bad = ctypes.c_int64(-1)
        arrays = [array.ctypes.data_as(ctypes.c_void_p) for array in (features, boxes, images)]
        status = self.library.keras_mrcnn_roi_align_forward(
            ctypes.byref(self.parameters(features)),
            *arrays,
            ctypes.c_int64(0),
            ctypes.c_int64(len(boxes)),
            output.ctypes.data_as(ctypes.c_void_p),
            ctypes.byref(bad),
        )
        return status, bad.value

    def forward(self, features, boxes, images):
        output = np.full((len(boxes), *self.size, features.shape[-1]), 7, np.float32)
        assert self.status(features, boxes, images, output) == (OK, -1)
        return output

    def backward(self, features, boxes, images, output_gradient, regions=None, channels=None, onto=None):
        gradient = np.zeros_like(features) if onto is None else onto
        arrays = [array.ctypes.data_as(ctypes.c_void_p) for array in (features, boxes, images)]
        ranges = (*(regions or (0, len(boxes))), *(channels or (0, features.shape[-1])))
        status = self.library.keras_mrcnn_roi_align_backward(
            ctypes.byref(self.parameters(features)),
            *arrays,
            *map(ctypes.c_int64, ranges),
            output_gradient.ctypes.data_as(ctypes.c_void_p),
            gradient.ctypes.data_as(ctypes.c_void_p),
            ctypes.byref(ctypes.c_int64()),
        )
        assert status == OK
        return gradient


@pytest.fixture(scope="module")
def compiler():
    path = shutil.which("g++")
    if not path:
        pytest.skip("no g++")
    return path


@pytest.fixture(scope="module")
def library(compiler, tmp_path_factory):
    """The kernels, compiled by the command in the README."""
    readme = (SOURCES / "README.md").read_text(encoding="utf-8")
    command = next(shlex.split(line) for line in readme.splitlines() if line.startswith("g++ "))
    path = tmp_path_factory.mktemp("library") / command[-1]
    subprocess.run([compiler, *command[1:-1], path], cwd=SOURCES, check=True)
    return ctypes.CDLL(str(path))


def interpolated(features, y, x):
    """Value [C] at a point, and the pixels it reads: [(row, column, weight)]; nothing outside the map."""
    rows, columns, channels = features.shape
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return np.zeros(channels), []
    pixels = []
    for position, last in ((y, rows - 1), (x, columns - 1)):
        position = max(position, np.float32(0))
        low = min(int(position), last)
        fraction = position - np.float32(low) if low < last else np.float32(0)
        pixels.append([(low, np.float32(1) - fraction), (min(low + 1, last), fraction)])
    reads = [(row, column, wy * wx) for row, wy in pixels[0] for column, wx in pixels[1]]
    return sum(np.float64(weight) * features[row, column] for row, column, weight in reads), reads


def reference(features, boxes, images, settings, output_gradient):
    """RoIAlign as its rules are written, sample by sample, float32 positions: (output, gradient) float64."""
    size, scale, ratio, aligned, maximum = settings
    output = np.zeros((len(boxes), *size, features.shape[-1]))
    gradient = np.zeros(features.shape)
    offset = np.float32(0.5 if aligned else 0)
    for region, (box, image) in enumerate(zip(boxes, images)):
        start, length = np.empty(2, np.float32), np.empty(2, np.float32)
        for axis in (0, 1):  # y, x
            start[axis] = box[1 - axis] * np.float32(scale) - offset
            length[axis] = box[3 - axis] * np.float32(scale) - offset - start[axis]
        length = length if aligned else np.maximum(length, np.float32(1))
        steps = length / np.float32(size)
        grid = [ratio or max(int(np.ceil(step)), 0) for step in steps]
        for bin_ in np.ndindex(*size):
            samples = []
            for inner in np.ndindex(*grid):
                point = [
                    start[axis]
                    + np.float32(bin_[axis]) * steps[axis]
                    + np.float32(inner[axis] + 0.5) * steps[axis] / np.float32(grid[axis])
                    for axis in (0, 1)
                ]
                samples.append(interpolated(features[image], *point))
            if not samples:
                continue
            values = np.array([value for value, _ in samples])
            shares = np.full(values.shape, 1 / len(samples))
            if maximum:
                shares = np.arange(len(samples))[:, None] == values.argmax(0)
            output[region][bin_] = (shares * values).sum(0)
            for (_, reads), share in zip(samples, shares):
                for row, column, weight in reads:
                    gradient[image, row, column] += weight * share * output_gradient[region][bin_]
    return output, gradient


def random_case(rng, regions=12, shape=(2, 9, 11, 5), reach=40):
    """Boxes inside, across and outside the map, one reversed; channels of different signs."""
    features = rng.standard_normal(shape).astype(np.float32)
    features[..., 0] = -np.abs(features[..., 0])  # where samples outside the map are the largest
    features[..., 1:3] = np.maximum(features[..., 1:3], 0)  # where they are as large as others
    corners = np.sort(rng.uniform(-0.2 * reach, 1.2 * reach, (regions, 2, 2)), axis=1)
    boxes = corners.reshape(regions, 4).astype(np.float32)
    boxes[0] = boxes[0, [2, 3, 0, 1]]
    boxes[1, 2:] = boxes[1, :2]
    boxes[2] += 1000
    return features, boxes, rng.integers(0, shape[0], regions).astype(np.int32)


@pytest.mark.parametrize("maximum", [False, True], ids=["average", "maximum"])
@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_equals_the_rules_written_out(library, ratio, aligned, maximum):
    rng = np.random.default_rng(ratio)
    case = random_case(rng, regions=24)
    align = RoiAlign(library, (3, 2), 0.25, ratio, aligned, maximum)
    output_gradient = rng.standard_normal((len(case[1]), 3, 2, 5)).astype(np.float32)
    output, gradient = reference(*case, align.settings(), output_gradient)
    assert np.count_nonzero(output) > output.size / 3
    np.testing.assert_allclose(align.forward(*case), output, rtol=0, atol=1e-5)
    np.testing.assert_allclose(align.backward(*case, output_gradient), gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_equals_the_stock_operations(library, ratio, aligned):
    import tensorflow as tf

    from keras_mrcnn.ops import roi_align

    rng = np.random.default_rng(10 + ratio)
    features, boxes, images = random_case(rng, regions=60, shape=(2, 20, 26, 16), reach=100)
    align = RoiAlign(library, (7, 7), 0.25, ratio, aligned)
    output_gradient = rng.standard_normal((60, 7, 7, 16)).astype(np.float32)
    with tf.GradientTape() as tape:
        inputs = tf.Variable(features)
        stock = roi_align(inputs, tf.constant(boxes), tf.constant(images), 7, 0.25, ratio, aligned)
    gradient = tape.gradient(stock, inputs, output_gradients=tf.constant(output_gradient))
    if aligned:  # a reversed box too: its samples run backwards
        assert np.abs(stock[0]).max() > 0
    np.testing.assert_allclose(align.forward(features, boxes, images), stock, rtol=0, atol=2e-5)
    ours = align.backward(features, boxes, images, output_gradient)
    np.testing.assert_allclose(ours, tf.convert_to_tensor(gradient), rtol=0, atol=6e-5)


def test_equals_the_stored_results(library, shared):
    folder = shared / "parity" / "ops"
    cases = json.loads((folder / "roi_align.json").read_text())
    with np.load(folder / "roi_align.npz") as stored:
        for name, case in cases.items():
            features = np.ascontiguousarray(stored[f"{name}/input"].transpose(0, 2, 3, 1))
            boxes = np.ascontiguousarray(stored[f"{name}/rois"][:, 1:])
            images = stored[f"{name}/rois"][:, 0].astype(np.int32)
            keys = ("output_size", "spatial_scale", "sampling_ratio", "aligned")
            align = RoiAlign(library, *(case[key] for key in keys))
            output = align.forward(features, boxes, images).transpose(0, 3, 1, 2)
            np.testing.assert_allclose(output, stored[f"{name}/output"], rtol=0, atol=1e-5, err_msg=name)
            if f"{name}/grad_output" in stored:
                output_gradient = np.ascontiguousarray(stored[f"{name}/grad_output"].transpose(0, 2, 3, 1))
                gradient = align.backward(features, boxes, images, output_gradient).transpose(0, 3, 1, 2)
                expected = stored[f"{name}/grad_input"]
                np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4, err_msg=name)
    assert len(cases) == 15


@pytest.mark.parametrize("maximum", [False, True], ids=["average", "maximum"])
def test_parts_of_the_gradient_make_the_whole_bit_for_bit(library, maximum):
    rng = np.random.default_rng(3)
    features, boxes, images = random_case(rng, regions=20, shape=(2, 16, 16, 37))
    align = RoiAlign(library, (4, 4), 0.3, 2, True, maximum)
    output_gradient = rng.standard_normal((20, 4, 4, 37)).astype(np.float32)
    arguments = features, boxes, images, output_gradient
    whole = align.backward(*arguments)
    parts = np.zeros_like(features)
    for channels in ((16, 37), (0, 16)):
        for regions in ((0, 7), (7, 7), (7, 20)):
            align.backward(*arguments, regions, channels, onto=parts)
    assert np.abs(whole).max() > 0
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("column, expected", [([-1, 0], [0, 0]), ([0, -1], [1, 0]), ([0, 1], [0, 1])])
def test_the_first_of_equal_maxima_takes_the_gradient(library, column, expected):
    features = np.array(column, np.float32).reshape(1, 2, 1, 1)
    box = np.array([[-0.5, 0, 3.5, 2]], np.float32)  # samples at y = 0 and 1; at x = 0 and, outside, 2
    align = RoiAlign(library, (1, 1), 1.0, 2, True, maximum=True)
    gradient = align.backward(features, box, np.zeros(1, np.int32), np.ones((1, 1, 1, 1), np.float32))
    np.testing.assert_array_equal(gradient.ravel(), expected)


@pytest.mark.parametrize("maximum", [False, True], ids=["average", "maximum"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_without_a_place_pool_to_zero(library, ratio, maximum):
    nan, inf, huge = np.nan, np.inf, np.finfo(np.float32).max
    boxes = [
        [nan] * 4,
        [1, 1, nan, 5],
        [inf] * 4,
        [-inf, 0, inf, 5],
        [-inf, -inf, -inf, -inf],
        [0, 0, inf, inf],
    ]
    boxes = np.array(
        [*boxes, [-huge, -huge, huge, huge], [5, -inf, 3, inf], [1e9, 1e9, 2e9, 2e9]], np.float32
    )
    features = np.ones((1, 6, 8, 3), np.float32)
    images = np.zeros(len(boxes), np.int32)
    for aligned in (False, True):
        align = RoiAlign(library, (3, 3), 0.5, ratio, aligned, maximum)
        output = align.forward(features, boxes, images)
        np.testing.assert_array_equal(output, 0)
        np.testing.assert_array_equal(align.backward(features, boxes, images, np.ones_like(output)), 0)


def test_boxes_of_no_size(library):
    features = np.arange(6 * 8, dtype=np.float32).reshape(1, 6, 8, 1)
    boxes = np.array([[3.5, 2.5, 3.5, 2.5], [5.5, 4.5, 2.5, 1.5]], np.float32)
    images = np.zeros(2, np.int32)
    point = RoiAlign(library, (2, 2), 1.0, 2, True).forward(features, boxes, images)[0]
    np.testing.assert_array_equal(point, features[0, 2, 3, 0])  # every sample is the one point
    adaptive = RoiAlign(library, (2, 2), 1.0, 0, True)
    np.testing.assert_array_equal(adaptive.forward(features, boxes, images), 0)  # no samples
    widened = RoiAlign(library, (1, 1), 1.0, 0, False).forward(features, boxes, images)[:, 0, 0, 0]
    # One pixel from the first corner on, sampled half a pixel further.
    np.testing.assert_array_equal(widened, [features[0, 3, 4, 0], features[0, 5, 6, 0]])


@pytest.mark.parametrize("low, high", [(-700.3, 900.7), (-1e6, 3e6), (-2e4, 5.3)])
def test_huge_adaptive_grids_are_counted_not_walked(library, low, high):
    features = np.ones((1, 6, 9, 2), np.float32)
    boxes = np.array([[low, low, high, high]], np.float32)
    output = RoiAlign(library, (1, 1), 1.0, 0, True).forward(features, boxes, np.zeros(1, np.int32))
    start = boxes[0, 0] - np.float32(0.5)
    length = boxes[0, 2] - np.float32(0.5) - start
    grid = int(np.ceil(length))
    positions = start + (np.arange(grid, dtype=np.float32) + np.float32(0.5)) * length / np.float32(grid)
    inside = [((positions >= -1) & (positions <= size)).mean() for size in (6, 9)]
    assert min(inside) > 0
    np.testing.assert_allclose(output, inside[0] * inside[1], rtol=1e-5)


@pytest.mark.parametrize("maximum", [False, True], ids=["average", "maximum"])
@pytest.mark.parametrize("regions, channels", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_do(library, regions, channels, maximum):
    features = np.ones((2, 5, 6, channels), np.float32)
    boxes, images = np.ones((regions, 4), np.float32), np.zeros(regions, np.int32)
    align = RoiAlign(library, (7, 7), 1.0, 2, True, maximum)
    output = align.forward(features, boxes, images)
    assert output.size == 0
    np.testing.assert_array_equal(align.backward(features, boxes, images, output), np.zeros_like(features))


@pytest.mark.parametrize("image", [-1, 2, 2**31 - 1])
def test_an_image_that_is_not_there_is_named_and_nothing_written(library, image):
    features, boxes, images = random_case(np.random.default_rng(5))
    images[7] = image
    output = np.full((len(boxes), 2, 2, 5), 7, np.float32)
    align = RoiAlign(library, (2, 2), 1.0, 2, True)
    assert align.status(features, boxes, images, output) == (INVALID_IMAGE, 7)
    np.testing.assert_array_equal(output, 7)


@pytest.mark.parametrize(
    "wrong",
    [{"size": (0, 2)}, {"size": (2, 2**40)}, {"ratio": -1}, {"ratio": 2**20}, {"scale": 0.0}]
    + [{"scale": scale} for scale in (-1.0, np.nan, np.inf)],
    ids=str,
)
def test_wrong_parameters(library, wrong):
    features, boxes, images = random_case(np.random.default_rng(6))
    output = np.full((len(boxes), 2, 2, 5), 7, np.float32)
    align = RoiAlign(library, **{"size": (2, 2), "scale": 1.0, "ratio": 2, "aligned": True, **wrong})
    assert align.status(features, boxes, images, output) == (INVALID_PARAMETERS, -1)
    np.testing.assert_array_equal(output, 7)


def test_a_map_without_pixels_is_refused(library):
    features = np.ones((1, 0, 6, 3), np.float32)
    output = np.empty((1, 2, 2, 3), np.float32)
    arguments = np.ones((1, 4), np.float32), np.zeros(1, np.int32), output
    assert RoiAlign(library, (2, 2), 1.0, 2, True).status(features, *arguments) == (INVALID_PARAMETERS, -1)


def test_random_calls_under_the_sanitizers(compiler, tmp_path):
    program, empty = tmp_path / "program", tmp_path / "empty.cc"
    command = [compiler, "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    empty.write_text("int main() {}")
    if subprocess.run([*command, empty, "-o", program], capture_output=True).returncode:
        pytest.skip("this g++ has no sanitizers")
    sources = [SOURCES / "cpu" / "roi_align.cc", FUZZ]
    command += ["-O1", "-g", "-std=c++17", "-ffp-contract=off", f"-I{SOURCES}"]
    subprocess.run([*command, *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_geometry_compiles_for_cuda(tmp_path):
    compiler = shutil.which("nvcc")
    if not compiler:
        pytest.skip("no nvcc")
    (tmp_path / "kernel.cu").write_text(
        """
        #include "roi_align_geometry.h"
        __global__ void count(RoiAlignParameters p, const float* box, float* weights) {
          const RoiAxis axis = roi_axis(box[0], box[2], p.output_width, p);
          const RoiSampleRange inside = roi_samples_inside(axis, threadIdx.x, p.width);
          for (int k = inside.begin; k < inside.end && roi_parameters_valid(p); ++k)
            weights[k] = roi_interpolate(roi_position(axis, threadIdx.x, k), p.width).low_weight;
        }
        """
    )
    command = [
        compiler,
        "-std=c++17",
        f"-I{SOURCES}",
        "-c",
        tmp_path / "kernel.cu",
        "-o",
        tmp_path / "kernel.o",
    ]
    subprocess.run(command, check=True)
