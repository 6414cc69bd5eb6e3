// Who works on what: the regions in an order that keeps the maps in the caches, and, for the gradient, the maps
// cut into bands of rows with the regions that reach into each.
#ifndef KERAS_MRCNN_CPU_PLAN_H_
#define KERAS_MRCNN_CPU_PLAN_H_

#include <cstdint>
#include <vector>

#include "roi_align.h"

namespace keras_mrcnn {

constexpr int64_t kChannelBlock = 256;  // channels at a time, so that a region's rows stay in the caches
constexpr int64_t kBandRows = 16;

struct Region {
  int32_t index;  // in the caller's arrays
  int32_t level;
  int32_t image;
  RoiAxis y;
  RoiAxis x;
};

// Fills `regions` in the order of level, image, row and column. A status; bad_region as in the C interface.
int32_t plan_regions(const RoiAlignParameters& p, const float* boxes, const int32_t* images,
                     const int32_t* levels, std::vector<Region>* regions, int64_t* bad_region);

// Rows [begin, end) of one image on one level: written by one task, and no other.
struct Band {
  int32_t level;
  int32_t image;
  int64_t begin;
  int64_t end;
};

class Bands {
 public:
  Bands(const RoiAlignParameters& p, const std::vector<Region>& regions);

  int64_t size() const { return bands_.size(); }
  const Band& operator[](int64_t band) const { return bands_[band]; }
  // The regions that may reach into a band, in their order.
  const int32_t* begin(int64_t band) const { return regions_.data() + starts_[band]; }
  const int32_t* end(int64_t band) const { return regions_.data() + starts_[band + 1]; }
  int64_t entries() const { return regions_.size(); }

 private:
  std::vector<Band> bands_;
  std::vector<int64_t> starts_;
  std::vector<int32_t> regions_;
};

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CPU_PLAN_H_
