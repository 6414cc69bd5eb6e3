// Random calls of the CPU kernels, arguments good and bad. To be compiled with the sanitizers: every array
// lies in a heap block of its own of exactly the right size. The argument says how many calls. Exit status 1 and
// a line for a wrong answer.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include "cpu/roi_align.h"

namespace {

typedef std::vector<char> Bytes;
constexpr char kUntouched = 0x5a;

std::mt19937 engine(20);

int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }
bool one_in(int64_t n) { return integer(1, n) == 1; }
float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine); }

float coordinate() {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr float largest = std::numeric_limits<float>::max();
  const float special[] = {NAN, infinity, -infinity, largest, -largest, 1e-45f, 0.0f, -1.0f, 1e20f, -1e20f,
                           2147483648.0f, -3e9f, 1e6f, -1e5f, 8.0f, 16777216.0f, -1e12f};
  return one_in(4) ? special[integer(0, std::size(special) - 1)] : uniform(-10.0f, 40.0f);
}

// `count` numbers; `wild`: any bits, NaN and infinite ones too.
Bytes numbers(int64_t count, int32_t type, bool wild) {
  Bytes bytes(count * (type == ROI_FLOAT32 ? 4 : 2));
  for (int64_t k = 0; k < count; ++k) {
    if (type == ROI_FLOAT32) {
      float value = one_in(4) ? 0.0f : uniform(-1.0f, 1.0f);
      if (wild && one_in(8)) value = coordinate();
      std::memcpy(&bytes[4 * k], &value, 4);
    } else {  // 0.5 to 1 of both signs
      const uint16_t bits = wild ? integer(0, 0xffff) : (type == ROI_FLOAT16 ? 0x3800 : 0x3f00) |
                                                            integer(0, 0x7f) | integer(0, 1) << 15;
      std::memcpy(&bytes[2 * k], &bits, 2);
    }
  }
  return bytes;
}

void require(bool good, const char* what, int64_t call) {
  if (good) return;
  std::printf("call %lld: %s\n", static_cast<long long>(call), what);
  std::exit(1);
}

// Every magnitude at most `bound`.
bool bounded(const Bytes& bytes, int32_t type, float bound) {
  const int64_t size = type == ROI_FLOAT32 ? 4 : 2;
  for (size_t k = 0; k < bytes.size(); k += size) {
    float value = 0.0f;
    if (type == ROI_FLOAT32) std::memcpy(&value, &bytes[k], 4);
    uint16_t bits = 0;
    if (type != ROI_FLOAT32) std::memcpy(&bits, &bytes[k], 2);
    if (type == ROI_FLOAT16) {
      const int exponent = bits >> 10 & 31;
      if (exponent == 31) return false;
      value = std::ldexp(static_cast<float>((exponent ? 1024 : 0) + (bits & 1023)), (exponent ? exponent : 1) - 25);
    } else if (type == ROI_BFLOAT16) {
      const uint32_t wide = static_cast<uint32_t>(bits) << 16;
      std::memcpy(&value, &wide, 4);
    }
    if (!(std::fabs(value) <= bound)) return false;
  }
  return true;
}

bool untouched(const Bytes& bytes) {
  for (char byte : bytes) {
    if (byte != kUntouched) return false;
  }
  return true;
}

struct Call {
  RoiAlignParameters p = {};
  bool wild = one_in(3);
  std::vector<Bytes> features;
  Bytes output_gradient;
  std::vector<float> boxes;
  std::vector<int32_t> images, levels;
  bool given_levels = one_in(2);
  int64_t region_size = 0;

  Call() {
    p.batch = integer(1, 3), p.channels = one_in(30) ? integer(250, 270) : integer(0, 40);
    p.regions = integer(0, 6), p.output_height = integer(1, 5), p.output_width = integer(1, 5);
    p.sampling_ratio = integer(0, 4), p.method = integer(ROI_ALIGN, ROI_POOL), p.type = integer(0, 2);
    p.reduction = p.method == ROI_POOL || one_in(2) ? ROI_MAXIMUM : ROI_AVERAGE;
    p.levels = integer(1, 3);
    for (int32_t k = 0; k < p.levels; ++k) {
      p.level[k] = {integer(1, one_in(10) ? 60 : 9), integer(1, 9), uniform(0.05f, 2.0f)};
      features.push_back(numbers(p.batch * p.level[k].height * p.level[k].width * p.channels, p.type, wild));
    }
    region_size = p.output_height * p.output_width * p.channels * (p.type == ROI_FLOAT32 ? 4 : 2);
    output_gradient = numbers(p.regions * p.output_height * p.output_width * p.channels, p.type, wild);
    boxes.resize(4 * p.regions);
    for (float& value : boxes) value = coordinate();
    images.resize(p.regions), levels.resize(given_levels ? p.regions : 0);
    for (int32_t& image : images) image = integer(0, p.batch - 1);
    for (int32_t& level : levels) level = integer(0, p.levels - 1);
  }

  // Makes an argument wrong now and then: the status to expect, and the region it names.
  int32_t spoil(int64_t* region) {
    const int32_t wrong[] = {-1, 3, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()};
    if (one_in(10)) return spoil_parameters();
    if (p.regions == 0 || !one_in(10)) return ROI_ALIGN_OK;
    *region = integer(0, p.regions - 1);
    if (given_levels && one_in(2)) {
      levels[*region] = wrong[integer(0, 3)];
      return ROI_ALIGN_INVALID_LEVEL;
    }
    images[*region] = wrong[integer(0, 3)];
    return ROI_ALIGN_INVALID_IMAGE;
  }

  int32_t spoil_parameters() {
    const int64_t bad[] = {-1, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
    int64_t* const sizes[] = {&p.batch, &p.channels, &p.regions, &p.output_height, &p.output_width,
                              &p.sampling_ratio, &p.level[0].height, &p.level[p.levels - 1].width};
    int32_t* const choices[] = {&p.method, &p.reduction, &p.type, &p.levels};
    if (one_in(4)) p.level[p.levels - 1].scale = one_in(2) ? NAN : one_in(2) ? INFINITY : -1.0f;
    else if (one_in(3)) *choices[integer(0, 3)] = one_in(2) ? -1 : 9;
    else *sizes[integer(0, std::size(sizes) - 1)] = bad[integer(0, 2)];
    return ROI_ALIGN_INVALID_PARAMETERS;
  }

  int32_t forward(const RoiParallel* parallel, Bytes* output, int64_t* bad) const {
    std::vector<const void*> maps;
    for (const Bytes& map : features) maps.push_back(map.data());
    return keras_mrcnn_roi_align_forward(&p, parallel, maps.data(), boxes.data(), images.data(),
                                         given_levels ? levels.data() : nullptr, output->data(), bad);
  }

  int32_t backward(const RoiParallel* parallel, std::vector<Bytes>* gradients, int64_t* bad) const {
    std::vector<const void*> maps;
    std::vector<void*> targets;
    for (const Bytes& map : features) maps.push_back(map.data());
    for (Bytes& gradient : *gradients) targets.push_back(gradient.data());
    const bool needed = p.reduction != ROI_AVERAGE;
    return keras_mrcnn_roi_align_backward(&p, parallel, needed ? maps.data() : nullptr, boxes.data(),
                                          images.data(), given_levels ? levels.data() : nullptr,
                                          output_gradient.data(), targets.data(), bad);
  }
};

void random_call(int64_t number) {
  Call call;
  std::vector<Bytes> empty;
  for (const Bytes& map : call.features) empty.emplace_back(map.size(), kUntouched);
  Bytes output(call.p.regions * call.region_size, kUntouched);
  int64_t expected_region = -1, bad = -1, threads = integer(1, 3);
  const int32_t type = call.p.type, expected = call.spoil(&expected_region);
  const RoiParallel lent = {&threads, keras_mrcnn_parallel_for};
  const RoiParallel* const parallel = one_in(4) ? &lent : nullptr;
  require(call.forward(parallel, &output, &bad) == expected && bad == expected_region, "forward status", number);
  std::vector<Bytes> gradients = empty;
  bad = -1;
  require(call.backward(parallel, &gradients, &bad) == expected && bad == expected_region, "backward status", number);
  if (expected != ROI_ALIGN_OK) {
    require(untouched(output) && gradients == empty, "written in spite of an error", number);
    return;
  }
  Bytes again(output.size(), 0x33);
  std::vector<Bytes> gradients_again = call.features;
  call.forward(parallel ? nullptr : &lent, &again, &bad);
  call.backward(parallel ? nullptr : &lent, &gradients_again, &bad);
  require(output == again && gradients == gradients_again, "the same bits with other threads", number);
  if (call.wild) return;
  require(bounded(output, type, 1.01f), "output", number);
  for (const Bytes& gradient : gradients) require(bounded(gradient, type, 300.0f), "gradient", number);
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t calls = count > 1 ? std::atoll(arguments[1]) : 2000;
  for (int64_t call = 0; call < calls; ++call) random_call(call);
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
