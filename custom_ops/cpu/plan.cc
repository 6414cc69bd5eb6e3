#include "plan.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace keras_mrcnn {

namespace {

// The pixel at the middle of an axis, for sorting.
int32_t middle(const RoiAxis& axis, int64_t bins, int64_t size) {
  const float position = axis.start + 0.5f * axis.bin_length * static_cast<float>(bins);
  return roi_interpolate(position, size).low;
}

// The rows that a region can read: a sample reads the two around it, at the border the last one. The slack is
// for that and for the rounding of positions far away.
RoiRange reach(const RoiAxis& axis, int64_t bins, int64_t size) {
  const float length = axis.bin_length * static_cast<float>(bins);
  const float one = axis.start, other = axis.start + length;
  const float slack = 2.0f + 1e-6f * (std::abs(one) + std::abs(length));
  const float low = std::min(one, other) - slack, high = std::max(one, other) + slack;
  if (axis.grid == 0 || !(high >= -1.0f && low <= static_cast<float>(size))) return {0, 0};
  return {roi_interpolate(low, size).low, roi_interpolate(high, size).high + 1};
}

int64_t bands_of(const RoiLevel& level) { return (level.height + kBandRows - 1) / kBandRows; }

}  // namespace

int32_t plan_regions(const RoiAlignParameters& p, const float* boxes, const int32_t* images,
                     const int32_t* levels, std::vector<Region>* regions, int64_t* bad_region) {
  struct Place {
    int32_t level, image, y, x, index;
    bool operator<(const Place& other) const {
      return std::tie(level, image, y, x, index) <
             std::tie(other.level, other.image, other.y, other.x, other.index);
    }
  };
  std::vector<Region> unsorted(p.regions);
  std::vector<Place> places(p.regions);
  for (int64_t k = 0; k < p.regions; ++k) {
    const float* box = boxes + 4 * k;
    const int32_t level = levels ? levels[k] : roi_level(box, p.levels);
    if (images[k] < 0 || images[k] >= p.batch || level < 0 || level >= p.levels) {
      *bad_region = k;
      return level < 0 || level >= p.levels ? ROI_ALIGN_INVALID_LEVEL : ROI_ALIGN_INVALID_IMAGE;
    }
    const RoiLevel& map = p.level[level];
    const RoiAxis y = roi_axis(box[1], box[3], p.output_height, map.scale, p);
    const RoiAxis x = roi_axis(box[0], box[2], p.output_width, map.scale, p);
    unsorted[k] = {static_cast<int32_t>(k), level, images[k], y, x};
    places[k] = {level, images[k], middle(y, p.output_height, map.height),
                 middle(x, p.output_width, map.width), static_cast<int32_t>(k)};
  }
  std::sort(places.begin(), places.end());
  regions->clear();
  regions->reserve(p.regions);
  for (const Place& place : places) regions->push_back(unsorted[place.index]);
  return ROI_ALIGN_OK;
}

Bands::Bands(const RoiAlignParameters& p, const std::vector<Region>& regions) {
  std::vector<int64_t> first_of_level;
  for (int32_t level = 0; level < p.levels; ++level) {
    first_of_level.push_back(bands_.size());
    for (int64_t image = 0; image < p.batch; ++image) {
      for (int64_t row = 0; row < p.level[level].height; row += kBandRows) {
        bands_.push_back({level, static_cast<int32_t>(image), row,
                          std::min(row + kBandRows, p.level[level].height)});
      }
    }
  }
  // Counted first, then put in place.
  const auto for_each_entry = [&](auto work) {
    for (size_t k = 0; k < regions.size(); ++k) {
      const Region& region = regions[k];
      const RoiLevel& level = p.level[region.level];
      const RoiRange rows = reach(region.y, p.output_height, level.height);
      if (rows.begin == rows.end) continue;
      const int64_t first = first_of_level[region.level] + region.image * bands_of(level);
      for (int64_t band = rows.begin / kBandRows; band <= (rows.end - 1) / kBandRows; ++band) {
        work(first + band, static_cast<int32_t>(k));
      }
    }
  };
  starts_.assign(bands_.size() + 1, 0);
  for_each_entry([&](int64_t band, int32_t) { ++starts_[band + 1]; });
  for (size_t k = 1; k < starts_.size(); ++k) starts_[k] += starts_[k - 1];
  regions_.resize(starts_.back());
  std::vector<int64_t> next = starts_;
  for_each_entry([&](int64_t band, int32_t region) { regions_[next[band]++] = region; });
}

}  // namespace keras_mrcnn
