#!/usr/bin/env python3
"""The storm of several processes: one of two is killed at random, and torchrun starts both again.

    python .ci/storm_ranks.py --write            50 kills; .ci/storm_ranks.md
    python .ci/storm_ranks.py --kills 3          fewer

A run of a tiny model under `torchrun --nproc-per-node 2 --max-restarts`: it goes on by itself after
each kill, from the newest good state. Nothing that was saved may be lost, no log line doubled, and
the end is, to the bit, that of a run that nobody disturbed. Exit status 1 otherwise. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from storm import TINY, equal, last_state, saved

from rwm_fast.disk import write_whole
from rwm_fast.training.stats import JsonLines

STEP = 4  # images


def start(out: Path, kimg: float, restarts: int) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--standalone", "--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    words = [*TINY, "--kimg", str(kimg), "--train.keep-checkpoints", "3", "--out", str(out)]
    return subprocess.Popen(
        [*torchrun, "-m", "rwm_fast.train", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=open(out.with_suffix(".txt"), "w"),  # noqa: SIM115
        text=True,
    )


def ranks(agent: int) -> list[int]:
    """The processes that torchrun has started, in their order, not those that read pictures."""
    path = Path(f"/proc/{agent}/task/{agent}/children")
    children = path.read_text().split() if path.exists() else []
    return [int(pid) for pid in children if b"rwm_fast.train" in command(int(pid))]


def command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def blow(folder: Path, kills: int, seed: int) -> tuple[dict[str, int], list[str]]:
    chance, failures, counts = random.Random(seed), [], {"kills": 0}
    kimg = (2 * kills + 4) * STEP / 1000
    straight, out = folder / "straight", folder / "run"
    for path in (straight, out):
        path.mkdir()
    if start(straight, kimg, 0).wait():
        failures.append("the undisturbed run failed: " + straight.with_suffix(".txt").read_text())
    agent, newest = start(out, kimg, kills), 0
    while agent.poll() is None and counts["kills"] < kills:
        aim = saved(out) + STEP * chance.randrange(3)
        while agent.poll() is None and (saved(out) < aim or len(ranks(agent.pid)) < 2):
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        found = ranks(agent.pid)
        if len(found) < 2:
            continue
        k = chance.randrange(2)
        before = saved(out)
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[k], signal.SIGKILL)
            counts["kills"] += 1
            counts[f"kills of process {k}"] = counts.get(f"kills of process {k}", 0) + 1
            print(f"{counts['kills']} kills, {before} images saved", flush=True)
        while agent.poll() is None and set(ranks(agent.pid)) & set(found):
            time.sleep(0.02)  # until both are gone
        if saved(out) < max(before, newest):
            failures.append(f"{before} images were saved, then {saved(out)}")
        newest = max(newest, saved(out))
    if agent.wait():
        failures.append("the run did not come to its end: " + out.with_suffix(".txt").read_text())
    said = out.with_suffix(".txt").read_text()
    counts["starts that went on"] = len(re.findall("going on after", said))
    if not equal(last_state(out), last_state(straight)):
        failures.append("the run is not what it would have been")
    numbers = [r["nimg"] for r in JsonLines(out / "log.jsonl").read() if "loss/edge" in r]
    if numbers != list(range(STEP, round(kimg * 1000) + 1, STEP)):
        failures.append(f"log lines lost or doubled: {numbers}")
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = blow(Path(folder), arguments.kills, arguments.seed)
    lines = ["| what | count |", "|---|---|", *(f"| {k} | {n} |" for k, n in counts.items())]
    text = "\n".join([*lines, f"| failures | {len(failures)} |", *(f"\n{f}" for f in failures)])
    print(f"{text}\n{time.monotonic() - begun:.0f} s")
    if arguments.write:
        words = " ".join(["python", *sys.argv])
        page = (
            f"# The storm of several processes, as it ended last\n\n`{words}`"
            f", torch {torch.__version__}, Python {sys.version.split()[0]}.\n\n{text}\n"
        )
        write_whole(Path(__file__).with_suffix(".md"), lambda p: p.write_text(page))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
