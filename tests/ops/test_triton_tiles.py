"""How large the tiles of modulated_conv2d's Triton kernels are.

The tables are plain Python, so they are checked without a GPU and without Triton.
"""

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rwm_fast.ops import modulated_conv2d

# by its path: the package around it imports Triton
_FILE = Path(modulated_conv2d.__file__).parent / "triton_kernels/configs.py"
configs = SimpleNamespace(**runpy.run_path(str(_FILE)))

CAPABILITIES = ((8, 0), (8, 6), (9, 0), (10, 0), (12, 0))


def _rows():
    for table in (configs.CONVOLUTION, configs.WEIGHT_GRADIENT):
        for (generation, kind), rows in table.items():
            for name, tiles in rows.items():
                id = f"{'c' if table is configs.CONVOLUTION else 'w'}-{generation}-{kind}-{name}"
                yield pytest.param(table is configs.CONVOLUTION, generation, kind, tiles, id=id)


@pytest.mark.parametrize(("forward", "generation", "kind", "tiles"), list(_rows()))
def test_every_row_obeys_the_rules(forward, generation, kind, tiles):
    """What holds by construction, before a compiler sees it."""
    for size in tiles:
        assert size > 0
    for size in (tiles.pixels, tiles.outputs, tiles.inputs):
        assert size & (size - 1) == 0 and 16 <= size <= 256, "a TMA box and tl.dot demand it"
    assert tiles.warps in (4, 8)
    # The product runs over channels, or, for the weight's gradient, over pixels.
    accumulators = tiles.outputs * (tiles.pixels if forward else tiles.inputs)
    operands = (tiles.outputs + (tiles.pixels if forward else tiles.inputs)) * (
        tiles.inputs if forward else tiles.pixels
    )
    assert accumulators / (32 * tiles.warps) <= 128, "half of a thread's registers"
    shared = operands * (2 if kind == "half" else 4) * tiles.stages
    limit = min(configs.SHARED_BYTES.values()) if generation == "any" else None
    assert shared <= (limit or configs.SHARED_BYTES[generation])
    depth = (tiles.inputs if forward else tiles.pixels) * (2 if kind == "half" else 4)
    assert depth % 16 == 0, "rows of 16 bytes"


KINDS = {
    "half": (torch.bfloat16, True),
    "tf32": (torch.float32, True),
    "ieee": (torch.float32, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_shape_has_a_row(capability, kind):
    dtype, tf32 = KINDS[kind]
    with torch.backends.cudnn.flags(allow_tf32=tf32):
        assert configs.arithmetic(dtype) == kind
        _check_rows(capability, dtype, kind)


def _check_rows(capability, dtype, kind):
    seen = set()
    for pixels, inputs, outputs, light in itertools.product(
        (1, 100, 10**4, 10**7),
        (1, 3, 16, 17, 64, 65, 512),
        (1, 3, 33, 64, 65, 128, 257, 512),
        (0, 1),
    ):
        tiles = configs.convolution(capability, dtype, pixels, inputs, outputs, light)
        seen.add(tiles)
        assert 16 <= tiles.inputs and (tiles.inputs < 2 * inputs or tiles.inputs == 16)
        if kind == "half" and tiles.outputs == 256:
            assert light, "with more in the registers a wide tile spills"
        seen.add(configs.weight_gradient(capability, dtype, inputs, outputs))
    shared = configs.SHARED_BYTES[configs.generation(capability)]
    assert all(t.outputs * t.inputs * t.stages < shared for t in seen)


def test_splits_are_never_empty():
    for programs, steps in itertools.product((1, 9, 36, 10**4), (1, 2, 7, 8, 63, 64, 10**5)):
        found = configs.splits((9, 0), programs, steps)
        assert 1 <= found <= min(64, steps)
        # As the kernel divides the steps.
        parts = [(s + 1) * steps // found - s * steps // found for s in range(found)]
        assert min(parts) >= 1 and sum(parts) == steps
    assert configs.splits((9, 0), 9, 10**5) == 30, "two blocks for each multiprocessor"
    assert configs.splits((9, 0), 10**4, 10**5) == 1


def test_boxes_cover_in_the_fewest():
    assert configs.box(128, 256, 256) == (8, 16) and configs.box(64, 16, 16) == (8, 8)
    assert configs.box(128, 1, 500) == (1, 128) and configs.box(128, 500, 1) == (128, 1)
    for h, w in ((9, 13), (4, 4), (1, 1), (33, 7)):
        bh, bw = configs.box(64, h, w)
        fewest = min(-(-h // (64 // b)) * -(-w // b) for b in (1, 2, 4, 8, 16, 32, 64))
        assert bh * bw == 64 and -(-h // bh) * -(-w // bw) == fewest


def test_a_newer_gpu_takes_the_careful_row():
    assert configs.generation((12, 1)) == configs.generation((13, 0)) == "ampere"
    assert "ampere" not in configs.DESCRIPTORS
