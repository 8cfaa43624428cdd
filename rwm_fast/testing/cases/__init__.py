"""Named inputs of every operator, shared by tests and benchmarks: one module an operator."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from rwm_fast.testing.cases.case import LAYOUTS, Case, Inputs, Refusal, Work, in_layout


def _module(op: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{op}")


def ops() -> tuple[str, ...]:
    """The operators that have cases."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name != "case")


def cases(op: str, *, bench: bool = False) -> tuple[Case, ...]:
    """An operator's cases: those for tests, or those of benchmark size."""
    return tuple(case for case in _module(op).CASES if case.bench == bench)


def case(op: str, name: str) -> Case:
    """One case by name."""
    return next(case for case in _module(op).CASES if case.name == name)


def new(op: str, name: str, *sizes: Any, **settings: Any) -> Case:
    """A case of other sizes, made as the operator's own are: with its inputs and its work."""
    return _module(op)._case(name, *sizes, **settings)


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
    "new",
    "ops",
    "refusals",
]
