"""`python -m benchmarks.gpu --out FOLDER`: everything there is to learn from a GPU, in one call.

Parts run in order: build, ceilings, headline layers, networks (training first), check, tests,
operators, other layers, torch.compile, sanitizer. Whatever is finished is kept in FOLDER at once;
the same command goes on where an earlier one stopped. Leaves results.json, results.md, results.png
(with matplotlib), tests.json, log.txt, and Triton's cache. Exit status: 0, 1 if a check failed or a
column is wrong, 2 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.device import Cpu, device
from benchmarks.gpu.outside import Outside
from benchmarks.gpu.supervise import Crew
from benchmarks.store import Mixed, Store

PARTS = ("build", "ceilings", "headline", "networks", "check", "tests", "operators", "layers")
PARTS += ("compiled", "sanitizer")
OUTSIDE = ("build", "tests", "sanitizer")  # other programs do these
NOT_ON_CPU = ("build", "sanitizer", "compiled")
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
    add("--no-compile", action="store_true", help="leave torch.compile out: its rows take long")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tries the pipeline out")
    add("--tiny", action="store_true", help="a few small rows; always so with --device cpu")
    a = parser.parse_args(argv)
    a.tiny |= a.device == "cpu"
    known = [p for p in PARTS if a.device == "cuda" or p not in NOT_ON_CPU]
    a.parts = [word for word in a.parts.split(",") if word] or known
    unknown = [part for part in a.parts if part not in PARTS]
    if unknown:
        parser.error(f"--parts must be of {','.join(PARTS)}, got {','.join(unknown)}")
    if not set(a.parts) <= set(known):
        parser.error(f"--device cpu has only {','.join(known)}")
    a.parts = [p for p in PARTS if p in a.parts and not (a.no_compile and p == "compiled")]
    return a


def no_device() -> str:
    why = "this torch has no CUDA" if torch.version.cuda is None else "torch.cuda finds none"
    return f"no CUDA device: {why} (torch {torch.__version__})"


def begin(a: argparse.Namespace, place: Cpu) -> Store:
    """The folder's store, with a new run in it; raises `Mixed` if it is another machine's."""
    store = Store(a.out / "results.json")
    for path in sorted(a.out.glob("share-*.json")):  # of a run that was killed
        store.take(path)
    store.data["running"] = None
    facts, versions = place.facts(), machine.software()
    run = {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": machine.commit(machine.ROOT),
        "device": facts,
        "software": versions,
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
    """All parts, each until it is finished or the time is over."""
    several = 1 if a.tiny else max(1, min(15, (os.cpu_count() or 1) - 1))
    outside = Outside(store, a.out, several)
    flags = ["--device", a.device, "--only", a.only, *["--tiny"] * a.tiny]
    crew = Crew(store, outside.log, flags)
    alone = lambda part: part if part in (*OUTSIDE, "check") else "timed"
    for kind, group in itertools.groupby(a.parts, alone):  # timed parts in a row: one process
        parts = [p for p in group if p == "build" or a.only or not store.finished(p)]
        start = time.time()
        if not parts:
            continue
        if end - start < 1:
            print(f"{', '.join(parts)}: no time left")
            continue
        if kind == "build":
            outside.build(torch.cuda.get_device_capability(), end)
        elif kind == "tests":
            more = {"wanted": TINY_TESTS, "key": "native"} if a.device == "cpu" else {}
            outside.tests(end, **more)
        elif kind == "sanitizer":
            outside.sanitizer(end)
        else:  # the checks may share the GPU; whatever is timed has it alone
            crew.work(parts, end, several if kind == "check" else 1)
        print(f"{', '.join(parts)}: {time.time() - start:.0f} s", flush=True)


def write(store: Store, folder: Path) -> None:
    """results.md, and results.png where matplotlib is."""
    data = report.checked(store.data)
    (folder / "results.md").write_text(report.markdown(data) + "\n")
    if importlib.util.find_spec("matplotlib") is not None:
        report.plot(data, folder / "results.png")


def main(argv: Sequence[str] | None = None) -> int:
    end = time.time() - RESERVE
    a = arguments(argv)
    end += 60 * a.minutes
    if a.device == "cuda" and not torch.cuda.is_available():
        print(no_device(), file=sys.stderr)
        return 2
    a.out.mkdir(parents=True, exist_ok=True)
    # kernels that a run has compiled the next one finds
    os.environ.setdefault("TRITON_CACHE_DIR", str(a.out.resolve() / "triton"))
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
        write(store, a.out)
    problems = report.problems(store.data)
    print("\n".join([report.short(store.data), *(f"PROBLEM: {p}" for p in problems)]))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
