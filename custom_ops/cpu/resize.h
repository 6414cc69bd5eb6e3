// Bilinear resize of an 8-bit image, antialiased: the bits of tf.image.resize(antialias=True), rounded and cast.
#ifndef KERAS_MRCNN_CPU_RESIZE_H_
#define KERAS_MRCNN_CPU_RESIZE_H_

#include <cstdint>

extern "C" {

// `image` [height, width, channels] to `output` [new_height, new_width, channels], all sizes at least 1.
// Returns 0, or 1 where there is no memory left.
int32_t keras_mrcnn_resize(const uint8_t* image, int64_t height, int64_t width, int64_t channels,
                           int64_t new_height, int64_t new_width, uint8_t* output);
}

#endif  // KERAS_MRCNN_CPU_RESIZE_H_
