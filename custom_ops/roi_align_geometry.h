// Where a region of interest reads the feature map: its pyramid level, the points at which it is sampled, and
// the weights with which a point reads the pixels around it. Every kernel, forward or backward, on whichever
// device, takes its points from here (RoIAlign: Mask R-CNN, section 3).
//
// The two axes are independent, so everything is about one axis. Positions are float32 feature pixels with
// pixel centres at integers, and each is computed in the one order of operations written below: the border
// rule decides on the last bit. Compile for the host with -ffp-contract=off.
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
constexpr int32_t kRoiMostLevels = 8;
constexpr int64_t kRoiLargestSide = 1 << 14;  // of the map, and bins along an axis
constexpr int64_t kRoiMostChannels = 1 << 20;
constexpr int64_t kRoiMostRegions = INT32_MAX;  // and images
constexpr int64_t kRoiLargestSamplingRatio = 1 << 10;
// Adaptive grids stop growing here: float32 cannot number more samples.
constexpr int32_t kRoiLargestGrid = 1 << 24;

// Which points of the map stand for a bin.
enum RoiMethod : int32_t {
  ROI_ALIGN = 0,         // exact positions, pixel centres at half integers: detectron2's "aligned"
  ROI_ALIGN_LEGACY = 1,  // without the half-pixel shift, regions at least one pixel long: torchvision's models
  ROI_WARP = 2,          // as legacy, corners rounded to whole pixels first (MNC; the paper's table 2c)
  ROI_POOL = 3,          // corners and bins rounded, every pixel of a bin is a sample; maximum only (Fast R-CNN)
};

enum RoiReduction : int32_t {
  ROI_AVERAGE = 0,  // of the samples; those outside the map are 0 and count
  ROI_MAXIMUM = 1,  // the largest sample; for ROI_POOL of the pixels inside the map
};

// The elements of features, output and their gradients. Boxes and sums are float32 always.
enum RoiType : int32_t { ROI_FLOAT32 = 0, ROI_FLOAT16 = 1, ROI_BFLOAT16 = 2 };

// One feature map of the pyramid.
struct RoiLevel {
  int64_t height;  // pixels, at least 1
  int64_t width;
  float scale;     // feature pixels per unit of the boxes, positive: 1 / stride
};

// What one fused call is about. Layouts, C order:
// features of each level [batch, height, width, channels], boxes [regions, 4] as (x1, y1, x2, y2),
// output [regions, output_height, output_width, channels].
struct RoiAlignParameters {
  int64_t batch;           // images
  int64_t channels;        // may be 0
  int64_t regions;         // boxes, may be 0
  int64_t output_height;   // bins along y, at least 1
  int64_t output_width;
  int64_t sampling_ratio;  // samples per bin and axis; 0: adaptive, the bin's length in pixels rounded up
  int32_t method;          // RoiMethod
  int32_t reduction;       // RoiReduction
  int32_t type;            // RoiType
  int32_t levels;          // 1 for a single map
  RoiLevel level[kRoiMostLevels];  // the finest first, P2 of an FPN
};

KERAS_MRCNN_HOST_DEVICE inline bool roi_within(int64_t value, int64_t low, int64_t high) {
  return low <= value && value <= high;
}

KERAS_MRCNN_HOST_DEVICE inline bool roi_parameters_valid(const RoiAlignParameters& p) {
  bool valid = roi_within(p.batch, 0, kRoiMostRegions) && roi_within(p.channels, 0, kRoiMostChannels) &&
               roi_within(p.regions, 0, kRoiMostRegions) && roi_within(p.output_height, 1, kRoiLargestSide) &&
               roi_within(p.output_width, 1, kRoiLargestSide) &&
               roi_within(p.sampling_ratio, 0, kRoiLargestSamplingRatio) &&
               roi_within(p.method, ROI_ALIGN, ROI_POOL) && roi_within(p.reduction, ROI_AVERAGE, ROI_MAXIMUM) &&
               roi_within(p.type, ROI_FLOAT32, ROI_BFLOAT16) && roi_within(p.levels, 1, kRoiMostLevels) &&
               (p.method != ROI_POOL || p.reduction == ROI_MAXIMUM);
  for (int32_t k = 0; valid && k < p.levels; ++k) {
    const RoiLevel& level = p.level[k];
    valid = roi_within(level.height, 1, kRoiLargestSide) && roi_within(level.width, 1, kRoiLargestSide) &&
            level.scale > 0.0f && level.scale - level.scale == 0.0f;  // the last: not infinite
  }
  return valid;
}

// The level that fits a box (FPN paper, equation 1, level 4 at 224 pixels), 0 for P2; 0 for NaN.
KERAS_MRCNN_HOST_DEVICE inline int32_t roi_level(const float* box, int32_t levels) {
  float width = box[2] - box[0], height = box[3] - box[1];
  if (width < 0.0f) width = 0.0f;  // written so that NaN stays NaN
  if (height < 0.0f) height = 0.0f;
  const float octaves = std::log(std::sqrt(width * height) / 224.0f + 1e-8f) / std::log(2.0f);
  const float level = std::floor(4.0f + octaves) - 2.0f;
  if (!(level > 0.0f)) return 0;
  return level < static_cast<float>(levels) ? static_cast<int32_t>(level) : levels - 1;
}

// A product that is rounded before anything is added to it.
KERAS_MRCNN_HOST_DEVICE inline float roi_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// One axis of one region.
struct RoiAxis {
  float start;       // lower edge of bin 0
  float bin_length;  // negative for a reversed box
  int32_t grid;      // samples per bin, 0 for none
};

// `low` and `high` are the box's edges along the axis. Any float is allowed: a region with an edge that is not
// finite has no samples.
KERAS_MRCNN_HOST_DEVICE inline RoiAxis roi_axis(float low, float high, int64_t bins, float scale,
                                                const RoiAlignParameters& p) {
  float start = roi_product(low, scale), stop = roi_product(high, scale);
  if (p.method == ROI_ALIGN) start -= 0.5f, stop -= 0.5f;
  if (p.method == ROI_WARP || p.method == ROI_POOL) start = std::round(start), stop = std::round(stop);
  float length = stop - start;
  if (p.method == ROI_POOL) length += 1.0f;
  if (p.method != ROI_ALIGN && length < 1.0f) length = 1.0f;
  if (!(start - start == 0.0f && length - length == 0.0f)) return {0.0f, 0.0f, 0};
  const float bin_length = length / static_cast<float>(bins);
  int32_t grid = p.method == ROI_POOL ? 1 : static_cast<int32_t>(p.sampling_ratio);
  if (grid == 0 && bin_length > 0.0f) {
    const float samples = std::ceil(bin_length);
    grid = samples < static_cast<float>(kRoiLargestGrid) ? static_cast<int32_t>(samples) : kRoiLargestGrid;
  }
  return {start, bin_length, grid};
}

KERAS_MRCNN_HOST_DEVICE inline float roi_position(const RoiAxis& axis, int64_t bin, int32_t sample) {
  return axis.start + roi_product(static_cast<float>(bin), axis.bin_length) +
         roi_product(static_cast<float>(sample) + 0.5f, axis.bin_length) / static_cast<float>(axis.grid);
}

// [begin, end): samples of a bin, or pixels.
struct RoiRange {
  int32_t begin;
  int32_t end;
};

KERAS_MRCNN_HOST_DEVICE inline bool roi_inside(float position, int64_t size) {
  return position >= -1.0f && position <= static_cast<float>(size);
}

// The samples of a bin that are inside the map, -1 <= position <= size; the others count as 0.
//
// Positions never turn back within a bin, rounding included, so the samples inside are consecutive, and
// bisection finds them in a grid of millions as in one of two.
KERAS_MRCNN_HOST_DEVICE inline RoiRange roi_samples_inside(const RoiAxis& axis, int64_t bin, int64_t size) {
  if (axis.grid == 0) return {0, 0};
  if (roi_inside(roi_position(axis, bin, 0), size) && roi_inside(roi_position(axis, bin, axis.grid - 1), size)) {
    return {0, axis.grid};
  }
  const float direction = axis.bin_length < 0.0f ? -1.0f : 1.0f;
  const float nearest = direction < 0.0f ? -static_cast<float>(size) : -1.0f;
  const float farthest = direction < 0.0f ? 1.0f : static_cast<float>(size);
  int32_t begin = 0;
  for (int32_t stop = axis.grid; begin < stop;) {
    const int32_t middle = begin + (stop - begin) / 2;
    if (direction * roi_position(axis, bin, middle) >= nearest) stop = middle;
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

// ROI_POOL: the pixels of a bin that are inside the map. `axis` has no samples where an edge is not finite.
KERAS_MRCNN_HOST_DEVICE inline RoiRange roi_pool_pixels(const RoiAxis& axis, int64_t bin, int64_t size) {
  if (axis.grid == 0) return {0, 0};
  const float bins_before = static_cast<float>(bin), limit = static_cast<float>(size);
  float begin = axis.start + std::floor(roi_product(bins_before, axis.bin_length));
  float end = axis.start + std::ceil(roi_product(bins_before + 1.0f, axis.bin_length));
  begin = begin < 0.0f ? 0.0f : begin > limit ? limit : begin;
  end = end < begin ? begin : end > limit ? limit : end;
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
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
