"""What the steps of a preset compute and send, found on tensors without memory.

The steps are taken as `Trainer` takes them, by the real schedule and the real `Gradients`; only the
sum over processes is replaced by a note of how many bytes left after how many operations. So
buckets, their order and what of them is sent before a backward pass has ended are the code's own.
Operations are torch's counts of convolutions and products in the same networks on torch's own
operators (`operators_of("rewritten")`), as the rows of whole networks count theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch

from benchmarks.rows.columns import Operations, operators_of
from benchmarks.rows.networks import LATE, SEEN
from rwm_fast.config import Config
from rwm_fast.training.gradients import Gradients
from rwm_fast.training.plan import meta_networks
from rwm_fast.training.processes import Processes
from rwm_fast.training.schedule import Counts, Due, Schedule
from rwm_fast.training.share import Share
from rwm_fast.training.step import Method, Terms, frozen, total
from rwm_fast.training.trainer import absent_is_zero, biases


@dataclass
class Update:
    """One update of one side in the process that has most to do."""

    side: str  # "discriminators", "R1", "autoencoder"
    flops: int  # since the update before: painting, terms, backward pass
    backward: int  # of these in the backward pass
    buckets: list[tuple[int, int]]  # bytes, and how many of `flops` were done when they left


@dataclass
class Kind:
    """Steps that do the same."""

    share: float  # of all steps
    updates: list[Update]


def kinds(config: Config) -> list[tuple[float, Due]]:
    """What is due late in a run: every kind of step and its share of the steps."""
    loss, schedule, counts = config.loss, Schedule(config.loss, config.train), Counts()
    cycle = math.lcm(loss.r1_interval, loss.consistency_interval, loss.alignment_interval)
    cycle *= 2 if config.train.step_order == "alternate" else 1
    found: dict[str, tuple[int, Due]] = {}
    for _ in range(cycle):
        due = schedule.due(SEEN, LATE, counts)
        counts.advance(due)
        found[repr(due)] = (found.get(repr(due), (0, due))[0] + 1, due)
    return [(count / cycle, due) for count, due in found.values()]


def cost(config: Config, own: int, count: int) -> list[Kind]:
    """Kinds of steps of the first of `count` processes that have `own` pictures each.

    The first has as much of the batch's first half as any (`Share`), so none has more to do.
    """
    nets = meta_networks(config, torch.float32)
    sides = {
        "autoencoder": (nets.encoder, nets.generator),
        "discriminators": (nets.discriminator, nets.patches),
    }
    # one process sends nothing; what is noted of it are the buckets that two would send
    gradients = {name: Gradients(Processes(0, 2), side) for name, side in sides.items()}
    image = torch.empty(own, 3, config.model.image_size, config.model.image_size, device="meta")
    method, share = Method(nets, config.loss, config.mask), Share(0, count)
    random = torch.Generator().manual_seed(0)
    operations = Operations()

    def step(due: Due) -> Iterator[Update]:
        begun = operations.total

        def update(name: str, side: str, terms: Terms) -> Iterator[Update]:
            nonlocal begun
            if not terms:
                return
            for module in sides[side]:
                module.zero_grad(set_to_none=True)
            sent: list[tuple[int, int]] = []
            note = lambda flat, **_: sent.append((flat.nbytes, operations.total - begun)) or Done()
            with mock.patch("torch.distributed.all_reduce", note):
                gradients[side].expect(biases(sides[side]) if name == "R1" else ())
                forward = operations.total
                total(terms).backward()
                if side == "discriminators":
                    for module in sides[side]:
                        absent_is_zero(module)
                gradients[side].finish()
            yield Update(name, operations.total - begun, operations.total - forward, sent)
            begun = operations.total

        painted = method.paint(image, random, due, share)
        if due.discriminators is not None:
            terms = method.discriminator_terms(painted, random, due.discriminators)
            yield from update("discriminators", "discriminators", terms)
            terms = method.r1_terms(image, random, due.r1, share)
            yield from update("R1", "discriminators", terms)
        if due.autoencoder is not None:
            with frozen(*sides["discriminators"]):
                terms = method.autoencoder_terms(painted, random, due.autoencoder)
                yield from update("autoencoder", "autoencoder", terms)

    with operators_of("rewritten"), operations:
        return [Kind(part, list(step(due))) for part, due in kinds(config)]


class Done:
    def wait(self) -> None:
        pass


def as_json(kinds: list[Kind]) -> list[dict[str, Any]]:
    return [asdict(kind) for kind in kinds]


def from_json(found: list[dict[str, Any]]) -> list[Kind]:
    return [Kind(each["share"], [Update(**update) for update in each["updates"]]) for each in found]
