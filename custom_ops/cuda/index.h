// Which regions lie on which map. IndexRegions finds the map of each region (image and level: its key) and
// the pixels it may read, a thread per region. SortRegions then lists the regions of each key in their order,
// a block per key: the keys below give the place of the list, the equal ones its items.
#ifndef KERAS_MRCNN_CUDA_INDEX_H_
#define KERAS_MRCNN_CUDA_INDEX_H_

#include "regions.h"

namespace keras_mrcnn {

// What the gradient needs to know of a region.
struct Entry {
  RoiAxis axes[2];     // y, x
  RoiRange pixels[2];  // that it may read
};

// The workspace, device memory.
struct Index {
  Entry* entries;   // [regions]
  int32_t* keys;    // [regions], image * levels + level; -1: of a map that is not there
  int32_t* order;   // [regions], sorted by key
  int32_t* begins;  // [keys], where a key's regions are in `order`
  int32_t* ends;
  uint32_t* which;  // as the output, for ROI_MAXIMUM
};

struct IndexRegions {
  static constexpr int kResidentBlocks = 4;
  struct Shared {};
  Arguments a;
  Index index;

  int64_t blocks() const { return ceil_divide(a.p.regions, kThreads); }

  template <typename Block>
  KERAS_MRCNN_DEVICE void operator()(Block& block, Shared&) const {
    for (int64_t first = block.index() * kThreads; first < a.p.regions; first += block.count() * kThreads) {
      block.run([&](int thread) {
        const int64_t region = first + thread;
        if (region >= a.p.regions) return;
        const Place place = find_place(a.p, a.boxes, a.images, a.levels, region);
        const RoiLevel& level = a.p.level[place.level];
        Entry& entry = index.entries[region];
        entry.axes[0] = y_axis(a, region, place.level);
        entry.axes[1] = x_axis(a, region, place.level);
        entry.pixels[0] = axis_pixels(entry.axes[0], a.p.output_height, level.height);
        entry.pixels[1] = axis_pixels(entry.axes[1], a.p.output_width, level.width);
        index.keys[region] = place.image < 0 ? -1 : place.image * a.p.levels + place.level;
      });
    }
  }
};

struct SortRegions {
  static constexpr int kResidentBlocks = 4;
  struct Shared {};
  RoiAlignParameters p;
  Index index;

  int64_t blocks() const { return p.batch * p.levels; }

  template <typename Block>
  KERAS_MRCNN_DEVICE void operator()(Block& block, Shared&) const {
    for (int64_t key = block.index(); key < p.batch * p.levels; key += block.count()) {
      const int32_t regions = static_cast<int32_t>(p.regions);
      const int32_t begin = block.reduce(
          [&](int thread) {
            int32_t lower = 0;
            for (int64_t k = thread; k < regions; k += kThreads)
              lower += index.keys[k] >= 0 && index.keys[k] < key;
            return lower;
          },
          [](int32_t a, int32_t b) { return a + b; });
      int32_t end = begin;
      for (int64_t first = 0; first < regions; first += kThreads) {
        end += block.compact(index.order + end, [&](int thread) {
          const int64_t region = first + thread;
          return region < regions && index.keys[region] == key ? static_cast<int32_t>(region) : -1;
        });
      }
      block.run([&](int thread) {
        if (thread != 0) return;
        index.begins[key] = begin;
        index.ends[key] = end;
      });
    }
  }
};

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CUDA_INDEX_H_
