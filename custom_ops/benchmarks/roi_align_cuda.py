"""The CUDA kernels on a GPU: checks, then times and bandwidth beside `torchvision.ops.roi_align`.

    python custom_ops/benchmarks/roi_align_cuda.py

Needs nvcc, g++, torch and torchvision, no network; builds the library for the GPU at hand and runs for a few
minutes at most. `--only checks` leaves out the times. `--device host` makes the checks without a GPU, with
the kernels' bodies run by the processor.

Checks: against torchvision (forward 1e-5, gradient 1e-4, float32); every method, reduction and type against
the same bodies run by the processor; the gradient bit for bit over 10 runs. Exit status 1 if one fails.

Times: 1000 regions on P2 to P5 of an image of 800 x 1344, 256 channels. Milliseconds, the median of 20 runs
with an emptied L2 cache, by CUDA events; ours is one call on channels-last maps, torchvision's is one call
per level on its own layout, with the regions of each level given and without putting the results together.
Where it has no bfloat16 kernel, the copies to float32 and back are timed too, as autocast makes them. GB/s
counts each byte once that must move: pixels that a region reads, outputs; for the gradient, its maps and the
output's. "floor" is the time for these bytes at the speed of a copy on this GPU.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from custom_ops.c_library import ALIGN, AVERAGE, LEGACY, MAXIMUM, POOL, WARP, Settings
from custom_ops.cuda import c_library as cuda

IMAGE, CHANNELS, REGIONS = (800, 1344), 256, 1000
STRIDES = (4, 8, 16, 32)
SCALES = tuple(1 / stride for stride in STRIDES)
METHODS = {"aligned": ALIGN, "legacy": LEGACY, "warp": WARP, "pool": POOL}
failures = 0


def report(what, value, limit):
    """One line of a check; counts a failure when `value` is not at most `limit`."""
    global failures
    good = value <= limit
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {value:.3g} (limit {limit:g})", flush=True)


class Ours:
    """Calls of one library on torch tensors."""

    def __init__(self, path, device):
        self.functions, self.device = cuda.Functions(path), device

    def stream(self):
        return torch.cuda.current_stream().cuda_stream if self.device.type == "cuda" else None

    def empty(self, shape, dtype):
        """Memory full of NaN: whatever is not written shows."""
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        return torch.full(shape, float("nan"), dtype=dtype, device=self.device)

    def output(self, settings, case):
        return self.empty((len(case[1]), *settings.size, case[0][0].shape[3]), case[0][0].dtype)

    def forward(self, settings, case):
        output = self.output(settings, case)
        self.functions.forward(settings, case, output, self.stream())
        return output

    def workspace(self, settings, case):
        return self.empty((self.functions.workspace(settings, case),), torch.uint8)

    def backward(self, settings, case, output_gradient):
        gradients = [self.empty(map_.shape, map_.dtype) for map_ in case[0]]
        workspace = self.workspace(settings, case)
        self.functions.backward(settings, case, output_gradient, gradients, workspace, self.stream())
        return gradients


class Theirs:
    """torchvision, one call per level, on channels-first copies of the maps."""

    def __init__(self, settings, case):
        features, boxes, images, levels = case
        self.options = (*settings.size, max(settings.ratio, 0), settings.method == ALIGN)
        self.maps = [map_.permute(0, 3, 1, 2).contiguous() for map_ in features]
        self.scales = settings.scales
        rois = torch.cat([images[:, None].to(boxes.dtype), boxes], 1)
        self.index = [torch.nonzero(levels == k).flatten() for k in range(len(features))]
        self.rois = [rois[index] for index in self.index]

    def forward(self, maps=None):
        height, width, ratio, aligned = self.options
        arguments = zip(maps or self.maps, self.rois, self.scales)
        return [
            torchvision.ops.roi_align(map_, rois.to(map_.dtype), (height, width), scale, ratio, aligned)
            for map_, rois, scale in arguments
        ]

    def split(self, output_gradient):
        """The gradient of each level's regions, channels first."""
        return [output_gradient[index].permute(0, 3, 1, 2).contiguous() for index in self.index]

    def backward(self, gradients):
        height, width, ratio, aligned = self.options
        return [
            torch.ops.torchvision._roi_align_backward(
                gradient, rois.to(gradient.dtype), scale, height, width, *map_.shape, ratio, aligned
            )
            for gradient, rois, scale, map_ in zip(gradients, self.rois, self.scales, self.maps)
        ]


def make_case(device, dtype, seed, regions=REGIONS, image=IMAGE, channels=CHANNELS, batch=1, reach=0.0):
    """(features, boxes, images, levels): regions of 16 to 700 pixels; `reach` of the way outside."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    side, aspect = np.exp(rng.uniform(np.log(16), np.log(700), regions)), np.exp(rng.normal(0, 0.4, regions))
    extent = np.minimum(np.stack([side * aspect, side / aspect], 1), image[::-1])
    corner = rng.uniform(-reach, 1 + reach, (regions, 2)) * (np.array(image[::-1]) - extent)
    boxes = torch.tensor(np.concatenate([corner, corner + extent], 1), dtype=torch.float32)
    images = torch.tensor(rng.integers(0, batch, regions), dtype=torch.int32)
    shapes = [(batch, -(-image[0] // stride), -(-image[1] // stride), channels) for stride in STRIDES]
    features = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = torch.clip(torch.floor(4 + torch.log2(torch.sqrt(area) / 224 + 1e-8)), 2, 5) - 2
    return features, boxes.to(device), images.to(device), levels.to(device, torch.int32)


def difference(ours, expected):
    """The largest difference; infinite for NaN."""
    largest = (ours.double() - expected.double()).abs().max().item() if ours.numel() else 0.0
    return largest if largest == largest else float("inf")


def check_against_torchvision(ours, size):
    for name, method in (("aligned", ALIGN), ("legacy", LEGACY)):
        for bins, ratio in ((7, 2), (14, 2), (7, 0), (14, 0), (5, 3)):
            case = make_case(ours.device, torch.float32, bins + ratio, batch=2, reach=0.2, **size)
            settings = Settings((bins, bins), SCALES, ratio, method)
            theirs, output = Theirs(settings, case), ours.forward(settings, case)
            worst = [difference(o, t) for o, t in zip(theirs.split(output), theirs.forward())]
            what = f"{name}, {bins} x {bins}, sampling {ratio or 'adaptive'}"
            report(f"forward, {what}", max(worst), 1e-5)
            output_gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(
                ours.device
            )
            gradients = ours.backward(settings, case, output_gradient)
            expected = theirs.backward(theirs.split(output_gradient))
            worst = [difference(o, t.permute(0, 2, 3, 1)) for o, t in zip(gradients, expected)]
            report(f"gradient, {what}", max(worst), 1e-4)


def check_against_host(ours, host):
    """Small cases of everything, levels given and chosen, against the same bodies run by the processor."""
    limits = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
    for dtype, limit in limits.items():
        for name, method in METHODS.items():
            for reduction in (AVERAGE, MAXIMUM) if method != POOL else (MAXIMUM,):
                worst = []
                for channels, bins, ratio in ((8, (7, 7), 2), (5, (3, 18), 0), (144, (2, 3), 9)):
                    small = {"regions": 120, "image": (160, 200), "channels": channels, "batch": 2}
                    case = make_case(host.device, dtype, 3, reach=0.2, **small)
                    if ratio:
                        case = (*case[:3], None)
                    settings = Settings(bins, SCALES, ratio, method, reduction)
                    worst.append(differences_from_host(ours, host, settings, case))
                what = f"as on the host, {name} {'maximum' if reduction else 'average'}, {dtype}"
                report(f"forward, {what}", max(forward for forward, _ in worst), limit)
                report(f"gradient, {what}", max(gradient for _, gradient in worst), limit)


def differences_from_host(ours, host, settings, case):
    """Of output and gradients, in proportion to the largest element of each map."""
    there = move(case, ours.device)
    output = host.forward(settings, case)
    pairs = [(ours.forward(settings, there), output)]
    gradients = ours.backward(settings, there, output.to(ours.device))
    pairs += zip(gradients, host.backward(settings, case, output))
    worst = [difference(o.to(host.device), h) / max(h.abs().max().item(), 1.0) for o, h in pairs]
    return worst[0], max(worst[1:])


def move(case, device):
    features, *others = case
    return [map_.to(device) for map_ in features], *(None if o is None else o.to(device) for o in others)


def check_bits(ours, size):
    for dtype in (torch.float32, torch.bfloat16):
        for reduction in (AVERAGE, MAXIMUM):
            case = make_case(ours.device, dtype, 5, **size)
            settings = Settings((7, 7), SCALES, 0, ALIGN, reduction)
            output_gradient = ours.forward(settings, case)
            first = ours.backward(settings, case, output_gradient)
            different = 0
            for _ in range(9):
                again = ours.backward(settings, case, output_gradient)
                different += not all(torch.equal(a, b) for a, b in zip(first, again))
            name = "maximum" if reduction else "average"
            report(f"runs of 9 with other bits in the gradient, {name}, {dtype}", different, 0)


def check_bad_regions(ours):
    features, boxes, images, levels = make_case(
        ours.device, torch.float32, 6, regions=600, image=(64, 64), channels=4
    )
    bad = torch.zeros(1, dtype=torch.int32, device=ours.device)
    settings = Settings((7, 7), SCALES)
    for expected in (-1, 555, 301):
        if expected >= 0:
            levels[expected] = 4
        ours.functions.check(settings, (features, boxes, images, levels), bad, ours.stream())
        report(f"the first bad region, off from {expected}", abs(bad.item() - expected), 0)
    report("its output", ours.forward(settings, (features, boxes, images, levels))[301].abs().max().item(), 0)


def milliseconds(work, flush, runs=20):
    """The median over `runs`, with an emptied L2 cache."""
    times = []
    for run in range(runs + 3):
        flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        if run >= 3:
            times.append(start.elapsed_time(stop))
    return statistics.median(times)


def copy_speed(flush):
    """Bytes read and written per millisecond by a copy of a gigabyte."""
    one = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    return 2 * one.numel() / milliseconds(lambda: other.copy_(one), flush)


def has_type(theirs, maps):
    try:
        theirs.forward(maps)
        return True
    except (RuntimeError, NotImplementedError):
        return False


def time_case(ours, dtype, bins, ratio, flush, speed):
    case = make_case(ours.device, dtype, 7)
    settings = Settings((bins, bins), SCALES, ratio)
    output, stream = ours.forward(settings, case), ours.stream()
    gradients = ours.backward(settings, case, output)
    workspace = ours.workspace(settings, case)
    theirs = Theirs(settings, case)
    parts, casts = theirs.split(output), not has_type(theirs, theirs.maps)

    def their_forward():
        if casts:
            return [part.to(dtype) for part in theirs.forward([map_.float() for map_ in theirs.maps])]
        return theirs.forward()

    def their_backward():
        if casts:
            return [map_.to(dtype) for map_ in theirs.backward([part.float() for part in parts])]
        return theirs.backward(parts)

    counted = ours.backward(settings, case, torch.ones_like(output))
    touched = (
        sum(torch.count_nonzero(map_[..., 0]).item() for map_ in counted) * CHANNELS * output.element_size()
    )
    written = sum(map_.numel() for map_ in gradients) * output.element_size()
    result = output.numel() * output.element_size()
    rows = (
        (
            "forward",
            touched + result,
            lambda: ours.functions.forward(settings, case, output, stream),
            their_forward,
        ),
        (
            "gradient",
            written + result,
            lambda: ours.functions.backward(settings, case, output, gradients, workspace, stream),
            their_backward,
        ),
    )
    for name, size, our_work, their_work in rows:
        our_time, their_time = milliseconds(our_work, flush), milliseconds(their_work, flush)
        floor = size / speed
        print(
            f"{str(dtype).removeprefix('torch.'):8} {bins:2} x {bins:<2} {ratio or 'adaptive':8} {name:8} "
            f"{our_time:7.3f} ms {size / our_time / 1e6:6.0f} GB/s   {their_time:7.3f} ms "
            f"{size / their_time / 1e6:6.0f} GB/s   {their_time / our_time:5.2f} x   "
            f"floor {floor:6.3f} ms, {our_time / floor:4.2f} x{'   (theirs with casts)' if casts else ''}",
            flush=True,
        )


def times(ours):
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    speed = copy_speed(flush)
    print(f"\n{torch.cuda.get_device_name()}, a copy at {speed / 1e6:.0f} GB/s")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    print("                                       ours               torchvision      theirs / ours")
    for dtype in (torch.float32, torch.bfloat16):
        for bins in (7, 14):
            for ratio in (2, 0):
                time_case(ours, dtype, bins, ratio, flush, speed)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--only", choices=("checks", "times"))
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        host = Ours(cuda.compile_for_host(pathlib.Path(folder) / "host.so"), torch.device("cpu"))
        ours, size = host, {"regions": 60, "image": (320, 400), "channels": 12}
        if options.device == "cuda":
            major, minor = torch.cuda.get_device_capability()
            path = cuda.compile_for_devices(pathlib.Path(folder) / "device.so", (10 * major + minor,))
            ours, size = Ours(path, torch.device("cuda")), {}
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        if options.only != "times":
            check_against_torchvision(ours, size)
            check_bits(ours, size)
            check_bad_regions(ours)
            check_against_host(ours, host)
        if options.only != "checks" and options.device == "cuda":
            times(ours)
    print(f"{failures} failures, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
