"""Gradients summed over the processes of a job, in buckets, while the backward pass goes on.

Why not DistributedDataParallel: it can do every one of these steps, with a wrapper for each side
whose forward pass hands the loss through, and gives the same gradients to the bit
(`benchmarks/ddp.py`). But it takes each step for a call of one module, looks in each for the
parameters that get no gradient (R1 gives no bias one), and knows nothing of who falls silent. What
is used here of its inside are hooks on parameters, and buckets that are sent in one order; slices
of a batch add up before anything is sent.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rwm_fast.training.processes import Processes, talk

BUCKET = 25 << 20  # bytes, as DistributedDataParallel has it


class Bucket:
    """Some parameters of one module and the memory that their gradients are summed in."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter]):
        self.module, self.parameters = module, parameters
        first = parameters[0]
        sizes = [p.numel() for p in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        pieces = self.flat.split(sizes)
        # laid out as the parameters are: a fused Adam goes through both by address
        self.views = [
            piece.as_strided(p.shape, p.stride(), piece.storage_offset())
            for piece, p in zip(pieces, parameters, strict=True)
        ]
        self.missing = len(parameters)
        self.work: Any = None

    def send(self) -> None:
        """Start the sum of what is there; where nothing is, of zeros."""
        pairs = list(zip(self.views, self.parameters, strict=True))
        for view, p in pairs:
            if p.grad is None:
                view.zero_()
        there = [(view, p.grad) for view, p in pairs if p.grad is not None]
        if there:
            views, gradients = zip(*there, strict=True)
            torch._foreach_copy_(views, gradients)
        with talk():
            self.work = dist.all_reduce(self.flat, async_op=True)

    def receive(self, job: Processes) -> None:
        """Wait for the sum, and make it the parameters' gradients."""
        with talk():
            job.wait(self.work, self.flat)
        for view, p in zip(self.views, self.parameters, strict=True):
            p.grad = view


class Gradients:
    """Those of the modules that one optimizer trains.

    `expect` before the last backward pass of an update and `finish` after it; between them every
    bucket is sent as soon as all of it is there and those before it are sent, so the order is the
    same in all processes. `without`: parameters whose gradient is zero, for which none waits.
    """

    def __init__(self, job: Processes, modules: Iterable[nn.Module], size: int = BUCKET):
        self.buckets: list[Bucket] = []
        self._job = job
        self._without: Container[Tensor] = ()
        self._next: int | None = None  # the next bucket to send; None = nothing is expected
        if job.count == 1:
            return
        for module in reversed(list(modules)):  # as the backward pass comes to them
            for parameters in _groups(reversed(list(module.parameters())), size):
                self.buckets.append(Bucket(module, parameters))
                for p in parameters:
                    p.register_post_accumulate_grad_hook(self._hook(self.buckets[-1]))

    def expect(self, without: Container[Tensor] = ()) -> None:
        self._next, self._without = 0, without
        for bucket in self.buckets:
            bucket.missing = sum(p not in without for p in bucket.parameters)
            bucket.work = None

    def finish(self) -> None:
        """Send what is left, and wait for all. A module without any gradient keeps none."""
        self._next = None
        learns = {b.module for b in self.buckets if any(p.grad is not None for p in b.parameters)}
        due = [bucket for bucket in self.buckets if bucket.module in learns]
        for bucket in due:
            if bucket.work is None:
                bucket.send()
        for bucket in due:
            bucket.receive(self._job)

    def _hook(self, bucket: Bucket) -> Any:
        def arrived(p: Tensor) -> None:
            if self._next is None:
                return
            bucket.missing -= p not in self._without
            while self._next < len(self.buckets) and not self.buckets[self._next].missing:
                self.buckets[self._next].send()
                self._next += 1

        return arrived


def _groups(parameters: Iterable[nn.Parameter], size: int) -> Iterable[list[nn.Parameter]]:
    """Neighbours of one dtype, each group of so many bytes or a little more."""
    group: list[nn.Parameter] = []
    for p in parameters:
        if group and (p.dtype != group[0].dtype or sum(q.nbytes for q in group) >= size):
            yield group
            group = []
        group.append(p)
    if group:
        yield group
