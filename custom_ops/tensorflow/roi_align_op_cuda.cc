// The ops on a GPU: the kernels of ../cuda in TensorFlow's own stream. Built only where there is an nvcc; needs no
// header of CUDA itself.
//
// Nothing waits for the device, so an image or level that is not there is no error here: such a region is 0.
#include "../cuda/roi_align.h"
#include "roi_align_op.h"
#include "xla/stream_executor/stream.h"

namespace keras_mrcnn {
namespace {

void* stream_of(tensorflow::OpKernelContext* context) {
  return context->op_device_context()->stream()->platform_specific_handle().stream;
}

absl::Status error_of(int32_t status) {
  if (status == 0) return absl::OkStatus();
  return tensorflow::errors::Internal("RoiAlign on the GPU: ", keras_mrcnn_roi_align_cuda_message(status),
                                      " (status ", status, ").");
}

struct CudaKernels {
  static absl::Status forward(tensorflow::OpKernelContext* context, const RoiAlignArguments& a, void* output) {
    return error_of(keras_mrcnn_roi_align_cuda_forward(&a.parameters, a.features.data(), a.boxes, a.images, a.levels,
                                                       output, stream_of(context)));
  }

  static absl::Status backward(tensorflow::OpKernelContext* context, const RoiAlignArguments& a,
                               const void* output_gradient, const std::vector<void*>& gradients) {
    const int64_t bytes = keras_mrcnn_roi_align_cuda_workspace(&a.parameters);
    if (bytes < 0) return error_of(ROI_ALIGN_CUDA_INVALID_PARAMETERS);
    tensorflow::Tensor workspace;  // TensorFlow gives it away again only behind the kernels in the stream
    TF_RETURN_IF_ERROR(
        context->allocate_temp(tensorflow::DT_UINT8, tensorflow::TensorShape({bytes}), &workspace));
    return error_of(keras_mrcnn_roi_align_cuda_backward(&a.parameters, a.features.data(), a.boxes, a.images, a.levels,
                                                        output_gradient, gradients.data(), workspace.data(),
                                                        stream_of(context)));
  }
};

REGISTER_KERNEL_BUILDER(Name("KerasMrcnn>RoiAlign").Device(tensorflow::DEVICE_GPU), RoiAlignOp<CudaKernels>);
REGISTER_KERNEL_BUILDER(Name("KerasMrcnn>RoiAlignGrad").Device(tensorflow::DEVICE_GPU), RoiAlignGradOp<CudaKernels>);

}  // namespace
}  // namespace keras_mrcnn
