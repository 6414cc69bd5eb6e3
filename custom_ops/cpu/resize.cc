// Rows first, then columns, in float32, each a weighted sum in the order of the source pixels. TensorFlow's
// ScaleAndTranslate writes both results out for the whole image; here a row is finished while it is in the cache.
// The rounding decides on the last bit, and ties are common (480 to 800 rows: one pixel in a hundred), so weights
// and sums are computed by the same float32 operations as there, none fused (-ffp-contract=off).
#include "resize.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define KERAS_MRCNN_VERSIONS __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define KERAS_MRCNN_VERSIONS
#endif

namespace {

// Which source pixels each of the new ones is made of: `taps` from `start` on, some with a weight of 0.
struct Spans {
  int64_t taps = 1;
  std::vector<int32_t> start;   // [new size]
  std::vector<float> weight;    // [taps, new size]
};

Spans spans_of(int64_t size, int64_t new_size) {
  const float scale = static_cast<float>(new_size) / static_cast<float>(size);
  const float inverse = static_cast<float>(1.0 / scale);
  const float support = std::max(inverse, 1.0f);  // shrinking: the triangle covers more source pixels
  const float one_over_support = 1.0f / support;
  std::vector<std::vector<float>> weights(new_size);
  Spans spans;
  spans.start.assign(new_size, 0);
  for (int64_t i = 0; i < new_size; ++i) {
    const float centre = (i + 0.5f) * inverse;
    if (centre > size) continue;  // by rounding; its sum is empty there, too
    const auto inside = [=](float position) {
      return std::min(std::max(static_cast<int64_t>(position), int64_t{0}), size - 1);
    };
    const int64_t first = inside(std::ceil(centre - support - 0.5f));
    const int64_t last = inside(std::floor(centre + support - 0.5f));
    float sum = 0.0f;
    for (int64_t source = first; source <= last; ++source) {
      const float distance = std::abs((static_cast<float>(source) + 0.5f - centre) * one_over_support);
      weights[i].push_back(distance < 1.0f ? 1.0f - distance : 0.0f);
      sum += weights[i].back();
    }
    const float one_over_sum = 1.0f / sum;
    for (float& weight : weights[i]) weight *= one_over_sum;
    int64_t start = first;
    while (weights[i].size() > 1 && weights[i].front() == 0.0f) weights[i].erase(weights[i].begin()), ++start;
    while (weights[i].size() > 1 && weights[i].back() == 0.0f) weights[i].pop_back();
    spans.start[i] = static_cast<int32_t>(start);
    spans.taps = std::max(spans.taps, static_cast<int64_t>(weights[i].size()));
  }
  spans.weight.assign(spans.taps * new_size, 0.0f);
  for (int64_t i = 0; i < new_size; ++i) {
    for (size_t tap = 0; tap < weights[i].size(); ++tap) spans.weight[tap * new_size + i] = weights[i][tap];
  }
  return spans;
}

KERAS_MRCNN_VERSIONS void one_row(const uint8_t* __restrict__ pixels, float weight, int64_t n, float* __restrict__ sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] = weight * pixels[i];
}

KERAS_MRCNN_VERSIONS void two_rows(const uint8_t* __restrict__ above, const uint8_t* __restrict__ below, float weight,
                                   float weight_below, int64_t n, float* __restrict__ sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] = weight * above[i] + weight_below * below[i];
}

KERAS_MRCNN_VERSIONS void add_row(const uint8_t* __restrict__ pixels, float weight, int64_t n, float* __restrict__ sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += weight * pixels[i];
}

// To the nearest whole number, halves to the even one: adding 1.5 * 2^23 leaves no bits for a fraction.
inline uint8_t rounded(float value) {
  const float shift = 12582912.0f;
  const float whole = (value + shift) - shift;
  return static_cast<uint8_t>(static_cast<int32_t>(std::min(std::max(whole, 0.0f), 255.0f)));
}

KERAS_MRCNN_VERSIONS void two_columns(const float* __restrict__ row, const int32_t* __restrict__ start,
                                      const float* __restrict__ weight, int64_t channels, int64_t n,
                                      uint8_t* __restrict__ output) {
  const float* weight_right = weight + n;
  const float* row_right = row + channels;
  for (int64_t i = 0; i < n; ++i) {
    output[i] = rounded(weight[i] * row[start[i]] + weight_right[i] * row_right[start[i]]);
  }
}

KERAS_MRCNN_VERSIONS void columns(const float* __restrict__ row, const int32_t* __restrict__ start,
                                  const float* __restrict__ weight, int64_t taps, int64_t channels, int64_t n,
                                  float* __restrict__ sum, uint8_t* __restrict__ output) {
  for (int64_t i = 0; i < n; ++i) sum[i] = weight[i] * row[start[i]];
  for (int64_t tap = 1; tap < taps; ++tap) {
    const float* tap_weight = weight + tap * n;
    const float* tap_row = row + tap * channels;
    for (int64_t i = 0; i < n; ++i) sum[i] += tap_weight[i] * tap_row[start[i]];
  }
  for (int64_t i = 0; i < n; ++i) output[i] = rounded(sum[i]);
}

void resize(const uint8_t* image, int64_t height, int64_t width, int64_t channels, int64_t new_height,
            int64_t new_width, uint8_t* output) {
  const Spans rows = spans_of(height, new_height), pixels = spans_of(width, new_width);
  const int64_t n = width * channels, new_n = new_width * channels;
  std::vector<int32_t> start(new_n);  // of each channel of each pixel, as the loops take them
  std::vector<float> weight(pixels.taps * new_n);
  for (int64_t x = 0; x < new_width; ++x) {
    for (int64_t c = 0; c < channels; ++c) {
      start[x * channels + c] = static_cast<int32_t>(pixels.start[x] * channels + c);
      for (int64_t tap = 0; tap < pixels.taps; ++tap) {
        weight[tap * new_n + x * channels + c] = pixels.weight[tap * new_width + x];
      }
    }
  }
  std::vector<float> row(n + pixels.taps * channels, 0.0f), sum(new_n);  // taps of weight 0 may lie behind the row
  for (int64_t y = 0; y < new_height; ++y, output += new_n) {
    const uint8_t* from = image + rows.start[y] * n;
    const auto weight_of = [&](int64_t tap) { return rows.weight[tap * new_height + y]; };
    int64_t taps = rows.taps;
    while (taps > 1 && weight_of(taps - 1) == 0.0f) --taps;
    if (taps == 1) {
      one_row(from, weight_of(0), n, row.data());
    } else {
      two_rows(from, from + n, weight_of(0), weight_of(1), n, row.data());
      for (int64_t tap = 2; tap < taps; ++tap) add_row(from + tap * n, weight_of(tap), n, row.data());
    }
    if (pixels.taps == 2) {
      two_columns(row.data(), start.data(), weight.data(), channels, new_n, output);
    } else {
      columns(row.data(), start.data(), weight.data(), pixels.taps, channels, new_n, sum.data(), output);
    }
  }
}

}  // namespace

int32_t keras_mrcnn_resize(const uint8_t* image, int64_t height, int64_t width, int64_t channels,
                           int64_t new_height, int64_t new_width, uint8_t* output) {
  try {
    resize(image, height, width, channels, new_height, new_width, output);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
