// The functions of roi_align.h. Included once by a source that has defined, in namespace keras_mrcnn, a
// Launcher (launch.h) made of a stream, and message(status) for the errors of its own.

using namespace keras_mrcnn;

const char* keras_mrcnn_roi_align_cuda_message(int32_t status) {
  if (status == ROI_ALIGN_CUDA_INVALID_PARAMETERS)
    return "a size, ratio, scale or choice is outside its limits";
  return message(status);
}

int32_t keras_mrcnn_roi_align_cuda_check(const RoiAlignParameters* parameters, const int32_t* images,
                                         const int32_t* levels, int32_t* bad_region, void* stream) {
  if (!launch_valid(*parameters)) return ROI_ALIGN_CUDA_INVALID_PARAMETERS;
  Launcher launcher = {stream};
  return launcher.run(CheckRegions{*parameters, images, levels, bad_region});
}

int32_t keras_mrcnn_roi_align_cuda_forward(const RoiAlignParameters* parameters, const void* const* features,
                                           const float* boxes, const int32_t* images, const int32_t* levels,
                                           void* output, void* stream) {
  if (!launch_valid(*parameters)) return ROI_ALIGN_CUDA_INVALID_PARAMETERS;
  Launcher launcher = {stream};
  return launch_forward(launcher, make_arguments(*parameters, features, boxes, images, levels), output);
}

int64_t keras_mrcnn_roi_align_cuda_workspace(const RoiAlignParameters* parameters) {
  if (!launch_valid(*parameters)) return -1;
  Index index;
  return make_index(*parameters, nullptr, &index);
}

int32_t keras_mrcnn_roi_align_cuda_backward(const RoiAlignParameters* parameters, const void* const* features,
                                            const float* boxes, const int32_t* images, const int32_t* levels,
                                            const void* output_gradient, void* const* gradients,
                                            void* workspace, void* stream) {
  if (!launch_valid(*parameters)) return ROI_ALIGN_CUDA_INVALID_PARAMETERS;
  Launcher launcher = {stream};
  const Arguments a = make_arguments(*parameters, features, boxes, images, levels);
  return launch_backward(launcher, a, output_gradient, gradients, workspace);
}
