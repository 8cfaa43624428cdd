"""The demo's steps and bare sums in 1, 2 and 4 processes of this machine, over gloo.

    python -m benchmarks.several --out measured.json      5 minutes on a quiet machine

Every process has a core of its own as long as there are any, and one thread. What is measured is
what `scaling.py` holds its model against: seconds of every step of a whole cycle, bytes summed over
the processes, seconds spent waiting for them, and seconds of sums of known sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rwm_fast.device import cores

SIZES = (24, 1 << 16, 1 << 20, 1 << 22, 25 << 20)  # bytes of a bare sum; the first is `agree`'s
CYCLE = 16  # steps of the demo until all is due again
POINTS = ((1, 8), (2, 8), (4, 8), (2, 4), (4, 2))  # processes, images of each


def start(n: int, module: str, *words: object) -> Any:
    """Run `python -m module --task WORDS` in n processes of one job, each on a core; what the first
    one prints, read as JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    known |= {"OMP_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "lo"}
    own, children = sorted(os.sched_getaffinity(0)), []
    for rank in range(n):
        named = {k: str(v) for k, v in (known | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        core = {own[rank % len(own)]}
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", module, "--task", *map(str, words)],
                env=os.environ | named,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                preexec_fn=lambda core=core: os.sched_setaffinity(0, core),
            )
        )
    said = children[0].communicate()[0]
    for child in children:
        if child.wait():
            raise SystemExit(f"{module} {' '.join(map(str, words))}: a process of {n} failed")
    return json.loads(said)


def sums(turns: int) -> dict[str, list[float]]:
    """Seconds of bare sums by size, all processes beginning together."""
    import torch
    import torch.distributed as dist

    found: dict[str, list[float]] = {str(size): [] for size in SIZES}
    for _ in range(turns + 1):
        for size in SIZES:
            flat = torch.ones(size // 4)
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(flat)
            found[str(size)].append(time.perf_counter() - begun)
    return {size: seconds[1:] for size, seconds in found.items()}  # the first one connects


def trainer_of(
    own: int, job: Any, make: Callable | None = None
) -> tuple[Any, Callable[[int], None]]:
    """The demo's trainer in this process, and its k-th step, of `own` images here."""
    import torch

    from benchmarks.rows.columns import set_counts
    from benchmarks.rows.networks import LATE, SEEN
    from rwm_fast.config import PRESETS
    from rwm_fast.training.loop import step_generator
    from rwm_fast.training.trainer import Trainer

    config = PRESETS["demo"]
    config = replace(config, train=replace(config.train, batch=own * job.count))
    trainer = (make or Trainer)(config, torch.device("cpu"), torch.float32, job)
    size, source = config.model.image_size, torch.Generator().manual_seed(job.rank)
    image = torch.rand(own, 3, size, size, generator=source) * 2 - 1

    def step(k: int) -> None:
        set_counts(trainer, k, k)
        job.agree(LATE, False)
        trainer.step(image, SEEN, LATE, step_generator(0, k))

    return trainer, step


def steps(own: int, turns: int, job: Any) -> dict[str, Any]:
    """Seconds of a cycle's steps, turn by turn, and of those the seconds and bytes of sums."""
    trainer, step = trainer_of(own, job)
    waited, sent = 0.0, 0

    def timed(finish: Callable[[], None], buckets: list[Any]) -> Callable[[], None]:
        def run() -> None:
            nonlocal waited, sent
            begun = time.perf_counter()
            finish()
            waited += time.perf_counter() - begun
            sent += sum(bucket.flat.nbytes for bucket in buckets if bucket.work is not None)

        return run

    step(0)  # all that a step loads and allocates
    for gradients in trainer.gradients.values():
        gradients.finish = timed(gradients.finish, gradients.buckets)
    seconds = []
    for _ in range(turns):
        for k in range(CYCLE):
            begun = time.perf_counter()
            step(k)
            seconds.append(time.perf_counter() - begun)
    whole = len(seconds)
    return {"seconds": seconds, "waited": waited / whole, "bytes": sent / whole}


def measure(turns: int, cycles: int) -> dict[str, Any]:
    """Every point in turn, again and again, so that all see the same machine."""
    bare: dict[int, dict[str, list[float]]] = {2: {}, 4: {}}
    found: dict[tuple[int, int], list[dict[str, Any]]] = {point: [] for point in POINTS}
    for _ in range(turns):
        for n, seconds in bare.items():
            for size, taken in start(n, "benchmarks.several", "sums", 10).items():
                seconds.setdefault(size, []).extend(taken)
        for n, own in POINTS:
            found[n, own].append(start(n, "benchmarks.several", "steps", own, cycles))
    return {
        "cores": cores(),
        "load": os.getloadavg()[0],
        "sums": [
            {"processes": n, "bytes": int(size), "seconds": statistics.median(taken)}
            for n, seconds in bare.items()
            for size, taken in seconds.items()
        ],
        "points": [point(n, own, runs) for (n, own), runs in found.items()],
    }


def point(n: int, own: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: the mean over a cycle of each step's median over the turns."""
    every = [second for run in runs for second in run["seconds"]]
    medians = [statistics.median(every[k::CYCLE]) for k in range(CYCLE)]
    middle = lambda name: statistics.median(run[name] for run in runs)
    return {
        "processes": n,
        "images": own,
        "seconds": statistics.mean(medians),
        "waited": middle("waited"),
        "bytes": middle("bytes"),
    }


def task(what: str, *numbers: int) -> Any:
    from rwm_fast.training.processes import joined

    with joined() as job:
        found = sums(*numbers) if what == "sums" else steps(*numbers, job)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=1, help="of 16 steps, in a turn")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", nargs="+", help="one process's part of a measurement")
    arguments = parser.parse_args()
    if arguments.task:
        what, *numbers = arguments.task
        print(json.dumps(task(what, *map(int, numbers))))
        return
    text = json.dumps(measure(arguments.turns, arguments.cycles), indent=1) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
