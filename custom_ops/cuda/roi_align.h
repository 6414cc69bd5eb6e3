// Pooling of regions on a CUDA device: RoIAlign, RoIWarp, RoIPool; forward, and the gradient to the features.
// The calls of cpu/roi_align.h with device memory: one call is about all regions, all images and all pyramid
// levels.
//
// Every call works on the current device and only queues its work in `stream` (a cudaStream_t; null: the
// default stream); none waits. Parameters, and the lists of one pointer per level, are in host memory and are
// read before the call returns; everything they point to, and all else, is in device memory.
#ifndef KERAS_MRCNN_CUDA_ROI_ALIGN_H_
#define KERAS_MRCNN_CUDA_ROI_ALIGN_H_

#include <cstdint>

#include "../roi_align_geometry.h"

extern "C" {

// Status of a call: 0, or an error of the CUDA runtime (cudaError_t, positive), or this.
enum RoiAlignCudaStatus : int32_t {
  ROI_ALIGN_CUDA_INVALID_PARAMETERS = -1,  // roi_parameters_valid
};

// A sentence about a status, static memory.
const char* keras_mrcnn_roi_align_cuda_message(int32_t status);

// Writes to `bad_region` (device memory) the first region whose image or level is not there, or -1. The other
// calls cannot report one without waiting: they pool such a region to 0, and it has no gradient.
int32_t keras_mrcnn_roi_align_cuda_check(const RoiAlignParameters* parameters, const int32_t* images,
                                         const int32_t* levels, int32_t* bad_region, void* stream);

// Writes the output of all regions. Arrays as in keras_mrcnn_roi_align_forward. Faster where the channels are
// a multiple of 16 bytes and the arrays are aligned to 16 bytes.
int32_t keras_mrcnn_roi_align_cuda_forward(const RoiAlignParameters* parameters, const void* const* features,
                                           const float* boxes, const int32_t* images, const int32_t* levels,
                                           void* output, void* stream);

// Bytes of device memory that a backward call needs besides its results; -1 for invalid parameters. Some tens
// of bytes per region, for ROI_MAXIMUM and four per element of the output.
int64_t keras_mrcnn_roi_align_cuda_workspace(const RoiAlignParameters* parameters);

// Writes the gradient to the features of each level. Arrays as in keras_mrcnn_roi_align_backward, and
// `workspace`, aligned to 16 bytes. Every element is a sum in the order of the regions: the same bits in each
// run.
int32_t keras_mrcnn_roi_align_cuda_backward(const RoiAlignParameters* parameters, const void* const* features,
                                            const float* boxes, const int32_t* images, const int32_t* levels,
                                            const void* output_gradient, void* const* gradients,
                                            void* workspace, void* stream);

}  // extern "C"

#endif  // KERAS_MRCNN_CUDA_ROI_ALIGN_H_
