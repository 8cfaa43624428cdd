"""Every operator, forward and backward: as published, rewritten, and ours.

    pytest benchmarks --benchmark-only

Columns: `published` is eager PyTorch as people write it (published.py), `reference` our best plain
PyTorch, `auto` the backend that rwm_fast takes by itself. The result and every gradient are checked
against float64 before anything is timed. Times are process CPU time of one thread, median first;
rows of one group are comparable. Every row carries the bytes and operations that the call cannot do
without, and the rates that follow from them (`extra_info` of --benchmark-json).
"""

from __future__ import annotations

import importlib
import time

import published
import torch

from rwm_fast import use_backend
from rwm_fast.testing.cases import Case, cases, ops

QUICK = {
    "modulated_conv2d": ("layer_16", "layer_64", "up2_32", "mask_layer_64"),
    "masked_l1": ("images_256",),
    "crop_patches": ("256_to_64", "64_to_16"),
    "bias_act": ("layer_64",),
    "upfirdn2d": ("up2_64", "down2_64", "blur_64"),
}
ROWS = [case for op in ops() for case in cases(op, bench=True)]
COLUMNS = ("published", "reference", "auto")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pytest_generate_tests(metafunc):
    full = metafunc.config.getoption("--full")
    rows = [case for case in ROWS if full or case.name in QUICK[case.op]]
    metafunc.parametrize("case", rows, ids=lambda case: f"{case.op}-{case.name}")
    metafunc.parametrize("dtype", DTYPES if full else ["float32"])
    metafunc.parametrize("column", COLUMNS)


def call(case: Case, column: str, inputs: dict) -> list[torch.Tensor]:
    """The result and the gradients, in the order of `case.gradients`."""
    module = (
        published if column == "published" else importlib.import_module(f"rwm_fast.ops.{case.op}")
    )
    result = getattr(module, case.op)(**inputs)
    wanted = [inputs[name] for name in case.gradients]
    return [result.detach(), *torch.autograd.grad(result, wanted, _cotangent(result))]


def _cotangent(result: torch.Tensor) -> torch.Tensor:
    return torch.ones((), dtype=result.dtype).expand_as(result)


def check(case: Case, column: str, inputs: dict, dtype: torch.dtype) -> float:
    """The largest error relative to the largest value, over the result and all gradients."""
    # Near a border of regions a convolution a style and then selecting is another function.
    own = column == "published" and "regions" in inputs
    truth = call(case, "published" if own else "auto", case.inputs(torch.float64))
    errors = []
    for ours, exact in zip(call(case, column, inputs), truth, strict=True):
        errors.append(((ours.double() - exact).abs().max() / exact.abs().max()).item())
    unit = torch.finfo(dtype).eps
    bound = unit * (4 * case.stored + 4 * case.terms**0.5)  # rounding of sums, as a random walk
    assert max(errors) <= bound, f"{column} is wrong: error {max(errors):.1e}, bound {bound:.1e}"
    return max(errors)


def test_forward_and_backward(benchmark, case, dtype, column):
    dtype = DTYPES[dtype]
    layout = "contiguous" if column == "published" else "channels_last"
    inputs = case.inputs(dtype, layout)
    with use_backend("reference" if column == "reference" else "auto"):
        error = check(case, column, inputs, dtype)
        benchmark.group = f"{case.op} {case.name} {str(dtype).removeprefix('torch.')}"
        benchmark._timer = time.process_time
        benchmark.pedantic(call, (case, column, inputs), rounds=7, warmup_rounds=1)
    work = [w(inputs) for w in (case.forward, case.backward) if w is not None]
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        error=error,
        bytes=sum(w.bytes for w in work),
        flops=sum(w.flops for w in work),
        gigabytes_per_second=sum(w.bytes for w in work) / median / 1e9,
        gigaflops=sum(w.flops for w in work) / median / 1e9,
    )
