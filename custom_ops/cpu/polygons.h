// Polygons to binary crops of their objects' boxes, with the bits of COCO's own rasteriser.
#ifndef KERAS_MRCNN_CPU_POLYGONS_H_
#define KERAS_MRCNN_CPU_POLYGONS_H_

#include <cstdint>

extern "C" {

// One object: the union of its polygons, moved and scaled so that `box` fills `crop` [size, size], 0 or 1.
// `points` are (x, y) of all polygons one after the other; polygon k has those from ends[k] to ends[k + 1] - 1.
// Returns 0, or 1 where there is no memory left.
int32_t keras_mrcnn_polygon_crop(const float* points, const int64_t* ends, int64_t polygons, const float* box,
                                 int64_t size, uint8_t* crop);
}

#endif  // KERAS_MRCNN_CPU_POLYGONS_H_
