"""RoIAlign, RoIWarp and RoIPool as their rules are written, sample by sample, and cases for them.

Positions are float32 in the kernels' order of operations, as the border rule needs; sums are float64.
"""

import numpy as np

from custom_ops import c_library
from custom_ops.c_library import ALIGN, LEGACY, MAXIMUM, POOL, WARP

F = np.float32


def rounded(values):
    """Halves away from zero."""
    return np.sign(values) * np.floor(np.abs(values) + F(0.5))


def region_axes(box, scale, method):
    """float32 [2] start and length, (y, x), feature pixels."""
    start, stop = (F(box[k::-1][:2]) * F(scale) for k in (1, 3))
    if method == ALIGN:
        start, stop = start - F(0.5), stop - F(0.5)
    if method in (WARP, POOL):
        start, stop = rounded(start), rounded(stop)
    length = stop - start + F(method == POOL)
    return start, length if method == ALIGN else np.maximum(length, F(1))


def interpolated(features, y, x):
    """The pixels that a point reads: [(row, column, weight)]; none outside the map."""
    rows, columns, _ = features.shape
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return []
    pixels = []
    for position, last in ((y, rows - 1), (x, columns - 1)):
        position = max(position, F(0))
        low = min(int(position), last)
        fraction = position - F(low) if low < last else F(0)
        pixels.append([(low, F(1) - fraction), (min(low + 1, last), fraction)])
    return [(row, column, wy * wx) for row, wy in pixels[0] for column, wx in pixels[1]]


def sampled(features, axes, bin_, size, ratio):
    """The reads of each sample of a bin, as `interpolated`."""
    start, length = axes
    steps = length / F(size)
    grid = [ratio or max(int(np.ceil(step)), 0) for step in steps]
    samples = []
    for inner in np.ndindex(*grid):
        point = [start[k] + F(bin_[k]) * steps[k] + F(inner[k] + 0.5) * steps[k] / F(grid[k]) for k in (0, 1)]
        samples.append(interpolated(features, *point))
    return samples


def whole_pixels(features, axes, bin_, size):
    """RoIPool: the pixels of a bin, each read alone."""
    start, length = axes
    ranges = []
    for k in (0, 1):
        step = length[k] / F(size[k])
        low, high = np.floor(F(bin_[k]) * step) + start[k], np.ceil(F(bin_[k] + 1) * step) + start[k]
        ranges.append(range(*np.clip([low, high], 0, features.shape[k]).astype(int)))
    return [[(row, column, 1.0)] for row in ranges[0] for column in ranges[1]]


def reference(settings, features, boxes, images, output_gradient, levels=None):
    """(output, [gradient of each level]), float64."""
    output = np.zeros((len(boxes), *settings.size, features[0].shape[-1]))
    gradients = [np.zeros(map_.shape) for map_ in features]
    for region, (box, image) in enumerate(zip(boxes, images)):
        level = 0 if levels is None else levels[region]
        map_, gradient = features[level][image], gradients[level][image]
        axes = region_axes(box, settings.scales[level], settings.method)
        for bin_ in np.ndindex(*settings.size):
            if settings.method == POOL:
                samples = whole_pixels(map_, axes, bin_, settings.size)
            else:
                samples = sampled(map_, axes, bin_, settings.size, settings.ratio)
            if not samples:
                continue
            zero = np.zeros(map_.shape[-1])
            values = np.array(
                [sum((weight * map_[r, c] for r, c, weight in reads), zero) for reads in samples]
            )
            shares = np.full(values.shape, 1 / len(samples))
            if settings.reduction == MAXIMUM:
                shares = np.arange(len(samples))[:, None] == values.argmax(0)  # the first of equals
            output[region][bin_] = (shares * values).sum(0)
            for reads, share in zip(samples, shares):
                for row, column, weight in reads:
                    gradient[row, column] += weight * share * output_gradient[region][bin_]
    return output, gradients


def random_case(rng, regions=12, shape=(2, 9, 11, 5), reach=40, levels=1):
    """(features, boxes, images): boxes inside, across and outside the map, one reversed; mixed signs."""
    features = []
    for level in range(levels):
        batch, height, width, channels = shape
        map_ = rng.standard_normal((batch, -(-height >> level), -(-width >> level), channels)).astype(F)
        map_[..., 0] = -np.abs(map_[..., 0])  # where samples outside the map are the largest
        map_[..., 1:3] = np.maximum(map_[..., 1:3], 0)  # where they are as large as others
        features.append(map_)
    corners = np.sort(rng.uniform(-0.2 * reach, 1.2 * reach, (regions, 2, 2)), axis=1)
    boxes = corners.reshape(regions, 4).astype(F)
    boxes[0] = boxes[0, [2, 3, 0, 1]]
    boxes[1, 2:] = boxes[1, :2]
    boxes[2] += 1000
    return features, boxes, rng.integers(0, shape[0], regions).astype(np.int32)


def gradient_for(rng, settings, features, boxes):
    """A random gradient of the output."""
    return rng.standard_normal((len(boxes), *settings.size, features[0].shape[-1])).astype(F)


METHODS = {"aligned": ALIGN, "legacy": LEGACY, "warp": WARP, "pool": POOL}
REDUCTIONS = {"average": c_library.AVERAGE, "maximum": MAXIMUM}
