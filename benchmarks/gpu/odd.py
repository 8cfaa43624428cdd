"""Calls of our own kernels at odd sizes, for compute-sanitizer to watch.

Forward and backward pass of a few small named cases of every operator on one backend. What they
compute is checked elsewhere; here every access to memory is.
"""

from __future__ import annotations

import argparse
import sys

import torch

from rwm_fast.ops._dispatch import OPS, BackendError, use_backend
from rwm_fast.testing import compare
from rwm_fast.testing.cases import cases

# Of modulated_conv2d, whose cases are many; of the others all.
CHOSEN = (
    "styled", "up2_styled", "down2_styled", "odd", "odd_up2", "odd_down2", "three_regions",
    "vectors", "vectors_up2", "vectors_down2", "vectors_to_rgb", "mask_fixed", "wide", "clamp",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.odd", description=__doc__)
    parser.add_argument("--backend", choices=("native", "triton"), required=True)
    parser.add_argument("--device", default="cuda")
    a = parser.parse_args()
    ran = 0
    for op in OPS:
        for case in cases(op):
            if op == OPS[0] and case.name not in CHOSEN:
                continue
            for dtype in (torch.float32, torch.bfloat16):
                inputs = case.inputs(dtype, "channels_last", a.device)
                with use_backend(a.backend):
                    try:
                        dy = torch.ones_like(compare.call(op, inputs).detach())
                        compare.first_order(op, inputs, dy)
                    except BackendError as refusal:
                        print(f"{case.name}: {refusal}")
                        continue
                ran += 1
    if a.device == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} calls ran on {a.backend}")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
