"""Mask probabilities to masks at source size, inside a graph: COCO's run lengths, or PNG files.

The arithmetic is that of `geometry.masks`, in float64, so the masks are the same to the last pixel.
Letters: N detections of any images, M mask side, h and w the pixels of a box.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_mrcnn.geometry.masks import ROUNDING

_CHUNK = 2**20  # pixels of a box that are looked at together: what bounds the memory
_PLACES = 2**34  # more than an image has pixels: detection d's pixel p has the number d * _PLACES + p
_DIGITS = 7  # of five bits each, that a run length can need


def run_lengths(probabilities, boxes, sizes, valid, paste):
    """COCO's compressed run lengths, equal to `Results.rles()`.

    Args:
        probabilities: float32 `[N, M, M]`.
        boxes: float32 `[N, 4]`, (x1, y1, x2, y2), source pixels.
        sizes: int32 `[N, 2]`, height and width of the source image.
        valid: bool `[N]`.
        paste: "centres" or "widened", see `config.MaskHead`.

    Returns:
        string `[N]`, what COCO calls counts; empty where not valid.
    """
    grids, rows, columns = _areas(probabilities, boxes, sizes, valid, paste)
    each = tf.maximum(_CHUNK // tf.maximum(rows.count, 1), 1)  # columns of a chunk
    chunks = tf.where(rows.count > 0, -(-columns.count // each), 0)
    owner = tf.repeat(tf.range(tf.size(chunks)), chunks)  # the detection of each chunk
    first = (tf.range(tf.size(owner)) - tf.gather(tf.cumsum(chunks, exclusive=True), owner)) * tf.gather(
        each, owner
    )
    heights = tf.cast(sizes[:, 0], tf.int64)

    def body(index, edges):
        at, start = owner[index], first[index]
        count = tf.minimum(each[at], columns.count[at] - start)
        mask = _pixels(grids[at], rows.part(at, 0, rows.count[at]), columns.part(at, start, count))
        bordered = tf.pad(mask, [[0, 0], [1, 1]])
        found = tf.where(tf.math.logical_xor(bordered[:, 1:], bordered[:, :-1]))
        column = found[:, 0] + tf.cast(columns.first[at] + start, tf.int64)
        place = column * heights[at] + found[:, 1] + tf.cast(rows.first[at], tf.int64)
        return index + 1, edges.write(index, place + tf.cast(at, tf.int64) * _PLACES)

    edges = tf.TensorArray(tf.int64, tf.size(owner), element_shape=[None], infer_shape=False)
    _, edges = tf.while_loop(lambda index, _: index < tf.size(owner), body, (0, edges))
    counts, owner = _counts(edges.concat(), heights * tf.cast(sizes[:, 1], tf.int64))
    return tf.where(valid, _compressed(counts, owner, tf.size(valid)), "")


def png(probabilities, boxes, sizes, valid, paste):
    """Masks of the whole source image, 0 and 255, as PNG files.

    Args:
        probabilities, boxes, sizes, valid, paste: as in `run_lengths`.

    Returns:
        string `[N]`; empty where not valid.
    """
    grids, rows, columns = _areas(probabilities, boxes, sizes, valid, paste)

    def encoded(at):
        mask = _pixels(grids[at], rows.part(at, 0, rows.count[at]), columns.part(at, 0, columns.count[at]))
        right = sizes[at, 1] - columns.first[at] - columns.count[at]
        below = sizes[at, 0] - rows.first[at] - rows.count[at]
        around = [[rows.first[at], below], [columns.first[at], right]]
        whole = tf.pad(tf.cast(tf.transpose(mask), tf.uint8) * 255, around)
        return tf.io.encode_png(whole[:, :, None], compression=1)

    def one(at):
        return tf.cond(valid[at], lambda: encoded(at), lambda: "")

    return tf.map_fn(one, tf.range(tf.size(valid)), fn_output_signature=tf.string, parallel_iterations=2)


class _Axis(NamedTuple):
    """Along one axis: the pixels with their centre in each box, and the box. All `[N]`."""

    first: tf.Tensor  # int32, the first such pixel
    count: tf.Tensor  # int32, how many
    start: tf.Tensor  # float64, the box
    end: tf.Tensor
    cells: tf.Tensor  # float64 scalar, M

    def part(self, at, offset, count):
        """Of some pixels of a box: the cell before the centre, counted with a border, and two weights."""
        start = self.start[at]
        centres = tf.cast(self.first[at] + offset + tf.range(count), tf.float64) + 0.5
        position = (centres - start) / (self.end[at] - start) * self.cells - 0.5
        before = tf.floor(position)
        weights = [tf.maximum(1.0 - tf.abs(position - cell), 0.0) for cell in (before, before + 1.0)]
        return tf.cast(before, tf.int32) + 1, *weights


def _areas(probabilities, boxes, sizes, valid, paste):
    """float64 `[N, M + 2, M + 2]`, the grids transposed and with zeros around, and the `_Axis` of y and x."""
    side = tf.cast(tf.shape(probabilities)[1], tf.float64)
    grids = tf.transpose(tf.cast(probabilities, tf.float64), [0, 2, 1])
    boxes = tf.cast(boxes, tf.float64)
    boxes = _widened(boxes, side) if paste == "widened" else boxes
    x1, y1, x2, y2 = tf.unstack(boxes, axis=1)
    valid = valid & (x2 > x1) & (y2 > y1)
    rows, columns = _axis(y1, y2, sizes[:, 0], valid, side), _axis(x1, x2, sizes[:, 1], valid, side)
    return tf.pad(grids, [[0, 0], [1, 1], [1, 1]]), rows, columns


def _axis(start, end, size, valid, cells):
    first = tf.maximum(tf.cast(tf.math.ceil(start - 0.5), tf.int32), 0)
    last = tf.minimum(tf.cast(tf.floor(end - 0.5), tf.int32), size - 1)
    return _Axis(first, tf.where(valid, tf.maximum(last - first + 1, 0), 0), start, end, cells)


def _widened(boxes, cells):
    """`geometry.masks.widened` of all boxes."""
    x1, y1, x2, y2 = tf.unstack(boxes, axis=1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    wide, high = (x2 - x1) / 2 * (cells + 2) / cells, (y2 - y1) / 2 * (cells + 2) / cells
    corners = tf.stack([x - wide, y - high, x + wide, y + high])
    left, top, right, bottom = tf.unstack(tf.where(corners < 0, tf.math.ceil(corners), tf.floor(corners)))
    width, height = tf.maximum(right - left + 1, 1), tf.maximum(bottom - top + 1, 1)
    cell_x, cell_y = width / (cells + 2), height / (cells + 2)
    return tf.stack([left + cell_x, top + cell_y, left + width - cell_x, top + height - cell_y], axis=1)


def _pixels(grid, rows, columns):
    """bool `[w, h]`, the mask of a box, or of some columns of it, transposed."""
    before, near, far = rows
    lines = tf.gather(grid, before, axis=1) * near + tf.gather(grid, before + 1, axis=1) * far
    before, near, far = columns
    values = tf.gather(lines, before) * near[:, None] + tf.gather(lines, before + 1) * far[:, None]
    return values >= 0.5 - ROUNDING


def _counts(edges, pixels):
    """Lengths of the runs of each mask, beginning with a run of zeros.

    Args:
        edges: int64 `[E]`, ascending numbers of the places where a run of ones starts or ends. A run that
            goes on at the top of the next column has an end and a start at one place.
        pixels: int64 `[N]`, of the whole image.

    Returns:
        counts: int64, of all detections one after the other; owner: int64, the detection of each.
    """
    changes = edges[1:] != edges[:-1]
    alone = tf.concat([changes, [True]], 0) & tf.concat([[True], changes], 0)
    edges = tf.boolean_mask(edges, alone[: tf.size(edges)])
    owner, number = edges // _PLACES, tf.range(tf.size(pixels, tf.int64))
    # each detection's 0 before its edges, the end of its image after them
    several = tf.math.unsorted_segment_sum(tf.ones_like(owner), owner, tf.size(pixels))
    end = tf.cumsum(several) + 2 * number + 1
    inner = tf.range(tf.size(edges, tf.int64)) + 2 * owner + 1
    places = [tf.cast(index, tf.int32) for index in (end - several - 1, inner, end)]
    starts, ends = number * _PLACES, number * _PLACES + pixels
    borders = tf.dynamic_stitch(places, [starts, edges, ends])
    counts, owner = borders[1:] - borders[:-1], borders[:-1] // _PLACES
    keep = (owner == borders[1:] // _PLACES) & ((counts > 0) | (borders[:-1] == tf.gather(starts, owner)))
    return tf.boolean_mask(counts, keep), tf.boolean_mask(owner, keep)


def _compressed(counts, owner, number):
    """COCO's string of each detection: differences to the count before last, five bits a character."""
    index = tf.range(tf.size(counts, tf.int64))
    place = index - tf.gather(tf.math.unsorted_segment_min(index, owner, number), owner)
    before = tf.concat([[0, 0], counts[:-2]], 0)[: tf.size(counts)]
    rest = tf.where(place > 2, counts - before, counts)
    letters, follows = [], [tf.fill(tf.shape(rest), True)]
    for _ in range(_DIGITS):
        digit, rest = rest % 32, rest // 32
        more = tf.where(digit >= 16, rest != -1, rest != 0)
        letters.append(48 + digit + 32 * tf.cast(more, tf.int64))
        follows.append(follows[-1] & more)
    used = tf.stack(follows[:-1], axis=1)
    letters = tf.cast(tf.boolean_mask(tf.stack(letters, axis=1), used), tf.int32)
    lengths = tf.math.unsorted_segment_sum(tf.reduce_sum(tf.cast(used, tf.int32), axis=1), owner, number)
    return tf.strings.unicode_encode(tf.RaggedTensor.from_row_lengths(letters, lengths), "UTF-8")
