"""Operators against float64: every backend and dtype on the named cases, the largest error of each.

The full grid of layouts is the tests' business; here are numbers. `python -m benchmarks.gpu.checks
--backend B` instead calls the kernels at odd sizes, for compute-sanitizer to watch: there every
access to memory is checked, not what is computed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from benchmarks.device import Cpu
from benchmarks.measure import Broken, sentence
from benchmarks.rows.row import DTYPES
from benchmarks.store import Progress
from rwm_fast.ops._dispatch import OPS, BackendError, backends, use_backend
from rwm_fast.testing import compare
from rwm_fast.testing.cases import Case, cases

KINDS = ("float32", "bfloat16", "float16", "float64")
SHOWN = 20  # failures of a row that are kept in words
CHUNK = 12  # cases of a row: Triton compiles several kernels for each, a second apiece


def checks(tiny: bool = False) -> Iterator[tuple[str, str, str, str, list[Case]]]:
    """(name of the row, operator, backend, dtype, cases), quick ones first."""
    ops = ("masked_l1", "bias_act") if tiny else sorted(OPS, key=lambda op: op == OPS[0])
    for backend in ("native",) if tiny else ("native", "triton"):
        for dtype in KINDS[:1] if tiny else KINDS:
            for op in ops:
                if backend in backends(op) and (backend, dtype) != ("triton", "float64"):
                    every = [*cases(op), *(() if tiny else cases(op, bench=True))]
                    count = -(-len(every) // CHUNK)
                    for i in range(count):  # every so-manieth: the large ones are at the end
                        part = f" {i + 1}/{count}" if count > 1 else ""
                        yield f"{op} {backend} {dtype}{part}", op, backend, dtype, every[i::count]


def check(
    op: str, backend: str, dtype: str, every: Collection[Case], device: Cpu, progress: Progress
) -> dict:
    """The cases of an operator but those that took a process with them."""
    found = {"cases": 0, "worst": 0.0, "case": "", "failures": [], "failed": 0}
    refused, crashed = Counter(), dict(progress.crashed)
    with device.settings(search=False):
        for case in every:
            if case.name in crashed:
                continue
            progress.mark(case.name)
            try:
                error = one(op, backend, case, DTYPES.get(dtype, torch.float64), device)
            except BackendError as refusal:
                refused[str(refusal)] += 1
                continue
            except Exception as failure:  # a wrong result is an AssertionError
                found["failed"] += 1
                found["failures"] = [*found["failures"], f"{case.name}: {sentence(failure)}"]
                found["failures"] = found["failures"][:SHOWN]
                problem = device.problem()
                if problem:
                    raise Broken(f"{case.name}: {problem}") from failure
                continue
            found["cases"] += 1
            if error > found["worst"]:
                found["worst"], found["case"] = error, case.name
    device.release()
    return found | {"refused": dict(refused), "crashed": crashed}


def one(op: str, backend: str, case: Case, dtype: torch.dtype, device: Cpu) -> float:
    """The largest error of the result and all gradients, over the largest value of each."""
    inputs = case.inputs(dtype, "channels_last", device.place)
    with compare.plain(), torch.no_grad():
        dy = like(compare.call(op, inputs))
    with use_backend(backend):
        ours = compare.first_order(op, inputs, dy)
    with compare.plain():
        plain = compare.first_order(op, inputs, dy)
        truth = compare.first_order(op, compare.in_float64(inputs), dy.double())
    worst = 0.0
    for i, (got, usual, exact) in enumerate(zip(ours, plain, truth, strict=True)):
        compare.check(f"{op} {case.name}, result {i}", got, usual, exact, case, dtype)
        finite = exact.detach().nan_to_num(0, 0, 0)
        largest = finite.abs().max().item() if finite.numel() else 0.0
        if largest:
            worst = max(worst, compare.distance(got, exact) / largest)
    return worst


def like(x: Tensor) -> Tensor:
    """Standard normal numbers, drawn on the CPU so that they are the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)


# Of modulated_conv2d, whose cases are many; of the others all.
ODD = (
    "styled", "up2_styled", "down2_styled", "odd", "odd_up2", "odd_down2", "three_regions",
    "vectors", "vectors_up2", "vectors_down2", "vectors_to_rgb", "mask_fixed", "wide", "clamp",
)  # fmt: skip


def odd(backend: str, place: str) -> int:
    """Forward and backward passes at odd sizes; how many ran."""
    ran = 0
    chosen = [(op, case) for op in OPS for case in cases(op) if op != OPS[0] or case.name in ODD]
    for op, case in chosen:
        for dtype in (torch.float32, torch.bfloat16):
            inputs = case.inputs(dtype, "channels_last", place)
            with use_backend(backend):
                try:
                    dy = torch.ones_like(compare.call(op, inputs).detach())
                    compare.first_order(op, inputs, dy)
                except BackendError as refusal:
                    print(f"{case.name}: {refusal}")
                    continue
            ran += 1
    return ran


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.checks", description=__doc__)
    parser.add_argument("--backend", choices=("native", "triton"), required=True)
    parser.add_argument("--device", default="cuda")
    a = parser.parse_args()
    ran = odd(a.backend, a.device)
    if a.device == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} calls ran on {a.backend}")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
