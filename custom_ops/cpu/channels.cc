// Each loop is written once, for vectors of `Bytes` bytes, and compiled for several instruction sets; the widest
// that the processor has is taken at run time. All give the same bits: every element is computed by the same
// multiplications and additions in the same order, none fused (-ffp-contract=off).
#include "channels.h"

#include <cstring>

// The newest x86-64 level to compile for: 4 (AVX-512), 3 (AVX2) or 0 (SSE2 alone). Tests set it.
#ifndef KERAS_MRCNN_X86_64_LEVEL
#define KERAS_MRCNN_X86_64_LEVEL 4
#endif

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wpsabi"  // about vectors as arguments; here all such calls are inlined
#pragma GCC diagnostic ignored "-Wattributes"
#endif
#define KERAS_MRCNN_INLINE __attribute__((always_inline)) inline

namespace {

template <int Bytes>
struct Vector {
  static constexpr int64_t lanes = Bytes / 4;
  typedef float Float __attribute__((vector_size(Bytes)));
  typedef uint32_t Word __attribute__((vector_size(Bytes)));
  typedef uint16_t Short __attribute__((vector_size(Bytes / 2)));
};

template <typename To, typename From>
KERAS_MRCNN_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Element types: how a vector of them is read as float32 and written, rounded to nearest even.
struct Float32 {
  float value;
  template <int Bytes>
  static KERAS_MRCNN_INLINE typename Vector<Bytes>::Float load(const Float32* from) {
    typename Vector<Bytes>::Float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  template <int Bytes>
  static KERAS_MRCNN_INLINE void store(const typename Vector<Bytes>::Float& value, Float32* to) {
    std::memcpy(to, &value, sizeof(value));
  }
};

// Types of 16 bits, by their conversion of bits.
template <typename Format>
struct Float16Bits {
  uint16_t bits;
  template <int Bytes>
  static KERAS_MRCNN_INLINE typename Vector<Bytes>::Float load(const Float16Bits* from) {
    typename Vector<Bytes>::Short bits;
    std::memcpy(&bits, from, sizeof(bits));
    return Format::template widen<Bytes>(__builtin_convertvector(bits, typename Vector<Bytes>::Word));
  }
  template <int Bytes>
  static KERAS_MRCNN_INLINE void store(const typename Vector<Bytes>::Float& value, Float16Bits* to) {
    const auto bits = Format::template narrow<Bytes>(bits_as<typename Vector<Bytes>::Word>(value));
    const auto narrow = __builtin_convertvector(bits, typename Vector<Bytes>::Short);
    std::memcpy(to, &narrow, sizeof(narrow));
  }
};

// float32 without its lower half.
struct Brain {
  template <int Bytes>
  static KERAS_MRCNN_INLINE typename Vector<Bytes>::Float widen(const typename Vector<Bytes>::Word& bits) {
    return bits_as<typename Vector<Bytes>::Float>(bits << 16);
  }
  template <int Bytes>
  static KERAS_MRCNN_INLINE typename Vector<Bytes>::Word narrow(const typename Vector<Bytes>::Word& bits) {
    typedef typename Vector<Bytes>::Word Word;
    const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > Word{} + 0x7f800000u ? (bits >> 16) | 0x40u : rounded;  // NaN stays NaN
  }
};

// IEEE: 5 bits of exponent, 10 of mantissa.
struct Half {
  template <int Bytes>
  static KERAS_MRCNN_INLINE typename Vector<Bytes>::Float widen(const typename Vector<Bytes>::Word& bits) {
    typedef typename Vector<Bytes>::Float Float;
    typedef typename Vector<Bytes>::Word Word;
    const Word moved = (bits & 0x7fffu) << 13;
    // The difference of the two exponent biases, as a factor; exact for subnormal numbers too.
    const Word finite = bits_as<Word>(bits_as<Float>(moved) * 0x1p112f);
    const Word magnitude = moved >= Word{} + (0x7c00u << 13) ? moved | 0x7f800000u : finite;
    return bits_as<Float>(magnitude | (bits & 0x8000u) << 16);
  }
  template <int Bytes>
  static KERAS_MRCNN_INLINE typename Vector<Bytes>::Word narrow(const typename Vector<Bytes>::Word& bits) {
    typedef typename Vector<Bytes>::Float Float;
    typedef typename Vector<Bytes>::Word Word;
    const Word magnitude = bits & 0x7fffffffu;
    // Rebiased and rounded at bit 13; a carry goes into the exponent, at the top to infinity.
    const Word normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // The last place of 0.5 is the smallest half: the addition rounds.
    const Word subnormal = bits_as<Word>(bits_as<Float>(magnitude) + 0.5f) - 0x3f000000u;
    Word result = magnitude < Word{} + 0x38800000u ? subnormal : normal;
    result = magnitude >= Word{} + 0x47800000u ? Word{} + 0x7c00u : result;
    result = magnitude > Word{} + 0x7f800000u ? Word{} + 0x7e00u : result;
    return result | (bits & 0x80000000u) >> 16;
  }
};

typedef Float16Bits<Half> Float16;
typedef Float16Bits<Brain> BFloat16;

// Calls body.step<Bytes, unroll>(c) for all channels: four vectors at a time, then one, then a channel.
template <int Bytes, typename Body>
KERAS_MRCNN_INLINE void for_channels(int64_t channels, const Body& body) {
  constexpr int64_t lanes = Vector<Bytes>::lanes;
  int64_t c = 0;
  for (; c + 4 * lanes <= channels; c += 4 * lanes) body.template step<Bytes, 4>(c);
  for (; c + lanes <= channels; c += lanes) body.template step<Bytes, 1>(c);
  for (; c < channels; ++c) body.template step<4, 1>(c);
}

template <typename From, typename To>
struct Sum {
  const From* from;
  const RoiTerm* begin;
  const RoiTerm* end;
  To* to;
  template <int Bytes, int Unroll>
  KERAS_MRCNN_INLINE void step(int64_t c) const {
    constexpr int64_t lanes = Vector<Bytes>::lanes;
    typename Vector<Bytes>::Float sum[Unroll] = {};
    for (const RoiTerm* term = begin; term != end; ++term) {
      const From* vector = from + term->offset + c;
      for (int u = 0; u < Unroll; ++u) sum[u] += term->weight * From::template load<Bytes>(vector + u * lanes);
    }
    for (int u = 0; u < Unroll; ++u) To::template store<Bytes>(sum[u], to + c + u * lanes);
  }
};

struct Scatter {
  const Float32* from;
  const RoiTerm* begin;
  const RoiTerm* end;
  Float32* to;
  template <int Bytes, int Unroll>
  KERAS_MRCNN_INLINE void step(int64_t c) const {
    constexpr int64_t lanes = Vector<Bytes>::lanes;
    typename Vector<Bytes>::Float value[Unroll];
    for (int u = 0; u < Unroll; ++u) value[u] = Float32::load<Bytes>(from + c + u * lanes);
    for (const RoiTerm* term = begin; term != end; ++term) {
      Float32* vector = to + term->offset + c;
      for (int u = 0; u < Unroll; ++u) {
        const auto sum = Float32::load<Bytes>(vector + u * lanes) + term->weight * value[u];
        Float32::store<Bytes>(sum, vector + u * lanes);
      }
    }
  }
};

struct Largest {
  const Float32* line;
  const RoiPick* begin;
  const RoiPick* end;
  uint32_t row;
  Float32* best_of;
  uint32_t* which_of;
  template <int Bytes, int Unroll>
  KERAS_MRCNN_INLINE void step(int64_t c) const {
    constexpr int64_t lanes = Vector<Bytes>::lanes;
    typedef typename Vector<Bytes>::Float Float;
    typedef typename Vector<Bytes>::Word Word;
    Float best[Unroll];
    Word which[Unroll];
    for (int u = 0; u < Unroll; ++u) {
      best[u] = Float32::load<Bytes>(best_of + c + u * lanes);
      std::memcpy(&which[u], which_of + c + u * lanes, Bytes);
    }
    for (const RoiPick* pick = begin; pick != end; ++pick) {
      const Word number = Word{} + (pick->number == kRoiNoSample ? kRoiNoSample : row | pick->number);
      for (int u = 0; u < Unroll; ++u) {
        Float value = pick->low_weight * Float32::load<Bytes>(line + pick->low + c + u * lanes);
        if (pick->high_weight != 0.0f) {
          value += pick->high_weight * Float32::load<Bytes>(line + pick->high + c + u * lanes);
        }
        const auto better = (value > best[u]) | (value != value);
        best[u] = better ? value : best[u];
        which[u] = better ? number : which[u];
      }
    }
    for (int u = 0; u < Unroll; ++u) {
      Float32::store<Bytes>(best[u], best_of + c + u * lanes);
      std::memcpy(which_of + c + u * lanes, &which[u], Bytes);
    }
  }
};

const Float32* elements(const float* values) { return reinterpret_cast<const Float32*>(values); }
Float32* elements(float* values) { return reinterpret_cast<Float32*>(values); }

// g++ 12 compares vectors of 64 bytes one element at a time.
constexpr int comparable(int bytes) { return bytes < 32 ? bytes : 32; }

// The loops for one instruction set, in a namespace of their own.
#define KERAS_MRCNN_LOOPS(NAME, TARGET, BYTES)                                                               \
  namespace NAME {                                                                                           \
  template <typename T>                                                                                      \
  TARGET void gather(const void* from, const RoiTerm* terms, int64_t term_count, const int64_t* shifts,      \
                     int64_t count, int64_t channels, float* line) {                                         \
    for (int64_t k = 0; k < count; ++k) {                                                                    \
      const Sum<T, Float32> sum = {static_cast<const T*>(from) + shifts[k], terms, terms + term_count,       \
                                   elements(line) + k * channels};                                           \
      for_channels<BYTES>(channels, sum);                                                                    \
    }                                                                                                        \
  }                                                                                                          \
  template <typename From, typename To>                                                                      \
  TARGET void sums(const From* from, const RoiTerm* terms, const int64_t* starts, int64_t count,             \
                   int64_t channels, To* to, int64_t step) {                                                 \
    for (int64_t k = 0; k < count; ++k) {                                                                    \
      const Sum<From, To> sum = {from, terms + starts[k], terms + starts[k + 1], to + k * step};             \
      for_channels<BYTES>(channels, sum);                                                                    \
    }                                                                                                        \
  }                                                                                                          \
  template <typename T>                                                                                      \
  void write(const float* line, const RoiTerm* terms, const int64_t* starts, int64_t count,                  \
             int64_t channels, void* to, int64_t step) {                                                     \
    sums(elements(line), terms, starts, count, channels, static_cast<T*>(to), step);                         \
  }                                                                                                          \
  template <typename T>                                                                                      \
  void read(const void* from, const RoiTerm* terms, const int64_t* starts, int64_t count, int64_t channels,  \
            float* to, int64_t step) {                                                                       \
    sums(static_cast<const T*>(from), terms, starts, count, channels, elements(to), step);                   \
  }                                                                                                          \
  TARGET void scatter(const float* line, const RoiTerm* terms, int64_t term_count, const int64_t* shifts,    \
                      int64_t count, int64_t channels, float* to) {                                          \
    for (int64_t k = 0; k < count; ++k) {                                                                    \
      const Scatter one = {elements(line) + k * channels, terms, terms + term_count,                         \
                           elements(to) + shifts[k]};                                                        \
      for_channels<BYTES>(channels, one);                                                                    \
    }                                                                                                        \
  }                                                                                                          \
  TARGET void largest(const float* line, const RoiPick* picks, const int64_t* starts, int64_t count,         \
                      int64_t channels, uint32_t row, float* best, uint32_t* which) {                        \
    for (int64_t k = 0; k < count; ++k) {                                                                    \
      const Largest one = {elements(line), picks + starts[k], picks + starts[k + 1], row,                    \
                           elements(best) + k * channels, which + k * channels};                             \
      for_channels<comparable(BYTES)>(channels, one);                                                        \
    }                                                                                                        \
  }                                                                                                          \
  template <typename T>                                                                                      \
  constexpr RoiChannelLoops of() {                                                                           \
    return {gather<T>, write<T>, read<T>, scatter, largest};                                                 \
  }                                                                                                          \
  constexpr RoiChannelLoops table[] = {of<Float32>(), of<Float16>(), of<BFloat16>()};  /* as RoiType */      \
  }

KERAS_MRCNN_LOOPS(portable, , 16)
#if defined(__x86_64__) && KERAS_MRCNN_X86_64_LEVEL >= 3
KERAS_MRCNN_LOOPS(avx2, __attribute__((target("avx2"))), 32)
#endif
#if defined(__x86_64__) && KERAS_MRCNN_X86_64_LEVEL >= 4
KERAS_MRCNN_LOOPS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), 64)
#endif

const RoiChannelLoops* best_table() {
#if defined(__x86_64__) && KERAS_MRCNN_X86_64_LEVEL >= 4
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return avx512::table;
  }
#endif
#if defined(__x86_64__) && KERAS_MRCNN_X86_64_LEVEL >= 3
  if (__builtin_cpu_supports("avx2")) return avx2::table;
#endif
  return portable::table;
}

}  // namespace

const RoiChannelLoops& roi_channel_loops(int32_t type) {
  static const RoiChannelLoops* const table = best_table();
  return table[type];
}
