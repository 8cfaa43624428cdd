"""Operators against float64: every backend and dtype on the named cases, the largest error of each.

The full grid of layouts is the tests' business; here are numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from benchmarks.gpu.device import Cpu, Cuda, tf32
from benchmarks.gpu.measure import Broken, sentence
from rwm_fast.ops._dispatch import OPS, BackendError, backends, use_backend
from rwm_fast.testing import compare
from rwm_fast.testing.cases import Case, cases

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
SHOWN = 20  # failures of a row that are kept in words
CHUNK = 12  # cases of a row: Triton compiles several kernels for each, a second apiece


def checks(tiny: bool = False) -> Iterator[tuple[str, str, str, str, list[Case]]]:
    """(name of the row, operator, backend, dtype, cases), quick ones first."""
    ops = ("masked_l1", "bias_act") if tiny else sorted(OPS, key=lambda op: op == OPS[0])
    for backend in ("native",) if tiny else ("native", "triton"):
        for dtype in ("float32",) if tiny else DTYPES:
            for op in ops:
                if backend in backends(op) and (backend, dtype) != ("triton", "float64"):
                    every = [*cases(op), *(() if tiny else cases(op, bench=True))]
                    count = -(-len(every) // CHUNK)
                    for i in range(count):  # every so-manieth: the large ones are at the end
                        part = f" {i + 1}/{count}" if count > 1 else ""
                        yield f"{op} {backend} {dtype}{part}", op, backend, dtype, every[i::count]


def check(
    op: str,
    backend: str,
    dtype: str,
    every: Collection[Case],
    device: Cuda | Cpu,
    beat: Callable[[str], None],
    skip: Collection[str] = (),
) -> dict:
    """The cases of an operator but those in `skip`; `beat` is told each before it runs."""
    found = {"cases": 0, "worst": 0.0, "case": "", "failures": [], "failed": 0}
    refused: Counter = Counter()
    every = [case for case in every if case.name not in skip]
    with tf32(False):
        for case in every:
            beat(case.name)
            try:
                error = one(op, backend, case, DTYPES[dtype], device)
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
    return found | {"refused": dict(refused)}


def one(op: str, backend: str, case: Case, dtype: torch.dtype, device: Cuda | Cpu) -> float:
    """The largest error of the result and all gradients, over the largest value of each.

    Raises AssertionError where it is above what `rwm_fast.testing.compare` allows.
    """
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
