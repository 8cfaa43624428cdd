"""What a run needs: parameter counts and memory, found without computing anything."""

from __future__ import annotations

import functools
import weakref
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwm_fast.config import Config
from rwm_fast.device import local_processes, memory
from rwm_fast.training.processes import ALONE, Processes
from rwm_fast.training.recomputing import recompute_blocks
from rwm_fast.training.schedule import Due, Schedule
from rwm_fast.training.step import Method, Networks, Terms, frozen, total

GIB = 2**30
# The C library (glibc) keeps what is freed of smaller blocks, in pieces that fit nothing later: for
# a byte that a step holds in blocks below SMALL the memory grows by HEAP.
HEAP, SMALL = 1.6, 32 << 20
LIBRARIES = 20 << 20  # of a CPU's code and scratch that come with the first step


class Need(NamedTuple):
    """Bytes of one process, beside pictures and programs."""

    state: int  # weights, moments of Adam, averages, copies that undo a step
    step: int  # the most that a step holds at a time, gradients among it
    heap: int  # the same, and what the C library keeps of it on a CPU
    rows: int  # pictures that a step has in memory at a time
    dtype: torch.dtype

    def on(self, device: torch.device) -> int:
        return self.state + (self.heap + LIBRARIES if device.type == "cpu" else self.step)


def plan(config: Config, dtype: torch.dtype, device: torch.device, job: Processes = ALONE) -> str:
    """Parameter counts and memory of a run as text."""
    nets = meta_networks(config, dtype).as_dict()
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    rows = [f"{name:24}{count / 1e6:9.3f} M parameters" for name, count in counts.items()]
    need = needed(config, dtype, job.count)
    rows += [
        f"{'weights and optimisers':24}{need.state / GIB:9.2f} GiB",
        f"{'graph of a step':24}{need.step / GIB:9.2f} GiB at batch {need.rows}, {_name(dtype)}",
        *said(config, dtype, device, job),
    ]
    return "\n".join(rows)


def said(
    config: Config, dtype: torch.dtype, device: torch.device, job: Processes = ALONE
) -> list[str]:
    """The plan in a few lines, for the device at hand; the last one says so if it will not fit."""
    need, has = needed(config, dtype, job.count), memory(device)
    whole, processes = need.on(device), 1
    per = " in each process" * (job.count > 1)
    kept = "and the libraries' work space"
    if device.type == "cpu":
        processes = local_processes()
        kept = f"the C library and others {(whole - need.state - need.step) / GIB:.2f}"
    lines = [
        f"memory: {whole / GIB:.2f} GiB{per}: weights and optimisers {need.state / GIB:.2f}, a "
        f"step of {need.rows} pictures in {_name(dtype)} {need.step / GIB:.2f}, {kept}"
    ]
    if has is not None:
        several = f" for {processes} processes" * (processes > 1)
        lines.append(
            f"{device}: {has.free / GIB:.1f} of {has.total / GIB:.1f} GiB are free{several}"
        )
        if whole * processes > has.free:
            lines.append(f"this will not fit; {lower(config, dtype, job)}")
    return lines


def lower(config: Config, dtype: torch.dtype, job: Processes = ALONE) -> str:
    """Which setting makes a step smaller, and by how much. Also where memory has just run out: then
    it may be that only the setting can be told."""
    try:
        return _lower(config, dtype, job)
    except (MemoryError, RuntimeError):
        return "a larger --train.accumulate holds less of a batch at a time, a smaller --batch too"


def _lower(config: Config, dtype: torch.dtype, job: Processes) -> str:
    train, need = config.train, needed(config, dtype, job.count)
    pairs, others = train.batch // (2 * job.count * train.accumulate), []
    share = min((k for k in range(2, pairs + 1) if pairs % k == 0), default=1)
    if share > 1:
        slices = train.accumulate * share
        smaller = replace(config, train=replace(train, accumulate=slices))
        others.append((f"--train.accumulate {slices}", smaller, dtype, "at the same batch"))
        smaller = replace(config, train=replace(train, batch=train.batch // share))
        others.append((f"--batch {train.batch // share}", smaller, dtype, "in a new run"))
    elif dtype == torch.float32:
        others.append(("--precision bf16", config, torch.bfloat16, "at the same batch"))
    ways = [
        f"{flag} takes a step from {need.step / GIB:.2f} to "
        f"{needed(smaller, precision, job.count).step / GIB:.2f} GiB, {how}"
        for flag, smaller, precision, how in others
    ]
    return "; ".join(ways or ["a smaller --model.image-size needs less, in a new run"])


@functools.lru_cache(maxsize=16)
def needed(config: Config, dtype: torch.dtype, processes: int = 1) -> Need:
    """What each of so many processes needs; the steps are rehearsed with every term due."""
    nets = meta_networks(config, dtype)
    autoencoder, judges = (
        sum(p.nbytes for module in side for p in module.parameters()) for side in _sides(nets)
    )
    # Weights, two moments, averages of the autoencoder; `Undo` copies the discriminators' three.
    state = 3 * (autoencoder + judges) + autoencoder + 3 * judges
    if processes > 1:  # buckets that gradients are summed in
        state += autoencoder + judges
    rows = config.train.batch // (processes * config.train.accumulate)
    with Live() as live:
        for net in nets.as_dict().values():
            live.leave_out(*net.parameters(), *net.buffers())
        rehearse(config, nets, rows)
    return Need(state, live.peak, live.heap_peak, rows, dtype)


def meta_networks(config: Config, dtype: torch.dtype) -> Networks:
    """Networks that have shapes and no memory."""
    with torch.device("meta"):
        nets = Networks.of(config.model)
    for net in nets.as_dict().values():
        net.to_compute(None if dtype == torch.float32 else dtype)
    if config.train.checkpoint_activations:
        recompute_blocks(nets.as_dict().values())
    return nets


def rehearse(config: Config, nets: Networks, rows: int) -> None:
    """A step of each side on so many meta pictures, as `Trainer` takes it, every term due."""
    method, size = Method(nets, config.loss, config.mask), config.model.image_size
    random = torch.Generator().manual_seed(0)
    image = torch.empty(rows, 3, size, size, device="meta")
    autoencoder, judges = _sides(nets)

    def learn(side: tuple[nn.Module, ...], terms: Terms) -> None:
        if terms:
            for module in side:
                module.zero_grad(set_to_none=True)
            total(terms).backward()

    def step(due: Due) -> None:
        painted = method.paint(image, random, due)
        if due.discriminators:
            terms = method.discriminator_terms(painted, random, due.discriminators)
            learn(judges, terms)
            del terms
            learn(judges, method.r1_terms(image, random, due.r1))
        if due.autoencoder:
            with frozen(*judges):
                terms = method.autoencoder_terms(painted, random, due.autoencoder)
                learn(autoencoder, terms)

    due = Schedule(config.loss, config.train).all()
    if config.train.step_order == "shared" and config.train.accumulate == 1:
        step(due)
    else:  # slices that come one after the other are painted anew for each side
        step(due._replace(autoencoder=None))
        step(due._replace(discriminators=None, r1={}))


class Live(TorchDispatchMode):
    """Counts the bytes of tensors made within the block that are alive; `peak` is the most, and
    `heap_peak` with what the C library keeps of small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.heap_peak = 0
        self._small = 0  # bytes of `now` in small blocks
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        self.heap_peak = max(self.heap_peak, self.now + int((HEAP - 1) * self._small))
        return made

    def leave_out(self, *tensors: Tensor) -> None:
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self._small += size * (size < SMALL)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
        self._small -= size * (size < SMALL)


def _sides(nets: Networks) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
    return (nets.encoder, nets.generator), (nets.discriminator, nets.patches)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
