"""Rows of the second order, on a CPU: a layer's, path length of a StyleGAN2 and its R1, each
against three families of published code.

A column is checked in float64, where it must be its family's formula but for where ε stands; in
float32 it must be near that: at a kink of the activation a rounding gives the other slope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.families import (
    DROPIN,
    FAMILIES,
    PUBLISHED,
    Discriminator,
    Generator,
    Source,
    widths,
)
from benchmarks.rows.row import CPU, DTYPES, OURS, Answers, Built, Row, Step, Work, errors

EXACT = 1e-6  # in float64; where ε stands is worth 1e-8 of a layer
# Of values near 0 one in a million is rounded to its other side, in each layer: 1e-3 of the length,
# more through several.
NEAR = 0.05
Work_ = Callable[[], Answers]


@dataclass
class SecondRow(Row):
    """`make(column, dtype)` gives what is timed, and what runs before it untimed."""

    title: str
    make: Callable[[str, torch.dtype], tuple[Callable[[], None], Work_]]
    note: str = ""
    columns: tuple[str, ...] = (*PUBLISHED, *DROPIN, OURS)
    least_rounds: int = 7
    full: bool = False
    dtype: str = "float32"
    group: str = "second"
    ceiling: str = ""
    place: torch.device = CPU
    truths: dict[str, Answers] = field(default_factory=dict)

    def __post_init__(self):
        self.name = f"{self.title} {self.dtype}"

    def work(self) -> Mapping[str, Work]:
        return {}

    def missing(self, full: bool) -> dict[str, str]:
        return {
            "ceiling": "no single call does this",
            "compiled": "torch.compile has no double backward",
        }

    def truth_of(self, column: str) -> str:
        """A family's own form; that without the style in the demodulation is another function."""
        return "Swapping" if column.startswith("Swapping") else "port"

    def truth(self, key: str) -> Answers:
        if key not in self.truths:
            self.truths[key] = self.answers(key, torch.float64)
        return self.truths[key]

    def answers(self, column: str, dtype: torch.dtype) -> Answers:
        before, work = self.make(column, dtype)
        before()
        return {name: t.detach() for name, t in work().items()}

    def bounds(self, column: str, plain: Mapping[str, float]) -> Mapping[str, float]:
        return dict.fromkeys(self.truth("port"), NEAR)

    def build(self, column: str, cache: int = 0) -> Built:
        before, work = self.make(column, DTYPES[self.dtype])

        def checked() -> Answers:
            key = self.truth_of(column)
            if column != key:
                found = errors(self, self.answers(column, torch.float64), self.truth(key))
                assert max(found.values()) < EXACT, f"{self.name}: {column} in float64: {found}"
            before()
            return work()

        step = Step({"total": work}, before=before)
        return Built([step], checked, self.truth_of(column), lambda: (before(), work()))

    def release(self) -> None:
        self.truths.clear()


def layer_row(n: int, i: int, o: int, side: int, up: int = 1) -> SecondRow:
    """A generator's layer: the gradients of x and styles with a graph, and of their squares to x,
    weight, styles, strength and bias. The forward pass is not timed."""

    def make(column: str, dtype: torch.dtype) -> tuple[Callable[[], None], Work_]:
        family, source = FAMILIES[column], Source(dtype)
        x = source.parameter(n, i, side, side, order=family.order)
        style, weight = source.parameter(n, i), source.parameter(o, i, 3, 3, order=family.order)
        strength, bias = source.parameter(1), source.parameter(o)
        noise = source.draw(n, 1, side * up, side * up)
        dy = source.draw(n, o, side * up, side * up).contiguous(memory_format=family.order)
        held: list[Tensor] = []

        def before() -> None:
            with torch.no_grad():
                weight.neg_()  # in training the weights change every time
            held[:] = [family.styled(x, weight, style, noise, strength, bias, up)]

        def work() -> Answers:
            first = torch.autograd.grad(held[0], (x, style), dy, create_graph=True)
            total = sum(g.square().sum() for g in first)
            second = torch.autograd.grad(total, (x, weight, style))
            return dict(zip(("x", "weight", "styles"), second, strict=True))

        return before, work

    title = f"second order, {'up x2 ' * (up == 2)}{i} -> {o} ch @ {side}, batch {n}"
    return SecondRow(title, make)


def path_length_row(side: int, base: int, most: int, n: int = 2, **more) -> SecondRow:
    """Path length of a generator, without the mapping: the whole term, and gradients to all
    parameters and styles."""

    def make(column: str, dtype: torch.dtype) -> tuple[Callable[[], None], Work_]:
        source = Source(dtype)
        net = Generator(FAMILIES[column], widths(side, base, most), source, most)
        styles = source.parameter(n, len(net.layers), most)
        noise = net.noise(n, source)
        direction = source.draw(n, 3, side, side) / side

        def work() -> Answers:
            image = net(styles, noise)
            (g,) = torch.autograd.grad((image * direction).sum(), styles, create_graph=True)
            lengths = g.square().sum(2).mean(1).sqrt()
            return gathered((lengths - 1).square().mean(), source.parameters)

        return lambda: _change(source.parameters), work

    return SecondRow(f"path length of StyleGAN2, {side} px, batch {n}", make, **more)


def r1_row(side: int, base: int, most: int, n: int = 2, **more) -> SecondRow:
    """R1 of a discriminator: the whole term, and gradients to all parameters."""

    def make(column: str, dtype: torch.dtype) -> tuple[Callable[[], None], Work_]:
        source = Source(dtype)
        net = Discriminator(FAMILIES[column], widths(side, base, most), source)
        image = source.draw(n, 3, side, side).requires_grad_()

        def work() -> Answers:
            (g,) = torch.autograd.grad(net(image).sum(), image, create_graph=True)
            return gathered(g.square().sum((1, 2, 3)).mean(), source.parameters)

        return lambda: _change(source.parameters), work

    columns = tuple(c for c in (*PUBLISHED, *DROPIN, OURS) if not c.startswith("Swapping"))
    note = "the Swapping Autoencoder's discriminator is the port's"
    return SecondRow(f"R1 of StyleGAN2, {side} px, batch {n}", make, note, columns, **more)


def gathered(loss: Tensor, parameters: list[Tensor]) -> Answers:
    """The loss, and all its gradients as one vector: zeros where none arrives."""
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach(), "gradients": torch.cat([g.flatten() for g in grads])}


def _change(parameters: list[Tensor]) -> None:
    with torch.no_grad():
        for p in parameters:
            if p.ndim == 4:
                p.neg_()


def rows(tiny: bool = False) -> Iterator[Row]:
    """For a CPU."""
    for i, o, side, up in ((512, 512, 16, 1), (128, 128, 64, 1), (256, 128, 32, 2)):
        shape = (max(8, i // 16), max(8, o // 16), 8) if tiny else (i, o, side)
        yield layer_row(2, *shape, up)
    size = (16, 128, 16) if tiny else (128, 16384, 512)
    for row in (path_length_row, r1_row):
        yield row(*size, least_rounds=3, full=True)
