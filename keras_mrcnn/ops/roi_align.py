"""RoIAlign, RoIWarp and RoIPool: the compiled operation, or the same from stock TensorFlow operations.

`library.choice` says which; the stock ones are the oracle of the other.

The average of RoIAlign's samples, which models use by default, is taken of all regions together
(`roi_crops`), everything else region by region (`roi_regions`).
"""

from typing import NamedTuple

import tensorflow as tf

from keras_mrcnn.ops import library, roi_crops
from keras_mrcnn.ops.roi_pool import roi_pool
from keras_mrcnn.ops.roi_regions import divided, pool_regions, sampled_axis

OPERATIONS = ("align", "warp", "pool")
REDUCTIONS = ("average", "maximum")


class _Pooling(NamedTuple):
    """What the calls of one layer have in common; `method` and `reduction` as in `library.pool`."""

    bins: list  # rows, columns
    sampling_ratio: int
    method: str
    reduction: str


def roi_align(
    features,
    boxes,
    batch_indices,
    output_size,
    scale,
    sampling_ratio=2,
    aligned=True,
    operation="align",
    reduction="average",
):
    """Features of regions, pooled to one size (Mask R-CNN, section 3, and its tables 2c and 2d).

    | operation | reduction | corners | a bin's value |
    | --- | --- | --- | --- |
    | align | average | exact | the average of bilinear samples: RoIAlign, the paper's choice |
    | align | maximum | exact | the largest of the same samples |
    | warp | average, maximum | rounded to whole feature pixels | of bilinear samples: RoIWarp (MNC) |
    | pool | maximum | rounded, those of bins too | the largest pixel: RoIPool (Fast R-CNN) |

    A sample more than one pixel outside the map is 0 and counts. The gradient of a maximum goes to the first
    of the largest samples, rows first. A region with an edge that is not finite is 0.

    Args:
        features: float `[B, H, W, C]`.
        boxes: float32 `[R, 4]`, (x1, y1, x2, y2), pixels of the image. No gradient flows to them.
        batch_indices: int32 `[R]`, the image of each box.
        output_size: bins along each side, an int, or two: (rows, columns).
        scale: float, feature pixels per image pixel.
        sampling_ratio: int, samples per bin along each side; 0: for each box and side as many as its bins
            are long in feature pixels, rounded up. Without effect on `pool`.
        aligned: bool, of `align` alone: False leaves out the half-pixel shift and widens boxes to at least
            one feature pixel.
        operation: `align`, `warp` or `pool`. Halves are rounded away from zero.
        reduction: `average` or `maximum`; `pool` has only the latter.

    Returns:
        `[R, rows, columns, C]` of the features' dtype.

    Raises:
        ValueError: an unknown operation or reduction, or the average of `pool`.
        tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError: an image that is not in the batch, on a
            CPU. On a GPU, where nothing waits for what the tensors hold, its region is 0.
    """
    pooling = _pooling(output_size, sampling_ratio, aligned, operation, reduction)
    compiled = _compiled([features], boxes, batch_indices, [scale], pooling)
    return _from_stock(features, boxes, batch_indices, scale, pooling) if compiled is None else compiled


def multilevel_roi_align(
    maps,
    boxes,
    batch_indices,
    output_size,
    strides,
    sampling_ratio=2,
    aligned=True,
    operation="align",
    reduction="average",
):
    """`roi_align` of each region on the pyramid level that fits its size, or all on the one map.

    Args:
        maps: list of float `[B, H_k, W_k, C]`, the finest first.
        strides: list of int, image pixels per feature pixel of each map. Several maps are the levels of an
            FPN from P2 on: 4, 8, 16, 32 ...; one may have any stride.
        boxes, batch_indices, output_size, sampling_ratio, aligned, operation, reduction: as in `roi_align`.

    Returns:
        `[R, rows, columns, C]`, in the order of `boxes`.

    Raises:
        ValueError: strides that do not fit the maps or the rule of the levels; and as `roi_align`.
    """
    pooling = _pooling(output_size, sampling_ratio, aligned, operation, reduction)
    _check_strides(strides, maps)
    scales = [1.0 / stride for stride in strides]
    compiled = _compiled(maps, boxes, batch_indices, scales, pooling)
    return _by_level(maps, boxes, batch_indices, scales, pooling) if compiled is None else compiled


def _pooling(output_size, sampling_ratio, aligned, operation, reduction):
    for name, value, known in (("operation", operation, OPERATIONS), ("reduction", reduction, REDUCTIONS)):
        if value not in known:
            raise ValueError(f"`{name}` is {', '.join(known[:-1])} or {known[-1]}. Received: {value!r}")
    if operation == "pool" and reduction != "maximum":
        raise ValueError(
            "RoIPool takes the largest pixel: `operation='pool'` needs `reduction='maximum'`. "
            f"Received: reduction={reduction!r}"
        )
    bins = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    method = "align_legacy" if operation == "align" and not aligned else operation
    return _Pooling(bins, sampling_ratio, method, reduction)


def _check_strides(strides, maps):
    if len(strides) != len(maps):
        raise ValueError(
            f"`strides` has an entry for each map. Received: {list(strides)} for {len(maps)} maps"
        )
    if len(maps) > 1 and list(strides) != [4 << level for level in range(len(maps))]:
        raise ValueError(
            "`strides` of several maps are 4, 8, 16, 32 ..., as the rule assumes that gives each region its "
            f"level (FPN paper, eq. 1). Received: {list(strides)}. Give one map, or P2 and its followers."
        )


def _compiled(maps, boxes, batch_indices, scales, pooling):
    """From the compiled library; None where it is not in use, or does not know the maps' dtype."""
    maps = [tf.convert_to_tensor(features) for features in maps]
    module = library.compiled()
    if module is None or maps[0].dtype not in library.TYPES:
        return None
    boxes, images = tf.stop_gradient(tf.cast(boxes, tf.float32)), tf.cast(batch_indices, tf.int32)
    return library.pool(module, maps, boxes, images, scales, *pooling)


def _by_level(maps, boxes, batch_indices, scales, pooling):
    if len(maps) == 1:
        return _from_stock(maps[0], boxes, batch_indices, scales[0], pooling)
    level_of = roi_levels(boxes, len(maps))
    places, pooled = [], []
    for level, (features, scale) in enumerate(zip(maps, scales)):
        place = tf.cast(tf.where(level_of == level)[:, 0], tf.int32)
        places.append(place)
        images = tf.gather(batch_indices, place)
        pooled.append(_from_stock(features, tf.gather(boxes, place), images, scale, pooling))
    return tf.gather(tf.concat(pooled, 0), tf.argsort(tf.concat(places, 0)))


def roi_levels(boxes, levels):
    """Pyramid level of each region (FPN paper, eq. 1, with k0 = 4 at 224 pixels).

    Args:
        boxes: float32 `[..., 4]`, pixels.
        levels: int, number of levels, P2 first.

    Returns:
        int32 `[...]`, 0 for P2.
    """
    width = tf.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
    height = tf.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
    level = tf.floor(4.0 + tf.math.log(tf.sqrt(width * height) / 224.0 + 1e-8) / tf.math.log(2.0))
    level = tf.where(tf.math.is_nan(level), 2.0, level)
    return tf.cast(tf.clip_by_value(level, 2.0, levels + 1.0), tf.int32) - 2


def _from_stock(features, boxes, batch_indices, scale, pooling):
    features = tf.convert_to_tensor(features)
    bins, sampling_ratio, method, reduction = pooling
    shape = tf.shape(features)
    start, extent = _placed(boxes, scale, method, shape[1:3])
    regions = start, extent, tf.cast(batch_indices, tf.int32)
    if method == "pool":
        return roi_pool(features, *regions, bins)
    if sampling_ratio:
        samples = tf.fill(tf.shape(start), sampling_ratio)
    else:
        samples = tf.cast(tf.math.ceil(divided(extent, bins)), tf.int32)
    if method == "warp" or reduction == "maximum":

        def axis(region, k):
            return sampled_axis(
                start[region, k], extent[region, k], samples[region, k], bins[k], shape[k + 1]
            )

        return pool_regions(features, regions[2], axis, bins, reduction)
    if sampling_ratio:
        return roi_crops.average(features, *regions, bins, (sampling_ratio, sampling_ratio))
    return roi_crops.average_adaptively(features, *regions, bins, samples)


def _placed(boxes, scale, method, size):
    """Start and extent of the regions, float32 `[R, 2]`, (y, x), feature pixels; pixel centres are integers.

    Those without a place, not finite or with nothing to read, have no extent, at a place outside the map.
    """
    edges = tf.stop_gradient(tf.cast(boxes, tf.float32)) * scale
    if method == "align":
        edges -= 0.5
    if method in ("warp", "pool"):
        whole = tf.floor(tf.abs(edges))
        edges = tf.sign(edges) * (whole + tf.cast(tf.abs(edges) - whole >= 0.5, tf.float32))
    start = edges[:, 1::-1]
    extent = edges[:, :1:-1] - start
    if method == "pool":
        extent += 1.0  # the last pixel is inside
    if method != "align":
        extent = tf.maximum(extent, 1.0)
    first, last = start + tf.minimum(extent, 0.0), start + tf.maximum(extent, 0.0)
    near = (last > -2) & (first < tf.cast(size + 1, tf.float32))
    known = tf.concat([near, tf.math.is_finite(edges), tf.math.is_finite(extent)], axis=1)
    somewhere = tf.reduce_all(known, axis=1, keepdims=True)
    return tf.where(somewhere, start, -2.0), tf.where(somewhere, extent, 0.0)
