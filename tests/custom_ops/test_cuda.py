"""The CUDA kernels without a device: their bodies run by the host, thread after thread; the built library.

The tests of the CPU kernels run here again, with another `library`.
"""

import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from custom_ops.c_library import ALIGN, AVERAGE, LEGACY, MAXIMUM, Library, Settings
from custom_ops.cuda import c_library as cuda
from tests.custom_ops.slow_roi import gradient_for, random_case
from tests.custom_ops.test_cpu_calls import (  # noqa: F401
    test_16_bits_are_summed_in_float32_and_rounded_once,
    test_every_value_of_16_bits_passes_through,
    test_nothing_to_do,
)
from tests.custom_ops.test_cpu_kernels import (  # noqa: F401
    METHOD_AND_REDUCTION,
    test_all_levels_in_one_call,
    test_boxes_of_no_size,
    test_boxes_without_a_place_pool_to_zero,
    test_equals_the_rules_written_out,
    test_equals_the_stock_operations,
    test_huge_adaptive_grids_are_counted_not_walked,
    test_levels_equal_the_stored_ones,
    test_levels_of_odd_boxes_equal_those_of_the_stock_rule,
    test_maxima_of_infinite_and_nan_features,
    test_multilevel_pooling_equals_the_stored_results,
    test_roi_align_equals_the_stored_results,
    test_roi_pool_equals_the_stored_results,
    test_the_first_of_equal_maxima_takes_the_gradient,
    test_warp_is_legacy_with_rounded_corners,
)

FUZZ = [pathlib.Path(__file__).with_name(name) for name in ("fuzz_roi_align.cc", "cuda_on_host.cc")]


@pytest.fixture(scope="module")
def cpu_library(library_path):
    return Library(library_path)


@pytest.fixture(scope="module")
def library(compiler, tmp_path_factory):
    """The bodies of the CUDA kernels on the host."""
    path = tmp_path_factory.mktemp("cuda") / "roi_align_host.so"
    return cuda.HostLibrary(cuda.compile_for_host(path, compiler=compiler))


def assert_equals_the_cpu(library, cpu_library, settings, case, tolerance=1e-5):
    """Output and gradients, as far from the other's as rounding goes."""
    rng = np.random.default_rng(0)
    output = library.forward(settings, *case)
    np.testing.assert_allclose(output, cpu_library.forward(settings, *case), rtol=1e-5, atol=tolerance)
    output_gradient = gradient_for(rng, settings, *case[:2])
    ours = library.backward(settings, *case[:3], output_gradient, *case[3:])
    expected = cpu_library.backward(settings, *case[:3], output_gradient, *case[3:])
    for one, other in zip(ours, expected):
        assert np.count_nonzero(other)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("method, reduction", METHOD_AND_REDUCTION)
@pytest.mark.parametrize("channels", [3, 32, 260])
def test_vectors_and_parts_of_the_channels(library, cpu_library, channels, method, reduction):
    rng = np.random.default_rng(2)
    case = random_case(rng, shape=(2, 21, 19, channels), reach=160, levels=2)
    settings = Settings((7, 7), (0.125, 0.0625), 2, method, reduction)
    assert_equals_the_cpu(library, cpu_library, settings, (*case, rng.integers(0, 2, 12).astype(np.int32)))


@pytest.mark.parametrize("method, reduction", METHOD_AND_REDUCTION)
@pytest.mark.parametrize("size", [(1, 40), (33, 3), (17, 18)], ids=str)
def test_more_bins_than_a_block_takes(library, cpu_library, size, method, reduction):
    case = random_case(np.random.default_rng(3), shape=(1, 30, 40, 4), reach=160)
    assert_equals_the_cpu(library, cpu_library, Settings(size, (0.25,), 0, method, reduction), case)


@pytest.mark.parametrize("method, reduction", METHOD_AND_REDUCTION)
@pytest.mark.parametrize("ratio", [0, 9, 40])
def test_more_samples_than_a_round_takes(library, cpu_library, ratio, method, reduction):
    case = random_case(np.random.default_rng(4), shape=(1, 50, 60, 4), reach=60)
    assert_equals_the_cpu(library, cpu_library, Settings((2, 2), (1.0,), ratio, method, reduction), case)


def test_more_regions_at_a_place_than_threads(library, cpu_library):
    rng = np.random.default_rng(5)
    case = random_case(rng, regions=900, shape=(2, 20, 20, 4), reach=80)
    assert_equals_the_cpu(library, cpu_library, Settings((3, 3), (0.25,), 2, ALIGN), case, tolerance=3e-5)


def test_the_order_of_the_images_does_not_matter(library):
    """Regions of other images in between: the same bits."""
    rng = np.random.default_rng(6)
    settings = Settings((3, 3), (0.25, 0.125), 2)
    features, boxes, images = random_case(rng, regions=40, shape=(2, 20, 20, 4), reach=120, levels=2)
    output_gradient = gradient_for(rng, settings, features, boxes)
    order = np.argsort(images, kind="stable")
    mixed = library.backward(settings, features, boxes, images, output_gradient)
    apart = library.backward(settings, features, boxes[order], images[order], output_gradient[order])
    for one, other in zip(mixed, apart):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("reduction", [AVERAGE, MAXIMUM], ids=["average", "maximum"])
@pytest.mark.parametrize("what", ["image", "level"])
@pytest.mark.parametrize("wrong", [-1, 2, 2**31 - 1])
def test_a_region_of_nowhere_is_named_and_pools_to_zero(library, what, wrong, reduction):
    rng = np.random.default_rng(7)
    settings = Settings((2, 2), (0.25, 0.125), 2, LEGACY, reduction)
    features, boxes, images = random_case(rng, levels=2)
    levels = rng.integers(0, 2, len(boxes)).astype(np.int32)
    bad = np.full(1, 99, np.int32)
    library.functions.check(settings, (features, boxes, images, levels), bad)
    assert bad == -1
    output_gradient = gradient_for(rng, settings, features, boxes)
    there = ~np.isin(np.arange(len(boxes)), [7, 11])
    gradients = library.backward(
        settings, features, boxes[there], images[there], output_gradient[there], levels[there]
    )
    (images if what == "image" else levels)[[7, 11]] = wrong
    library.functions.check(settings, (features, boxes, images, levels), bad)
    assert bad == 7
    output = library.forward(settings, features, boxes, images, levels)
    np.testing.assert_array_equal(output[[7, 11]], 0)
    assert np.abs(output).max() > 0
    without = library.backward(settings, features, boxes, images, output_gradient, levels)
    for one, other in zip(without, gradients):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "wrong", [{"size": (0, 2)}, {"ratio": -1}, {"method": 4}, {"scales": (np.nan,)}], ids=str
)
def test_wrong_parameters(library, wrong):
    features, boxes, images = random_case(np.random.default_rng(8))
    settings = Settings((2, 2), (1.0,))._replace(**wrong)
    output = np.full((len(boxes), 2, 2, 5), 7, np.float32)
    with pytest.raises(cuda.CudaError, match="limits") as error:
        library.functions.forward(settings, (features, boxes, images, None), output)
    assert error.value.status == cuda.INVALID_PARAMETERS
    assert library.functions.workspace(settings, (features, boxes)) == -1
    np.testing.assert_array_equal(output, 7)


def test_a_gradient_that_is_not_finite_stays_with_its_pixels(library):
    features = [np.ones((1, 8, 8, 4), np.float32)]
    boxes = np.array([[2, 2, 4, 4], [0, 5, 8, 8]], np.float32)
    output_gradient = np.ones((2, 1, 1, 4), np.float32)
    output_gradient[0] = np.nan
    settings = Settings((1, 1), (1.0,), 2, ALIGN)
    (gradient,) = library.backward(settings, features, boxes, np.zeros(2, np.int32), output_gradient)
    assert np.isnan(gradient[0, 2:4, 2:4]).all()
    assert np.isfinite(gradient[0, 5:]).all() and np.isfinite(gradient[0, :, 5:]).all()


@pytest.mark.proof
def test_random_calls_under_the_sanitizers(compiler, tmp_path):
    program, empty = tmp_path / "program", tmp_path / "empty.cc"
    command = [compiler, "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    empty.write_text("int main() {}")
    if subprocess.run([*command, empty, "-o", program], capture_output=True).returncode:
        pytest.skip("this g++ has no sanitizers")
    command += ["-O1", "-g", "-std=c++17", "-ffp-contract=off", f"-I{cuda.FOLDER.parent}"]
    subprocess.run([*command, cuda.FOLDER / "roi_align_host.cc", *FUZZ, "-o", program], check=True)
    done = subprocess.run([program, "300"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.proof
def test_threads_meet_at_barriers_before_they_share(compiler, tmp_path):
    """In real threads under ThreadSanitizer."""
    program, source = tmp_path / "program", pathlib.Path(__file__).with_name("cuda_on_threads.cc")
    command = [compiler, "-fsanitize=thread", "-O1", "-g", "-std=c++17", "-ffp-contract=off", "-pthread"]
    subprocess.run([*command, f"-I{cuda.FOLDER.parent}", source, "-o", program], check=True)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 history_size=7"}
    done = subprocess.run(program, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def nvcc():
    path = shutil.which("nvcc")
    if not path:
        pytest.skip("no nvcc")
    return path


def undefined(path, pattern):
    """Names that a library expects from others."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", path], check=True, capture_output=True, text=True
    )
    return re.findall(pattern, listed.stdout)


def assert_fails_without_a_driver(path):
    """A call returns an error that says so, where there is no driver; nothing is known where there is one."""
    if pathlib.Path("/dev/nvidiactl").exists():
        pytest.skip("there is a device: custom_ops/benchmarks/roi_align_cuda.py has checks for it")
    functions = cuda.Functions(path)
    features, boxes, images = random_case(np.random.default_rng(9), shape=(1, 4, 4, 4))
    case, settings = (features, boxes, images, None), Settings((1, 1), (1.0,))
    output, workspace = np.zeros((len(boxes), 1, 1, 4), np.float32), np.zeros(4000, np.uint8)
    for call in (
        lambda: functions.forward(settings, case, output),
        lambda: functions.backward(settings, case, output, [features[0].copy()], workspace),
        lambda: functions.check(settings, case, np.zeros(1, np.int32)),
    ):
        with pytest.raises(cuda.CudaError, match="CUDA") as error:
            call()
        assert error.value.status in (35, 100)  # cudaErrorInsufficientDriver, cudaErrorNoDevice


def test_the_library_for_devices_needs_no_cuda_library_and_no_driver(nvcc, tmp_path):
    path = cuda.compile_for_devices(tmp_path / "roi_align.so", (90,), compiler=nvcc)
    assert undefined(path, "malloc") and not undefined(path, r"\bcu[a-z]*[A-Z]\w*")
    assert_fails_without_a_driver(path)


@pytest.mark.proof
def test_all_architectures_beside_tensorflow(nvcc, tmp_path):
    import tensorflow as tf

    folder = tf.sysconfig.get_lib()
    libraries = ["-L", folder, "-l:libtensorflow_framework.so.2"]
    path = cuda.compile_for_devices(tmp_path / "roi_align.so", libraries=libraries, compiler=nvcc)
    assert not undefined(path, r"\bcu[a-z]*[A-Z]\w*")
    assert_fails_without_a_driver(path)
    binary = path.read_bytes()
    for architecture in cuda.ARCHITECTURES:
        assert f"sm_{architecture}".encode() in binary
