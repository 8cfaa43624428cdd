"""Random calls of every operator on every backend, against the reference in float64.

    python -m rwm_fast.testing.fuzz --calls 100000 --out runs/fuzz-ops.json
    python -m rwm_fast.testing.fuzz --calls 500                     # seconds
    python -m rwm_fast.testing.fuzz --seed 0 --case 4711            # one of them again

A case is a call of an operator (`rwm_fast.testing.draws`): sizes down to none, orders of memory,
overlaps, mixed dtypes, settings, some subset of gradients; one in seven has an argument made wrong.
On each backend of this machine, by the one error rule of `rwm_fast.testing.compare`,

* output and gradients, at times their derivatives too, agree with float64, whatever uninitialised
  memory holds;
* no argument's memory changes, nor what lies around it, nor what lies around a result; a result
  shares no memory with an argument;
* a call is served by all backends or refused by all, with one sentence: a ValueError, TypeError or
  NotImplementedError that begins with the operator's name. (That a backend serves no such call at
  all, BackendError, is counted.)

A failure is made smaller and printed with the command that repeats it. Exit status 1 if there was
one. Case k of a seed is the same on every machine of one torch.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rwm_fast.ops._check import describe
from rwm_fast.testing.cases import ops as all_ops
from rwm_fast.testing.draws import Drawn, draw
from rwm_fast.testing.memory import poisoned
from rwm_fast.testing.trial import Wrong, backends, outcome

# ---- failures


def told(drawn: Drawn) -> str:
    """The call in words."""
    parts = []
    for name, value in drawn.inputs.items():
        text = describe(value) if isinstance(value, (Tensor, str)) else repr(value)
        if isinstance(value, Tensor):
            text += f", {drawn.views.get(name, '')}" + ", gradient" * value.requires_grad
            text += f", {value.layout}" * (value.layout is not torch.strided)
        parts.append(f"{name}: {text}")
    more = [f"dy: {drawn.dy}", *["second order"] * drawn.second]
    return "; ".join([drawn.op, *parts, *more, *[f"wrong: {drawn.spoiled}"] * bool(drawn.spoiled)])


_ONE = 1


def _smaller(drawn: Drawn) -> Iterator[Drawn]:
    """The same call with one thing less that is special."""
    if drawn.second:
        yield dataclasses.replace(drawn, second=False)
    without = {"activation": "linear", "clamp": None}
    kinks = {name: v for name, v in without.items() if drawn.inputs.get(name, v) is not v}
    if kinks:  # first of all: what follows would move values to kinks
        yield dataclasses.replace(drawn, inputs={**drawn.inputs, **kinks})
    if drawn.dy != "contiguous":
        yield dataclasses.replace(drawn, dy="contiguous")
    for name, value in drawn.inputs.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            continue
        changes: list[tuple[Tensor | None, str]] = []
        if drawn.views.get(name, "contiguous") != "contiguous":
            plain = value.detach().clone(memory_format=torch.contiguous_format)
            changes.append((plain.requires_grad_(value.requires_grad), "contiguous"))
        if value.requires_grad:
            changes.append((value.detach(), drawn.views.get(name, "")))
        if name in ("bias", "filter", "resample_filter") and not kinks:
            changes.append((None, ""))
        for changed, view in changes:
            views = {**drawn.views, name: view}
            yield dataclasses.replace(drawn, inputs={**drawn.inputs, name: changed}, views=views)
    for name in () if kinks else ("gain", "up", "down"):
        if name in drawn.inputs and drawn.inputs[name] is not _ONE:
            yield dataclasses.replace(drawn, inputs={**drawn.inputs, name: _ONE})


def failure(drawn: Drawn, names: Sequence[str]) -> str:
    """What is wrong with a call, nothing if all is well."""
    try:
        outcome(drawn, names)
    except Wrong as error:
        return str(error)
    return ""


def shrunken(drawn: Drawn, names: Sequence[str], steps: int = 100) -> Drawn:
    """A simpler call that fails too."""
    for candidate in _smaller(drawn):
        if steps <= 0:
            break
        steps -= 1
        with contextlib.suppress(Exception):
            if failure(candidate, names):
                return shrunken(candidate, names, steps)
    return drawn


# ---- many


@dataclasses.dataclass
class Counts:
    """What became of the calls."""

    cases: int = 0
    spoiled: int = 0
    second_order: int = 0
    calls: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    refusals: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, drawn: Drawn, answers: dict[str, str]) -> None:
        """One case."""
        self.cases += 1
        self.spoiled += bool(drawn.spoiled)
        agree = sum(answer == "agrees" for answer in answers.values())
        self.second_order += agree if drawn.second else 0
        dtype = str(drawn.dtype).removeprefix("torch.")
        for name, answer in answers.items():
            row = self.calls.setdefault(f"{drawn.op} {name}", {})
            what = "refused" if ": " in answer else dtype if answer == "agrees" else answer
            row[what] = row.get(what, 0) + 1
        for kind in {answer.split(":")[0] for answer in answers.values() if ": " in answer}:
            self.refusals[kind] = self.refusals.get(kind, 0) + 1


def fuzz(
    calls: int,
    seed: int = 0,
    ops: tuple[str, ...] = (),
    device: str = "cpu",
    start: int = 0,
    backend: str | None = None,
) -> Counts:
    """Calls on all backends or one, from case `start` on until there were so many."""
    counts, done, ops = Counts(), 0, ops or all_ops()
    again = f"--seed {seed}" + (f" --ops {' '.join(ops)}" if ops != all_ops() else "")
    again += f" --device {device}" * (device != "cpu")
    number = start
    with _only_errors(), warnings.catch_warnings(), poisoned():
        warnings.simplefilter("ignore")
        while done < calls:
            drawn = draw(seed, number, ops, device)
            names = [backend] if backend else backends(drawn.op, device)
            try:
                counts.add(drawn, outcome(drawn, names))
            except Wrong as error:
                what = f"{error}\n  {told(drawn)}"
                small = shrunken(drawn, names)
                if small is not drawn:
                    what += f"\n  smaller: {failure(small, names)}\n  {told(small)}"
                counts.failures.append(f"{again} --case {number}: {what}")
                print(counts.failures[-1], file=sys.stderr, flush=True)
            done += len(names)
            number += 1
            if number % 5000 == 0:
                line = f"{done} calls, {len(counts.failures)} failures"
                print(line, file=sys.stderr, flush=True)
    return counts


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Without what operators say of calls that another backend serves."""
    log = logging.getLogger("rwm_fast")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--start", type=int, default=0, help="the first case")
    parser.add_argument("--ops", nargs="+", choices=all_ops(), default=all_ops())
    parser.add_argument("--backend", help="this one alone; default: all of the device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file of the counts")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    started = time.monotonic()
    where = (given.seed, tuple(given.ops), given.device)
    if given.case is not None:
        print(told(draw(given.seed, given.case, *where[1:])))
        counts = fuzz(1, *where, given.case, given.backend)
    else:
        counts = fuzz(given.calls, *where, given.start, given.backend)
    result = {
        "seed": given.seed,
        **dataclasses.asdict(counts),
        "seconds": round(time.monotonic() - started),
        "device": given.device,
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    return int(bool(counts.failures))


if __name__ == "__main__":
    sys.exit(main())
