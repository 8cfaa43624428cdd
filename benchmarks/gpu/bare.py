"""What limits every kernel: copies, matrix products, and cuDNN's bare convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

LAST = torch.channels_last


def stream(moved: int, place: torch.device) -> Callable[[], object]:
    """A copy that reads and writes `moved` bytes in all."""
    source = torch.randn(max(1, moved // 8), device=place)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def the_convolution(
    x: Tensor, weight: Tensor, *, up: int = 1, down: int = 1
) -> tuple[Callable[[], object], Callable[[], object]]:
    """torch's convolution in channels_last, and that with both gradients: nothing around them."""
    forward, backward = passes(x, weight, up=up, down=down)
    return forward, lambda: (forward(), backward(True, True))


def passes(x: Tensor, weight: Tensor, *, up: int = 1, down: int = 1) -> tuple[Callable, Callable]:
    """The forward pass, and the backward pass for (gradient of x, gradient of the weight)."""
    x = x.detach().contiguous(memory_format=LAST)
    weight = weight.detach().to(x.dtype)
    weight = (weight.transpose(0, 1) if up > 1 else weight).contiguous(memory_format=LAST)
    padding = 0 if up > 1 else weight.shape[-1] // 2
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
    make: Callable[[], dict[str, Callable[[], object]]]
    bytes: int = 0
    flops: int = 0
    tf32: bool = False
    facts: dict = field(default_factory=dict)


def product(name: str, size: int, dtype: torch.dtype, place: torch.device) -> Ceiling:
    """A square matrix product of random normal numbers."""

    def make():
        a, b = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
        return {"product": lambda: a @ b}

    return Ceiling(name, make, flops=2 * size**3, tf32=name == "tf32")


# channels in and out, side of the input, kernel, up, down: every kind of convolution in the
# generator, the discriminator and the encoder of 256 pixels, without repetitions
UNITS = (
    (128, 128, 256, 3, 1, 1),
    (256, 256, 128, 3, 1, 1),
    (512, 512, 64, 3, 1, 1),
    (512, 512, 32, 3, 1, 1),
    (512, 512, 16, 3, 1, 1),
    (256, 512, 16, 3, 1, 1),
    (512, 512, 16, 3, 2, 1),
    (512, 512, 32, 3, 2, 1),
    (512, 256, 64, 3, 2, 1),
    (256, 128, 128, 3, 2, 1),
    (128, 256, 256, 3, 1, 2),
    (256, 512, 128, 3, 1, 2),
    (512, 512, 64, 3, 1, 2),
    (512, 256, 64, 1, 1, 1),
    (256, 128, 128, 1, 1, 1),
    (128, 3, 256, 1, 1, 1),
    (3, 128, 256, 1, 1, 1),
    (32, 64, 256, 3, 1, 2),
    (64, 128, 128, 3, 1, 2),
    (64, 64, 256, 3, 1, 1),
)


def convolution(n: int, unit: tuple[int, ...], place: torch.device) -> Ceiling:
    """fprop, dgrad and wgrad of one bfloat16 convolution, each alone."""
    i, o, side, kernel, up, down = unit

    def make():
        x = torch.randn(n, i, side, side, device=place).bfloat16()
        weight = torch.randn(o, i, kernel, kernel, device=place).bfloat16() / (i * kernel**2) ** 0.5
        forward, backward = passes(x, weight, up=up, down=down)
        return {
            "fprop": forward,
            "dgrad": lambda: backward(True, False),
            "wgrad": lambda: backward(False, True),
        }

    kind = f"up {up} " if up > 1 else f"down {down} " if down > 1 else ""
    name = f"conv {kind}{kernel}x{kernel} {i} -> {o} @ {side} B={n}"
    pixels = n * side**2 // down**2
    return Ceiling(name, make, flops=2 * pixels * i * o * kernel**2)


def ceilings(place: torch.device, tiny: bool = False) -> Iterator[Ceiling]:
    """Bandwidth, matrix products, then the bare convolutions."""
    moved, size = (2**16, 64) if tiny else (2**32, 8192)
    yield Ceiling("copy", lambda: {"copy": stream(moved, place)}, bytes=moved)
    yield product("bfloat16", size, torch.bfloat16, place)
    yield product("float16", size, torch.float16, place)
    yield product("tf32", size, torch.float32, place)
    units = [(8, 8, 8, 3, 1, 1)] if tiny else UNITS
    for unit in units:
        yield convolution(2 if tiny else 16, unit, place)
