// COCO's definition of the pixels of a polygon: its corners go to a grid five times as fine, the edges walk from
// grid point to grid point, and where an edge passes the middle of a column of pixels, the column's pixels from
// there on (and those of the columns to the right) turn over. So a pixel is inside after an odd number of turns.
#include "polygons.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

namespace {

constexpr int kFine = 5;

struct Point {
  double x, y;
};

// Clips to low <= coordinate <= high along one axis (Sutherland and Hodgman 1974).
template <double Point::*Axis>
void clip(std::vector<Point>* points, double low, double high) {
  for (const double sign : {1.0, -1.0}) {
    const double bound = sign > 0 ? low : high;
    std::vector<Point> clipped;
    for (size_t i = 0; i < points->size(); ++i) {
      const Point &start = (*points)[i], &end = (*points)[i + 1 < points->size() ? i + 1 : 0];
      const double here = sign * (start.*Axis - bound), there = sign * (end.*Axis - bound);
      if (here >= 0) clipped.push_back(start);
      if ((here >= 0) != (there >= 0)) {
        const double share = here / (here - there);
        clipped.push_back({start.x + (end.x - start.x) * share, start.y + (end.y - start.y) * share});
      }
    }
    points->swap(clipped);
  }
}

int fine(double position) { return static_cast<int>(kFine * position + .5); }

// The turns of one polygon: `turns` [size * size + 1] in the order of COCO's runs, column by column.
void add_turns(const std::vector<Point>& points, int64_t size, std::vector<uint8_t>* turns) {
  int before_x = 0, before_y = 0;
  bool first = true;
  const auto visit = [&](int x, int y) {
    if (!first && x != before_x) {
      const int edge = std::min(x, before_x);  // between the fine columns edge and edge + 1
      // the middle of a pixel's column lies between two fine columns only where this is a whole number
      if (edge >= 0 && edge % kFine == kFine / 2 && edge / kFine < size) {
        const double y_fine = std::min(y, before_y);
        const double row = std::ceil(std::min(std::max((y_fine + .5) / kFine - .5, 0.0), double(size)));
        (*turns)[edge / kFine * size + static_cast<int64_t>(row)] ^= 1;
      }
    }
    before_x = x, before_y = y, first = false;
  };
  for (size_t i = 0; i < points.size(); ++i) {
    const Point &from = points[i], &to = points[i + 1 < points.size() ? i + 1 : 0];
    const int x1 = fine(from.x), y1 = fine(from.y), x2 = fine(to.x), y2 = fine(to.y);
    const int dx = std::abs(x2 - x1), dy = std::abs(y2 - y1);
    if (dx == 0 && dy == 0) {
      visit(x1, y1);
    } else if (dx >= dy) {  // every step is computed from the left end, in whichever direction it is walked
      const double slope = double(x1 > x2 ? y1 - y2 : y2 - y1) / dx;
      const int left = std::min(x1, x2), y_left = x1 > x2 ? y2 : y1;
      for (int step = 0; step <= dx; ++step) {
        const int t = x1 > x2 ? dx - step : step;
        visit(left + t, static_cast<int>(y_left + slope * t + .5));
      }
    } else {
      const double slope = double(y1 > y2 ? x1 - x2 : x2 - x1) / dy;
      const int top = std::min(y1, y2), x_top = y1 > y2 ? x2 : x1;
      for (int step = 0; step <= dy; ++step) {
        const int t = y1 > y2 ? dy - step : step;
        visit(static_cast<int>(x_top + slope * t + .5), top + t);
      }
    }
  }
}

void crop_object(const float* points, const int64_t* ends, int64_t polygons, const float* box, int64_t size,
                 uint8_t* crop) {
  std::fill(crop, crop + size * size, uint8_t{0});
  const double x1 = box[0], y1 = box[1], x_scale = size / (box[2] - x1), y_scale = size / (box[3] - y1);
  std::vector<uint8_t> turns;
  for (int64_t k = 0; k < polygons; ++k) {
    std::vector<Point> scaled;
    bool far = false;
    for (int64_t i = ends[k]; i < ends[k + 1]; ++i) {
      const Point point = {(points[2 * i] - x1) * x_scale, (points[2 * i + 1] - y1) * y_scale};
      far |= std::min(point.x, point.y) < -size || std::max(point.x, point.y) > 2 * size;
      scaled.push_back(point);
    }
    if (far) {
      clip<&Point::x>(&scaled, -size, 2 * size);
      clip<&Point::y>(&scaled, -size, 2 * size);
    }
    if (scaled.size() < 3) continue;
    turns.assign(size * size + 1, 0);
    add_turns(scaled, size, &turns);
    uint8_t inside = 0;
    for (int64_t x = 0; x < size; ++x) {
      for (int64_t y = 0; y < size; ++y) {
        inside ^= turns[x * size + y];
        crop[y * size + x] |= inside;
      }
    }
  }
}

}  // namespace

int32_t keras_mrcnn_polygon_crop(const float* points, const int64_t* ends, int64_t polygons, const float* box,
                                 int64_t size, uint8_t* crop) {
  try {
    crop_object(points, ends, polygons, box, size, crop);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
