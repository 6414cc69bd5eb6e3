// The ops on the CPU: the kernels of ../cpu on TensorFlow's own threads.
#include "../cpu/roi_align.h"
#include "roi_align_op.h"
#include "tensorflow/core/util/work_sharder.h"

namespace keras_mrcnn {
namespace {

using tensorflow::errors::InvalidArgument;
using Workers = tensorflow::DeviceBase::CpuWorkerThreads;

void parallel_for(void* context, int64_t total, int64_t cost_per_unit, void (*work)(void*, int64_t, int64_t),
                  void* work_context) {
  const Workers* workers = static_cast<const Workers*>(context);
  tensorflow::Shard(workers->num_threads, workers->workers, total, cost_per_unit,
                    [=](int64_t begin, int64_t end) { work(work_context, begin, end); });
}

RoiParallel threads_of(tensorflow::OpKernelContext* context) {
  return {const_cast<Workers*>(context->device()->tensorflow_cpu_worker_threads()), parallel_for};
}

absl::Status error_of(int32_t status, const RoiAlignArguments& arguments, int64_t bad_region) {
  switch (status) {
    case ROI_ALIGN_OK:
      return absl::OkStatus();
    case ROI_ALIGN_INVALID_IMAGE:
      return InvalidArgument("RoiAlign expects each of `images` from 0 to ", arguments.parameters.batch - 1,
                             ", the images of the batch. Received: ", arguments.images[bad_region],
                             " for the box at index ", bad_region, ".");
    case ROI_ALIGN_INVALID_LEVEL:
      return InvalidArgument("RoiAlign expects each of `levels` from 0 to ", arguments.parameters.levels - 1,
                             ", the maps of `features`. Received: ", arguments.levels[bad_region],
                             " for the box at index ", bad_region, ".");
    case ROI_ALIGN_OUT_OF_MEMORY:
      return tensorflow::errors::ResourceExhausted("RoiAlign: no memory left for ", arguments.parameters.regions,
                                                   " boxes.");
    default:
      return tensorflow::errors::Internal("RoiAlign: the kernels refused arguments that had been checked, status ",
                                          status, ".");
  }
}

struct CpuKernels {
  static absl::Status forward(tensorflow::OpKernelContext* context, const RoiAlignArguments& a, void* output) {
    const RoiParallel threads = threads_of(context);
    int64_t bad_region = -1;
    const int32_t status = keras_mrcnn_roi_align_forward(&a.parameters, &threads, a.features.data(), a.boxes,
                                                         a.images, a.levels, output, &bad_region);
    return error_of(status, a, bad_region);
  }

  static absl::Status backward(tensorflow::OpKernelContext* context, const RoiAlignArguments& a,
                               const void* output_gradient, const std::vector<void*>& gradients) {
    const RoiParallel threads = threads_of(context);
    int64_t bad_region = -1;
    const int32_t status =
        keras_mrcnn_roi_align_backward(&a.parameters, &threads, a.features.data(), a.boxes, a.images, a.levels,
                                       output_gradient, gradients.data(), &bad_region);
    return error_of(status, a, bad_region);
  }
};

REGISTER_KERNEL_BUILDER(Name("KerasMrcnn>RoiAlign").Device(tensorflow::DEVICE_CPU), RoiAlignOp<CpuKernels>);
REGISTER_KERNEL_BUILDER(Name("KerasMrcnn>RoiAlignGrad").Device(tensorflow::DEVICE_CPU), RoiAlignGradOp<CpuKernels>);

}  // namespace
}  // namespace keras_mrcnn
