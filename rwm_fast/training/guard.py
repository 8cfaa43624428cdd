"""What keeps a run from learning nonsense: steps that are not finite change nothing, and losses
that leave all bounds end the run before they are saved over what was good."""

from __future__ import annotations

import collections
import statistics

import torch
from torch import Tensor

from rwm_fast.ops import _torch_private
from rwm_fast.training.stats import Stats

LOOK_STEPS = 10  # steps between looks, each of which waits for the device
PATIENCE = 3  # looks in a row beyond the limit that end a run
HISTORY = 50  # looks that a running median is of
LEAST_HISTORY = 5  # looks before a term without a known scale is judged
SCALED = {"reconstruction", "edge"}  # distances of pictures in [-1, 1]: more than 2 is far off


class BrokenRunError(ArithmeticError):
    """Training came to numbers that it cannot go on from."""


class NotFiniteError(BrokenRunError):
    """Too many steps in a row, or a parameter, became NaN or infinite; the message names them."""


class DivergedError(BrokenRunError):
    """A loss left its running median far behind; the message names it."""


def step_if_finite(optimizer: torch.optim.Optimizer) -> Tensor:
    """A step of a fused Adam, unless a gradient is not finite: then nothing changes.

    Returns 1 if the step was skipped, else 0: float32 on the device, nothing waits for it.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    gradients = [p.grad for p in parameters if p.grad is not None]
    finite = torch.stack(list(_torch_private.norms(gradients))).isfinite().all()
    skipped = (~finite).float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # as torch's GradScaler tells it
    optimizer.step()
    return skipped


class Undo:
    """Brings an optimizer and its parameters back to where they were at `remember`."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self._copies: list[Tensor] = []
        self._had: set[Tensor] = set()  # parameters that had averages

    def _tensors(self) -> list[Tensor]:
        held = self.optimizer.state
        parameters = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        return parameters + [t for p in self._had for t in held[p].values()]

    def remember(self) -> None:
        had = set(self.optimizer.state)
        if had == self._had and self._copies:  # into the same memory
            torch._foreach_copy_(self._copies, self._tensors())
        else:
            self._had = had
            self._copies = [t.clone() for t in self._tensors()]

    @torch.no_grad()
    def bring_back(self) -> None:
        for tensor, copy in zip(self._tensors(), self._copies, strict=True):
            tensor.copy_(copy)
        for parameter in set(self.optimizer.state) - self._had:
            del self.optimizer.state[parameter]


class Guard:
    """Judges a run's terms: `add` after each step waits for nothing, `look` does.

    limit: a term whose mean over the steps since the last look is more than so many times its
    running median (at least 1) has left its bounds; 0 = never. most: that many steps in a row that
    are not finite end a run; 0 = none do.
    """

    def __init__(self, limit: float, most: int):
        self.limit, self.most = limit, most
        self.skipped = 0  # steps so far in which a term or a gradient was not finite
        self.beyond: dict[str, int] = {}  # looks in a row, by term that has left its bounds
        self._recent, self._steps = Stats(), 0
        self._history: dict[str, collections.deque[float]] = {}
        self._counts: Tensor | None = None  # float32 [2]: bad steps in a row, bad steps in all
        self._culprits: set[str] = set()

    def add(self, terms: dict[str, Tensor], skipped: Tensor) -> None:
        if not terms:
            return
        self._recent.add(terms)
        self._steps += 1
        values = torch.stack([value.detach().float() for value in terms.values()])
        bad = torch.maximum((~values.isfinite()).any().float(), skipped)
        if self._counts is None:
            self._counts = torch.zeros(2, device=bad.device)
        self._counts[0].add_(1).mul_(bad)
        self._counts[1].add_(bad)

    @property
    def due(self) -> bool:
        return self._steps >= LOOK_STEPS

    def look(self) -> None:
        """Raises NotFiniteError after `most` bad steps in a row, DivergedError after PATIENCE looks
        beyond the limit."""
        if self._counts is None or not self._steps:
            return
        self._steps = 0
        means, broken = self._recent.collect()
        in_a_row, self.skipped = map(int, self._counts.tolist())
        self._culprits = {*self._culprits, *broken} if in_a_row else set()
        if self.most and in_a_row >= self.most:
            names = ", ".join(sorted(self._culprits)) or "gradients"
            raise NotFiniteError(f"{in_a_row} steps in a row were not finite ({names})")
        for name, mean in means.items():
            self._judge(name, mean)
        worst = max(self.beyond, key=self.beyond.__getitem__, default="")
        if worst and self.beyond[worst] >= PATIENCE:
            raise DivergedError(self.verdict(worst, means.get(worst)))

    def _judge(self, name: str, mean: float) -> None:
        past = self._history.setdefault(name, collections.deque(maxlen=HISTORY))
        known = name in SCALED or len(past) >= LEAST_HISTORY
        if self.limit and known and mean > self.limit * self._usual(name):
            self.beyond[name] = self.beyond.get(name, 0) + 1
        else:
            self.beyond.pop(name, None)
            past.append(mean)

    def _usual(self, name: str) -> float:
        return max(statistics.median(self._history[name] or [0.0]), 1.0)

    def verdict(self, name: str = "", mean: float | None = None) -> str:
        """One sentence on a term that has left its bounds."""
        name = name or next(iter(self.beyond))
        value = name if mean is None else f"{name} = {mean:.3g}"
        return f"{value} is more than {self.limit:g} times its usual {self._usual(name):.3g}"
