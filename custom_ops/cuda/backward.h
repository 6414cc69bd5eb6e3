// The gradient to the features: gathered, not scattered, so no atomics, and one order of summation.
//
// 1. index.h lists the regions of each map in their order, with the pixels they may read.
// 2. For ROI_MAXIMUM, ForwardMaximum writes the number of the largest sample of every bin and channel.
// 3. BackwardTiles: a block owns a tile of kTile x kTile pixels of one map and kLanes vectors of channels.
//    A warp owns a column of the tile, a lane a vector, and its sums for the column's pixels stay in
//    registers. The block goes through the regions that reach the tile, kWarps at a time. First each warp
//    writes the weights of one region's bins for the rows and columns of the tile, a lane per bin and axis.
//    Then all warps add: columns first (the bins of a row that read this column), rows second. The gradient
//    of the output is read a few times, mostly from caches; that of the map is written once, zeros where no
//    region is.
// The coarsest level comes first: its tiles have the most regions and must not be the last to finish.
//
// By count this moves less than atomics would: those need a cleared float32 map, and an addition in memory
// for each of the four or more pixels of each sample of each channel.
#ifndef KERAS_MRCNN_CUDA_BACKWARD_H_
#define KERAS_MRCNN_CUDA_BACKWARD_H_

#include "forward.h"
#include "index.h"

namespace keras_mrcnn {

constexpr int kTile = 8;
static_assert(kTile == kWarps && 2 * kBins == kLanes, "a warp per column; a lane per axis and bin");

// The tiles of all maps of all levels.
struct TileGrid {
  int64_t first[kRoiMostLevels];  // number of the level's first block
  int64_t rows[kRoiMostLevels];   // tiles
  int64_t columns[kRoiMostLevels];
  int64_t parts;  // of the channels
  int64_t count;
};

inline TileGrid make_tile_grid(const RoiAlignParameters& p, int vector) {
  TileGrid grid = {};
  grid.parts = ceil_divide(p.channels, kLanes * vector);
  for (int32_t k = p.levels - 1; k >= 0; --k) {
    grid.first[k] = grid.count;
    grid.rows[k] = ceil_divide(p.level[k].height, kTile);
    grid.columns[k] = ceil_divide(p.level[k].width, kTile);
    grid.count += p.batch * grid.rows[k] * grid.columns[k] * grid.parts;
  }
  return grid;
}

struct Tile {
  int32_t level;
  int64_t image;
  int32_t first[2];  // pixel: y, x
  int32_t part;      // of the channels
};

KERAS_MRCNN_DEVICE inline Tile find_tile(const TileGrid& grid, int64_t number) {
  Tile tile;
  tile.level = 0;
  while (number < grid.first[tile.level]) ++tile.level;  // the first level is the last in number
  number -= grid.first[tile.level];
  tile.part = static_cast<int32_t>(number % grid.parts);
  number /= grid.parts;
  tile.first[1] = static_cast<int32_t>(number % grid.columns[tile.level] * kTile);
  number /= grid.columns[tile.level];
  tile.first[0] = static_cast<int32_t>(number % grid.rows[tile.level] * kTile);
  tile.image = number / grid.rows[tile.level];
  return tile;
}

// What up to kBins bins of a region along one axis read of a tile.
struct TileBins {
  float weight[kBins][kTile];
  uint32_t touched[kBins];  // a bit per pixel
  int32_t begin[kBins];     // number in the grid of the first sample inside the map
};

// Samples of a bin, among those inside the map, that can reach the pixels [first, first + kTile).
KERAS_MRCNN_DEVICE inline RoiRange samples_near(const RoiAxis& axis, int64_t bin, const RoiRange& inside,
                                                int32_t first, int64_t size) {
  if (inside.end - inside.begin <= kSamples) return inside;
  // The first and the last pixel also take what is beyond them.
  const float low = first == 0 ? -2.0f : static_cast<float>(first - 1);
  const float high = first + kTile >= size ? static_cast<float>(size + 1) : static_cast<float>(first + kTile);
  const float direction = axis.bin_length < 0.0f ? -1.0f : 1.0f;
  const float nearest = direction < 0.0f ? -high : low, farthest = direction < 0.0f ? -low : high;
  RoiRange near = inside;
  for (int32_t stop = inside.end; near.begin < stop;) {
    const int32_t middle = near.begin + (stop - near.begin) / 2;
    if (direction * roi_position(axis, bin, middle) >= nearest) stop = middle;
    else near.begin = middle + 1;
  }
  near.end = near.begin;
  for (int32_t stop = inside.end; near.end < stop;) {
    const int32_t middle = near.end + (stop - near.end) / 2;
    if (direction * roi_position(axis, bin, middle) > farthest) stop = middle;
    else near.end = middle + 1;
  }
  return near;
}

// Writes the bin number `lane` of `bins`; `bin` is its number in the region.
KERAS_MRCNN_CALLED inline void build_tile_bin(const RoiAlignParameters& p, const RoiAxis& axis, int64_t bin,
                                              int32_t first, int64_t size, int lane, TileBins* bins) {
  float* weight = bins->weight[lane];
  for (int k = 0; k < kTile; ++k) weight[k] = 0.0f;
  uint32_t touched = 0;
  const RoiRange inside = bin_samples(p, axis, bin, size);
  bins->begin[lane] = inside.begin;
  if (p.method == ROI_POOL) {
    for (int k = 0; k < kTile; ++k) {
      if (inside.begin <= first + k && first + k < inside.end) touched |= 1u << k;
    }
  } else {
    const RoiRange near = samples_near(axis, bin, inside, first, size);
    for (int32_t k = near.begin; k < near.end; ++k) {
      const RoiSample sample = roi_interpolate(roi_position(axis, bin, k), size);
      const int32_t low = sample.low - first, high = sample.high - first;
      if (low >= 0 && low < kTile) weight[low] += sample.low_weight, touched |= 1u << low;
      if (high >= 0 && high < kTile) weight[high] += sample.high_weight, touched |= 1u << high;
    }
    for (int k = 0; k < kTile; ++k) weight[k] /= static_cast<float>(axis.grid);
  }
  bins->touched[lane] = touched;
}

template <typename T, int kCount>
struct BackwardTiles {
  static constexpr int kResidentBlocks = 3;

  struct Shared {
    int32_t list[kThreads];
    TileBins bins[kWarps][2];  // of a region: y, x
  };

  Arguments a;
  Index index;
  TileGrid grid;
  const T* output_gradient;
  T* gradients[kRoiMostLevels];

  int64_t blocks() const { return grid.count; }

  template <typename Block>
  KERAS_MRCNN_DEVICE void operator()(Block& block, Shared& shared) const {
    for (int64_t number = block.index(); number < grid.count; number += block.count()) {
      make_tile(block, shared, find_tile(grid, number));
    }
  }

 private:
  // Bins of a region that are handled together, from these on.
  struct Part {
    int64_t i;
    int64_t j;
    int rows;
    int columns;
  };

  struct Sums {
    Floats<kCount> pixel[kTile];  // of a column
  };

  template <typename Block>
  KERAS_MRCNN_DEVICE void make_tile(Block& block, Shared& shared, const Tile& tile) const {
    typename Block::template Own<Sums> sums;
    block.run([&](int thread) {
      KERAS_MRCNN_UNROLL
      for (int k = 0; k < kTile; ++k) sums[thread].pixel[k] = zeros<kCount>();
    });
    const int64_t key = tile.image * a.p.levels + tile.level;
    const int32_t end = a.p.regions ? index.ends[key] : 0;
    for (int32_t first = a.p.regions ? index.begins[key] : 0; first < end; first += kThreads) {
      const int count = block.compact(shared.list, [&](int thread) -> int32_t {
        if (first + thread >= end) return -1;
        const int32_t region = index.order[first + thread];
        return reaches(index.entries[region], tile) ? region : -1;
      });
      for (int from = 0; from < count; from += kWarps) {
        add_regions(block, shared, tile, shared.list + from, count - from < kWarps ? count - from : kWarps,
                    sums);
      }
    }
    block.run([&](int thread) { write(tile, thread, sums[thread]); });
  }

  KERAS_MRCNN_DEVICE static bool reaches(const Entry& entry, const Tile& tile) {
    bool both = true;
    for (int axis = 0; axis < 2; ++axis) {
      both = both && entry.pixels[axis].begin < tile.first[axis] + kTile &&
             entry.pixels[axis].end > tile.first[axis];
    }
    return both;
  }

  template <typename Block, typename OwnSums>
  KERAS_MRCNN_DEVICE void add_regions(Block& block, Shared& shared, const Tile& tile, const int32_t* list,
                                      int count, OwnSums& sums) const {
    for (int64_t i = 0; i < a.p.output_height; i += kBins) {
      for (int64_t j = 0; j < a.p.output_width; j += kBins) {
        const Part part = {i, j, static_cast<int>(smaller(kBins, a.p.output_height - i)),
                           static_cast<int>(smaller(kBins, a.p.output_width - j))};
        block.sync();  // the weights of before are no longer read
        block.run([&](int thread) {
          const int slot = thread / kLanes;
          if (slot < count) build(shared, tile, part, list[slot], slot, thread % kLanes);
        });
        block.sync();
        block.run([&](int thread) {
          const int column = thread / kLanes;
          const int64_t channel = (tile.part * static_cast<int64_t>(kLanes) + thread % kLanes) * kCount;
          if (channel >= a.p.channels) return;
          KERAS_MRCNN_LOOP
          for (int slot = 0; slot < count; ++slot) {
            const TileBins* bins = shared.bins[slot];
            if (a.p.reduction == ROI_AVERAGE)
              add_average(bins, part, list[slot], column, channel, &sums[thread]);
            else add_maximum(bins, tile, part, list[slot], column, channel, &sums[thread]);
          }
        });
      }
    }
  }

  KERAS_MRCNN_DEVICE void build(Shared& shared, const Tile& tile, const Part& part, int32_t region, int slot,
                                int lane) const {
    const int axis = lane / kBins;
    lane %= kBins;
    if (lane >= (axis ? part.columns : part.rows)) return;
    const RoiLevel& level = a.p.level[tile.level];
    build_tile_bin(a.p, index.entries[region].axes[axis], (axis ? part.j : part.i) + lane, tile.first[axis],
                   axis ? level.width : level.height, lane, &shared.bins[slot][axis]);
  }

  // The bins along x that read this column of the tile, a bit per bin.
  KERAS_MRCNN_DEVICE static uint32_t bins_of_column(const TileBins& bins, int count, int column) {
    uint32_t result = 0;
    for (int j = 0; j < count; ++j) result |= (bins.touched[j] >> column & 1) << j;
    return result;
  }

  KERAS_MRCNN_DEVICE int64_t output_offset(int64_t region, int64_t i, int64_t j, int64_t channel) const {
    return ((region * a.p.output_height + i) * a.p.output_width + j) * a.p.channels + channel;
  }

  KERAS_MRCNN_DEVICE void add_average(const TileBins* bins, const Part& part, int64_t region, int column,
                                      int64_t channel, Sums* sums) const {
    const uint32_t columns = bins_of_column(bins[1], part.columns, column);
    if (columns == 0) return;
    KERAS_MRCNN_LOOP
    for (int i = 0; i < part.rows; ++i) {
      if (bins[0].touched[i] == 0) continue;
      const T* from = output_gradient + output_offset(region, part.i + i, part.j, channel);
      Floats<kCount> line = zeros<kCount>();
      for (int j = 0; columns >> j; ++j) {
        if (columns >> j & 1)
          add_scaled(load<kCount>(from + j * a.p.channels), bins[1].weight[j][column], &line);
      }
      KERAS_MRCNN_UNROLL
      for (int k = 0; k < kTile; ++k) {
        // Not all of them: a gradient that is not finite stays with its pixels.
        if (bins[0].touched[i] >> k & 1) add_scaled(line, bins[0].weight[i][k], &sums->pixel[k]);
      }
    }
  }

  // Slow and simple: the largest sample of each bin and channel is found again from its number.
  KERAS_MRCNN_DEVICE void add_maximum(const TileBins* bins, const Tile& tile, const Part& part,
                                      int32_t region, int column, int64_t channel, Sums* sums) const {
    const uint32_t columns = bins_of_column(bins[1], part.columns, column);
    if (columns == 0) return;
    const RoiLevel& level = a.p.level[tile.level];
    const RoiAxis* axes = index.entries[region].axes;
    KERAS_MRCNN_LOOP
    for (int i = 0; i < part.rows; ++i) {
      if (bins[0].touched[i] == 0) continue;
      for (int j = 0; columns >> j; ++j) {
        if (!(columns >> j & 1)) continue;
        const int64_t offset = output_offset(region, part.i + i, part.j + j, channel);
        const Floats<kCount> from = widen(load<kCount>(output_gradient + offset));
        KERAS_MRCNN_UNROLL
        for (int c = 0; c < kCount; ++c) {
          const uint32_t which = index.which[offset + c];
          if (which == kNoSample) continue;
          const int32_t x_number = bins[1].begin[j] + static_cast<int32_t>(which & 0xffffu);
          const RoiSample x = bin_sample(a.p, axes[1], part.j + j, x_number, level.width);
          const float x_weight = weight_of(x, tile.first[1] + column);
          if (x_weight == 0.0f) continue;
          const int32_t y_number = bins[0].begin[i] + static_cast<int32_t>(which >> 16);
          const RoiSample y = bin_sample(a.p, axes[0], part.i + i, y_number, level.height);
          KERAS_MRCNN_UNROLL
          for (int k = 0; k < kTile; ++k) {
            const float weight = weight_of(y, tile.first[0] + k) * x_weight;
            if (weight != 0.0f) sums->pixel[k].values[c] += weight * from.values[c];
          }
        }
      }
    }
  }

  KERAS_MRCNN_DEVICE static float weight_of(const RoiSample& sample, int32_t pixel) {
    return (sample.low == pixel ? sample.low_weight : 0.0f) +
           (sample.high == pixel ? sample.high_weight : 0.0f);
  }

  KERAS_MRCNN_DEVICE void write(const Tile& tile, int thread, const Sums& sums) const {
    const RoiLevel& level = a.p.level[tile.level];
    const int64_t column = tile.first[1] + thread / kLanes;
    const int64_t channel = (tile.part * static_cast<int64_t>(kLanes) + thread % kLanes) * kCount;
    if (column >= level.width || channel >= a.p.channels) return;
    KERAS_MRCNN_UNROLL
    for (int k = 0; k < kTile; ++k) {
      const int64_t row = tile.first[0] + k;
      if (row >= level.height) continue;
      const int64_t pixel = (tile.image * level.height + row) * level.width + column;
      store<kCount>(sums.pixel[k], gradients[tile.level] + pixel * a.p.channels + channel);
    }
  }
};

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CUDA_BACKWARD_H_
