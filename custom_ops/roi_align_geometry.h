// The sampling geometry of RoIAlign (Mask R-CNN, section 3): at which points of the feature map a region is
// sampled, and with which weights a point reads the pixels around it. Every kernel, forward or backward, on
// whichever device, takes its points from here.
//
// The two axes are independent, so everything is about one axis. Positions are float32 feature pixels with
// pixel centres at integers, and each is computed in the one order of operations written below: the border
// rule decides on the last bit.
//
// C++17; in a CUDA source the functions are for host and device.
#ifndef KERAS_MRCNN_ROI_ALIGN_GEOMETRY_H_
#define KERAS_MRCNN_ROI_ALIGN_GEOMETRY_H_

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define KERAS_MRCNN_HOST_DEVICE __host__ __device__
#else
#define KERAS_MRCNN_HOST_DEVICE
#endif

// Limits of the arguments. Within them a bin has fewer than 2^31 samples inside the map.
constexpr int64_t kRoiAlignLargestSide = 1 << 14;           // of the map, and bins along an axis
constexpr int64_t kRoiAlignLargestSamplingRatio = 1 << 10;
// Adaptive grids stop growing here: float32 cannot number more samples.
constexpr int32_t kRoiAlignLargestGrid = 1 << 24;

// What all regions of a call have in common. Layouts, C order:
// features [batch, height, width, channels], boxes [regions, 4] as (x1, y1, x2, y2),
// output [regions, output_height, output_width, channels].
struct RoiAlignParameters {
  int64_t batch;           // images
  int64_t height;          // of the feature map, pixels, at least 1
  int64_t width;
  int64_t channels;        // may be 0
  int64_t output_height;   // bins along y, at least 1
  int64_t output_width;
  int64_t sampling_ratio;  // samples per bin and axis; 0: adaptive, the bin's length in pixels rounded up
  int32_t aligned;         // 1: the half-pixel shift; 0: legacy, no shift, regions at least one pixel long
  int32_t maximum;         // 0: a bin is the average of its samples; 1: the largest of them
  float scale;             // feature pixels per unit of the boxes, positive
};

KERAS_MRCNN_HOST_DEVICE inline bool roi_parameters_valid(const RoiAlignParameters& p) {
  return p.batch >= 0 && p.channels >= 0 &&
         p.height >= 1 && p.height <= kRoiAlignLargestSide &&
         p.width >= 1 && p.width <= kRoiAlignLargestSide &&
         p.output_height >= 1 && p.output_height <= kRoiAlignLargestSide &&
         p.output_width >= 1 && p.output_width <= kRoiAlignLargestSide &&
         p.sampling_ratio >= 0 && p.sampling_ratio <= kRoiAlignLargestSamplingRatio &&
         p.scale > 0.0f && p.scale - p.scale == 0.0f;  // the last: not infinite
}

// One axis of one region.
struct RoiAxis {
  float start;       // lower edge of bin 0
  float bin_length;  // negative for a reversed box
  int32_t grid;      // samples per bin, 0 for none
};

// `low` and `high` are the box's edges along the axis. Any float is allowed: a NaN or infinite edge makes
// positions that are NaN or infinite, none of which is inside the map.
KERAS_MRCNN_HOST_DEVICE inline RoiAxis roi_axis(float low, float high, int64_t bins,
                                                const RoiAlignParameters& p) {
  const float shift = p.aligned ? 0.5f : 0.0f;
  const float start = low * p.scale - shift;
  float length = (high * p.scale - shift) - start;
  if (!p.aligned && length < 1.0f) length = 1.0f;  // written so that NaN stays NaN
  const float bin_length = length / static_cast<float>(bins);
  int32_t grid = static_cast<int32_t>(p.sampling_ratio);
  if (grid == 0 && bin_length > 0.0f) {
    const float samples = std::ceil(bin_length);
    grid = samples < static_cast<float>(kRoiAlignLargestGrid) ? static_cast<int32_t>(samples)
                                                              : kRoiAlignLargestGrid;
  }
  return {start, bin_length, grid};
}

KERAS_MRCNN_HOST_DEVICE inline float roi_position(const RoiAxis& axis, int64_t bin, int32_t sample) {
  return axis.start + static_cast<float>(bin) * axis.bin_length +
         (static_cast<float>(sample) + 0.5f) * axis.bin_length / static_cast<float>(axis.grid);
}

// Samples [begin, end) of a bin.
struct RoiSampleRange {
  int32_t begin;
  int32_t end;
};

// The samples of a bin that are inside the map, -1 <= position <= size; the others count as 0.
//
// Positions never turn back within a bin, rounding included, so the samples inside are consecutive, and
// bisection finds them in a grid of millions as in one of two.
KERAS_MRCNN_HOST_DEVICE inline RoiSampleRange roi_samples_inside(const RoiAxis& axis, int64_t bin,
                                                                 int64_t size) {
  const float direction = axis.bin_length < 0.0f ? -1.0f : 1.0f;
  const float lowest = -1.0f, highest = static_cast<float>(size);
  const float nearest = direction * (direction < 0.0f ? highest : lowest);
  const float farthest = direction * (direction < 0.0f ? lowest : highest);
  int32_t begin = 0;
  for (int32_t stop = axis.grid; begin < stop;) {
    const int32_t middle = begin + (stop - begin) / 2;
    if (direction * roi_position(axis, bin, middle) >= nearest) stop = middle;  // never for NaN
    else begin = middle + 1;
  }
  int32_t end = begin;
  for (int32_t stop = axis.grid; end < stop;) {
    const int32_t middle = end + (stop - end) / 2;
    if (direction * roi_position(axis, bin, middle) > farthest) stop = middle;
    else end = middle + 1;
  }
  return {begin, end};
}

// Linear interpolation between two neighbouring pixels.
struct RoiSample {
  int32_t low;
  int32_t high;
  float low_weight;
  float high_weight;
};

// For a position inside the map. The pixels are within [0, size) for any float.
KERAS_MRCNN_HOST_DEVICE inline RoiSample roi_interpolate(float position, int64_t size) {
  const int32_t last = static_cast<int32_t>(size) - 1;
  if (!(position > 0.0f)) position = 0.0f;
  if (position >= static_cast<float>(last)) return {last, last, 1.0f, 0.0f};
  const int32_t low = static_cast<int32_t>(position);
  const float fraction = position - static_cast<float>(low);
  return {low, low + 1, 1.0f - fraction, fraction};
}

#endif  // KERAS_MRCNN_ROI_ALIGN_GEOMETRY_H_
