#!/usr/bin/env python3
"""Runs of a tiny model in 1, 2 and 4 processes, and such as go on in another number of them.

    python .ci/process_counts.py --write            three minutes; .ci/process_counts.md

Every run has the same total batch, R1 and consistency in every step of its second half. All must
see the same pictures in the same order, and end with the weights of one process up to float32
rounding (`RTOL`, `ATOL`: Adam divides by the gradient's size, so rounding grows with the steps); in
as many processes as before, to the bit. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from storm import TINY

from rwm_fast.disk import write_whole
from rwm_fast.training.share import Share

BATCH, STEPS, HALF = 8, 6, 3
RTOL, ATOL = 1e-4, 1e-5
WORDS = f"--batch {BATCH} --kimg {BATCH * STEPS / 1000} --train.keep-checkpoints 0".split()
WORDS += "--loss.r1-interval 1 --loss.consistency-interval 1".split()
NETWORKS = ("encoder", "generator", "discriminator", "patches", "ema")


def one(out: Path) -> int:
    """A process of a run; keeps the pictures that its steps learn from."""
    from rwm_fast.train import main as train
    from rwm_fast.training.trainer import Trainer

    step, seen = Trainer.step, {}

    def kept(self: Trainer, image: torch.Tensor, nimg: int, *rest: Any) -> Any:
        seen[nimg] = image.clone()
        return step(self, image, nimg, *rest)

    Trainer.step = kept  # type: ignore[method-assign]
    status: int = train([*TINY, *WORDS, "--out", str(out)])
    torch.save(seen, out / f"pictures-{os.environ['RANK']}.pt")
    return status


def run(out: Path, count: int) -> None:
    """A run in so many processes, from its start or on from what is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    known |= {"OMP_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "lo"}
    known |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    children = []
    for rank in range(count):
        own = {k: str(v) for k, v in (known | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        children.append(
            subprocess.Popen(
                [sys.executable, __file__, "--one", str(out)],
                env=os.environ | own,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    said = [child.communicate(timeout=300)[0].decode() for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("\n".join(said))


def pictures(out: Path, count: int) -> dict[int, torch.Tensor]:
    """The batches of a run's newest start by the images seen before, put together again."""
    parts = [torch.load(out / f"pictures-{rank}.pt") for rank in range(count)]
    found = {}
    for nimg in parts[0]:
        batch = parts[0][nimg].new_empty(BATCH, *parts[0][nimg].shape[1:])
        for rank, part in enumerate(parts):
            batch[list(Share(rank, count).rows(BATCH))] = part[nimg]
        found[nimg] = batch
    return found


def weights(out: Path) -> dict[str, Any]:
    path = out / "checkpoints" / f"state-{BATCH * STEPS:09d}.pt"
    state = torch.load(path, weights_only=True)
    return {name: state[name] for name in NETWORKS}


class Row(NamedTuple):
    what: str
    same_pictures: bool
    apart: float  # largest difference of a weight
    close: bool


def compared(what: str, out: Path, count: int, truth: Path, of: int, exact: bool = False) -> Row:
    seen, expected = pictures(out, count), pictures(truth, of)
    same = bool(seen) and all(torch.equal(seen[nimg], expected[nimg]) for nimg in seen)
    difference, close = 0.0, True
    found, wanted = weights(out), weights(truth)
    for name, t in tensors(wanted):
        other = dict(tensors(found))[name]
        difference = max(difference, float((t - other).abs().max()))
        rtol, atol = (0.0, 0.0) if exact else (RTOL, ATOL)
        close = close and torch.allclose(other, t, rtol=rtol, atol=atol)
    return Row(what, same, difference, close)


def tensors(state: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """Those of floating point in a state, by their place in it."""
    if isinstance(state, torch.Tensor):
        return [(name, state)] if state.is_floating_point() and state.numel() else []
    pairs = state.items() if isinstance(state, dict) else ()
    return [found for key, value in pairs for found in tensors(value, f"{name}.{key}")]


def straight(folder: Path, count: int) -> Path:
    """The run in so many processes that nothing interrupts."""
    out = folder / f"in-{count}"
    if not out.exists():
        run(out, count)
    return out


def gone_on(folder: Path, before: int, after: int) -> Row:
    """The second half of a run in another number of processes, against the undisturbed one."""
    truth, out = straight(folder, before), folder / f"from-{before}-to-{after}"
    shutil.copytree(truth, out)
    for path in (out / "checkpoints").glob("*.pt"):
        if path.stem == "best" or int(path.stem[6:]) > BATCH * HALF:
            path.unlink()
    run(out, after)
    exact = before == after
    return compared(f"{before}, then {after}", out, after, truth, before, exact)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", type=Path, help="be a process of a run")
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = straight(folder, 1)
        rows = [compared(f"{n}", straight(folder, n), n, alone, 1) for n in (2, 4)]
        for before, after in ((1, 2), (2, 1), (1, 4), (4, 1), (2, 4), (4, 2), (4, 4)):
            rows.append(gone_on(folder, before, after))
            print(rows[-1], flush=True)
    lines = ["| processes | same pictures | largest difference of a weight | as close as asked |"]
    lines += ["|---|---|---|---|"]
    say = {True: "yes", False: "NO"}
    lines += [
        f"| {r.what} | {say[r.same_pictures]} | {r.apart:.1g} | {say[r.close]} |" for r in rows
    ]
    print(text := "\n".join(lines))
    if arguments.write:
        page = (
            "# Runs in 1, 2 and 4 processes, as they ended last\n\n`python .ci/process_counts.py "
            f"--write`, torch {torch.__version__}, Python {sys.version.split()[0]}. {STEPS} steps "
            f"at a total batch of {BATCH}, R1 and consistency in every step of the second half; "
            f"`1, then 2`: the last {STEPS - HALF} in two processes. Compared with the run in one "
            f"process, or in the first number.\n\n{text}\n"
        )
        write_whole(Path(__file__).with_suffix(".md"), lambda p: p.write_text(page))
    return not all(r.same_pictures and r.close for r in rows)


if __name__ == "__main__":
    sys.exit(main())
