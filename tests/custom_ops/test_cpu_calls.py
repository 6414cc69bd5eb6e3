"""How the CPU kernels are called: threads, instruction sets, element types, wrong arguments, sanitizers."""

import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from custom_ops import c_library
from custom_ops.c_library import (
    ALIGN,
    AVERAGE,
    INVALID_IMAGE,
    INVALID_LEVEL,
    INVALID_PARAMETERS,
    LEGACY,
    MAXIMUM,
    POOL,
    SOURCES,
    Settings,
)
from tests.custom_ops.slow_roi import gradient_for, random_case

FUZZ = pathlib.Path(__file__).with_name("fuzz_roi_align.cc")
SCALES = (0.25, 0.125)


def outputs_and_gradients(library, channels=300):
    """Arrays of calls that use every loop, with vectors, single channels and more than one block."""
    rng = np.random.default_rng(3)
    case = random_case(rng, regions=20, shape=(2, 48, 30, channels), reach=160, levels=2)
    results = []
    for method, reduction in [(ALIGN, AVERAGE), (LEGACY, MAXIMUM), (POOL, MAXIMUM)]:
        settings = Settings((4, 3), SCALES, 0, method, reduction)
        output_gradient = gradient_for(rng, settings, *case[:2])
        for dtype in (np.float32, np.float16):
            features = [map_.astype(dtype) for map_ in case[0]]
            results.append(library.forward(settings, features, *case[1:]))
            results.extend(library.backward(settings, features, *case[1:], output_gradient.astype(dtype)))
    assert all(np.abs(result.astype(np.float32)).max() > 0 for result in results)
    return results


@pytest.fixture(scope="module")
def expected(library):
    return outputs_and_gradients(library)


@pytest.mark.parametrize("threads", [0, 1, 3, 16])
def test_threads_do_not_change_a_bit(library_path, expected, threads):
    for ours, other in zip(outputs_and_gradients(c_library.Library(library_path, threads)), expected):
        np.testing.assert_array_equal(ours, other)


@pytest.mark.parametrize("level", [0, 3])
def test_instruction_sets_do_not_change_a_bit(compiler, tmp_path, expected, level):
    options = f"-DKERAS_MRCNN_X86_64_LEVEL={level}", "-O1"
    path = c_library.compile_library(tmp_path / "older.so", *options, compiler=compiler)
    for ours, other in zip(outputs_and_gradients(c_library.Library(path, 2)), expected):
        np.testing.assert_array_equal(ours, other)


def widened(bits, brain):
    """float32 of 16-bit floats given by their bits."""
    return (
        (bits.astype(np.uint32) << 16).view(np.float32) if brain else bits.view(np.float16).astype(np.float32)
    )


def narrowed(values, brain):
    """Bits of the nearest 16-bit floats, ties to even; NaN is not asked for."""
    if not brain:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("brain", [False, True], ids=["float16", "bfloat16"])
def test_every_value_of_16_bits_passes_through(library, brain):
    bits = np.arange(2**16, dtype=np.uint16)
    features = bits if brain else bits.view(np.float16)
    box, image = np.zeros((1, 4), np.float32), np.zeros(1, np.int32)
    settings = Settings((1, 1), (1.0,), 0, POOL, MAXIMUM)
    passed = library.forward(settings, [features.reshape(1, 1, 1, -1)], box, image).ravel().view(np.uint16)
    nan = np.isnan(widened(bits, brain))
    zero = (bits & 0x7FFF) == 0  # the sign of zero may be lost
    np.testing.assert_array_equal(passed[~nan & ~zero], bits[~nan & ~zero])
    assert np.isnan(widened(passed[nan], brain)).all()
    assert not (passed[zero] & 0x7FFF).any()


@pytest.mark.parametrize("brain", [False, True], ids=["float16", "bfloat16"])
def test_16_bits_are_summed_in_float32_and_rounded_once(library, brain):
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 2**16, (1, 3, 4, 30000), dtype=np.uint16)
    bits[~np.isfinite(widened(bits, brain))] = 0x1234
    bits[..., ::2] &= 0x83FF if not brain else 0xBFFF  # subnormal halves; in bfloat16, no overflow
    features = bits if brain else bits.view(np.float16)
    boxes = np.array([[0.3, 0.2, 2.9, 2.6], [1.1, 0.4, 1.7, 2.2]], np.float32)
    images = np.zeros(2, np.int32)
    settings = Settings((2, 1), (1.0,), 2)
    ours = library.forward(settings, [features], boxes, images).view(np.uint16)
    exact = library.forward(settings, [widened(bits, brain)], boxes, images)
    np.testing.assert_array_equal(widened(ours, brain), widened(narrowed(exact, brain), brain))
    # 1000 regions at one place: sums of 16 bits would stop growing.
    boxes, images = np.tile(boxes[:1], (3000, 1)), np.zeros(3000, np.int32)
    one = np.full((3000, 2, 1, 1), narrowed(np.float32([1.0]), brain)[0])
    one = one if brain else one.view(np.float16)
    (gradient,) = library.backward(settings, [features[..., :1].copy()], boxes, images, one)
    sums = widened(gradient.view(np.uint16), brain)
    np.testing.assert_allclose(sums.sum(), 6000, rtol=0.01)


@pytest.mark.parametrize("reduction", [AVERAGE, MAXIMUM], ids=["average", "maximum"])
@pytest.mark.parametrize("regions, channels", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_do(library, regions, channels, reduction):
    features = [np.ones((2, 5, 6, channels), np.float32)]
    case = features, np.ones((regions, 4), np.float32), np.zeros(regions, np.int32)
    settings = Settings((7, 7), (1.0,), 2, ALIGN, reduction)
    output = library.forward(settings, *case)
    assert output.size == 0
    np.testing.assert_array_equal(library.backward(settings, *case, output)[0], np.zeros_like(features[0]))


@pytest.mark.parametrize("wrong", [-1, 2, 2**31 - 1])
@pytest.mark.parametrize("what", [INVALID_IMAGE, INVALID_LEVEL])
def test_a_region_of_nowhere_is_named_and_nothing_written(library, what, wrong):
    features, boxes, images = random_case(np.random.default_rng(5), levels=2)
    levels = np.zeros(len(boxes), np.int32)
    (images if what == INVALID_IMAGE else levels)[7] = wrong
    output = np.full((len(boxes), 2, 2, 5), 7, np.float32)
    settings = Settings((2, 2), SCALES)
    assert library.status(settings, features, boxes, images, output, levels) == (what, 7)
    np.testing.assert_array_equal(output, 7)


@pytest.mark.parametrize(
    "wrong",
    [{"size": (0, 2)}, {"size": (2, 2**40)}, {"ratio": -1}, {"ratio": 2**20}, {"method": 4}, {"method": -1}]
    + [{"reduction": 2}, {"method": POOL, "reduction": AVERAGE}, {"scales": ()}, {"scales": (1.0,) * 9}]
    + [{"scales": (scale,)} for scale in (0.0, -1.0, np.nan, np.inf)],
    ids=str,
)
def test_wrong_parameters(library, wrong):
    features, boxes, images = random_case(np.random.default_rng(6))
    output = np.full((len(boxes), 2, 2, 5), 7, np.float32)
    settings = Settings((2, 2), (1.0,))._replace(**wrong)
    status = library.status(settings, features * 9, boxes, images, output)
    assert status == (INVALID_PARAMETERS, -1)
    np.testing.assert_array_equal(output, 7)


def test_a_map_without_pixels_is_refused(library):
    features = [np.ones((1, 0, 6, 3), np.float32)]
    case = features, np.ones((1, 4), np.float32), np.zeros(1, np.int32), np.empty((1, 2, 2, 3), np.float32)
    assert library.status(Settings((2, 2), (1.0,)), *case) == (INVALID_PARAMETERS, -1)


@pytest.mark.proof
def test_random_calls_under_the_sanitizers(compiler, tmp_path):
    program, empty = tmp_path / "program", tmp_path / "empty.cc"
    command = [compiler, "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    empty.write_text("int main() {}")
    if subprocess.run([*command, empty, "-o", program], capture_output=True).returncode:
        pytest.skip("this g++ has no sanitizers")
    command += ["-O1", "-g", "-std=c++17", "-ffp-contract=off", "-pthread", f"-I{SOURCES}"]
    subprocess.run([*command, *sorted((SOURCES / "cpu").glob("*.cc")), FUZZ, "-o", program], check=True)
    done = subprocess.run([program, "1500"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_geometry_compiles_for_cuda(tmp_path):
    compiler = shutil.which("nvcc")
    if not compiler:
        pytest.skip("no nvcc")
    (tmp_path / "kernel.cu").write_text(
        """
        #include "roi_align_geometry.h"
        __global__ void count(RoiAlignParameters p, const float* box, float* weights) {
          const RoiLevel& map = p.level[roi_level(box, p.levels)];
          const RoiAxis axis = roi_axis(box[0], box[2], p.output_width, map.scale, p);
          const RoiRange inside = p.method == ROI_POOL ? roi_pool_pixels(axis, threadIdx.x, map.width)
                                                       : roi_samples_inside(axis, threadIdx.x, map.width);
          for (int k = inside.begin; k < inside.end && roi_parameters_valid(p); ++k)
            weights[k] = roi_interpolate(roi_position(axis, threadIdx.x, k), map.width).low_weight;
        }
        """
    )
    arguments = ["-std=c++17", f"-I{SOURCES}", "-c", tmp_path / "kernel.cu", "-o", tmp_path / "kernel.o"]
    subprocess.run([compiler, *arguments], check=True)
