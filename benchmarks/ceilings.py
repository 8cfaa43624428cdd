"""What limits every kernel: streams, matrix products, and torch's bare convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.device import Call, Cpu, has_amx_bf16

LAST = torch.channels_last


def triad(moved: int, place: torch.device) -> Call:
    """a = b + s·c over `moved` bytes in all: the rate at which torch can stream memory.

    Ordinary stores: a CPU also reads what it overwrites, which is not counted.
    """
    a, b, c = (torch.ones(max(1, moved // 12), device=place) for _ in range(3))
    return lambda: torch.add(b, c, alpha=0.5, out=a)


def convolution(
    x: Tensor, weight: Tensor, *, up: int = 1, down: int = 1, padding: int = 0
) -> tuple[Call, Callable[[bool, bool], object]]:
    """torch's convolution in channels_last and x's dtype, and its backward pass for (gradient of x,
    gradient of the weight): nothing around them."""
    x = x.detach().contiguous(memory_format=LAST)
    weight = weight.detach().to(x.dtype)
    weight = (weight.transpose(0, 1) if up > 1 else weight).contiguous(memory_format=LAST)
    padding = 0 if up > 1 else padding
    settings = ([max(up, down)] * 2, [padding] * 2, [1, 1], up > 1, [0, 0], 1)
    forward = lambda: torch.ops.aten.convolution(x, weight, None, *settings)
    dy = torch.randn_like(forward())

    def backward(need_x: bool, need_weight: bool) -> object:
        needs = [need_x, need_weight, False]
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *settings, needs)

    return forward, backward


@dataclass
class Ceiling:
    """One measurement: named calls, and the bytes or operations of one call of each."""

    name: str
    make: Callable[[], dict[str, Call]]
    bytes: int = 0
    flops: int = 0


def product(name: str, size: int, place: torch.device) -> Ceiling:
    """A square matrix product of random normal numbers; "tf32" is of float32."""
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)

    def make() -> dict[str, Call]:
        a, b = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
        return {"product": lambda: a @ b}

    return Ceiling(name, make, flops=2 * size**3)


# channels in and out, side of the input, kernel, up, down: every kind of convolution in the
# generator, the discriminator and the encoder of 256 pixels, without repetitions
UNITS = (
    (128, 128, 256, 3, 1, 1), (256, 256, 128, 3, 1, 1), (512, 512, 64, 3, 1, 1),
    (512, 512, 32, 3, 1, 1), (512, 512, 16, 3, 1, 1), (256, 512, 16, 3, 1, 1),
    (512, 512, 16, 3, 2, 1), (512, 512, 32, 3, 2, 1), (512, 256, 64, 3, 2, 1),
    (256, 128, 128, 3, 2, 1), (128, 256, 256, 3, 1, 2), (256, 512, 128, 3, 1, 2),
    (512, 512, 64, 3, 1, 2), (512, 256, 64, 1, 1, 1), (256, 128, 128, 1, 1, 1),
    (128, 3, 256, 1, 1, 1), (3, 128, 256, 1, 1, 1), (32, 64, 256, 3, 1, 2),
    (64, 128, 128, 3, 1, 2), (64, 64, 256, 3, 1, 1),
)  # fmt: skip


def unit(n: int, sizes: tuple[int, ...], place: torch.device) -> Ceiling:
    """fprop, dgrad and wgrad of one bfloat16 convolution, each alone."""
    i, o, side, kernel, up, down = sizes

    def make() -> dict[str, Call]:
        x = torch.randn(n, i, side, side, device=place).bfloat16()
        weight = torch.randn(o, i, kernel, kernel, device=place) / (i * kernel**2) ** 0.5
        forward, backward = convolution(x, weight, up=up, down=down, padding=kernel // 2)
        return {
            "fprop": forward,
            "dgrad": lambda: backward(True, False),
            "wgrad": lambda: backward(False, True),
        }

    kind = f"up {up} " if up > 1 else f"down {down} " if down > 1 else ""
    name = f"conv {kind}{kernel}x{kernel} {i} -> {o} @ {side} B={n}"
    pixels = n * side**2 // down**2
    return Ceiling(name, make, flops=2 * pixels * i * o * kernel**2)


def ceilings(device: Cpu, tiny: bool = False) -> Iterator[Ceiling]:
    """Bandwidth, matrix products and, for GPUs, bare convolutions."""
    place = device.place
    small = tiny or not device.graphs
    moved = 2**16 if tiny else 3 * 2**26 if small else 2**32
    size = 64 if tiny else 1024 if small else 8192
    yield Ceiling("triad", lambda: {"triad": triad(moved, place)}, bytes=moved)
    if device.graphs:
        for name in ("bfloat16", "float16", "tf32"):
            yield product(name, size, place)
        for sizes in [(8, 8, 8, 3, 1, 1)] if tiny else UNITS:
            yield unit(2 if tiny else 16, sizes, place)
    else:
        yield product("float32", size, place)
        if has_amx_bf16():
            yield product("bfloat16", size, place)
