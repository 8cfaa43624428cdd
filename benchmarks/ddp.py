"""Our sum of gradients against torch's DistributedDataParallel, in the same steps of the demo.

    python -m benchmarks.ddp --out FILE

Two processes on a core each. DDP gets no forward pass to wrap: its module holds one side's
parameters and hands the loss through, so that its reducer sees what the loss depends on
(`find_unused_parameters`: R1 reaches no bias, and a network without a due term learns nothing).
First both make the same steps from the same weights, through R1's and consistency's second order;
then they take turns, step by step, on the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.several import CYCLE, start, trainer_of
from rwm_fast.training.gradients import Gradients
from rwm_fast.training.guard import step_if_finite
from rwm_fast.training.processes import ALONE, Processes
from rwm_fast.training.step import Terms, total
from rwm_fast.training.trainer import Slice, Trainer, absent_is_zero

IMAGES = (8, 2)  # of each process


class Side(nn.Module):
    """The networks that one optimizer trains; its forward pass hands a loss through."""

    def __init__(self, networks: dict[str, nn.Module]):
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


class Ddp(Trainer):
    """A trainer whose gradients DDP reduces."""

    def __init__(self, config: Any, device: torch.device, dtype: torch.dtype, job: Processes):
        super().__init__(config, device, dtype, job)
        # none of ours: the hooks of those that are there send nothing as long as none is expected
        wrap = lambda side: DistributedDataParallel(
            Side(side), find_unused_parameters=True, gradient_as_bucket_view=True
        )
        self.wrapped = {
            self.generator_optimizer: wrap(self.autoencoder),
            self.discriminator_optimizer: wrap(self.discriminators),
        }
        self.gradients = {o: Gradients(ALONE, ()) for o in self.wrapped}

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        slices: list[Slice],
        terms_of: Callable[[Slice], Terms],
    ) -> dict[str, Tensor]:
        side, values = self.wrapped[optimizer], {}
        for part in slices:
            terms = terms_of(part)
            if not terms:
                return {}
            if part is slices[0]:
                optimizer.zero_grad(set_to_none=True)
            last = part is slices[-1]
            with contextlib.nullcontext() if last else side.no_sync():
                # DDP's mean over processes is the sum of their parts of it
                side(total(terms) * self.job.count).backward()
            for name, term in terms.items():
                values[name] = values.get(name, 0) + term.value.detach()
        if optimizer is self.discriminator_optimizer:
            for module in self.discriminators.values():
                absent_is_zero(module)
        self.skipped = torch.maximum(self.skipped, step_if_finite(optimizer))
        return values


def task(own: int, turns: int) -> dict[str, Any]:
    """The largest difference of a gradient and of a weight, and seconds of steps by column."""
    from rwm_fast.training.processes import joined

    with joined() as job:
        both = {name: trainer_of(own, job, make) for name, make in MAKES.items()}
        ours, ddp = (trainer for trainer, _ in both.values())
        gradient = weight = 0.0
        for k in range(CYCLE):
            for _, step in both.values():
                step(k)
            for name, net in ours.nets.as_dict().items():
                other = ddp.nets.as_dict()[name]
                for p, q in zip(net.parameters(), other.parameters(), strict=True):
                    assert (p.grad is None) == (q.grad is None), f"step {k}, {name}"
                    if p.grad is not None:
                        gradient = max(gradient, apart(p.grad, q.grad))
                    weight = max(weight, apart(p.detach(), q.detach()))
        seconds: dict[str, list[float]] = {name: [] for name in both}
        for turn in range(turns):
            for k in range(CYCLE):
                names = list(both) if (turn + k) % 2 else list(both)[::-1]
                for name in names:
                    begun = time.perf_counter()
                    both[name][1](k)
                    seconds[name].append(time.perf_counter() - begun)
    return {"gradient": gradient, "weight": weight, "seconds": seconds}


MAKES: dict[str, Any] = {"ours": Trainer, "DDP": Ddp}


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, against the largest number."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))


def row(own: int, found: dict[str, Any]) -> dict[str, Any]:
    """Medians by step of the cycle, then their mean; the ratio is taken step by step."""
    seconds = found["seconds"]
    mean = lambda name: statistics.mean(
        statistics.median(seconds[name][k::CYCLE]) for k in range(CYCLE)
    )
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["DDP"], strict=True)]
    r1 = [b / a for a, b in zip(seconds["ours"][::CYCLE], seconds["DDP"][::CYCLE], strict=True)]
    return {
        "images": own,
        "gradient": found["gradient"],
        "weight": found["weight"],
        "ours": mean("ours"),
        "DDP": mean("DDP"),
        "ratio": statistics.median(ratios),
        "R1 ratio": statistics.median(r1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Demo, two processes of one core each, gloo: the same steps with gradients summed by "
        "`gradients.py` and by DistributedDataParallel, in turns. Differences against the largest "
        "number of a tensor, after every step of a cycle of 16 from the same weights.\n",
        "| images of a process | gradients apart | weights apart | ours | DDP | DDP / ours "
        "| on R1 steps |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['images']} | {r['gradient']:.1g} | {r['weight']:.1g} | {1000 * r['ours']:.0f} ms "
        f"| {1000 * r['DDP']:.0f} ms | {r['ratio']:.2f} | {r['R1 ratio']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="cycles of 16 steps")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, help="of a process")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", nargs=2, type=int, help="one process's part")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(task(*arguments.task)))
        return
    rows = [row(own, start(2, "benchmarks.ddp", own, arguments.turns)) for own in arguments.images]
    print(table(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
