// One axis of one region, worked out for the loops: which pixels its bins read, and with which weights.
#ifndef KERAS_MRCNN_CPU_AXES_H_
#define KERAS_MRCNN_CPU_AXES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../roi_align_geometry.h"

namespace keras_mrcnn {

// How far back to look for a pixel: positions along an axis are monotonic, so one that was met before is among
// the latest. One missed would cost time, not correctness.
constexpr int64_t kLatest = 3;

// The pixels that an axis reads, each with a number, its slot.
class Pixels {
 public:
  void clear() { pixels_.clear(); }
  int64_t slot(int32_t pixel) {
    const int64_t size = pixels_.size();
    for (int64_t k = size - 1; k >= std::max<int64_t>(0, size - kLatest); --k) {
      if (pixels_[k] == pixel) return k;
    }
    pixels_.push_back(pixel);
    return size;
  }
  int64_t size() const { return pixels_.size(); }
  int32_t operator[](int64_t slot) const { return pixels_[slot]; }

 private:
  std::vector<int32_t> pixels_;
};

// The average along one axis, a sparse matrix of bins x pixels.
class AxisWeights {
 public:
  struct Tap {
    int64_t bin;
    int64_t slot;
    float weight;
  };

  void build(const RoiAxis& axis, int64_t bins, int64_t size) {
    pixels.clear();
    taps.clear();
    starts.assign(1, 0);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const RoiRange inside = roi_samples_inside(axis, bin, size);
      for (int32_t k = inside.begin; k < inside.end; ++k) {
        const RoiSample sample = roi_interpolate(roi_position(axis, bin, k), size);
        add(bin, sample.low, sample.low_weight);
        if (sample.high_weight != 0.0f) add(bin, sample.high, sample.high_weight);
      }
      for (size_t k = starts.back(); k < taps.size(); ++k) taps[k].weight /= static_cast<float>(axis.grid);
      starts.push_back(taps.size());
    }
  }

  Pixels pixels;
  std::vector<Tap> taps;        // bin after bin
  std::vector<int64_t> starts;  // of each bin in `taps`, and the end

 private:
  void add(int64_t bin, int32_t pixel, float weight) {
    const int64_t slot = pixels.slot(pixel), size = taps.size();
    for (int64_t k = size - 1; k >= std::max(starts.back(), size - kLatest); --k) {
      if (taps[k].slot == slot) {
        taps[k].weight += weight;
        return;
      }
    }
    taps.push_back({bin, slot, weight});
  }
};

// The samples along one axis, bin after bin, in their order. Samples outside the map count as 0 wherever they
// stand, so of those before the samples inside, and of those behind, one each is kept.
class AxisSamples {
 public:
  struct Sample {
    int64_t low;  // slots; kOutside
    int64_t high;
    float low_weight;
    float high_weight;
  };
  static constexpr int64_t kOutside = -1;

  void build(const RoiAxis& axis, int64_t bins, int64_t size, bool whole_pixels) {
    pixels.clear();
    samples.clear();
    starts.assign(1, 0);
    for (int64_t bin = 0; bin < bins; ++bin) {
      if (whole_pixels) add_pixels(roi_pool_pixels(axis, bin, size));
      else add_samples(axis, bin, size);
      starts.push_back(samples.size());
    }
  }

  int64_t count(int64_t bin) const { return starts[bin + 1] - starts[bin]; }
  // Sample `number` of a bin.
  const Sample& sample(int64_t bin, int64_t number) const { return samples[starts[bin] + number]; }

  Pixels pixels;
  std::vector<Sample> samples;
  std::vector<int64_t> starts;  // of each bin in `samples`, and the end

 private:
  void add_pixels(RoiRange range) {
    for (int32_t pixel = range.begin; pixel < range.end; ++pixel) {
      const int64_t slot = pixels.slot(pixel);
      samples.push_back({slot, slot, 1.0f, 0.0f});
    }
  }

  void add_samples(const RoiAxis& axis, int64_t bin, int64_t size) {
    const RoiRange inside = roi_samples_inside(axis, bin, size);
    const Sample outside = {kOutside, kOutside, 1.0f, 0.0f};
    if (inside.begin > 0) samples.push_back(outside);
    for (int32_t k = inside.begin; k < inside.end; ++k) {
      const RoiSample sample = roi_interpolate(roi_position(axis, bin, k), size);
      samples.push_back({pixels.slot(sample.low), pixels.slot(sample.high), sample.low_weight,
                         sample.high_weight});
    }
    if (inside.end < axis.grid) samples.push_back(outside);
  }
};

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CPU_AXES_H_
