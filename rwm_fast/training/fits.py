"""Whether a saved state is one of the objects that it is for, found before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

State = dict[str, Any]


class Stateful(Protocol):
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: State) -> None: ...


def misfits(objects: Mapping[str, Stateful], state: State) -> str:
    """Why a state is not one of these objects; empty if it is. Changes nothing."""
    missing = ", ".join(sorted(objects.keys() - state.keys()))
    if missing:
        return f"expected the state of {missing}, got another version's"
    nimg = state.get("nimg")
    if type(nimg) is not int or nimg < 0:
        return f"nimg must be a number of images, got {nimg!r}"
    for name, target in objects.items():
        if isinstance(target, torch.optim.Optimizer):
            reason = _optimizer_misfits(target, state[name], name)
        else:
            reason = difference(target.state_dict(), state[name], name)
        if reason:
            return reason
    return ""


def difference(ours: Any, theirs: Any, name: str) -> str:
    """The first place where `theirs` has another structure than `ours`, shapes and dtypes included;
    a number must be finite."""
    if isinstance(ours, Tensor):
        if not isinstance(theirs, Tensor):
            return f"{name} must be a tensor, got {type(theirs).__name__}"
        a, b = (f"{t.dtype} {list(t.shape)}".removeprefix("torch.") for t in (ours, theirs))
        return "" if a == b else f"{name} must be {a}, got {b}"
    if isinstance(ours, Mapping):
        if not isinstance(theirs, Mapping):
            return f"{name} must be a dictionary, got {type(theirs).__name__}"
        for problem, keys in (
            ("lacks", ours.keys() - theirs),
            ("has unknown", theirs.keys() - ours),
        ):
            if keys:
                return f"{name} {problem} {', '.join(sorted(map(str, keys))[:3])}"
        found = (difference(ours[key], theirs[key], f"{name}.{key}") for key in ours)
        return next(filter(None, found), "")
    if isinstance(ours, (list, tuple)):
        if not isinstance(theirs, (list, tuple)) or len(ours) != len(theirs):
            return f"{name} must be {len(ours)} values, got {theirs!r:.60}"
        found = (
            difference(a, b, f"{name}.{k}")
            for k, (a, b) in enumerate(zip(ours, theirs, strict=True))
        )
        return next(filter(None, found), "")
    if isinstance(ours, (int, float)) and not isinstance(ours, bool):
        kinds = (int,) if isinstance(ours, int) else (int, float)
        good = isinstance(theirs, kinds) and not isinstance(theirs, bool) and math.isfinite(theirs)
        return "" if good else f"{name} must be a finite {type(ours).__name__}, got {theirs!r:.60}"
    return "" if type(ours) is type(theirs) else f"{name} must be {ours!r:.60}, got {theirs!r:.60}"


def _optimizer_misfits(optimizer: torch.optim.Optimizer, state: Any, name: str) -> str:
    """Adam's: the same groups, and for each parameter its two averages or, before its first step,
    nothing."""
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        return f"{name} must be an optimizer's state, got {type(state).__name__}"
    reason = difference(optimizer.state_dict()["param_groups"], state["param_groups"], name)
    if reason or not isinstance(state["state"], Mapping):
        return reason or f"{name}.state must be a dictionary, got {type(state['state']).__name__}"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for k, held in state["state"].items():
        if type(k) is not int or not 0 <= k < len(parameters):
            return f"{name}.state has unknown {k!r:.60}"
        like = {"step": torch.zeros(()), "exp_avg": parameters[k], "exp_avg_sq": parameters[k]}
        reason = difference(like, held, f"{name}.state.{k}")
        if reason:
            return reason
    return ""
