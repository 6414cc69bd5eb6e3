// The calls of roi_align.h, but for who runs the bodies: checks, choice of a body, order of the steps.
//
// A Launcher has `int32_t run(const Body&)`, which starts a body on all its blocks and returns 0 or an error.
#ifndef KERAS_MRCNN_CUDA_LAUNCH_H_
#define KERAS_MRCNN_CUDA_LAUNCH_H_

#include "backward.h"
#include "roi_align.h"

namespace keras_mrcnn {

struct CheckRegions {
  static constexpr int kResidentBlocks = 4;
  struct Shared {};
  RoiAlignParameters p;
  const int32_t* images;
  const int32_t* levels;
  int32_t* bad_region;

  int64_t blocks() const { return 1; }

  template <typename Block>
  KERAS_MRCNN_DEVICE void operator()(Block& block, Shared&) const {
    const int32_t bad = block.reduce(
        [&](int thread) {
          for (int64_t k = thread; k < p.regions; k += kThreads) {
            const bool level_is_bad = levels && (levels[k] < 0 || levels[k] >= p.levels);
            if (images[k] < 0 || images[k] >= p.batch || level_is_bad) return static_cast<int32_t>(k);
          }
          return INT32_MAX;
        },
        [](int32_t a, int32_t b) { return a < b ? a : b; });
    block.run([&](int thread) {
      if (thread == 0) *bad_region = bad == INT32_MAX ? -1 : bad;
    });
  }
};

inline bool launch_valid(const RoiAlignParameters& p) {
  return roi_parameters_valid(p) && p.batch * p.levels <= INT32_MAX;  // keys are int32
}

inline Arguments make_arguments(const RoiAlignParameters& p, const void* const* features, const float* boxes,
                                const int32_t* images, const int32_t* levels) {
  Arguments a = {p, {}, boxes, images, levels};
  for (int32_t k = 0; features && k < p.levels; ++k) a.features[k] = features[k];
  return a;
}

// Whether vectors of `count` elements can be loaded from all of these arrays.
template <typename T>
bool fits(int count, int64_t channels, const void* const* arrays, int32_t array_count, const void* more) {
  bool result = channels % count == 0;
  for (int32_t k = 0; k <= array_count; ++k) {
    const void* array = k == array_count ? more : arrays ? arrays[k] : nullptr;
    result = result && reinterpret_cast<uintptr_t>(array) % (count * sizeof(T)) == 0;
  }
  return result;
}

// Calls `work` with a null pointer of the element type.
template <typename Work>
int32_t with_type(int32_t type, Work work) {
  switch (type) {
    case ROI_FLOAT16:
      return work(static_cast<Half*>(nullptr));
    case ROI_BFLOAT16:
      return work(static_cast<BFloat16*>(nullptr));
    default:
      return work(static_cast<float*>(nullptr));
  }
}

template <typename T, int kCount, typename Launcher>
int32_t run_forward(Launcher& launcher, const Arguments& a, T* output, uint32_t* which) {
  if (a.p.reduction == ROI_AVERAGE) return launcher.run(ForwardAverage<T, kCount>{a, output});
  return launcher.run(ForwardMaximum<T, kCount>{a, output, which});
}

template <typename Launcher>
int32_t launch_forward(Launcher& launcher, const Arguments& a, void* output) {
  if (a.p.regions == 0 || a.p.channels == 0) return 0;
  return with_type(a.p.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    constexpr int kMost = 16 / sizeof(T);
    T* to = static_cast<T*>(output);
    if (fits<T>(kMost, a.p.channels, a.features, a.p.levels, output)) {
      return run_forward<T, kMost>(launcher, a, to, nullptr);
    }
    return run_forward<T, 1>(launcher, a, to, nullptr);
  });
}

// Where the parts of the workspace begin; returns its size in bytes.
inline int64_t make_index(const RoiAlignParameters& p, void* workspace, Index* index) {
  int64_t size = 0;
  auto take = [&](int64_t bytes) {
    char* part = workspace ? static_cast<char*>(workspace) + size : nullptr;
    size += ceil_divide(bytes, 16) * 16;
    return static_cast<void*>(part);
  };
  const int64_t keys = p.batch * p.levels;
  const int64_t outputs = p.regions * p.output_height * p.output_width * p.channels;
  index->entries = static_cast<Entry*>(take(p.regions * sizeof(Entry)));
  index->keys = static_cast<int32_t*>(take(p.regions * sizeof(int32_t)));
  index->order = static_cast<int32_t*>(take(p.regions * sizeof(int32_t)));
  index->begins = static_cast<int32_t*>(take(keys * sizeof(int32_t)));
  index->ends = static_cast<int32_t*>(take(keys * sizeof(int32_t)));
  index->which = static_cast<uint32_t*>(take(p.reduction == ROI_MAXIMUM ? outputs * sizeof(uint32_t) : 0));
  return size;
}

template <typename T, int kCount, typename Launcher>
int32_t run_backward(Launcher& launcher, const Arguments& a, const Index& index, const T* output_gradient,
                     void* const* gradients) {
  BackwardTiles<T, kCount> tiles = {a, index, make_tile_grid(a.p, kCount), output_gradient, {}};
  for (int32_t k = 0; k < a.p.levels; ++k) tiles.gradients[k] = static_cast<T*>(gradients[k]);
  return launcher.run(tiles);
}

template <typename Launcher>
int32_t launch_backward(Launcher& launcher, const Arguments& a, const void* output_gradient,
                        void* const* gradients, void* workspace) {
  if (a.p.batch == 0 || a.p.channels == 0) return 0;
  Index index;
  make_index(a.p, workspace, &index);
  if (a.p.regions > 0) {
    int32_t status = launcher.run(IndexRegions{a, index});
    if (status == 0) status = launcher.run(SortRegions{a.p, index});
    if (status != 0) return status;
  }
  return with_type(a.p.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    constexpr int kMost = 4;  // of the sums of kTile pixels more do not stay in registers
    if (a.p.reduction == ROI_MAXIMUM && a.p.regions > 0) {
      const int32_t status = run_forward<T, 1>(launcher, a, static_cast<T*>(nullptr), index.which);
      if (status != 0) return status;
    }
    const T* from = static_cast<const T*>(output_gradient);
    if (fits<T>(kMost, a.p.channels, gradients, a.p.levels, output_gradient)) {
      return run_backward<T, kMost>(launcher, a, index, from, gradients);
    }
    return run_backward<T, 1>(launcher, a, index, from, gradients);
  });
}

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CUDA_LAUNCH_H_
