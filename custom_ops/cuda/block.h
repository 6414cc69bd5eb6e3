// What a kernel body sees of the machine: a block of threads that run phase by phase, and memory in vectors.
//
// A body is written once and runs in two places. In a kernel, `run(f)` calls f(thread) in each thread of the
// block, and `sync()` is the barrier between phases. On the host, `run(f)` calls f for all threads in turn,
// so that every index and sum of the bodies can be tested without a device. What differs between the two is
// in this file only. Decisions between phases must be the same in all threads.
#ifndef KERAS_MRCNN_CUDA_BLOCK_H_
#define KERAS_MRCNN_CUDA_BLOCK_H_

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define KERAS_MRCNN_DEVICE __device__
#define KERAS_MRCNN_CALLED __device__ __noinline__
#define KERAS_MRCNN_UNROLL _Pragma("unroll")
#define KERAS_MRCNN_LOOP _Pragma("unroll 1")
#else
#define KERAS_MRCNN_DEVICE
#define KERAS_MRCNN_CALLED
#define KERAS_MRCNN_UNROLL
#define KERAS_MRCNN_LOOP
#endif

#include "../roi_align_geometry.h"

namespace keras_mrcnn {

constexpr int kThreads = 256;
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;

#ifdef __CUDACC__

class DeviceBlock {
 public:
  // One value per thread.
  template <typename T>
  struct Own {
    __device__ T& operator[](int) { return value; }
    T value;
  };

  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int64_t count() const { return gridDim.x; }
  __device__ void sync() { __syncthreads(); }

  template <typename Work>
  __device__ void run(Work work) {
    work(static_cast<int>(threadIdx.x));
  }

  // Appends to `list` the values of all threads that are not negative, in the order of the threads; returns
  // how many, to each thread. A barrier stands before the writing, and one at the end.
  template <typename Value>
  __device__ int compact(int32_t* list, Value value) {
    __shared__ int counts[kWarps];
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const int32_t item = value(static_cast<int>(threadIdx.x));
    const unsigned chosen = __ballot_sync(0xffffffffu, item >= 0);
    if (lane == 0) counts[warp] = __popc(chosen);
    __syncthreads();
    int before = __popc(chosen & ((1u << lane) - 1)), total = 0;
    for (int k = 0; k < kWarps; ++k) {
      if (k < warp) before += counts[k];
      total += counts[k];
    }
    if (item >= 0) list[before] = item;
    __syncthreads();
    return total;
  }

  // The values of all threads, combined by an operation that may be done in any order.
  template <typename Value, typename Operation>
  __device__ int32_t reduce(Value value, Operation operation) {
    __shared__ int32_t values[kThreads];
    const int thread = threadIdx.x;
    values[thread] = value(thread);
    for (int half = kThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (thread < half) values[thread] = operation(values[thread], values[thread + half]);
    }
    __syncthreads();
    const int32_t result = values[0];
    __syncthreads();
    return result;
  }
};

#endif  // __CUDACC__

class HostBlock {
 public:
  template <typename T>
  struct Own {
    T& operator[](int thread) { return values[thread]; }
    T values[kThreads];
  };

  HostBlock(int64_t index, int64_t count) : index_(index), count_(count) {}
  int64_t index() const { return index_; }
  int64_t count() const { return count_; }
  void sync() {}

  template <typename Work>
  void run(Work work) {
    for (int thread = 0; thread < kThreads; ++thread) work(thread);
  }

  template <typename Value>
  int compact(int32_t* list, Value value) {
    int total = 0;
    for (int thread = 0; thread < kThreads; ++thread) {
      const int32_t item = value(thread);
      if (item >= 0) list[total++] = item;
    }
    return total;
  }

  template <typename Value, typename Operation>
  int32_t reduce(Value value, Operation operation) {
    int32_t result = value(0);
    for (int thread = 1; thread < kThreads; ++thread) result = operation(result, value(thread));
    return result;
  }

 private:
  int64_t index_;
  int64_t count_;
};

// Elements, by their bits; sums are float32.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

KERAS_MRCNN_DEVICE inline float to_float(float value) { return value; }
KERAS_MRCNN_DEVICE inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}
KERAS_MRCNN_DEVICE inline float to_float(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  _Float16 half;
  memcpy(&half, &value, 2);
  return static_cast<float>(half);
#endif
}

KERAS_MRCNN_DEVICE inline void from_float(float value, float* to) { *to = value; }
KERAS_MRCNN_DEVICE inline void from_float(float value, BFloat16* to) {
#ifdef __CUDA_ARCH__
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);  // to nearest, halves to even
  to->bits = static_cast<uint16_t>(value == value ? rounded >> 16 : 0x7fff);
#endif
}
KERAS_MRCNN_DEVICE inline void from_float(float value, Half* to) {
#ifdef __CUDA_ARCH__
  to->bits = __half_as_ushort(__float2half_rn(value));
#else
  const _Float16 half = static_cast<_Float16>(value);
  memcpy(to, &half, 2);
#endif
}

// `kCount` neighbouring elements, loaded and stored at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T elements[kCount];
};

template <int kCount>
struct Floats {
  float values[kCount];
};

template <int kCount, typename T>
KERAS_MRCNN_DEVICE inline Vector<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kCount>*>(from);
}

template <typename T, int kCount>
KERAS_MRCNN_DEVICE inline Floats<kCount> widen(const Vector<T, kCount>& from) {
  Floats<kCount> result;
  KERAS_MRCNN_UNROLL
  for (int k = 0; k < kCount; ++k) result.values[k] = to_float(from.elements[k]);
  return result;
}

template <int kCount, typename T>
KERAS_MRCNN_DEVICE inline void store(const Floats<kCount>& from, T* to) {
  Vector<T, kCount> vector;
  KERAS_MRCNN_UNROLL
  for (int k = 0; k < kCount; ++k) from_float(from.values[k], &vector.elements[k]);
  *reinterpret_cast<Vector<T, kCount>*>(to) = vector;
}

template <int kCount>
KERAS_MRCNN_DEVICE inline Floats<kCount> zeros() {
  Floats<kCount> result;
  KERAS_MRCNN_UNROLL
  for (int k = 0; k < kCount; ++k) result.values[k] = 0.0f;
  return result;
}

template <int kCount>
KERAS_MRCNN_DEVICE inline void add_scaled(const Floats<kCount>& from, float weight, Floats<kCount>* to) {
  KERAS_MRCNN_UNROLL
  for (int k = 0; k < kCount; ++k) to->values[k] += weight * from.values[k];
}

template <typename T, int kCount>
KERAS_MRCNN_DEVICE inline void add_scaled(const Vector<T, kCount>& from, float weight, Floats<kCount>* to) {
  add_scaled(widen(from), weight, to);
}

}  // namespace keras_mrcnn

#endif  // KERAS_MRCNN_CUDA_BLOCK_H_
