// RoIAlign on the CPU: NHWC, float32, one thread per call. The caller splits the work.
#ifndef KERAS_MRCNN_CPU_ROI_ALIGN_H_
#define KERAS_MRCNN_CPU_ROI_ALIGN_H_

#include <cstdint>

#include "../roi_align_geometry.h"

extern "C" {

enum RoiAlignStatus : int32_t {
  ROI_ALIGN_OK = 0,
  ROI_ALIGN_INVALID_PARAMETERS = 1,  // a size, ratio, scale or range outside its limits
  ROI_ALIGN_INVALID_IMAGE = 2,       // *bad_region names a region of an image that is not in the batch
  ROI_ALIGN_OUT_OF_MEMORY = 3,
};

// Writes the output of the regions [begin, end). Calls for disjoint ranges may run at the same time.
//
//   features, boxes, output  whole arrays, laid out as RoiAlignParameters says
//   images                   [regions], the image of each box
//   bad_region               set for ROI_ALIGN_INVALID_IMAGE, otherwise untouched
//
// Nothing is written unless the arguments are valid.
int32_t keras_mrcnn_roi_align_forward(const RoiAlignParameters* parameters, const float* features,
                                      const float* boxes, const int32_t* images, int64_t begin, int64_t end,
                                      float* output, int64_t* bad_region);

// Adds what the regions [begin, end) contribute to the channels [channel_begin, channel_end) to `gradient`
// [batch, height, width, channels], which the caller sets to zero before the first call.
//
//   features         read for the maximum only; may be null for the average
//   output_gradient  [regions, output_height, output_width, channels]
//   the others       as in the forward call; there is no gradient to the boxes
//
// Two calls may run at the same time when their channels are disjoint, or when no image has regions of both;
// regions of one image share pixels. Every element is a sum in the order of the regions, so splitting by
// channels or by images, or calling for consecutive ranges in their order, leaves each bit as it is. Channel
// ranges that start at multiples of 16 do not share cache lines.
int32_t keras_mrcnn_roi_align_backward(const RoiAlignParameters* parameters, const float* features,
                                       const float* boxes, const int32_t* images, int64_t begin, int64_t end,
                                       int64_t channel_begin, int64_t channel_end,
                                       const float* output_gradient, float* gradient, int64_t* bad_region);

}  // extern "C"

#endif  // KERAS_MRCNN_CPU_ROI_ALIGN_H_
