// How a call is carried out.
//
// 1. Each region gets its level and its two axes (start, length of a bin, samples per bin). Regions are sorted by
//    place, so that one finds in the caches what the one before has read.
// 2. Forward, a task is a range of regions. Per region, the samples of an axis are merged into weights of pixels,
//    rows are summed first and columns second (average.h), or maxima are taken (maximum.h). The work on vectors
//    of channels is in channels.cc.
// 3. Backward, a task is a band of rows of one image on one level, and a block of channels. It owns these
//    gradients: it sets them to zero and adds the regions that reach into the band, always in the same order.
//    So no two tasks write to one place, and threads do not change a bit. Half types are summed in float32.
#include "roi_align.h"

#include <atomic>
#include <cstring>
#include <exception>

#include "maximum.h"

namespace keras_mrcnn {

namespace {

int64_t element_size(const RoiAlignParameters& p) { return p.type == ROI_FLOAT32 ? 4 : 2; }

// Bytes of one image on a level, and of one region's output.
int64_t image_size(const RoiAlignParameters& p, const RoiLevel& level) {
  return level.height * level.width * p.channels * element_size(p);
}
int64_t region_size(const RoiAlignParameters& p) {
  return p.output_height * p.output_width * p.channels * element_size(p);
}

int64_t channel_blocks(const RoiAlignParameters& p) { return (p.channels + kChannelBlock - 1) / kChannelBlock; }
Channels channel_block(const RoiAlignParameters& p, int64_t block) {
  const int64_t begin = block * kChannelBlock;
  return {begin, std::min(kChannelBlock, p.channels - begin)};
}

// Calls work(begin, end) for ranges of [0, total) on the caller's threads. A status: no exception leaves.
template <typename Work>
int32_t run(const RoiParallel* parallel, int64_t total, int64_t cost, const Work& work) {
  struct Context {
    const Work& work;
    std::atomic<int32_t> status;
  } shared = {work, {ROI_ALIGN_OK}};
  const auto call = [](void* pointer, int64_t begin, int64_t end) {
    Context& context = *static_cast<Context*>(pointer);
    try {
      context.work(begin, end);
    } catch (const std::exception&) {  // only the vectors throw
      context.status = ROI_ALIGN_OUT_OF_MEMORY;
    }
  };
  if (total == 0) return ROI_ALIGN_OK;
  if (parallel) parallel->parallel_for(parallel->context, total, cost, call, &shared);
  else call(&shared, 0, total);
  return shared.status;
}

template <typename Reduction>
int32_t forward(const RoiAlignParameters& p, const RoiParallel* parallel, const void* const* features,
                const std::vector<Region>& regions, void* output) {
  const int64_t cost = 1000 + region_size(p);
  return run(parallel, regions.size(), cost, [&](int64_t begin, int64_t end) {
    Reduction reduction(p);
    for (int64_t k = begin; k < end; ++k) {
      const Region& region = regions[k];
      const char* map = static_cast<const char*>(features[region.level]) +
                        region.image * image_size(p, p.level[region.level]);
      for (int64_t block = 0; block < channel_blocks(p); ++block) {
        reduction.forward(region, channel_block(p, block), map,
                          static_cast<char*>(output) + region.index * region_size(p));
      }
    }
  });
}

// The gradient of one band and block of channels.
template <typename Reduction>
class BandGradient {
 public:
  BandGradient(const RoiAlignParameters& p, const std::vector<Region>& regions, const Bands& bands)
      : p_(p), regions_(regions), bands_(bands), reduction_(p) {}

  void compute(int64_t index, Channels channels, const void* const* features, const char* output_gradient,
               void* const* gradients) {
    const Band& band = bands_[index];
    const RoiLevel& level = p_.level[band.level];
    const int64_t pixels = (band.end - band.begin) * level.width;
    const int64_t image = band.image * image_size(p_, level);
    const char* map = features ? static_cast<const char*>(features[band.level]) + image : nullptr;
    char* gradient = static_cast<char*>(gradients[band.level]) + image +
                     (band.begin * level.width * p_.channels + channels.begin) * element_size(p_);
    const BandSum sum = p_.type == ROI_FLOAT32
                            ? BandSum{reinterpret_cast<float*>(gradient), level.width * p_.channels, p_.channels}
                            : float32_sum(level.width, pixels, channels.count);
    for (int64_t k = 0; k < pixels; ++k) std::fill_n(sum.data + k * sum.pixel_step, channels.count, 0.0f);
    for (const int32_t* k = bands_.begin(index); k != bands_.end(index); ++k) {
      const Region& region = regions_[*k];
      reduction_.backward(region, channels, map, output_gradient + region.index * region_size(p_), band, sum);
    }
    if (p_.type == ROI_FLOAT32) return;
    const RoiTerm whole = {0, 1.0f};
    const int64_t starts[] = {0, 1};
    for (int64_t k = 0; k < pixels; ++k) {
      roi_channel_loops(p_.type).write(sum.data + k * sum.pixel_step, &whole, starts, 1, channels.count,
                                       gradient + k * p_.channels * element_size(p_), 0);
    }
  }

 private:
  BandSum float32_sum(int64_t width, int64_t pixels, int64_t channels) {
    scratch_.resize(pixels * channels);
    return {scratch_.data(), width * channels, channels};
  }

  const RoiAlignParameters& p_;
  const std::vector<Region>& regions_;
  const Bands& bands_;
  Reduction reduction_;
  std::vector<float> scratch_;
};

template <typename Reduction>
int32_t backward(const RoiAlignParameters& p, const RoiParallel* parallel, const void* const* features,
                 const std::vector<Region>& regions, const void* output_gradient, void* const* gradients) {
  const Bands bands(p, regions);
  const int64_t blocks = channel_blocks(p), tasks = bands.size() * blocks;
  const int64_t cost = 100000 + bands.entries() * region_size(p) / std::max<int64_t>(1, tasks);
  return run(parallel, tasks, cost, [&](int64_t begin, int64_t end) {
    BandGradient<Reduction> band(p, regions, bands);
    for (int64_t task = begin; task < end; ++task) {
      band.compute(task / blocks, channel_block(p, task % blocks), features,
                   static_cast<const char*>(output_gradient), gradients);
    }
  });
}

}  // namespace

}  // namespace keras_mrcnn

int32_t keras_mrcnn_roi_align_forward(const RoiAlignParameters* parameters, const RoiParallel* parallel,
                                      const void* const* features, const float* boxes, const int32_t* images,
                                      const int32_t* levels, void* output, int64_t* bad_region) {
  using namespace keras_mrcnn;
  const RoiAlignParameters& p = *parameters;
  if (!roi_parameters_valid(p)) return ROI_ALIGN_INVALID_PARAMETERS;
  try {  // no exception may leave through the C interface
    std::vector<Region> regions;
    const int32_t status = plan_regions(p, boxes, images, levels, &regions, bad_region);
    if (status != ROI_ALIGN_OK || p.channels == 0) return status;
    return p.reduction == ROI_MAXIMUM ? forward<Maximum>(p, parallel, features, regions, output)
                                      : forward<Average>(p, parallel, features, regions, output);
  } catch (const std::exception&) {
    return ROI_ALIGN_OUT_OF_MEMORY;
  }
}

int32_t keras_mrcnn_roi_align_backward(const RoiAlignParameters* parameters, const RoiParallel* parallel,
                                       const void* const* features, const float* boxes, const int32_t* images,
                                       const int32_t* levels, const void* output_gradient,
                                       void* const* gradients, int64_t* bad_region) {
  using namespace keras_mrcnn;
  const RoiAlignParameters& p = *parameters;
  if (!roi_parameters_valid(p)) return ROI_ALIGN_INVALID_PARAMETERS;
  try {
    std::vector<Region> regions;
    const int32_t status = plan_regions(p, boxes, images, levels, &regions, bad_region);
    if (status != ROI_ALIGN_OK || p.channels == 0) return status;
    return p.reduction == ROI_MAXIMUM
               ? backward<Maximum>(p, parallel, features, regions, output_gradient, gradients)
               : backward<Average>(p, parallel, features, regions, output_gradient, gradients);
  } catch (const std::exception&) {
    return ROI_ALIGN_OUT_OF_MEMORY;
  }
}
