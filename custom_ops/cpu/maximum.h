// The largest sample, forward and backward; also RoIPool, whose samples are the pixels of a bin. A row of samples
// is interpolated along y once for all bins it crosses. The gradient goes to the first of the largest samples,
// which is searched for again: nothing is kept from the forward pass.
#ifndef KERAS_MRCNN_CPU_MAXIMUM_H_
#define KERAS_MRCNN_CPU_MAXIMUM_H_

#include <algorithm>
#include <limits>
#include <vector>

#include "average.h"

namespace keras_mrcnn {

class Maximum {
 public:
  explicit Maximum(const RoiAlignParameters& p)
      : p_(p), loops_(roi_channel_loops(p.type)), element_(p.type == ROI_FLOAT32 ? 4 : 2) {}

  void forward(const Region& region, Channels channels, const char* map, char* output) {
    set(region, channels.count);
    for (int64_t i = 0; i < p_.output_height; ++i) {
      find(region, channels, map, i);
      set_terms(channels.count);
      loops_.write(best_.data(), terms_.data(), one_each_.data(), p_.output_width, channels.count,
                   output + (i * p_.output_width * p_.channels + channels.begin) * element_, p_.channels);
    }
  }

  void backward(const Region& region, Channels channels, const char* map, const char* output_gradient,
                const Band& band, BandSum sum) {
    set(region, channels.count);
    set_terms(p_.channels);
    for (int64_t i = 0; i < p_.output_height; ++i) {
      if (!reaches(i, band)) continue;
      find(region, channels, map, i);
      loops_.read(output_gradient + (i * p_.output_width * p_.channels + channels.begin) * element_,
                  terms_.data(), one_each_.data(), p_.output_width, channels.count, best_.data(),
                  channels.count);
      for (int64_t j = 0; j < p_.output_width; ++j) {
        for (int64_t c = 0; c < channels.count; ++c) {
          const uint32_t which = which_[j * channels.count + c];
          if (which == kRoiNoSample) continue;
          add(rows_.sample(i, which >> 16), columns_.sample(j, which & 0xffffu), band, sum, c,
              best_[j * channels.count + c]);
        }
      }
    }
  }

 private:
  typedef AxisSamples::Sample Sample;

  void set(const Region& region, int64_t channels) {
    const RoiLevel& level = p_.level[region.level];
    rows_.build(region.y, p_.output_height, level.height, p_.method == ROI_POOL);
    columns_.build(region.x, p_.output_width, level.width, p_.method == ROI_POOL);
    const int64_t outside = columns_.pixels.size();  // behind the columns, a vector of zeros
    shifts_.clear();
    for (int64_t k = 0; k < outside; ++k) shifts_.push_back(columns_.pixels[k] * p_.channels);
    picks_.clear();
    for (int64_t j = 0; j < p_.output_width; ++j) {
      for (int64_t n = 0; n < columns_.count(j); ++n) {
        const Sample& sample = columns_.sample(j, n);
        const bool inside = sample.low != AxisSamples::kOutside;
        picks_.push_back({(inside ? sample.low : outside) * channels, (inside ? sample.high : outside) * channels,
                          sample.low_weight, sample.high_weight,
                          inside ? static_cast<uint32_t>(n) : kRoiNoSample});
      }
    }
    line_.assign((outside + 1) * channels, 0.0f);
    best_.resize(p_.output_width * channels);
    which_.resize(p_.output_width * channels);
  }

  // Bins one by one, `step` apart.
  void set_terms(int64_t step) {
    terms_.clear();
    one_each_.assign(1, 0);
    for (int64_t j = 0; j < p_.output_width; ++j) {
      terms_.push_back({j * step, 1.0f});
      one_each_.push_back(j + 1);
    }
  }

  // The largest samples of a row of bins, and which they are: the number along y, 16 bits of that along x.
  // It matters which: after a ReLU, samples inside the map are often exactly 0, like those outside.
  void find(const Region& region, Channels channels, const char* map, int64_t i) {
    const int64_t row_step = p_.level[region.level].width * p_.channels;
    std::fill(which_.begin(), which_.end(), kRoiNoSample);
    for (int64_t j = 0; j < p_.output_width; ++j) {
      const bool empty = rows_.count(i) == 0 || columns_.count(j) == 0;
      std::fill_n(best_.begin() + j * channels.count, channels.count,
                  empty ? 0.0f : -std::numeric_limits<float>::infinity());
    }
    for (int64_t n = 0; n < rows_.count(i); ++n) {
      const Sample& sample = rows_.sample(i, n);
      if (sample.low == AxisSamples::kOutside) {
        compare_outside();
        continue;
      }
      const RoiTerm terms[] = {{rows_.pixels[sample.low] * row_step, sample.low_weight},
                               {rows_.pixels[sample.high] * row_step, sample.high_weight}};
      loops_.gather(map + channels.begin * element_, terms, sample.high_weight != 0.0f ? 2 : 1, shifts_.data(),
                    shifts_.size(), channels.count, line_.data());
      loops_.largest(line_.data(), picks_.data(), columns_.starts.data(), p_.output_width, channels.count,
                     static_cast<uint32_t>(n) << 16, best_.data(), which_.data());
    }
  }

  void compare_outside() {
    for (size_t k = 0; k < best_.size(); ++k) {
      if (best_[k] < 0.0f) best_[k] = 0.0f, which_[k] = kRoiNoSample;
    }
  }

  bool reaches(int64_t i, const Band& band) const {
    for (int64_t n = 0; n < rows_.count(i); ++n) {
      const Sample& sample = rows_.sample(i, n);
      if (sample.low == AxisSamples::kOutside) continue;
      if (rows_.pixels[sample.high] >= band.begin && rows_.pixels[sample.low] < band.end) return true;
    }
    return false;
  }

  // A gradient's shares to the pixels of a sample that are in the band.
  void add(const Sample& y, const Sample& x, const Band& band, BandSum sum, int64_t channel, float gradient) {
    const auto to_row = [&](int64_t slot, float weight) {
      const int64_t row = rows_.pixels[slot];
      if (weight == 0.0f || row < band.begin || row >= band.end) return;
      float* to = sum.data + (row - band.begin) * sum.row_step + channel;
      to[columns_.pixels[x.low] * sum.pixel_step] += weight * x.low_weight * gradient;
      if (x.high_weight != 0.0f) {
        to[columns_.pixels[x.high] * sum.pixel_step] += weight * x.high_weight * gradient;
      }
    };
    to_row(y.low, y.low_weight);
    to_row(y.high, y.high_weight);
  }

  const RoiAlignParameters& p_;
  const RoiChannelLoops& loops_;
  const int64_t element_;  // bytes
  AxisSamples rows_, columns_;
  std::vector<int64_t> shifts_;  // of the columns in the map
  std::vector<RoiPick> picks_;   // the samples of the columns
  std::vector<float> line_;      // a row of samples at the columns of the map, and a zero
  std::vector<float> best_;      // of a row of bins
  std::vector<uint32_t> which_;
  std::vector<RoiTerm> terms_;
  std::vector<int64_t> one_each_;
};

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CPU_MAXIMUM_H_
