"""Named inputs of every operator, shared by tests and benchmarks: one module an operator."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from rwm_fast.ops._dispatch import OPS
from rwm_fast.testing.cases.case import LAYOUTS, Case, Inputs, Refusal, Work, in_layout


def _module(op: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{op}")


def ops() -> tuple[str, ...]:
    """The operators that have cases."""
    return tuple(op for op in OPS if importlib.util.find_spec(f"{__name__}.{op}"))


def cases(op: str, *, bench: bool = False) -> tuple[Case, ...]:
    """An operator's cases: those for tests, or those of benchmark size."""
    return tuple(case for case in _module(op).CASES if case.bench == bench)


def case(op: str, name: str) -> Case:
    """One case by name."""
    return next(case for case in _module(op).CASES if case.name == name)


def refusals(op: str) -> tuple[Refusal, ...]:
    """Calls of an operator that must be refused, with their sentence."""
    return _module(op).REFUSALS


__all__ = [
    "LAYOUTS",
    "Case",
    "Inputs",
    "Refusal",
    "Work",
    "case",
    "cases",
    "in_layout",
    "ops",
    "refusals",
]
