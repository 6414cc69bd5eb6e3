#include "roi_align.h"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <limits>
#include <vector>

namespace {

// How far back to look for a pixel: positions along an axis are monotonic, so one that was met before is
// among the latest. One missed would cost time, not correctness.
constexpr std::ptrdiff_t kLatest = 3;

template <typename Item, typename Same>
std::ptrdiff_t find_latest(const std::vector<Item>& items, std::ptrdiff_t first, Same same) {
  const std::ptrdiff_t size = items.size();
  for (std::ptrdiff_t k = size - 1; k >= std::max(first, size - kLatest); --k) {
    if (same(items[k])) return k;
  }
  return -1;
}

// The average along one axis of one region, a sparse matrix of bins x pixels. The average over a bin is the
// product of two of these, so rows first and columns second reads gh + gw lines per bin instead of gh * gw
// points.
class AxisWeights {
 public:
  struct Tap {
    std::ptrdiff_t slot;  // index into pixels()
    float weight;
  };

  void build(const RoiAxis& axis, int64_t bins, int64_t size) {
    pixels_.clear();
    taps_.clear();
    starts_.assign(1, 0);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const RoiSampleRange inside = roi_samples_inside(axis, bin, size);
      for (int32_t k = inside.begin; k < inside.end; ++k) {
        const RoiSample sample = roi_interpolate(roi_position(axis, bin, k), size);
        add(sample.low, sample.low_weight);
        add(sample.high, sample.high_weight);
      }
      for (size_t k = starts_.back(); k < taps_.size(); ++k) taps_[k].weight /= static_cast<float>(axis.grid);
      starts_.push_back(taps_.size());
    }
  }

  const std::vector<int32_t>& pixels() const { return pixels_; }  // the pixels that any bin reads
  const Tap* begin(int64_t bin) const { return taps_.data() + starts_[bin]; }
  const Tap* end(int64_t bin) const { return taps_.data() + starts_[bin + 1]; }

 private:
  void add(int32_t pixel, float weight) {
    std::ptrdiff_t slot = find_latest(pixels_, 0, [&](int32_t other) { return other == pixel; });
    if (slot < 0) {
      slot = pixels_.size();
      pixels_.push_back(pixel);
    }
    const std::ptrdiff_t tap =
        find_latest(taps_, starts_.back(), [&](const Tap& other) { return other.slot == slot; });
    if (tap < 0) taps_.push_back({slot, weight});
    else taps_[tap].weight += weight;
  }

  std::vector<int32_t> pixels_;
  std::vector<Tap> taps_;       // bin after bin
  std::vector<size_t> starts_;  // of each bin in taps_, and the end
};

// The samples along one axis of one region that are inside the map, bin after bin.
class AxisSamples {
 public:
  void build(const RoiAxis& axis, int64_t bins, int64_t size) {
    samples_.clear();
    starts_.assign(1, 0);
    ranges_.clear();
    grid_ = axis.grid;
    for (int64_t bin = 0; bin < bins; ++bin) {
      ranges_.push_back(roi_samples_inside(axis, bin, size));
      for (int32_t k = ranges_.back().begin; k < ranges_.back().end; ++k) {
        samples_.push_back(roi_interpolate(roi_position(axis, bin, k), size));
      }
      starts_.push_back(samples_.size());
    }
  }

  const RoiSample* samples(int64_t bin) const { return samples_.data() + starts_[bin]; }
  int32_t count(int64_t bin) const { return ranges_[bin].end - ranges_[bin].begin; }
  bool first_is_outside(int64_t bin) const { return ranges_[bin].begin > 0; }
  bool any_is_outside(int64_t bin) const { return count(bin) < grid_; }

 private:
  std::vector<RoiSample> samples_;
  std::vector<size_t> starts_;
  std::vector<RoiSampleRange> ranges_;
  int32_t grid_ = 0;
};

inline void add_scaled(const float* __restrict__ from, float weight, int64_t count, float* __restrict__ to) {
  for (int64_t c = 0; c < count; ++c) to[c] += weight * from[c];
}

// A range of channels, [begin, end); pointers to pixels and bins point at the first of them.
struct Channels {
  int64_t begin;
  int64_t end;
  int64_t count() const { return end - begin; }
};

class Average {
 public:
  Average(const RoiAlignParameters& p, Channels channels) : p_(p), channels_(channels) {}

  void region(const RoiAxis& y, const RoiAxis& x) {
    rows_.build(y, p_.output_height, p_.height);
    columns_.build(x, p_.output_width, p_.width);
    line_.resize(columns_.pixels().size() * channels_.count());
  }

  void forward(const float* image, float* output) {
    for (int64_t i = 0; i < p_.output_height; ++i) {
      std::fill(line_.begin(), line_.end(), 0.0f);
      for (auto row = rows_.begin(i); row != rows_.end(i); ++row) {
        for (size_t k = 0; k < columns_.pixels().size(); ++k) {
          add_scaled(image + offset(*row, k), row->weight, channels_.count(), slot(k));
        }
      }
      for (int64_t j = 0; j < p_.output_width; ++j, output += p_.channels) {
        std::fill_n(output, channels_.count(), 0.0f);
        for (auto column = columns_.begin(j); column != columns_.end(j); ++column) {
          add_scaled(slot(column->slot), column->weight, channels_.count(), output);
        }
      }
    }
  }

  void backward(const float*, const float* output_gradient, float* gradient) {
    for (int64_t i = 0; i < p_.output_height; ++i) {
      std::fill(line_.begin(), line_.end(), 0.0f);
      for (int64_t j = 0; j < p_.output_width; ++j, output_gradient += p_.channels) {
        for (auto column = columns_.begin(j); column != columns_.end(j); ++column) {
          add_scaled(output_gradient, column->weight, channels_.count(), slot(column->slot));
        }
      }
      for (auto row = rows_.begin(i); row != rows_.end(i); ++row) {
        for (size_t k = 0; k < columns_.pixels().size(); ++k) {
          add_scaled(slot(k), row->weight, channels_.count(), gradient + offset(*row, k));
        }
      }
    }
  }

 private:
  int64_t offset(const AxisWeights::Tap& row, size_t column) const {
    return (rows_.pixels()[row.slot] * p_.width + columns_.pixels()[column]) * p_.channels;
  }
  float* slot(size_t column) { return line_.data() + column * channels_.count(); }

  const RoiAlignParameters p_;
  const Channels channels_;
  AxisWeights rows_, columns_;
  std::vector<float> line_;  // one row of bins, still at the columns of the map
};

class Maximum {
 public:
  Maximum(const RoiAlignParameters& p, Channels channels)
      : p_(p), channels_(channels), best_(channels.count()), which_(channels.count()) {}

  void region(const RoiAxis& y, const RoiAxis& x) {
    rows_.build(y, p_.output_height, p_.height);
    columns_.build(x, p_.output_width, p_.width);
  }

  void forward(const float* image, float* output) {
    for (int64_t i = 0; i < p_.output_height; ++i) {
      for (int64_t j = 0; j < p_.output_width; ++j, output += p_.channels) {
        find(image, i, j);
        std::copy(best_.begin(), best_.end(), output);
      }
    }
  }

  void backward(const float* image, const float* output_gradient, float* gradient) {
    for (int64_t i = 0; i < p_.output_height; ++i) {
      for (int64_t j = 0; j < p_.output_width; ++j, output_gradient += p_.channels) {
        find(image, i, j);
        for (int64_t c = 0; c < channels_.count(); ++c) {
          if (which_[c] == kNone) continue;
          const Corners corners(*this, i, j, which_[c]);
          for (int k = 0; k < 4; ++k) {
            gradient[corners.offset[k] + c] += corners.weight[k] * output_gradient[c];
          }
        }
      }
    }
  }

 private:
  static constexpr int32_t kNone = -1;  // a sample outside the map, or no sample

  // The four pixels of a sample; samples are numbered row by row over those inside the map.
  struct Corners {
    Corners(const Maximum& m, int64_t i, int64_t j, int32_t number) {
      const RoiSample y = m.rows_.samples(i)[number / m.columns_.count(j)];
      const RoiSample x = m.columns_.samples(j)[number % m.columns_.count(j)];
      set(0, m.p_, y.low, x.low, y.low_weight * x.low_weight);
      set(1, m.p_, y.low, x.high, y.low_weight * x.high_weight);
      set(2, m.p_, y.high, x.low, y.high_weight * x.low_weight);
      set(3, m.p_, y.high, x.high, y.high_weight * x.high_weight);
    }
    void set(int k, const RoiAlignParameters& p, int64_t row, int64_t column, float value) {
      offset[k] = (row * p.width + column) * p.channels;
      weight[k] = value;
    }
    int64_t offset[4];
    float weight[4];
  };

  // Where among the numbered samples the first outside the map stands, in row-major order of the whole grid.
  int32_t first_outside(int64_t i, int64_t j) const {
    const int32_t rows = rows_.count(i), columns = columns_.count(j);
    if (rows_.first_is_outside(i) || columns_.first_is_outside(j)) return 0;
    if (columns_.any_is_outside(j)) return columns;  // behind the first row
    if (rows_.any_is_outside(i)) return rows * columns;
    return kNone;
  }

  // The largest sample of a bin per channel, and the number of the first that is as large. It matters which
  // one: after a ReLU, samples inside the map are often exactly 0, like those outside.
  void find(const float* image, int64_t i, int64_t j) {
    const int32_t count = rows_.count(i) * columns_.count(j);
    std::fill(which_.begin(), which_.end(), kNone);
    std::fill(best_.begin(), best_.end(), count ? -std::numeric_limits<float>::infinity() : 0.0f);
    if (count == 0) return;
    const int32_t outside = first_outside(i, j);
    for (int32_t number = 0; number < count; ++number) {
      if (number == outside) compare_outside();
      compare(image, Corners(*this, i, j, number), number);
    }
    if (outside == count) compare_outside();
  }

  void compare(const float* image, const Corners& corners, int32_t number) {
    const float* __restrict__ a = image + corners.offset[0];
    const float* __restrict__ b = image + corners.offset[1];
    const float* __restrict__ c = image + corners.offset[2];
    const float* __restrict__ d = image + corners.offset[3];
    const float wa = corners.weight[0], wb = corners.weight[1];
    const float wc = corners.weight[2], wd = corners.weight[3];
    float* __restrict__ best = best_.data();
    int32_t* __restrict__ which = which_.data();
    for (int64_t k = 0; k < channels_.count(); ++k) {
      const float value = wa * a[k] + wb * b[k] + wc * c[k] + wd * d[k];
      const bool better = value > best[k] || value != value;  // a NaN shall be seen in the output
      best[k] = better ? value : best[k];
      which[k] = better ? number : which[k];
    }
  }

  void compare_outside() {
    for (int64_t k = 0; k < channels_.count(); ++k) {
      if (best_[k] < 0.0f) {
        best_[k] = 0.0f;
        which_[k] = kNone;
      }
    }
  }

  const RoiAlignParameters p_;
  const Channels channels_;
  AxisSamples rows_, columns_;
  std::vector<float> best_;
  std::vector<int32_t> which_;
};

template <typename Reduction, typename Work>
void walk(Reduction reduction, const RoiAlignParameters& p, const float* boxes, int64_t begin, int64_t end,
          Work work) {
  for (int64_t region = begin; region < end; ++region) {
    const float* box = boxes + 4 * region;
    reduction.region(roi_axis(box[1], box[3], p.output_height, p),
                     roi_axis(box[0], box[2], p.output_width, p));
    work(reduction, region);
  }
}

// Checks everything, then calls `work` with a reduction that is set to the region, and the region.
template <typename Work>
int32_t for_each_region(const RoiAlignParameters& p, Channels channels, const float* boxes,
                        const int32_t* images, int64_t begin, int64_t end, int64_t* bad_region, Work work) {
  const bool valid = roi_parameters_valid(p) && 0 <= begin && begin <= end && 0 <= channels.begin &&
                     channels.begin <= channels.end && channels.end <= p.channels;
  if (!valid) return ROI_ALIGN_INVALID_PARAMETERS;
  for (int64_t region = begin; region < end; ++region) {
    if (images[region] < 0 || images[region] >= p.batch) {
      *bad_region = region;
      return ROI_ALIGN_INVALID_IMAGE;
    }
  }
  if (channels.count() == 0) return ROI_ALIGN_OK;
  try {  // no exception may leave through the C interface
    if (p.maximum) walk(Maximum(p, channels), p, boxes, begin, end, work);
    else walk(Average(p, channels), p, boxes, begin, end, work);
  } catch (const std::exception&) {  // only the vectors throw
    return ROI_ALIGN_OUT_OF_MEMORY;
  }
  return ROI_ALIGN_OK;
}

int64_t image_size(const RoiAlignParameters& p) { return p.height * p.width * p.channels; }
int64_t region_size(const RoiAlignParameters& p) { return p.output_height * p.output_width * p.channels; }

}  // namespace

int32_t keras_mrcnn_roi_align_forward(const RoiAlignParameters* parameters, const float* features,
                                      const float* boxes, const int32_t* images, int64_t begin, int64_t end,
                                      float* output, int64_t* bad_region) {
  const RoiAlignParameters& p = *parameters;
  return for_each_region(p, {0, p.channels}, boxes, images, begin, end, bad_region,
                         [&](auto& reduction, int64_t region) {
                           reduction.forward(features + images[region] * image_size(p),
                                             output + region * region_size(p));
                         });
}

int32_t keras_mrcnn_roi_align_backward(const RoiAlignParameters* parameters, const float* features,
                                       const float* boxes, const int32_t* images, int64_t begin, int64_t end,
                                       int64_t channel_begin, int64_t channel_end,
                                       const float* output_gradient, float* gradient, int64_t* bad_region) {
  const RoiAlignParameters& p = *parameters;
  return for_each_region(p, {channel_begin, channel_end}, boxes, images, begin, end, bad_region,
                         [&](auto& reduction, int64_t region) {
                           const int64_t image = images[region] * image_size(p) + channel_begin;
                           reduction.backward(features ? features + image : nullptr,
                                              output_gradient + region * region_size(p) + channel_begin,
                                              gradient + image);
                         });
}
