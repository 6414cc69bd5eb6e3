"""The CUDA kernels without a device: their bodies run by the host, thread after thread, and the built library.

The tests of the CPU kernels run here again, with another `library`.
"""

import shutil

import numpy as np
import pytest

from custom_ops.c_library import ALIGN, AVERAGE, LEGACY, MAXIMUM, POOL, WARP, Settings
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


@pytest.fixture(scope="module")
def cpu_library(library_path):
    from custom_ops.c_library import Library

    return Library(library_path)


@pytest.fixture(scope="module")
def library(compiler, tmp_path_factory):
    """The bodies of the CUDA kernels on the host."""
    path = tmp_path_factory.mktemp("cuda") / "roi_align_host.so"
    return cuda.HostLibrary(cuda.compile_for_host(path, compiler=compiler))
