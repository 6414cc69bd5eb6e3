// The kernels: each runs one body (forward.h, backward.h, index.h) in the blocks of a grid.
#include <cuda_runtime_api.h>

#include <type_traits>

#include "launch.h"

namespace keras_mrcnn {
namespace {

// A block goes through several pieces of work where a grid cannot have more blocks.
constexpr int64_t kMostBlocks = INT32_MAX;

template <typename Body>
__global__ void __launch_bounds__(kThreads, Body::kResidentBlocks)
    run_body(const __grid_constant__ Body body) {
  __shared__ typename Body::Shared shared;
  DeviceBlock block;
  body(block, shared);
}

struct Launcher {
  void* stream;

  template <typename Body>
  int32_t run(const Body& body) {
    static_assert(std::is_trivially_copyable<Body>::value && sizeof(Body) <= 4096, "a kernel's parameter");
    void* parameters[] = {const_cast<Body*>(&body)};
    const dim3 blocks(static_cast<unsigned>(smaller(body.blocks(), kMostBlocks)));
    const cudaError_t error =
        cudaLaunchKernel(reinterpret_cast<const void*>(&run_body<Body>), blocks, dim3(kThreads), parameters,
                         0, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess)
      cudaGetLastError();  // it is returned, and shall not be found again by the next call
    return error;
  }
};

const char* message(int32_t status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace
}  // namespace keras_mrcnn

#include "calls.h"
