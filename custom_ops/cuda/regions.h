// One region: where it lies, and the taps and samples of its bins along an axis.
#ifndef KERAS_MRCNN_CUDA_REGIONS_H_
#define KERAS_MRCNN_CUDA_REGIONS_H_

#include "block.h"

namespace keras_mrcnn {

constexpr int kBins = 16;            // bins along an axis that a block handles together
constexpr int kSamples = 8;          // samples of a bin along an axis, likewise
constexpr int kTaps = 2 * kSamples;  // pixels that these read at most
constexpr uint32_t kNoSample = 0xffffffffu;

// What the caller gave.
struct Arguments {
  RoiAlignParameters p;
  const void* features[kRoiMostLevels];
  const float* boxes;
  const int32_t* images;
  const int32_t* levels;
};

struct Place {
  int32_t image;  // -1: of an image or level that is not there
  int32_t level;
};

KERAS_MRCNN_DEVICE inline Place find_place(const RoiAlignParameters& p, const float* boxes,
                                           const int32_t* images, const int32_t* levels, int64_t region) {
  const int32_t image = images[region];
  const int32_t level = levels ? levels[region] : roi_level(boxes + 4 * region, p.levels);
  if (image < 0 || image >= p.batch || level < 0 || level >= p.levels) return {-1, 0};
  return {image, level};
}

KERAS_MRCNN_DEVICE inline RoiAxis y_axis(const Arguments& a, int64_t region, int32_t level) {
  const float* box = a.boxes + 4 * region;
  return roi_axis(box[1], box[3], a.p.output_height, a.p.level[level].scale, a.p);
}

KERAS_MRCNN_DEVICE inline RoiAxis x_axis(const Arguments& a, int64_t region, int32_t level) {
  const float* box = a.boxes + 4 * region;
  return roi_axis(box[0], box[2], a.p.output_width, a.p.level[level].scale, a.p);
}

KERAS_MRCNN_HOST_DEVICE inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
KERAS_MRCNN_HOST_DEVICE inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The samples of a bin that are inside the map: their range in the grid, or the pixels for ROI_POOL.
KERAS_MRCNN_DEVICE inline RoiRange bin_samples(const RoiAlignParameters& p, const RoiAxis& axis, int64_t bin,
                                               int64_t size) {
  return p.method == ROI_POOL ? roi_pool_pixels(axis, bin, size) : roi_samples_inside(axis, bin, size);
}

KERAS_MRCNN_DEVICE inline RoiSample bin_sample(const RoiAlignParameters& p, const RoiAxis& axis, int64_t bin,
                                               int32_t sample, int64_t size) {
  if (p.method == ROI_POOL) return {sample, sample, 1.0f, 0.0f};
  return roi_interpolate(roi_position(axis, bin, sample), size);
}

// Pixels and weights of up to kSamples samples of a bin; a pixel that neighbouring samples share is one tap.
struct Taps {
  alignas(16) int32_t pixel[kTaps];
  alignas(16) float weight[kTaps];
  int32_t count;
  int32_t samples;  // of the whole bin, inside the map
};

KERAS_MRCNN_DEVICE inline void add_tap(Taps* taps, int32_t pixel, float weight) {
  // Positions are monotonic, so a pixel that was met before is one of the latest two.
  for (int32_t k = taps->count - 1; k >= 0 && k >= taps->count - 2; --k) {
    if (taps->pixel[k] == pixel) {
      taps->weight[k] += weight;
      return;
    }
  }
  taps->pixel[taps->count] = pixel;
  taps->weight[taps->count++] = weight;
}

// The taps of the samples [chunk * kSamples, (chunk + 1) * kSamples) among those inside the map.
KERAS_MRCNN_CALLED inline void build_taps(const RoiAxis& axis, int64_t bin, int64_t size, int32_t chunk,
                                          Taps* taps) {
  const RoiRange inside = roi_samples_inside(axis, bin, size);
  const int32_t begin = inside.begin + chunk * kSamples;
  const int32_t end = begin + kSamples < inside.end ? begin + kSamples : inside.end;
  taps->count = 0;
  taps->samples = inside.end - inside.begin;
  for (int32_t k = begin; k < end; ++k) {
    const RoiSample sample = roi_interpolate(roi_position(axis, bin, k), size);
    add_tap(taps, sample.low, sample.low_weight);
    add_tap(taps, sample.high, sample.high_weight);
  }
  for (int32_t k = 0; k < taps->count; ++k) taps->weight[k] /= static_cast<float>(axis.grid);
}

// The pixels [begin, end) that any bin of an axis may read, perhaps some more.
KERAS_MRCNN_DEVICE inline RoiRange axis_pixels(const RoiAxis& axis, int64_t bins, int64_t size) {
  if (axis.grid == 0) return {0, 0};
  const float length = axis.bin_length * static_cast<float>(bins);
  float low = axis.start < axis.start + length ? axis.start : axis.start + length;
  float high = axis.start < axis.start + length ? axis.start + length : axis.start;
  // Positions are rounded; this is several times what that can move them.
  const float margin = 1e-6f * (std::fabs(axis.start) + std::fabs(length));
  low -= margin, high += margin;
  if (high < -1.0f || low > static_cast<float>(size)) return {0, 0};
  const float last = static_cast<float>(size - 1);
  low = std::floor(low), high = std::floor(high) + 1.0f;
  low = low < 0.0f ? 0.0f : low > last ? last : low;
  high = high < 0.0f ? 0.0f : high > last ? last : high;
  return {static_cast<int32_t>(low), static_cast<int32_t>(high) + 1};
}

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CUDA_REGIONS_H_
