"""Tile sizes of the Triton kernels of modulated_conv2d: one readable table, and who gets which row.

The sizes come from compiling, not from timing: no registers are spilled, wgmma stays asynchronous,
and as many blocks as possible share a multiprocessor (tests/triton_backend compiles every row for
every target).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from rwm_fast.ops._triton import cdiv, pow2


class Tiles(NamedTuple):
    """What one program makes, and how it is launched."""

    pixels: int  # convolution: pixels of the tile; weight gradient: pixels of one step
    outputs: int  # channels of the result's side
    inputs: int  # convolution: input channels of one step; weight gradient: of the tile
    warps: int
    stages: int


# Which table a GPU reads. 12.x has TMA, but no wgmma, no tcgen05, and the shared memory of 8.9.
GENERATIONS = {8: "ampere", 9: "hopper", 10: "blackwell", 11: "blackwell", 12: "ampere"}
# Loads through TMA descriptors; on 8.x a descriptor compiles into scalar loads that spill.
DESCRIPTORS = ("hopper", "blackwell")
# Bytes of shared memory of a block: 8.6, 8.9 and 12.0 have less than 8.0's 163 KiB.
SHARED_BYTES = {"ampere": 99 * 1024, "hopper": 227 * 1024, "blackwell": 227 * 1024}
# Programs that occupy every multiprocessor once: A100, H100, B200.
FILL = {"ampere": 108, "hopper": 132, "blackwell": 148}

# (generation, arithmetic) → shape class → tiles. The classes are explained in `shape_class`.
CONVOLUTION = {
    ("hopper", "half"): {
        "narrow": Tiles(128, 32, 64, 4, 3),
        "small": Tiles(128, 64, 64, 4, 3),
        "normal": Tiles(128, 128, 64, 8, 3),
        "wide": Tiles(128, 256, 64, 8, 3),
    },
    ("hopper", "tf32"): {
        "narrow": Tiles(128, 32, 32, 4, 3),
        "small": Tiles(128, 64, 32, 4, 3),
        "normal": Tiles(128, 128, 32, 8, 3),
    },
    ("blackwell", "half"): {
        "narrow": Tiles(128, 32, 64, 4, 3),
        "small": Tiles(128, 64, 64, 4, 3),
        "normal": Tiles(128, 128, 64, 8, 3),
    },
    ("blackwell", "tf32"): {
        "narrow": Tiles(128, 32, 32, 4, 3),
        "small": Tiles(128, 64, 32, 4, 3),
        "normal": Tiles(128, 128, 32, 8, 3),
    },
    ("ampere", "half"): {
        "narrow": Tiles(128, 32, 32, 4, 3),
        "small": Tiles(128, 64, 32, 4, 3),
        "normal": Tiles(128, 128, 32, 8, 3),
    },
    ("ampere", "tf32"): {
        "narrow": Tiles(128, 32, 32, 4, 2),
        "small": Tiles(128, 64, 32, 4, 2),
        "normal": Tiles(128, 128, 32, 8, 2),
    },
    # Four warps a tile of 64×64 would spill there.
    ("blackwell", "ieee"): {"narrow": Tiles(64, 32, 16, 4, 2), "small": Tiles(64, 64, 16, 8, 2)},
    ("any", "ieee"): {"narrow": Tiles(64, 32, 16, 4, 2), "small": Tiles(64, 64, 16, 4, 2)},
}
WEIGHT_GRADIENT = {
    ("hopper", "half"): {
        "small": Tiles(64, 64, 64, 4, 3),
        "normal": Tiles(64, 128, 128, 8, 3),
        "wide": Tiles(64, 256, 128, 8, 3),
    },
    ("hopper", "tf32"): {"small": Tiles(32, 64, 64, 4, 3), "normal": Tiles(32, 128, 128, 8, 3)},
    ("blackwell", "half"): {"small": Tiles(64, 64, 64, 4, 3), "normal": Tiles(64, 128, 128, 8, 3)},
    ("blackwell", "tf32"): {"small": Tiles(32, 64, 64, 4, 3), "normal": Tiles(32, 128, 128, 8, 3)},
    ("ampere", "half"): {"small": Tiles(32, 64, 64, 4, 3), "normal": Tiles(32, 128, 128, 8, 3)},
    ("ampere", "tf32"): {"small": Tiles(32, 64, 64, 4, 2), "normal": Tiles(32, 128, 128, 8, 2)},
    ("any", "ieee"): {"small": Tiles(16, 64, 64, 4, 2)},
}
# Passes over memory: 16 bytes a thread and row, a row of channels a warp or half of one.
RESAMPLE = (32, 64, 4)  # pixels, channels, warps
SCALE_BACKWARD = (64, 64, 4)
SUM_ROWS = (32, 128, 4)  # rows, columns, warps


def generation(capability: tuple[int, int]) -> str:
    """The row of the tables for a compute capability; a newer one reads the newest known."""
    return GENERATIONS.get(capability[0], "ampere")


def arithmetic(dtype: torch.dtype) -> str:
    """half, or float32 as torch's convolutions do it: tf32 where they may, else ieee."""
    if dtype != torch.float32:
        return "half"
    cudnn: Any = torch.backends.cudnn
    return "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"


def precision(dtype: torch.dtype) -> str:
    """What tl.dot does with float32."""
    return "ieee" if arithmetic(dtype) == "ieee" else "tf32"


def shape_class(pixel_tiles: int, outputs: int, fill: int) -> str:
    """narrow: to RGB; small: up to 64 channels, or too few tiles of 128 to occupy the GPU;
    wide: enough tiles of 256 channels to occupy it; normal: the others.
    """
    if outputs <= 32:
        return "narrow"
    if outputs >= 256 and pixel_tiles * cdiv(outputs, 256) >= fill:
        return "wide"
    return "normal" if outputs > 64 and pixel_tiles * cdiv(outputs, 128) >= fill else "small"


def _row(table: dict, generation: str, kind: str, wanted: str) -> Tiles:
    rows = table.get((generation, kind)) or table["any", kind]
    order = ("wide", "normal", "small", "narrow")
    smaller = [name for name in order[order.index(wanted) :] if name in rows]
    return rows[smaller[0] if smaller else "small"]


def convolution(
    capability: tuple[int, int],
    dtype: torch.dtype,
    pixels: int,
    inputs: int,
    outputs: int,
    light: bool,
) -> Tiles:
    """Tiles of `convolution` and `input_gradient`; pixels of all images together.

    Only a light loop and epilogue leave the registers that the wide accumulator takes.
    """
    name = generation(capability)
    wanted = shape_class(cdiv(pixels, 128), outputs, FILL[name])
    wanted = "normal" if wanted == "wide" and not light else wanted
    tiles = _row(CONVOLUTION, name, arithmetic(dtype), wanted)
    return tiles._replace(inputs=min(tiles.inputs, max(16, pow2(inputs, 64))))


def weight_gradient(
    capability: tuple[int, int], dtype: torch.dtype, inputs: int, outputs: int
) -> Tiles:
    """Tiles of `weight_gradient`: by the channels alone, for splits make up for few tiles."""
    least = min(inputs, outputs)
    wanted = "small" if least <= 64 else "wide" if outputs >= 256 else "normal"
    return _row(WEIGHT_GRADIENT, generation(capability), arithmetic(dtype), wanted)


def splits(capability: tuple[int, int], programs: int, steps: int) -> int:
    """Parts of a weight gradient's sum: to occupy the GPU twice, each of at least eight steps.

    Never more than steps, so no part is empty; at most 64, for the parts are added up.
    """
    wanted = cdiv(2 * FILL[generation(capability)], programs)
    return max(1, min(wanted, steps // 8, 64))


def box(pixels: int, height: int, width: int) -> tuple[int, int]:
    """The rectangle of so many pixels that covers an image in the fewest; the squarest of those."""
    boxes = [(pixels // w, w) for w in (1 << e for e in range(pixels.bit_length()))]
    return min(boxes, key=lambda b: (cdiv(height, b[0]) * cdiv(width, b[1]), max(b) / min(b), b[0]))
