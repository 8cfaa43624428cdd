"""Starting a run from the networks of another one: fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwm_fast.errors import UserError
from rwm_fast.models.pretrained import resolve
from rwm_fast.models.weights import FILE_NAME, read_tensors
from rwm_fast.training.checkpoint import Checkpoints
from rwm_fast.training.trainer import Trainer

log = logging.getLogger("rwm_fast")


def start_from(trainer: Trainer, source: str | Path) -> str:
    """Fill a trainer's networks from a run folder (its newest good state: all four networks and the
    averages), or from a weights file or a name of the package's own weights (encoder and
    generator). Returns one line on what was taken.

    A tensor is taken if it has the name and the shape of one here; the others stay random, and each
    network that this happens to is named. UserError if there is nothing to take.
    """
    path = resolve(source)
    state = Checkpoints(path / "checkpoints").newest() if path.is_dir() else None
    here = trainer.nets.as_dict()
    targets = {name: dict(net.state_dict(keep_vars=True)) for name, net in here.items()}
    averages = {name: dict(net.state_dict()) for name, net in trainer.ema.modules.items()}
    if state is not None:
        taken = {name: _take(targets[name], _tensors(state.get(name)), name) for name in targets}
        held = state.get("ema")
        held = held if isinstance(held, Mapping) else {}
        for name, average in averages.items():
            _take(average, _tensors(held.get(name)) or _tensors(state.get(name)), "")
    else:
        path = path / FILE_NAME if path.is_dir() else path
        tensors, taken = read_tensors(path), {}
        for name, average in averages.items():
            own = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(name)}
            taken[name] = _take(targets[name], own, name)
            _take(average, own, "")
    if not any(taken.values()):
        raise UserError(f"--init: no tensor of {path} has the name and shape of one of this model")
    counts = (f"{taken.get(name, 0)} of {len(own)} of the {name}" for name, own in targets.items())
    return f"starting from {path}: tensors taken, {', '.join(counts)}"


@torch.no_grad()
def _take(targets: Mapping[str, Tensor], source: Mapping[str, Tensor], network: str) -> int:
    """Copy what fits; returns how many tensors that are."""
    fits = [name for name, t in targets.items() if name in source and source[name].shape == t.shape]
    for name in fits:
        targets[name].copy_(source[name])
    others = [name for name in targets if name not in fits]
    if network and others and source:
        name = others[0]
        there = list(source[name].shape) if name in source else "nothing"
        log.warning(
            "--init: %d of %d tensors of the %s do not fit and stay random, for example %s (%s "
            "there, %s here)",
            len(others), len(targets), network, name, there, list(targets[name].shape),
        )  # fmt: skip
    return len(fits)


def _tensors(values: Any) -> dict[str, Tensor]:
    pairs = values.items() if isinstance(values, Mapping) else ()
    return {str(name): t for name, t in pairs if isinstance(t, Tensor) and t.isfinite().all()}
