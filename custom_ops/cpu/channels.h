// The inner loops: sums and maxima of vectors of channels. Everything else decides only which vectors.
#ifndef KERAS_MRCNN_CPU_CHANNELS_H_
#define KERAS_MRCNN_CPU_CHANNELS_H_

#include <cstdint>

#include "../roi_align_geometry.h"

// weight * (the vector at this offset), in elements from a base.
struct RoiTerm {
  int64_t offset;
  float weight;
};

// A sample between two vectors of a line, in elements; high_weight 0: the low one alone.
struct RoiPick {
  int64_t low;
  int64_t high;
  float low_weight;
  float high_weight;
  uint32_t number;  // of the sample in its row of samples
};

constexpr uint32_t kRoiNoSample = 0xffffffffu;  // "which" of a maximum that no pixel has made

// Pointers to void are elements of the table's type. `channels` is the length of the vectors.
struct RoiChannelLoops {
  // line[k] = sum of from[term + shifts[k]] over `terms`; k of [0, count), vectors of `line` one after another.
  void (*gather)(const void* from, const RoiTerm* terms, int64_t term_count, const int64_t* shifts,
                 int64_t count, int64_t channels, float* line);
  // to[k * step] = sum of line[term] over the terms [starts[k], starts[k + 1]).
  void (*write)(const float* line, const RoiTerm* terms, const int64_t* starts, int64_t count,
                int64_t channels, void* to, int64_t step);
  // The same with the types of both sides exchanged.
  void (*read)(const void* from, const RoiTerm* terms, const int64_t* starts, int64_t count, int64_t channels,
               float* to, int64_t step);
  // to[term + shifts[k]] += weight * line[k] for all terms and k.
  void (*scatter)(const float* line, const RoiTerm* terms, int64_t term_count, const int64_t* shifts,
                  int64_t count, int64_t channels, float* to);
  // For each bin k, the picks [starts[k], starts[k + 1]) in their order: where one is larger than best[k], it
  // takes its place, and which[k] becomes row | number. A NaN is larger than anything.
  void (*largest)(const float* line, const RoiPick* picks, const int64_t* starts, int64_t count,
                  int64_t channels, uint32_t row, float* best, uint32_t* which);
};

// The loops for this type on this processor.
const RoiChannelLoops& roi_channel_loops(int32_t type);

#endif  // KERAS_MRCNN_CPU_CHANNELS_H_
