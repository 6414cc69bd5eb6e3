// The interface of the CPU kernels, answered by the bodies of the CUDA kernels on the host: for the fuzz of
// those.
#include <vector>

#include "cpu/roi_align.h"
#include "cuda/roi_align.h"

namespace {

int32_t check(const RoiAlignParameters* p, const int32_t* images, const int32_t* levels,
              int64_t* bad_region) {
  int32_t bad = 0;
  if (keras_mrcnn_roi_align_cuda_check(p, images, levels, &bad, nullptr) != 0)
    return ROI_ALIGN_INVALID_PARAMETERS;
  if (bad < 0) return ROI_ALIGN_OK;
  *bad_region = bad;
  return roi_within(images[bad], 0, p->batch - 1) ? ROI_ALIGN_INVALID_LEVEL : ROI_ALIGN_INVALID_IMAGE;
}

}  // namespace

void keras_mrcnn_parallel_for(void*, int64_t, int64_t, void (*)(void*, int64_t, int64_t), void*) {}

int32_t keras_mrcnn_roi_align_forward(const RoiAlignParameters* p, const RoiParallel*,
                                      const void* const* features, const float* boxes, const int32_t* images,
                                      const int32_t* levels, void* output, int64_t* bad_region) {
  const int32_t status = check(p, images, levels, bad_region);
  if (status != ROI_ALIGN_OK) return status;
  return keras_mrcnn_roi_align_cuda_forward(p, features, boxes, images, levels, output, nullptr);
}

int32_t keras_mrcnn_roi_align_backward(const RoiAlignParameters* p, const RoiParallel*,
                                       const void* const* features, const float* boxes, const int32_t* images,
                                       const int32_t* levels, const void* output_gradient,
                                       void* const* gradients, int64_t* bad_region) {
  const int32_t status = check(p, images, levels, bad_region);
  if (status != ROI_ALIGN_OK) return status;
  std::vector<char> workspace(keras_mrcnn_roi_align_cuda_workspace(p), 0x77);
  return keras_mrcnn_roi_align_cuda_backward(p, features, boxes, images, levels, output_gradient, gradients,
                                             workspace.data(), nullptr);
}
