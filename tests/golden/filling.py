"""Weights, images and targets of the golden files, made by rule: nothing of them is stored.

Each name has a stream of 64-bit integers. Value i (from 0) is `mix(key + (i + 1) * STEP)` modulo 2**64,
with `mix` the output function of SplitMix64 and `key = mix((seed << 32) + crc32(name))`. From integers to
floats only multiplications, divisions, square roots and casts lead, so every machine makes the same.
"""

import zlib

import numpy as np

STEP = np.uint64(0x9E3779B97F4A7C15)
SPREAD = np.sqrt((2.0**32 - 1) / 3)  # standard deviation of `bells`


def mix(values):
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def stream(name, seed, count):
    """The first `count` values of a name, uint64."""
    key = mix(np.array([((seed << 32) + zlib.crc32(name.encode())) % 2**64], np.uint64))
    return mix(key + np.arange(1, count + 1, dtype=np.uint64) * STEP)


def bells(name, seed, count):
    """int64, nearly normal around 0: the sum of the four quarters of each value, less its mean."""
    values = stream(name, seed, count)
    quarters = [(values >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    return sum(quarter.astype(np.int64) for quarter in quarters) - 131070


def variance(name, seed, shape):
    """float32 from 2**-12 to 2: (1 + f) * 4**-k."""
    values = stream(name, seed, int(np.prod(shape)))
    fraction = (values & np.uint64(0xFFFF)).astype(np.float64) / 65536
    power = ((values >> np.uint64(16)) % np.uint64(7)).astype(np.int64)
    return np.ldexp(1 + fraction, -2 * power).astype(np.float32).reshape(shape)


def parameter(name, shape, kind, gain, seed, names):
    """One array of a state, in PyTorch's layout."""
    if kind == "count":
        return np.zeros(shape, np.int64)
    if kind == "norm_var":
        return variance(name, seed, shape)
    values = bells(name, seed, int(np.prod(shape))).reshape(shape)
    if kind in ("conv", "linear", "convt"):
        turned = values.swapaxes(0, 1) if kind == "convt" else values  # outputs first
        rows = turned.reshape(len(turned), -1)
        inputs = rows.shape[1] / (4 if kind == "convt" else 1)  # of one output: stride 2 shares them by four
        rows = rows - rows.sum(axis=1, keepdims=True) // rows.shape[1]  # every output's weights sum to zero
        weights = (rows * (gain / (SPREAD * np.sqrt(inputs)))).astype(np.float32).reshape(turned.shape)
        return weights.swapaxes(0, 1) if kind == "convt" else weights
    if kind == "norm_weight":
        scale = gain * (1 + 0.15 * (values / SPREAD))
        twin = f"{name.removesuffix('weight')}running_var"
        if twin in names:
            scale = scale * np.sqrt(variance(twin, seed, shape).astype(np.float64))
        return scale.astype(np.float32)
    return (values / SPREAD * gain).astype(np.float32)


def state(spec):
    """{name: array}: all weights of a model.

    Raises:
        AssertionError: they are not what the reference was given.
    """
    names = {row[0] for row in spec["params"]}
    arrays = {row[0]: parameter(*row, spec["seed"], names) for row in spec["params"]}
    for name, values in spec["overrides"].items():
        arrays[name] = np.float32(values).reshape(arrays[name].shape)
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), total))
    assert total == spec["checksum"]
    return arrays


def image(height, width, seed):
    """uint8 `[H, W, 3]`: a gradient, 28 boxes, ellipses and stripes, noise."""
    draws = iter(stream("image/scene", seed, 512))

    def draw(limit):
        return int(next(draws) % np.uint64(limit))

    y, x = np.arange(height)[:, None], np.arange(width)[None]
    pixels = np.empty([height, width, 3], np.int64)
    for channel in range(3):
        pixels[..., channel] = 60 + draw(60) + draw(80) * y // height + draw(80) * x // width
    short = min(height, width)
    for _ in range(28):
        kind, centre_y, centre_x = draw(3), draw(height), draw(width)
        half_y, half_x = (short // 30 + draw(short // 4) for _ in range(2))
        colour = [draw(256) for _ in range(3)]
        inside = (abs(y - centre_y) <= half_y) & (abs(x - centre_x) <= half_x)
        if kind == 1:
            inside = ((y - centre_y) * half_x) ** 2 + ((x - centre_x) * half_y) ** 2 <= (half_y * half_x) ** 2
        elif kind == 2:
            inside = inside & ((x + y) // (4 + draw(12)) % 2 == 0)
        pixels[inside] = colour
    noise = (stream("image/noise", seed, pixels.size) % np.uint64(25)).astype(np.int64)
    return np.clip(pixels + noise.reshape(pixels.shape) - 12, 0, 255).astype(np.uint8)


def ellipses(height, width, boxes):
    """uint8 `[N, H, W]`: the ellipse inscribed in each integer box, pixels with their centre inside."""
    y, x = 2 * np.arange(height)[:, None] + 1, 2 * np.arange(width)[None] + 1
    masks = np.zeros([len(boxes), height, width], np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        wide, high = x2 - x1, y2 - y1
        mask[:] = ((x - x1 - x2) * high) ** 2 + ((y - y1 - y2) * wide) ** 2 <= (wide * high) ** 2
    return masks
