"""What is measured on, a CPU or a GPU: its clocks, caches, graphs and memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from benchmarks import machine
from rwm_fast.ops import _extension

Call = Callable[[], object]
BUSY = 1_000_000  # cycles, half a millisecond
FLUSHED = 5  # times the second-level cache is read between two measurements
QUERY = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
EVICTED = 128 * 2**20  # bytes at most: where a cloud machine reports a whole socket's cache


class Cpu:
    """Time of one process, all threads: what other work on the machine disturbs least. With several
    threads it would count their waiting as work, so then the clock on the wall is read."""

    kind, graphs, cache = "cpu", False, 0

    def __init__(self, threads: int = 1, now: Callable[[], float] | None = None):
        self.place, self.threads = torch.device("cpu"), threads
        self.clock = "process CPU" if threads == 1 else "wall"
        self.now = now or (time.process_time if threads == 1 else time.perf_counter)
        self.junk = torch.zeros(min(2 * machine.last_cache(), EVICTED) // 4)

    def facts(self) -> dict[str, object]:
        return machine.cpu()

    def state(self) -> dict[str, str]:
        return {}

    def sync(self) -> None:
        """Nothing is asynchronous."""

    def flush(self) -> None:
        """Writes more than the caches hold: the next call finds none of its data there."""
        self.junk.add_(1)

    def time(self, call: Call) -> float:
        """Seconds of a call with a cold cache."""
        self.flush()
        start = self.now()
        result = call()
        end = self.now()
        del result
        return max(end - start, 1e-9)

    def peak(self, call: Call) -> int | None:
        """Bytes by which the process grows at most during a call; None if the system is silent.

        Linux only: the kernel keeps the high-water mark and lets a process reset its own.
        """
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left hides what this one asks
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            call()
            return max(0, _status("VmHWM") - before)
        except (OSError, AttributeError):
            return None

    def release(self) -> None:
        """Memory of what is no longer used goes back at once."""

    def problem(self) -> str | None:
        return None

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """The garbage collector sleeps and torch has this many threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            torch.set_num_threads(before)

    @contextlib.contextmanager
    def settings(self, *, tf32: bool = False, search: bool = True) -> Iterator[None]:
        """Whether float32 products may be rounded to TF32, and whether cuDNN tries its algorithms
        out: as in training for what is timed, never for the truth."""
        with contextlib.ExitStack() as stack:
            for place in (torch.backends.cudnn, torch.backends.cuda.matmul):
                stack.callback(setattr, place, "allow_tf32", place.allow_tf32)
                place.allow_tf32 = tf32
            cudnn = torch.backends.cudnn
            stack.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
            cudnn.benchmark = search
            yield


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text).group(1)) * 1024


class Cuda(Cpu):
    """The current CUDA device."""

    kind, graphs, clock = "cuda", True, "CUDA events"

    def __init__(self):
        self.place = torch.device("cuda", torch.cuda.current_device())
        self.threads = torch.get_num_threads()
        properties = torch.cuda.get_device_properties(self.place)
        self.cache = getattr(properties, "L2_cache_size", 0) or 50 * 2**20
        self.junk = torch.ones(FLUSHED * self.cache // 4, device=self.place)
        self.sink = torch.zeros((), device=self.place)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def facts(self) -> dict[str, object]:
        p = torch.cuda.get_device_properties(self.place)
        return {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_gib": round(p.total_memory / 2**30, 1),
            "cache_mib": round(self.cache / 2**20, 1),
            **machine.smi("driver_version", "clocks.max.sm", "power.limit", "ecc.mode.current"),
        }

    def state(self) -> dict[str, str]:
        """Clocks, power and temperature now."""
        return machine.smi(*QUERY)

    def sync(self) -> None:
        torch.cuda.synchronize(self.place)

    def flush(self) -> None:
        """Reads more than the cache holds: what is left there is clean, and nobody's input."""
        torch.sum(self.junk, 0, out=self.sink)

    def time(self, call: Call) -> float:
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

    def wall(self, call: Call) -> float:
        """Seconds of a call on the clock on the wall, until the GPU has finished."""
        self.flush()
        self.sync()
        start = time.perf_counter()
        call()
        self.sync()
        return time.perf_counter() - start

    def capture(self, call: Call) -> tuple[Call, object]:
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

    def peak(self, call: Call) -> int:
        """Bytes that two calls need beyond what is held already."""
        self.release()
        torch.cuda.reset_peak_memory_stats(self.place)
        before = torch.cuda.memory_allocated(self.place)
        for _ in range(2):
            call()
        self.sync()
        return torch.cuda.max_memory_allocated(self.place) - before

    def release(self) -> None:
        """Give memory back, that of dead cycles too."""
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


class StandIn(Cpu):
    """A CPU that walks through what is done on a GPU, where there is none; its numbers mean
    nothing."""

    graphs, clock = True, "wall"

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        super().__init__(1, now)

    def facts(self) -> dict[str, object]:
        return {"name": f"no GPU, a CPU in its place: {machine.cpu()['name']}"}

    def flush(self) -> None:
        """No caches to mind."""

    def wall(self, call: Call) -> float:
        return self.time(call)

    def capture(self, call: Call) -> tuple[Call, object]:
        return call, call()


def device(kind: str) -> Cuda | StandIn:
    return {"cuda": Cuda, "cpu": StandIn}[kind]()


def has_amx_bf16() -> bool:
    return torch.cpu._is_amx_tile_supported()


@contextlib.contextmanager
def matrix_units() -> Iterator[None]:
    """Inside the block this CPU says that it has AMX: bfloat16 rows then take the way they take
    where it does, in torch's slow code. For checks only, not for timing."""
    with contextlib.ExitStack() as stack:
        if not has_amx_bf16():
            patch = lambda *target: stack.enter_context(mock.patch.object(*target))
            patch(torch.cpu, "_is_amx_tile_supported", lambda: True)
            if _extension.why_not_cpu() is None:
                native = _extension.cpu()
                faked = {**native.cpu_features(), "amx_bf16": True}
                patch(native, "cpu_features", lambda: faked)
        yield
