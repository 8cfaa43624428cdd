"""Clocks, graphs, memory and facts of what is measured on: a GPU, or a CPU that stands in for it.

The CPU exists so that the whole pipeline is tested without a GPU; its numbers mean nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable

import torch

BUSY = 1_000_000  # cycles, half a millisecond
FLUSHED = 5  # times the second-level cache is read between two measurements
QUERY = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")


def smi(*fields: str) -> dict[str, str]:
    """Answers of nvidia-smi, which is only asked, never told; empty where it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = found.stdout.splitlines() if found.returncode == 0 else []
    values = [v.strip() for v in lines[0].split(",")] if lines else []
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def software() -> dict[str, object]:
    """Versions that numbers depend on."""
    names = ("triton", "numpy", "pytest")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **{name: version_of(name) for name in names},
    }


class Cuda:
    """The current CUDA device."""

    kind = "cuda"
    clock = "CUDA events"

    def __init__(self):
        self.place = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.place)
        self.cache = getattr(properties, "L2_cache_size", 0) or 50 * 2**20
        self.junk = torch.ones(FLUSHED * self.cache // 4, device=self.place)
        self.sink = torch.zeros((), device=self.place)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def facts(self) -> dict[str, object]:
        p = torch.cuda.get_device_properties(self.place)
        fixed = smi("driver_version", "clocks.max.sm", "power.limit", "ecc.mode.current")
        return {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_gib": round(p.total_memory / 2**30, 1),
            "cache_mib": round(self.cache / 2**20, 1),
            **fixed,
        }

    def state(self) -> dict[str, str]:
        """Clocks, power and temperature now."""
        return smi(*QUERY)

    def sync(self) -> None:
        torch.cuda.synchronize(self.place)

    def flush(self) -> None:
        """Reads more than the cache holds: what is left there is clean, and nobody's input."""
        torch.sum(self.junk, 0, out=self.sink)

    def time(self, call: Callable[[], object]) -> float:
        """Seconds on the GPU between two events, with a cold cache.

        The GPU is kept busy while the call is launched, so that a graph of many kernels pays no
        more for its launch than one of few.
        """
        self.flush()
        torch.cuda._sleep(BUSY)
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3

    def wall(self, call: Callable[[], object]) -> float:
        """Seconds of a call on the clock on the wall, until the GPU has finished."""
        self.flush()
        self.sync()
        start = time.perf_counter()
        call()
        self.sync()
        return time.perf_counter() - start

    def capture(self, call: Callable[[], object]) -> tuple[Callable[[], object], object]:
        """(replay, result): a CUDA graph of the call, and the memory its replays write.

        Warmed up on a stream of its own: modules load, Triton compiles and cuDNN chooses before the
        capture, where none of them may.
        """
        side = torch.cuda.Stream(self.place)
        side.wait_stream(torch.cuda.current_stream(self.place))
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream(self.place).wait_stream(side)
        self.sync()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        graph.replay()
        self.sync()
        return graph.replay, result

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes that two calls need beyond what is held already."""
        self.release()
        torch.cuda.reset_peak_memory_stats(self.place)
        before = torch.cuda.memory_allocated(self.place)
        for _ in range(2):
            call()
        self.sync()
        return torch.cuda.max_memory_allocated(self.place) - before

    def release(self, thorough: bool = False) -> None:
        """Give memory back; thorough: of dead cycles too."""
        if thorough:
            gc.collect()
        torch.cuda.empty_cache()

    def problem(self) -> str | None:
        """What is broken for good in this process: after an illegal access every call fails."""
        try:
            self.sync()
            torch.zeros(1, device=self.place).add_(1).item()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return None


class Cpu:
    """The same without a GPU: wall clock, no graphs, nothing to flush."""

    kind = "cpu"
    clock = "wall"
    cache = 0

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.place, self.now = torch.device("cpu"), now

    def facts(self) -> dict[str, object]:
        return {"name": f"no GPU, a CPU in its place: {platform.machine()}"}

    def state(self) -> dict[str, str]:
        return {}

    def sync(self) -> None:
        """Nothing is asynchronous."""

    def time(self, call: Callable[[], object]) -> float:
        start = self.now()
        call()
        return max(self.now() - start, 1e-9)

    wall = time

    def capture(self, call: Callable[[], object]) -> tuple[Callable[[], object], object]:
        return call, call()

    def peak(self, call: Callable[[], object]) -> int:
        call()
        return 0

    def release(self, thorough: bool = False) -> None:
        """Nothing is kept back."""

    def problem(self) -> str | None:
        return None


def device(kind: str) -> Cuda | Cpu:
    return {"cuda": Cuda, "cpu": Cpu}[kind]()


@contextlib.contextmanager
def search(on: bool):
    """Whether cuDNN tries its algorithms out: for what is timed, never for float64 truths."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def tf32(allowed: bool):
    """Whether float32 products may be rounded to TF32, in cuDNN, cuBLAS and our Triton kernels."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
