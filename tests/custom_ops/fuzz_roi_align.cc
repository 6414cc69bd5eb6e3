// Random calls of the CPU kernels, arguments good and bad. To be compiled with the sanitizers: every array
// lies in a heap block of its own of exactly the right size. Exit status 1 and a line for a wrong answer.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include "cpu/roi_align.h"

namespace {

std::mt19937 engine(20);

int64_t integer(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(engine);
}
bool one_in(int64_t n) { return integer(1, n) == 1; }
float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine); }

float coordinate() {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr float largest = std::numeric_limits<float>::max();
  const float special[] = {NAN, infinity, -infinity, largest, -largest, 1e-45f, 0.0f, -1.0f, 1e20f, -1e20f,
                           2147483648.0f, -3e9f, 1e6f, -1e5f, 8.0f};
  return one_in(4) ? special[integer(0, std::size(special) - 1)] : uniform(-10.0f, 40.0f);
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = one_in(4) ? 0.0f : uniform(-1.0f, 1.0f);
  return values;
}

void require(bool good, const char* what, int call) {
  if (good) return;
  std::printf("call %d: %s\n", call, what);
  std::exit(1);
}

bool bounded(const std::vector<float>& values, float bound) {
  for (float value : values) {
    if (!(std::fabs(value) <= bound)) return false;
  }
  return true;
}

void random_call(int call) {
  RoiAlignParameters p = {};
  p.batch = integer(1, 3), p.height = integer(1, 9), p.width = integer(1, 9), p.channels = integer(0, 9);
  p.output_height = integer(1, 5), p.output_width = integer(1, 5), p.sampling_ratio = integer(0, 4);
  p.aligned = one_in(2), p.maximum = one_in(2), p.scale = uniform(0.05f, 2.0f);
  const int64_t regions = integer(0, 6), begin = integer(0, regions), end = integer(begin, regions);
  const std::vector<float> features = numbers(p.batch * p.height * p.width * p.channels);
  const int64_t region_size = p.output_height * p.output_width * p.channels;
  const std::vector<float> output_gradient = numbers(regions * region_size);
  std::vector<float> output(regions * region_size, 7.0f);
  std::vector<float> boxes(regions * 4);
  for (float& value : boxes) value = coordinate();
  std::vector<int32_t> images(regions);
  for (int32_t& image : images) image = static_cast<int32_t>(integer(0, p.batch - 1));

  int32_t expected = ROI_ALIGN_OK;
  int64_t expected_region = -1, bad_region = -1;
  if (begin < end && one_in(10)) {
    expected = ROI_ALIGN_INVALID_IMAGE;
    expected_region = integer(begin, end - 1);
    images[expected_region] = one_in(2) ? static_cast<int32_t>(p.batch) : std::numeric_limits<int32_t>::min();
  }
  if (one_in(10)) {
    expected = ROI_ALIGN_INVALID_PARAMETERS;
    expected_region = -1;
    const int64_t bad[] = {-1, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
    int64_t* const sizes[] = {&p.height, &p.width, &p.output_height, &p.output_width, &p.sampling_ratio};
    if (one_in(3)) p.scale = one_in(2) ? NAN : -1.0f;
    else *sizes[integer(0, 4)] = bad[integer(0, 2)];
  }

  int32_t status = keras_mrcnn_roi_align_forward(&p, features.data(), boxes.data(), images.data(), begin, end,
                                                 output.data(), &bad_region);
  require(status == expected && bad_region == expected_region, "status of the forward call", call);
  require(bounded(output, 7.001f), "output", call);
  for (int64_t k = 0; k < regions * region_size; ++k) {
    const bool written = k >= begin * region_size && k < end * region_size && status == ROI_ALIGN_OK;
    require(written == (output[k] != 7.0f), "written range", call);
  }

  std::vector<float> whole(features.size(), 0.0f), parts(features.size(), 0.0f);
  const int64_t channel = integer(0, p.channels), middle = integer(begin, end);
  const auto backward = [&](std::vector<float>& gradient, int64_t from, int64_t to, int64_t first,
                            int64_t last) {
    return keras_mrcnn_roi_align_backward(&p, features.data(), boxes.data(), images.data(), from, to, first,
                                          last, output_gradient.data(), gradient.data(), &bad_region);
  };
  status = backward(whole, begin, end, 0, p.channels);
  require(status == expected, "status of the backward call", call);
  require(bounded(whole, 1000.0f), "gradient", call);
  if (status != ROI_ALIGN_OK) return;
  backward(parts, begin, end, channel, p.channels);
  backward(parts, begin, middle, 0, channel);
  backward(parts, middle, end, 0, channel);
  require(whole == parts, "gradient in parts", call);
  status = backward(parts, begin, end, channel, p.channels + 1);
  require(status == ROI_ALIGN_INVALID_PARAMETERS, "channels out of range", call);
}

}  // namespace

int main() {
  for (int call = 0; call < 5000; ++call) random_call(call);
}
