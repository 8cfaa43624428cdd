"""`python -m benchmarks.gpu --out FOLDER`: everything there is to learn from a GPU, in one call.

Parts run in order: build, check, tests, sanitizer, ceilings, operators, layers, networks. Whatever
is finished is kept in FOLDER at once; the same command goes on where an earlier one stopped. Leaves
results.json, results.md, results.png (with matplotlib), tests.json and log.txt. Exit status: 0, 1
if a check failed or a column is wrong, 2 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import report
from benchmarks.gpu.device import Cpu, Cuda, device, software
from benchmarks.gpu.outside import Outside, nvcc
from benchmarks.gpu.store import Mixed, Store
from benchmarks.gpu.supervise import ROOT, Crew
from benchmarks.machine import commit

PARTS = ("build", "check", "tests", "sanitizer", "ceilings", "operators", "layers", "networks")
ON_CPU = ("check", "tests", "ceilings", "operators", "layers", "networks")
# Seconds of one run at most, beside other parts; the next run goes on. The others take the rest.
LIMITS = {"build": 240, "check": 75, "tests": 85, "sanitizer": 75}
RESERVE = 12  # seconds for the report, and for a worker to finish
TINY_TESTS = ("tests/ops/test_masked_l1.py",)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/gpu"), help="results; goes on from what is there")
    add("--minutes", type=float, default=8.5, help="after which the run ends (default 8.5)")
    add("--parts", default="", help=f"some of {','.join(PARTS)} (default: all)")
    add("--only", default="", help="rows whose name contains this")
    add("--again", action="store_true", help="do the chosen parts' chosen rows once more")
    add("--no-compile", action="store_true", help="leave torch.compile out: its columns take long")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tries the pipeline out")
    add("--tiny", action="store_true", help="a few small rows; always so with --device cpu")
    a = parser.parse_args(argv)
    a.tiny |= a.device == "cpu"
    default = ON_CPU if a.device == "cpu" else PARTS
    a.parts = [word for word in a.parts.split(",") if word] or list(default)
    unknown = [part for part in a.parts if part not in PARTS]
    if unknown:
        parser.error(f"--parts must be of {','.join(PARTS)}, got {','.join(unknown)}")
    if a.device == "cpu" and not set(a.parts) <= set(ON_CPU):
        parser.error(f"--device cpu has only {','.join(ON_CPU)}")
    a.parts.sort(key=PARTS.index)
    return a


def no_device() -> str:
    why = "this torch has no CUDA" if torch.version.cuda is None else "torch.cuda finds none"
    return f"no CUDA device: {why} (torch {torch.__version__})"


def begin(a: argparse.Namespace, place: Cuda | Cpu) -> Store:
    """The folder's store, with a new run in it; raises `Mixed` if it is another machine's."""
    store = Store(a.out / "results.json")
    for path in sorted(a.out.glob("share-*.json")):  # of a run that was killed
        store.take(path)
    store.data["running"] = None
    facts, versions = place.facts(), software()
    run = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": commit(ROOT),
        "device": facts,
        "software": {**versions, "nvcc": nvcc()},
        "state": place.state(),
        "parts": a.parts,
    }
    store.begin({**versions, "name": facts["name"]}, run)
    if a.again:
        store.forget(lambda part, row: part in a.parts and a.only in row)
        if "tests" in a.parts:
            (a.out / "tests.json").unlink(missing_ok=True)
    return store


def run(a: argparse.Namespace, store: Store, end: float) -> None:
    """All parts, each until it is finished or its time is over."""
    several = 1 if a.tiny else max(1, min(15, (os.cpu_count() or 1) - 1))
    outside = Outside(store, a.out, several)
    flags = ["--device", a.device, "--only", a.only]
    flags += ["--tiny"] * a.tiny + ["--no-compile"] * a.no_compile
    crew = Crew(store, outside.log, flags)
    # one process, one after the other
    timed = [part for part in a.parts if part not in LIMITS and not store.finished(part)]
    for part in [*(part for part in a.parts if part in LIMITS), *timed[:1]]:
        most = LIMITS.get(part, 1e9) if len(a.parts) > 1 else 1e9
        deadline = min(end, time.time() + most)
        if deadline - time.time() < 1:
            print(f"{part}: no time left")
            continue
        start = time.time()
        if part == "build":
            outside.build(torch.cuda.get_device_capability(), deadline)
        elif part == "tests":
            found = store.rows("tests").get("tests", {})
            if not (found.get("complete") and not a.only):
                more = {"wanted": TINY_TESTS, "key": "native"} if a.device == "cpu" else {}
                outside.tests(deadline, **more)
        elif part == "sanitizer":
            outside.sanitizer(deadline)
        elif part == "check" and store.finished(part):
            continue
        elif part == "check":  # the checks may share the GPU; whatever is timed has it alone
            crew.work([part], deadline, several)
        else:
            crew.work(timed, deadline)
        name = part if part in LIMITS else ", ".join(timed)
        print(f"{name}: {time.time() - start:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    end = time.time() - RESERVE
    a = arguments(argv)
    end += 60 * a.minutes
    if a.device == "cuda" and not torch.cuda.is_available():
        print(no_device(), file=sys.stderr)
        return 2
    a.out.mkdir(parents=True, exist_ok=True)
    try:
        place = device(a.device)
        store = begin(a, place)
    except Mixed as error:
        print(error, file=sys.stderr)
        return 2
    del place  # its memory: the workers have devices of their own
    if a.device == "cuda":
        torch.cuda.empty_cache()
    try:
        run(a, store, end)
    finally:
        report.write(store.data, a.out)
    problems = report.problems(store.data)
    print("\n".join([report.short(store.data), *(f"PROBLEM: {p}" for p in problems)]))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
