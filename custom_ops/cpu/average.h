// The average of samples, forward and backward. The average over a bin is the product of two averages along the
// axes, so rows first and columns second reads gh + gw lines per bin instead of gh * gw points: `line` is a row
// of bins that still has the columns of the map.
#ifndef KERAS_MRCNN_CPU_AVERAGE_H_
#define KERAS_MRCNN_CPU_AVERAGE_H_

#include <vector>

#include "axes.h"
#include "channels.h"
#include "plan.h"

namespace keras_mrcnn {

// Channels [begin, begin + count).
struct Channels {
  int64_t begin;
  int64_t count;
};

// Where a band's gradient is added up: the first channel of its first pixel, and the steps between floats.
struct BandSum {
  float* data;
  int64_t row_step;
  int64_t pixel_step;
};

class Average {
 public:
  explicit Average(const RoiAlignParameters& p)
      : p_(p), loops_(roi_channel_loops(p.type)), element_(p.type == ROI_FLOAT32 ? 4 : 2) {}

  // `map` is the region's image on its level, `output` the region's.
  void forward(const Region& region, Channels channels, const char* map, char* output) {
    set(region, channels.count, p_.channels);
    const int64_t row_step = p_.level[region.level].width * p_.channels;
    terms_.clear();
    for (const auto& tap : columns_.taps) terms_.push_back({tap.slot * channels.count, tap.weight});
    for (int64_t i = 0; i < p_.output_height; ++i) {
      row_terms_.clear();
      for (int64_t k = rows_.starts[i]; k < rows_.starts[i + 1]; ++k) {
        row_terms_.push_back({rows_.pixels[rows_.taps[k].slot] * row_step, rows_.taps[k].weight});
      }
      loops_.gather(map + channels.begin * element_, row_terms_.data(), row_terms_.size(), shifts_.data(),
                    shifts_.size(), channels.count, line_.data());
      loops_.write(line_.data(), terms_.data(), columns_.starts.data(), p_.output_width, channels.count,
                   output + (i * p_.output_width * p_.channels + channels.begin) * element_, p_.channels);
    }
  }

  // Adds the region's share of a band. The map is not read.
  void backward(const Region& region, Channels channels, const char*, const char* output_gradient,
                const Band& band, BandSum sum) {
    set(region, channels.count, sum.pixel_step);
    transpose_columns();
    for (int64_t i = 0; i < p_.output_height; ++i) {
      row_terms_.clear();
      for (int64_t k = rows_.starts[i]; k < rows_.starts[i + 1]; ++k) {
        const int64_t row = rows_.pixels[rows_.taps[k].slot];
        if (row < band.begin || row >= band.end) continue;
        row_terms_.push_back({(row - band.begin) * sum.row_step, rows_.taps[k].weight});
      }
      if (row_terms_.empty()) continue;
      loops_.read(output_gradient + (i * p_.output_width * p_.channels + channels.begin) * element_,
                  terms_.data(), slot_starts_.data(), shifts_.size(), channels.count, line_.data(),
                  channels.count);
      loops_.scatter(line_.data(), row_terms_.data(), row_terms_.size(), shifts_.data(), shifts_.size(),
                     channels.count, sum.data);
    }
  }

 private:
  void set(const Region& region, int64_t channels, int64_t pixel_step) {
    const RoiLevel& level = p_.level[region.level];
    rows_.build(region.y, p_.output_height, level.height);
    columns_.build(region.x, p_.output_width, level.width);
    shifts_.clear();
    for (int64_t k = 0; k < columns_.pixels.size(); ++k) shifts_.push_back(columns_.pixels[k] * pixel_step);
    line_.resize(shifts_.size() * channels);
  }

  // terms_: for every column of the map, the bins that it is in.
  void transpose_columns() {
    slot_starts_.assign(columns_.pixels.size() + 1, 0);
    for (const auto& tap : columns_.taps) ++slot_starts_[tap.slot + 1];
    for (size_t k = 1; k < slot_starts_.size(); ++k) slot_starts_[k] += slot_starts_[k - 1];
    next_ = slot_starts_;
    terms_.resize(columns_.taps.size());
    for (const auto& tap : columns_.taps) terms_[next_[tap.slot]++] = {tap.bin * p_.channels, tap.weight};
  }

  const RoiAlignParameters& p_;
  const RoiChannelLoops& loops_;
  const int64_t element_;  // bytes
  AxisWeights rows_, columns_;
  std::vector<int64_t> shifts_;                    // of the columns in the map
  std::vector<RoiTerm> row_terms_, terms_;         // of a row of bins; of the columns
  std::vector<int64_t> slot_starts_, next_;        // of the columns in terms_, when transposed
  std::vector<float> line_;
};

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CPU_AVERAGE_H_
