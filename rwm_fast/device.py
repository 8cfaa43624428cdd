"""Where networks compute, in which precision, and what of the machine is there for it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from rwm_fast.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA when there is one; UserError for a device this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device: this machine has {torch.cuda.device_count()} CUDA devices, got {name!r}"
        )
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on CUDA since Ampere, and float32 on every CPU: it never takes what was
    measured to be slower. A name of PRECISIONS is what it says. UserError for any other.

    | CPU feature | bfloat16 against float32                                                    |
    |-------------|-----------------------------------------------------------------------------|
    | AMX         | measured: layers reach 37 to 60 % of the bare convolution, lose to          |
    |             | torch.compile on 3 rows of 10 and to the eager rewrite on 7; 64 channels at |
    |             | 64 px take 13.9 ms, in float32 (Winograd) 13.4 ms                           |
    | without AMX | computed in float32 and rounded, so nothing to gain                         |
    """
    if name == "auto":
        ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if ampere else torch.float32
    if name not in PRECISIONS:
        names = ", ".join(PRECISIONS)
        raise UserError(f"--precision: expected one of auto, {names}, got {name!r}")
    return PRECISIONS[name]


def prepare(device: str, precision: str, threads: int = 0) -> tuple[torch.device, torch.dtype]:
    """Device and compute dtype from their names; sets the number of CPU threads: the one asked for,
    or with 0 `usual_threads`."""
    torch.set_num_threads(threads or usual_threads())
    place = resolve_device(device)
    return place, resolve_precision(precision, place)


def search_algorithms(device: torch.device) -> None:
    """On CUDA, let cuDNN time its algorithms once for every shape: for training, whose shapes stay.

    With it cuDNN's bfloat16 convolutions reach 800 TFLOP/s on an H100, the rate of a matrix
    product.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def usual_threads(environment: Mapping[str, str] = os.environ) -> int:
    """Torch's number of threads (its default, OMP_NUM_THREADS, what a caller has set), but no more
    than `cores`; and those where it is the 1 that torchrun puts there unasked."""
    unasked = local_processes(environment) > 1 == _whole(environment, "OMP_NUM_THREADS")
    most = cores(environment)
    return most if unasked else min(torch.get_num_threads(), most)


def cores(
    environment: Mapping[str, str] = os.environ, root: str | Path = "/", allowed: int | None = None
) -> int:
    """How many threads of this process can compute at a time: the cores that it may use, by
    affinity (`allowed`; None = ask) and by the cgroups' limits of CPU time (versions 1 and 2, a
    part of a core counts whole), divided by `local_processes`. At least 1."""
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)  # not on every system
        allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    for folder in _cgroups("cpu", Path(root)):
        quota = _words(folder / "cpu.cfs_quota_us", 1) + _words(folder / "cpu.cfs_period_us", 1)
        for words in (_words(folder / "cpu.max", 2), quota):
            if len(words) == 2 and all(map(str.isdigit, words)) and int(words[1]):
                allowed = min(allowed, math.ceil(int(words[0]) / int(words[1])))
    return max(allowed // local_processes(environment), 1)


def local_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes of this one's job are on this machine, as torchrun tells."""
    return max(_whole(environment, "LOCAL_WORLD_SIZE"), 1)


class Memory(NamedTuple):
    """Bytes of a device."""

    free: int
    total: int


def memory(device: torch.device, root: str | Path = "/") -> Memory | None:
    """What a device has. The machine's counts what its system could make free, within the cgroups'
    limits (versions 1 and 2); None where the system does not tell."""
    if device.type == "cuda":
        return Memory(*torch.cuda.mem_get_info(device))
    try:
        lines = (Path(root) / "proc/meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        free, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for folder in _cgroups("memory", Path(root)):
        for most, now, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            words = (*_words(folder / most, 1), *_words(folder / now, 1))
            if len(words) == 2 and all(map(str.isdigit, words)):
                limit, used = map(int, words)
                total = min(total, limit)
                free = min(free, max(limit - used + _statistic(folder, cache), 0))
    return Memory(free, total)


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's cgroups that may limit it, from its own up to the mount."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, names, path = (line.split(":", 2) + ["", ""])[:3]
        mount = root / "sys/fs/cgroup"
        if controller in names.split(","):
            mount /= names if (mount / names).is_dir() else controller
        elif number != "0":
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for k in range(len(parts), -1, -1):  # a container may see only the upper ones
            folder = mount.joinpath(*parts[:k])
            if folder.is_dir():
                yield folder


def _words(path: Path, count: int) -> tuple[str, ...]:
    """The words of a file of so many; else none."""
    try:
        words = path.read_text().split()
    except (OSError, ValueError):
        return ()
    return tuple(words) if len(words) == count else ()


def _statistic(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[:1] == [name])


def _whole(environment: Mapping[str, str], name: str) -> int:
    word = environment.get(name, "").split(",")[0].strip()  # OMP_NUM_THREADS may list levels
    return int(word) if word.isdigit() else 0
