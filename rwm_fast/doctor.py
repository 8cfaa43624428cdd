"""What runs here, and why not the rest: `python -m rwm_fast.doctor`.

Prints versions, CPU features, GPUs, what the installation built, which backends serve each
operator, and the weights that came with the package. Exit status 0, or 1 if something is broken: a
module that was built and does not load, an operator that fails or whose answer is not that of its
eager backend, weights that are damaged.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

import rwm_fast
from rwm_fast.errors import UserError
from rwm_fast.models import pretrained, read_config
from rwm_fast.models.weights import read_tensors
from rwm_fast.ops import _dispatch, _extension, _torch_private

PACKAGES = "torch triton numpy pillow safetensors tqdm tyro matplotlib gradio".split()
OPTIONAL = {"triton": "GPU kernels", "gradio": "the page, python -m rwm_fast.app"}
# Flags of /proc/cpuinfo.
CPU_FEATURES = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX-bf16": "amx_bf16"}
# Relative to the largest element: a few roundings of the dtype. Wrong answers are off by far more.
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def main(argv: list[str] | None = None) -> int:
    """Print the report; returns the exit status."""
    parser = argparse.ArgumentParser("python -m rwm_fast.doctor", description=__doc__)
    parser.parse_args(argv)
    try:
        _dispatch.requested()
    except ValueError as error:
        parser.error(str(error))
    problems: list[str] = []
    sections = {
        "Versions": versions(problems),
        "Machine": machine(),
        "Native modules": native(problems),
        "Operators": operators(problems),
        "Weights": weights(problems),
    }
    for title, lines in sections.items():
        print(f"{title}\n  " + "\n  ".join(lines) + "\n")
    print("\n".join(f"BROKEN: {p}" for p in dict.fromkeys(problems)) or "Nothing is broken.")
    return 1 if problems else 0


def versions(problems: list[str]) -> Iterator[str]:
    """Lines about this package, Python and the packages it uses."""
    yield f"rwm_fast {rwm_fast.__version__} in {Path(rwm_fast.__file__).parent}"
    yield f"python {platform.python_version()}, {platform.platform()}"
    for name in PACKAGES:
        try:
            # Which build of torch it is (2.14.1+cu130) only torch says.
            yield f"{name} {torch.__version__ if name == 'torch' else metadata.version(name)}"
        except metadata.PackageNotFoundError:
            if name in OPTIONAL:
                yield f"{name} not installed (optional: {OPTIONAL[name]})"
            else:
                problems.append(f"the package {name} is not installed")


def machine() -> Iterator[str]:
    """Lines about the CPU and the GPUs."""
    model, features = cpu()
    has = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in features.items())
    yield f"CPU: {model}; {has or 'features unknown'}"
    yield f"threads: {torch.get_num_threads()} (torch.get_num_threads)"
    if not torch.cuda.is_available():
        yield f"GPU: none, {why_no_gpu()}"
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = gpu.total_memory / 2**30
        yield f"GPU {index}: {gpu.name}, sm_{gpu.major}{gpu.minor}, {memory:.0f} GiB"
    yield f"CUDA of torch: {torch.version.cuda}"


def why_no_gpu() -> str:
    """Where torch.cuda is not available."""
    return "torch finds no usable GPU" if torch.version.cuda else "this torch has no CUDA"


def cpu() -> tuple[str, dict[str, bool]]:
    """The CPU's name and whether it has each of CPU_FEATURES; no features where Linux is not."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), {}
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    name = model[1].strip() if model else platform.machine()
    return name, {feature: flag in have for feature, flag in CPU_FEATURES.items()}


def native(problems: list[str]) -> Iterator[str]:
    """Lines about the modules that the installation built."""
    build = rwm_fast.build_info()
    for part, name, load in (
        ("cpu", "_C", _extension.load_cpu),
        ("cuda", "_cuda", _extension.load_cuda),
    ):
        yield f"{name}: {build[part]}"
        try:
            extension = load()
        except ValueError as error:  # RWM_FAST_CPU_ISA asks for what is not there
            problems.append(f"{name}: {error}")
            continue
        if extension.broken:
            problems.append(str(extension.reason))
        elif extension.module is None and build[part].startswith("built"):
            yield f"{name}: not usable, {extension.reason}"
        elif name == "_C" and extension.module is not None:
            pool = "torch's (torch_parallel_for found)"
            if not _torch_private.c_function("torch_parallel_for"):
                pool = "none, kernels run in one thread (this torch has no torch_parallel_for)"
            yield f"{name}: instruction set {extension.module.isa()}, thread pool: {pool}"


def samples(device: str, dtype: torch.dtype) -> dict[str, dict[str, object]]:
    """A small call of every operator."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device, dtype)

    boxes = torch.tensor([[[0.1, -0.2, 0.4, 0.3], [0.0, 0.0, -0.2, 0.2]]], device=device)
    return {
        "modulated_conv2d": {
            "x": draw(1, 8, 8, 8),
            "weight": draw(8, 8, 3, 3),
            "styles": draw(1, 8),
            "padding": 1,
        },
        "masked_l1": {
            "hybrid": draw(1, 3, 8, 8),
            "inside": draw(1, 3, 8, 8),
            "outside": draw(1, 3, 8, 8),
            "mask": draw(1, 1, 8, 8),
        },
        "crop_patches": {"image": draw(1, 3, 16, 16), "boxes": boxes, "size": 8},
        "bias_act": {"x": draw(1, 8, 8, 8), "bias": draw(8)},
        "conv2d_bias_act": {
            "x": draw(1, 8, 8, 8),
            "weight": draw(8, 8, 3, 3),
            "bias": draw(8),
            "padding": 1,
            "activation": "lrelu",
        },
        "conv2d_resample": {
            "x": draw(1, 8, 8, 8),
            "w": draw(8, 8, 3, 3),
            "f": draw(4).float(),
            "up": 2,
            "padding": 1,
        },
        "upfirdn2d": {"x": draw(1, 3, 8, 8), "filter": draw(4).float(), "up": 2, "padding": 2},
    }


def operators(problems: list[str]) -> Iterator[str]:
    """The operator × backend table, then the reason of every "no"."""
    wanted = _dispatch.requested() or "auto"
    yield f"backend asked for: {wanted}; yes = serves the call, yes* = is used for it"
    yield " ".join(("operator".ljust(17), "device", "dtype   ", *_dispatch.names())).rstrip()
    reasons: dict[str, int] = {}
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    ops = (*_dispatch.OPS, *_dispatch.MADE_OF)
    for op, device, dtype in itertools.product(ops, devices, AGREEMENT):
        cells = row(op, samples(device, dtype)[op], dtype, reasons, problems)
        name = str(dtype).removeprefix("torch.")
        yield f"{op:17} {device:6} {name:8} {cells}".rstrip()
    if "cuda" not in devices:
        for op in ops:
            yield f"{op:17} cuda   all      {row_without_gpu(op, reasons)}".rstrip()
    yield from (f"[{number}] {reason}" for reason, number in reasons.items())


def row(op: str, arguments: dict, dtype: torch.dtype, reasons: dict, problems: list[str]) -> str:
    """One line of the table: every backend that serves the call runs it and is compared."""
    try:
        answers = _dispatch.explain(op, **arguments)
    except Exception as error:  # whatever it is, it is what the user's call would meet
        problems.append(f"{op}: {error!r}")
        return "fails"
    cells = []
    for name in _dispatch.names():
        answer = answers.get(name, f"{op} has no {name} backend")
        serves = answer == "used" or answer.startswith("supported")
        if serves:
            problems += disagreement(op, name, arguments, dtype)
        cell = "yes*" if answer == "used" else "yes"
        if not serves:
            cell = f"no[{reasons.setdefault(answer, len(reasons) + 1)}]"
        cells.append(cell.ljust(len(name)))
    return " ".join(cells)


def row_without_gpu(op: str, reasons: dict) -> str:
    """What a GPU would meet here besides its absence: a module not built, a package missing."""
    cells = []
    there = _dispatch._ways_on(op, torch.device("cuda"))
    for name in _dispatch.names():
        backend = there.get(name, f"{op} has no {name} backend there")
        missing = backend if isinstance(backend, str) else None
        if name == "native":
            missing = missing or _extension.why_not_cuda()
        answer = f"{why_no_gpu()}; {missing}" if missing else why_no_gpu()
        cells.append(f"no[{reasons.setdefault(answer, len(reasons) + 1)}]".ljust(len(name)))
    return " ".join(cells)


def weights(problems: list[str]) -> Iterator[str]:
    """Lines about the weights that come with the package: names for --checkpoint."""
    for name in pretrained.names():
        path = pretrained.resolve(name)
        try:
            model = read_config(path).model
            read_tensors(path)
        except UserError as error:
            problems.append(str(error))
            continue
        size = path.stat().st_size / 1e6
        default = ", what edit, app and evaluate take by themselves" * (name == pretrained.DEFAULT)
        yield f"{name}: {model.image_size} px, {size:.1f} MB{default}"
    if not pretrained.names():
        problems.append(f"no weights in {pretrained.FOLDER}")


def disagreement(op: str, name: str, arguments: dict, dtype: torch.dtype) -> list[str]:
    """Problems found by running the call on one backend and comparing with the eager backend."""
    function: Callable[..., Tensor] = getattr(rwm_fast, op)
    try:
        with _dispatch.use_backend("eager"):
            expected = function(**arguments).double()
        with _dispatch.use_backend(name):
            result = function(**arguments).double()
    except Exception as error:  # as above
        return [f"{op} on {name}: {error!r}"]
    worst = (result - expected).abs().max() / expected.abs().max()
    if worst <= AGREEMENT[dtype]:
        return []
    return [f"{op} on {name}: differs from the eager backend by {worst:.1e} of its largest value"]


if __name__ == "__main__":
    sys.exit(main())
