"""Measures one row: build, check, warm up, interleave, summarise."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.machine import Evict
from benchmarks.rows.row import OURS, Row, gate
from benchmarks.timing import CPU, WALL, Column, Local, Rounds, quiet, summary


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    full: bool = False
    threads: int = 1
    seconds: float = 6.0  # of measuring a row; few rounds of slow rows may take longer
    most_rounds: int = 21

    @property
    def clock(self) -> str:
        return CPU if self.threads == 1 else WALL


def build(row: Row, plan: Plan, evict: Evict, names: list[str] | None = None) -> tuple[dict, dict]:
    """Columns that passed the gate, and facts about each."""
    missing = row.missing(plan.full)
    names = [n for n in names or row.columns if n not in missing]
    # the rewritten column first: its error is the yardstick of the others in networks
    ordered = sorted(names, key=lambda n: n != "rewritten")
    columns, facts, truths, plain = {}, {}, {}, 0.0
    for name in ordered:
        built = row.build(name)
        if built.answers is not None:
            key = built.truth
            if key not in truths:
                truths[key] = row.truth(key)
            error = gate(row, name, built.answers(), truths[key], key, plain)
            plain = error if name == "rewritten" else plain
            built.facts["error"] = error
        columns[name] = Local(built.steps, plan.clock, evict)
        facts[name] = built.facts
        gc.collect()
    return {n: columns[n] for n in names}, facts


def count_rounds(row: Row, rounds: Rounds, plan: Plan) -> int:
    """As many rounds as fit into the plan, from one round that warms everything up."""
    if row.least_rounds == 1:  # minutes a call: warmed up while it was checked
        return 1
    rounds.run(1)
    cost = sum(phases["total"][0] for phases in rounds.seconds.values())
    rounds.seconds.clear()
    return max(row.least_rounds, min(plan.most_rounds, int(plan.seconds / max(cost, 1e-9))))


Runner = Callable[[Rounds, int, str], None]


def interleave(rounds: Rounds, count: int, ours: str) -> None:
    rounds.run(count)


def measure(
    row: Row,
    plan: Plan,
    evict: Evict,
    *,
    extra: Mapping[str, Column] | None = None,
    names: list[str] | None = None,
    runner: Runner = interleave,
) -> dict:
    """The result of a row as it goes into the file; `extra` columns are measured elsewhere."""
    with quiet(plan.threads):
        columns, facts = build(row, plan, evict, names)
        columns |= extra or {}
        rounds = Rounds(columns)
        count = count_rounds(row, rounds, plan)
        runner(rounds, count, OURS)
    times, against = summary(rounds, OURS)
    result = describe(row, plan) | {
        "rounds": count,
        "columns": {n: {**facts.get(n, {}), "seconds": s} for n, s in times.items()},
        "ratios": against,
        "missing": row.missing(plan.full),
    }
    torch.compiler.reset()
    return result


def describe(row: Row, plan: Plan) -> dict:
    """What identifies a row, and the work by which rates are computed."""
    return {
        "name": row.name,
        "group": row.group,
        "dtype": row.dtype,
        "threads": plan.threads,
        "clock": plan.clock,
        "ceiling": row.ceiling,
        "note": row.note,
        "work": {phase: dict(work._asdict()) for phase, work in row.work.items()},
    }


def skipped(row: Row, plan: Plan, reason: str) -> dict:
    """A row that could not be measured here."""
    identity = {"name": row.name, "group": row.group, "dtype": row.dtype}
    return identity | {"threads": plan.threads, "skipped": reason}
