"""What a call costs beside its kernels: `python -m benchmarks.calls [--bound]`.

Of every operator a call too small to compute anything, in this process on one CPU thread: the
Python files of rwm_fast that it enters, the Python calls it makes there (modulated_conv2d also at a
size where Winograd's algorithm serves), the process CPU time of a call and of one with its
gradients. Times are medians of rounds in which all take turns, and torch's own convolution of the
small layer with them; --bound exits with 1 unless the larger layer enters at most 10 files with at
most 60 calls and the small one takes at most 7 times as long as that convolution.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import rwm_fast

ROOT = str(Path(rwm_fast.__file__).parent)
ROUNDS, REPEATED = 40, 50
MOST_FILES, MOST_CALLS, MOST_RATIO = 10, 60, 7
Call = Callable[[], Tensor]


def small_calls() -> dict[str, Call]:
    """One call of each operator; the first is torch's convolution."""
    last = torch.channels_last
    x = torch.randn(1, 8, 4, 4).contiguous(memory_format=last).requires_grad_()
    weight, bias = torch.nn.Parameter(torch.randn(8, 8, 3, 3)), torch.zeros(8, requires_grad=True)
    styles, taps = torch.randn(1, 8, requires_grad=True), torch.ones(4) / 4
    images, mask = torch.randn(3, 1, 3, 4, 4), torch.rand(1, 1, 4, 4)
    hybrid = images[0].clone().requires_grad_()
    boxes = torch.tensor([[[0.1, -0.2, 0.4, 0.3]]])
    op = rwm_fast
    return {
        "torch conv2d": lambda: F.conv2d(x, weight, bias, padding=1),
        "modulated_conv2d": lambda: op.modulated_conv2d(
            x, weight, styles, padding=1, bias=bias, activation="lrelu"
        ),
        "conv2d_bias_act": lambda: op.conv2d_bias_act(
            x, weight, bias, padding=1, activation="lrelu"
        ),
        "masked_l1": lambda: op.masked_l1(hybrid, images[1], images[2], mask),
        "crop_patches": lambda: op.crop_patches(hybrid, boxes, 2),
        "bias_act": lambda: op.bias_act(x, bias, activation="lrelu"),
        "upfirdn2d": lambda: op.upfirdn2d(x, taps, padding=2),
    }


def larger_layer() -> Call:
    """64 channels at 32 pixels, with everything that a generator's layer has."""
    x = torch.randn(2, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    weight, styles = torch.nn.Parameter(torch.randn(64, 64, 3, 3)), torch.randn(2, 64)
    noise, bias = torch.randn(2, 1, 32, 32), torch.zeros(64)
    rest = dict(padding=1, noise_strength=0.1, bias=bias, activation="lrelu")
    return lambda: rwm_fast.modulated_conv2d(x, weight, styles, noise, **rest)


def travelled(call: Call) -> tuple[int, int]:
    """Files entered and calls made, after two calls that fill the caches."""
    call(), call()
    files: list[str] = []

    def seen(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            files.append(frame.f_code.co_filename)

    sys.setprofile(seen)
    call()
    sys.setprofile(None)
    return len(set(files)), len(files)


def cost(call: Call) -> float:
    """Microseconds of process CPU time."""
    start = time.process_time()
    for _ in range(REPEATED):
        call()
    return (time.process_time() - start) / REPEATED * 1e6


def both(call: Call) -> Call:
    """The call and its gradients."""
    one = torch.ones_like(call())
    return lambda: call().backward(one)


def without_gradients(call: Call) -> Call:
    def run() -> Tensor:
        with torch.no_grad():
            return call()

    return run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--bound", action="store_true", help="exit with 1 above the bounds")
    bound = parser.parse_args(argv).bound
    torch.set_num_threads(1)
    calls = small_calls()
    kinds = [(n, without_gradients(c), both(c)) for n, c in calls.items()]
    for _, forward, total in kinds:
        forward(), total()
    rounds = [[(cost(f), cost(t)) for _, f, t in kinds] for _ in range(ROUNDS)]
    print(f"{'':17} files  calls  forward, us  over conv2d  with gradients, us  over conv2d")
    passed = True
    for i, (name, forward, _) in enumerate(kinds):
        times = [statistics.median(r[i][k] for r in rounds) for k in range(2)]
        over = [statistics.median(r[i][k] / r[0][k] for r in rounds) for k in range(2)]
        files, count = travelled(forward)
        print(
            f"{name:17} {files:5}  {count:5}  {times[0]:11.0f}  {over[0]:10.1f}x"
            f"  {times[1]:18.0f}  {over[1]:10.1f}x"
        )
        if name == "modulated_conv2d":
            files, count = travelled(without_gradients(larger_layer()))
            print(f"{'… larger':17} {files:5}  {count:5}")
            passed = files <= MOST_FILES and count <= MOST_CALLS and over[0] <= MOST_RATIO
    return int(bound and not passed)


if __name__ == "__main__":
    raise SystemExit(main())
