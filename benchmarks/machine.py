"""What the numbers were measured on: processor, software, allocator, ceilings, peak memory."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

import rwm_fast
from benchmarks.timing import Local, Rounds, Step, quiet, spread
from rwm_fast.ops import _extension

# What a reader needs to judge a CPU number: vector widths and matrix units.
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd")
# glibc gives tensors above the mmap threshold (32 MiB at most) back to the system when they die,
# and the next allocation faults every page in again. These two settings make it keep them.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
EVICTED = 128 * 2**20  # bytes at most: where a cloud machine reports a whole socket's cache


def package_folder() -> Path:
    """What `rwm_fast` is imported from."""
    return Path(rwm_fast.__file__).resolve().parent.parent


def has_amx_bf16() -> bool:
    return torch.cpu._is_amx_tile_supported()


def facts() -> dict:
    """Machine, software and allocator, as they go into every result."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "machine": {
            "cpu": info.get("model name", platform.processor() or platform.machine()),
            "features": [name for name in FEATURES if name in flags],
            "capability": torch.backends.cpu.get_cpu_capability(),
            "native_isa": _native_isa(),
            "cores": len(os.sched_getaffinity(0)),
            "cache_bytes": last_cache(),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
            "system": f"{platform.system()} {platform.release()}",
            "load": os.getloadavg()[0],
        },
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onednn": _onednn(),
            "compiler": _first_line("c++", "--version"),
            "rwm_fast": rwm_fast.build_info(),
            "commit": commit(Path(rwm_fast.__file__).parent),
        },
        "allocator": {
            "libc": " ".join(platform.libc_ver()),
            **{name: os.environ.get(name) for name in KEEP_MEMORY},
            "LD_PRELOAD": os.environ.get("LD_PRELOAD"),
        },
    }


def _native_isa() -> str:
    """Which of our code the C++ core runs here."""
    why_not = _extension.why_not_cpu()
    if why_not:
        return f"none: {why_not}"
    return _extension.cpu().isa()


def commit(folder: Path) -> str:
    """The commit of a checkout, with "+" where the package differs from it."""
    head = _first_line("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    return head + ("+" if _first_line("git", "-C", str(folder), "diff", "HEAD", "--stat") else "")


def _first_line(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.partition("\n")[0].strip() if run.returncode == 0 else ""


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _onednn() -> str:
    found = re.search(r"MKL-DNN v?([\w.]+)", torch.__config__.show())
    return found.group(1) if found else ""


def last_cache() -> int:
    """Bytes of the largest cache, 32 MiB if the system does not say."""
    sizes = [32 * 2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return max(sizes)


class Evict:
    """Writes more than the caches hold, so that the next call finds none of its data there."""

    def __init__(self):
        self.junk = torch.zeros(min(2 * last_cache(), EVICTED) // 4)

    def __call__(self) -> None:
        self.junk.add_(1)


def triad(moved: int) -> Step:
    """a = b + s·c over `moved` bytes in all: the rate at which torch can stream memory.

    Ordinary stores: the processor also reads what it overwrites, which is not counted.
    """
    a, b, c = (torch.ones(max(1, moved // 12)) for _ in range(3))
    return Step(lambda: torch.add(b, c, alpha=0.5, out=a))


def ceilings(evict: Evict, threads: int = 1, clock: str = "process CPU") -> dict[str, float]:
    """GB/s of the triad on data from memory, GFLOP/s of matrix products."""
    moved, size = 3 * 2**26, 1024
    a, b = torch.randn(2, size, size)
    steps = {"triad": triad(moved), "float32": Step(lambda: a @ b)}
    if has_amx_bf16():
        p, q = a.bfloat16(), b.bfloat16()
        steps["bfloat16"] = Step(lambda: p @ q)
    rounds = Rounds({name: Local([step], clock, evict) for name, step in steps.items()})
    with quiet(threads):
        rounds.run(1)
        rounds.seconds.clear()
        rounds.run(9)
    best = {name: spread(s["total"]).median for name, s in rounds.seconds.items()}
    rates = {f"gigaflops_{n}": 2 * size**3 / s / 1e9 for n, s in best.items() if n != "triad"}
    return {"gigabytes_per_second": moved / best["triad"] / 1e9, **rates}


def peak_memory(call) -> int | None:
    """Bytes by which the process grows at most during a call; None where the system does not say.

    Linux only: the kernel keeps the high-water mark and lets a process reset its own.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left must not hide what this one asks
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text).group(1)) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump({**facts(), "ceilings": ceilings(Evict())}, sys.stdout, indent=2)
