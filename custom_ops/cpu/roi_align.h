// Pooling of regions on the CPU: RoIAlign, RoIWarp, RoIPool; forward, and the gradient to the features. One call
// is about all regions, all images and all pyramid levels; the caller lends its threads.
#ifndef KERAS_MRCNN_CPU_ROI_ALIGN_H_
#define KERAS_MRCNN_CPU_ROI_ALIGN_H_

#include <cstdint>

#include "../roi_align_geometry.h"

extern "C" {

enum RoiAlignStatus : int32_t {
  ROI_ALIGN_OK = 0,
  ROI_ALIGN_INVALID_PARAMETERS = 1,  // a size, ratio, scale or choice outside its limits: roi_parameters_valid
  ROI_ALIGN_INVALID_IMAGE = 2,       // *bad_region names a region of an image that is not in the batch
  ROI_ALIGN_INVALID_LEVEL = 3,       // *bad_region names a region of a level that is not there
  ROI_ALIGN_OUT_OF_MEMORY = 4,
};

// The caller's threads. `parallel_for` calls `work(work_context, begin, end)` for ranges that together are
// [0, total), each once, in any order, from any threads, and returns when all have returned. `cost_per_unit` is
// an estimate in processor cycles.
struct RoiParallel {
  void* context;
  void (*parallel_for)(void* context, int64_t total, int64_t cost_per_unit,
                       void (*work)(void* work_context, int64_t begin, int64_t end), void* work_context);
};

// A `parallel_for` with threads of its own, for tests and benchmarks; its context is an int64_t, how many.
void keras_mrcnn_parallel_for(void* context, int64_t total, int64_t cost_per_unit,
                              void (*work)(void* work_context, int64_t begin, int64_t end),
                              void* work_context);

// Writes the output of all regions.
//
//   parallel  null: everything in the calling thread. The result has the same bits either way.
//   features  [levels] pointers, aligned to their elements
//   boxes     [regions, 4] float32
//   images    [regions], the image of each box
//   levels    [regions], the pyramid level of each box, 0 for the first; null: roi_level of each box
//   bad_region  set for ROI_ALIGN_INVALID_IMAGE and _LEVEL, otherwise untouched
//
// Arrays are laid out as RoiAlignParameters says, in elements of its `type`. Nothing is written unless the
// arguments are valid.
int32_t keras_mrcnn_roi_align_forward(const RoiAlignParameters* parameters, const RoiParallel* parallel,
                                      const void* const* features, const float* boxes, const int32_t* images,
                                      const int32_t* levels, void* output, int64_t* bad_region);

// Writes the gradient to the features of each level; what was there does not matter. There is none to the boxes.
//
//   features         read for ROI_MAXIMUM, which finds its largest samples again; may be null for ROI_AVERAGE
//   output_gradient  [regions, output_height, output_width, channels]
//   gradients        [levels] pointers to arrays of the features' shapes
//   the others       as in the forward call
//
// Every element is a sum in one order, so the result has the same bits in each run, with any number of threads.
int32_t keras_mrcnn_roi_align_backward(const RoiAlignParameters* parameters, const RoiParallel* parallel,
                                       const void* const* features, const float* boxes, const int32_t* images,
                                       const int32_t* levels, const void* output_gradient,
                                       void* const* gradients, int64_t* bad_region);

}  // extern "C"

#endif  // KERAS_MRCNN_CPU_ROI_ALIGN_H_
