"""What the numbers were measured on: processor, software, allocator."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import rwm_fast
from rwm_fast.ops import _extension

ROOT = Path(__file__).resolve().parent.parent
# What a reader needs to judge a CPU number: vector widths and matrix units.
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd")
# glibc gives tensors above the mmap threshold (32 MiB at most) back to the system when they die,
# and the next allocation faults every page in again. These two settings make it keep them.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def package_folder() -> Path:
    """What `rwm_fast` is imported from."""
    return Path(rwm_fast.__file__).resolve().parent.parent


def first_line(*command: str) -> str:
    """Of a program's output; "" where it is missing or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.partition("\n")[0].strip() if run.returncode == 0 else ""


def commit(folder: Path) -> str:
    """The commit of a checkout, with "+" where the package differs from it."""
    head = first_line("git", "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    return head + ("+" if first_line("git", "-C", str(folder), "diff", "HEAD", "--stat") else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def software() -> dict[str, object]:
    """Versions and builds that numbers depend on."""
    onednn = re.search(r"MKL-DNN v?([\w.]+)", torch.__config__.show())
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "onednn": onednn.group(1) if onednn else "",
        **{name: _version(name) for name in ("triton", "numpy", "pytest", "onnxruntime")},
        "rwm_fast": rwm_fast.build_info(),
    }


def cpu() -> dict[str, object]:
    """The processor, its memory, and how that is handed out."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    why_not = _extension.why_not_cpu()
    return {
        "name": info.get("model name", platform.processor() or platform.machine()),
        "features": [name for name in FEATURES if name in flags],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "native_isa": f"none: {why_not}" if why_not else _extension.cpu().isa(),
        "cores": len(os.sched_getaffinity(0)),
        "cache_bytes": last_cache(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        **{name: os.environ.get(name) for name in (*KEEP_MEMORY, "LD_PRELOAD")},
    }


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def last_cache() -> int:
    """Bytes of the largest cache, 32 MiB if the system does not say."""
    sizes = [32 * 2**20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return max(sizes)


def smi(*fields: str) -> dict[str, str]:
    """Answers of nvidia-smi, which is only asked, never told; empty where it does not answer."""
    line = first_line(
        "nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"
    )
    values = [value.strip() for value in line.split(",")] if line else []
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}
