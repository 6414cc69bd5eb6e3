// The output of all regions.
//
// A block makes up to kBins bins of one row of bins of a region, all channels. First one thread per bin finds
// the taps along x, and one those of the row along y: the pixels that the bin's samples read, each once, with
// weights that already hold the average. Then the threads are spread over (bin, vector of channels);
// neighbours in a warp read neighbouring addresses. A bin costs (taps along y) x (taps along x) vectors
// instead of four per sample. Bins with more samples than kSamples along an axis take several rounds.
#ifndef KERAS_MRCNN_CUDA_FORWARD_H_
#define KERAS_MRCNN_CUDA_FORWARD_H_

#include "regions.h"

namespace keras_mrcnn {

// Which bins a block makes.
struct Row {
  int64_t region;
  int64_t i;
  int64_t first_j;
  int bins;
};

KERAS_MRCNN_HOST_DEVICE inline int64_t row_count(const RoiAlignParameters& p) {
  return p.regions * p.output_height * ceil_divide(p.output_width, kBins);
}

KERAS_MRCNN_DEVICE inline Row find_row(const RoiAlignParameters& p, int64_t number) {
  const int64_t parts = ceil_divide(p.output_width, kBins);
  Row row;
  row.first_j = number % parts * kBins;
  row.i = number / parts % p.output_height;
  row.region = number / parts / p.output_height;
  row.bins = static_cast<int>(smaller(kBins, p.output_width - row.first_j));
  return row;
}

// How many rounds of kSamples samples the bins need; `one`: no bin has more.
template <typename Lists>
KERAS_MRCNN_DEVICE inline int32_t count_rounds(bool one, const Lists* lists, int bins) {
  if (one) return 1;
  int32_t most = 1;
  for (int k = 0; k < bins; ++k) most = lists[k].samples > most ? lists[k].samples : most;
  return (most + kSamples - 1) / kSamples;
}

template <typename T, int kCount>
struct ForwardAverage {
  static constexpr int kResidentBlocks = sizeof(T) == 4 ? 4 : 3;  // on a multiprocessor; bounds the registers
  static constexpr int kAtOnce = 4;  // loads that do not wait for each other

  struct Shared {
    Taps columns[kBins];
    Taps row;
  };

  Arguments a;
  T* output;

  int64_t blocks() const { return row_count(a.p); }

  template <typename Block>
  KERAS_MRCNN_DEVICE void operator()(Block& block, Shared& shared) const {
    for (int64_t number = block.index(); number < row_count(a.p); number += block.count()) {
      make_row(block, shared, find_row(a.p, number));
    }
  }

 private:
  template <typename Block>
  KERAS_MRCNN_DEVICE void make_row(Block& block, Shared& shared, const Row& row) const {
    const Place place = find_place(a.p, a.boxes, a.images, a.levels, row.region);
    const RoiLevel& level = a.p.level[place.level];
    RoiAxis y = y_axis(a, row.region, place.level), x = x_axis(a, row.region, place.level);
    if (place.image < 0) y.grid = 0;
    const T* image = static_cast<const T*>(a.features[place.level]) +
                     (place.image < 0 ? 0 : place.image) * level.height * level.width * a.p.channels;
    auto build = [&](int32_t y_round, int32_t x_round) {
      block.sync();  // the lists of before are no longer read
      block.run([&](int thread) {
        if (thread < row.bins) {
          build_taps(x, row.first_j + thread, level.width, x_round, &shared.columns[thread]);
        } else if (thread == kBins) {
          build_taps(y, row.i, level.height, y_round, &shared.row);
        }
      });
      block.sync();
    };
    build(0, 0);
    const int32_t y_rounds = count_rounds(y.grid <= kSamples, &shared.row, 1);
    const int32_t x_rounds = count_rounds(x.grid <= kSamples, shared.columns, row.bins);
    const int32_t vectors = static_cast<int32_t>(a.p.channels / kCount), items = row.bins * vectors;
    for (int32_t first = 0; first < items; first += kThreads) {
      typename Block::template Own<Floats<kCount>> sums;
      block.run([&](int thread) { sums[thread] = zeros<kCount>(); });
      for (int32_t y_round = 0; y_round < y_rounds; ++y_round) {
        for (int32_t x_round = 0; x_round < x_rounds; ++x_round) {
          if (y_rounds * static_cast<int64_t>(x_rounds) > 1) build(y_round, x_round);
          block.run([&](int thread) {
            const int32_t item = first + thread;
            if (item < items)
              add_bin(shared, image, level.width, item / vectors, item % vectors, &sums[thread]);
          });
        }
      }
      block.run([&](int thread) {
        const int32_t item = first + thread;
        if (item >= items) return;
        const int64_t bin =
            (row.region * a.p.output_height + row.i) * a.p.output_width + row.first_j + item / vectors;
        store<kCount>(sums[thread], output + bin * a.p.channels + item % vectors * kCount);
      });
    }
  }

  KERAS_MRCNN_DEVICE void add_bin(const Shared& shared, const T* image, int64_t width, int32_t bin,
                                  int32_t vector, Floats<kCount>* sum) const {
    const Taps& columns = shared.columns[bin];
    const T* channel = image + vector * kCount;
    const int32_t channels = static_cast<int32_t>(a.p.channels);
    KERAS_MRCNN_LOOP
    for (int32_t r = 0; r < shared.row.count; ++r) {
      const T* line = channel + shared.row.pixel[r] * width * channels;
      Floats<kCount> line_sum = zeros<kCount>();
      int32_t k = 0;
      KERAS_MRCNN_LOOP
      for (; k + kAtOnce <= columns.count; k += kAtOnce) {
        Vector<T, kCount> values[kAtOnce];
        KERAS_MRCNN_UNROLL
        for (int n = 0; n < kAtOnce; ++n) {
          values[n] = load<kCount>(line + static_cast<int64_t>(columns.pixel[k + n]) * channels);
        }
        KERAS_MRCNN_UNROLL
        for (int n = 0; n < kAtOnce; ++n) add_scaled(values[n], columns.weight[k + n], &line_sum);
      }
      KERAS_MRCNN_LOOP
      for (; k < columns.count; ++k) {
        const T* from = line + static_cast<int64_t>(columns.pixel[k]) * channels;
        add_scaled(load<kCount>(from), columns.weight[k], &line_sum);
      }
      add_scaled(line_sum, shared.row.weight[r], sum);
    }
  }
};

// A round of samples of one bin along one axis.
struct Samples {
  RoiSample sample[kSamples];
  int32_t count;
  int32_t first;    // number of sample[0] among those inside the map
  int32_t samples;  // of the whole bin, inside the map
  int32_t begin;    // number of the first of these in the grid; more than 0: there are some outside before it
  int32_t grid;
};

// The largest sample of each bin. Candidates are numbered (along y) << 16 | (along x), counted from the first
// inside the map, and the first of equals is taken, so the order of rounds does not matter. The samples
// outside are one candidate, 0, at the place of the first of them.
template <typename T, int kCount>
struct ForwardMaximum {
  static constexpr int kResidentBlocks = 2;

  struct Shared {
    Samples columns[kBins];
    Samples row;
  };

  Arguments a;
  T* output;        // the largest sample; may be null
  uint32_t* which;  // its number, kNoSample for one outside; may be null

  int64_t blocks() const { return row_count(a.p); }

  template <typename Block>
  KERAS_MRCNN_DEVICE void operator()(Block& block, Shared& shared) const {
    for (int64_t number = block.index(); number < row_count(a.p); number += block.count()) {
      make_row(block, shared, find_row(a.p, number));
    }
  }

 private:
  struct Best {
    Floats<kCount> value;
    uint32_t which[kCount];
  };

  KERAS_MRCNN_CALLED void build_samples(const RoiAxis& axis, int64_t bin, int64_t size, int32_t round,
                                        Samples* s) const {
    const RoiRange inside = bin_samples(a.p, axis, bin, size);
    s->samples = inside.end - inside.begin;
    s->begin = inside.begin;
    s->grid = axis.grid;
    s->first = round * kSamples;
    s->count = 0;
    for (int32_t k = s->first; k < s->samples && k < s->first + kSamples; ++k) {
      s->sample[s->count++] = bin_sample(a.p, axis, bin, inside.begin + k, size);
    }
  }

  template <typename Block>
  KERAS_MRCNN_DEVICE void make_row(Block& block, Shared& shared, const Row& row) const {
    const Place place = find_place(a.p, a.boxes, a.images, a.levels, row.region);
    const RoiLevel& level = a.p.level[place.level];
    RoiAxis y = y_axis(a, row.region, place.level), x = x_axis(a, row.region, place.level);
    if (place.image < 0) y.grid = 0;
    const T* image = static_cast<const T*>(a.features[place.level]) +
                     (place.image < 0 ? 0 : place.image) * level.height * level.width * a.p.channels;
    auto build = [&](int32_t y_round, int32_t x_round) {
      block.sync();
      block.run([&](int thread) {
        if (thread < row.bins) {
          build_samples(x, row.first_j + thread, level.width, x_round, &shared.columns[thread]);
        } else if (thread == kBins) {
          build_samples(y, row.i, level.height, y_round, &shared.row);
        }
      });
      block.sync();
    };
    build(0, 0);
    const bool pool = a.p.method == ROI_POOL;  // as many samples as pixels
    const int32_t y_rounds = count_rounds(!pool && y.grid <= kSamples, &shared.row, 1);
    const int32_t x_rounds = count_rounds(!pool && x.grid <= kSamples, shared.columns, row.bins);
    const int32_t vectors = static_cast<int32_t>(a.p.channels / kCount), items = row.bins * vectors;
    for (int32_t first = 0; first < items; first += kThreads) {
      typename Block::template Own<Best> bests;
      block.run([&](int thread) { start(&bests[thread]); });
      for (int32_t y_round = 0; y_round < y_rounds; ++y_round) {
        for (int32_t x_round = 0; x_round < x_rounds; ++x_round) {
          if (y_rounds * static_cast<int64_t>(x_rounds) > 1) build(y_round, x_round);
          block.run([&](int thread) {
            const int32_t item = first + thread;
            if (item >= items) return;
            compare(shared.row, shared.columns[item / vectors], image + item % vectors * kCount, level.width,
                    &bests[thread]);
          });
        }
      }
      block.run([&](int thread) {
        const int32_t item = first + thread;
        if (item >= items) return;
        finish(shared.row, shared.columns[item / vectors], &bests[thread]);
        const int64_t bin =
            (row.region * a.p.output_height + row.i) * a.p.output_width + row.first_j + item / vectors;
        write(bests[thread], bin * a.p.channels + item % vectors * kCount);
      });
    }
  }

  KERAS_MRCNN_DEVICE static void start(Best* best) {
    KERAS_MRCNN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      best->value.values[k] = -INFINITY;
      best->which[k] = kNoSample;
    }
  }

  KERAS_MRCNN_DEVICE void compare(const Samples& rows, const Samples& columns, const T* channel,
                                  int64_t width, Best* best) const {
    for (int32_t r = 0; r < rows.count; ++r) {
      const RoiSample y = rows.sample[r];
      const T* low = channel + y.low * width * a.p.channels;
      const T* high = channel + y.high * width * a.p.channels;
      KERAS_MRCNN_LOOP
      for (int32_t k = 0; k < columns.count; ++k) {
        const RoiSample x = columns.sample[k];
        Floats<kCount> value;
        if (a.p.method == ROI_POOL) {
          value = widen(load<kCount>(low + x.low * a.p.channels));
        } else {
          value = zeros<kCount>();
          add_scaled(load<kCount>(low + x.low * a.p.channels), y.low_weight * x.low_weight, &value);
          add_scaled(load<kCount>(low + x.high * a.p.channels), y.low_weight * x.high_weight, &value);
          add_scaled(load<kCount>(high + x.low * a.p.channels), y.high_weight * x.low_weight, &value);
          add_scaled(load<kCount>(high + x.high * a.p.channels), y.high_weight * x.high_weight, &value);
        }
        take(value, static_cast<uint32_t>(rows.first + r) << 16 | static_cast<uint32_t>(columns.first + k),
             best);
      }
    }
  }

  KERAS_MRCNN_DEVICE static void take(const Floats<kCount>& value, uint32_t number, Best* best) {
    KERAS_MRCNN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      const float v = value.values[k], other = best->value.values[k];
      const bool better = v > other || v != v || (v == other && number < best->which[k]);
      best->value.values[k] = better ? v : other;
      best->which[k] = better ? number : best->which[k];
    }
  }

  // Compares with the samples outside. A bin without samples inside is 0.
  KERAS_MRCNN_DEVICE void finish(const Samples& rows, const Samples& columns, Best* best) const {
    const bool empty = rows.samples == 0 || columns.samples == 0;
    bool outside = false;
    uint32_t first_outside = 0;
    if (!empty && a.p.method != ROI_POOL) {
      outside = rows.samples < rows.grid || columns.samples < columns.grid;
      if (rows.begin > 0 || columns.begin > 0) first_outside = 0;
      else if (columns.samples < columns.grid) first_outside = columns.samples;  // behind the first row
      else first_outside = static_cast<uint32_t>(rows.samples) << 16;
    }
    KERAS_MRCNN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      const float value = best->value.values[k];
      if (empty || (outside && (value < 0.0f || (value == 0.0f && first_outside <= best->which[k])))) {
        best->value.values[k] = 0.0f;
        best->which[k] = kNoSample;
      }
    }
  }

  KERAS_MRCNN_DEVICE void write(const Best& best, int64_t offset) const {
    if (output) store<kCount>(best.value, output + offset);
    if (!which) return;
    KERAS_MRCNN_UNROLL
    for (int k = 0; k < kCount; ++k) which[offset + k] = best.which[k];
  }
};

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CUDA_FORWARD_H_
