"""Rows of the whole method: training step, R1 step, edit. Same networks, other operators."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.machine import peak_memory
from benchmarks.rows.columns import compile_networks, inside, make_trainer, operations
from benchmarks.rows.row import (
    DTYPES,
    OURS,
    Answers,
    Built,
    Row,
    Work,
    Wrong,
    errors,
    stopwatch,
)
from benchmarks.timing import Step
from rwm_fast.config import Config, preset
from rwm_fast.models import RegionEditor
from rwm_fast.training.step import total
from rwm_fast.training.trainer import Trainer, build_networks

PER_STYLE, BLENDED = "a style at a time", "blended styles"  # the two truths: see truth_of
EXACT = 1e-9  # relative error of a right formula in float64: 1e-15 measured, times conditioning
SHAKES = 3  # times that the truth is asked what rounding may turn
MOST_SAMPLED = 1 << 16  # numbers of one parameter's gradient that are compared
SEEN = 10**7  # images: past every start-up phase
LATE = 0.9  # of the run: past the reconstruction part


def random_source(place: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(place).manual_seed(0)


def pictures(batch: int, side: int) -> Tensor:
    """Smooth pictures in [−1, 1]: noise at two scales."""
    source = torch.Generator().manual_seed(1)
    coarse = torch.randn(batch, 3, side // 8, side // 8, generator=source)
    fine = torch.randn(batch, 3, side, side, generator=source)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (0.6 * smooth + 0.1 * fine).clamp(-1, 1)


@dataclass
class NetworkRow(Row):
    """`batch` pictures through the networks of a preset."""

    preset: str
    batch: int
    dtype: str = "float32"
    full: bool = False
    least_rounds: int = 5
    columns: tuple[str, ...] = ("published", "rewritten", "compiled", OURS)
    group: str = "networks"
    title: str = ""
    shake: torch.Generator | None = None  # moves the pictures: see jumps
    place: torch.device = torch.device("cpu")

    def __post_init__(self):
        self.name = f"{self.title} {self.preset}, batch {self.batch} {self.dtype}"
        self.needs_matrix_units = self.dtype == "bfloat16"
        self.config: Config = preset(self.preset)
        self.work = {"total": Work(0, 0)}  # operations are counted while the row is built
        self.ceiling = "GFLOP/s of a matrix product"

    def missing(self, full: bool) -> dict[str, str]:
        reasons = {"ceiling": "no single call does this; the share is of the matrix product rate"}
        if "compiled" in self.columns and not full:
            reasons["compiled"] = "compiling whole networks takes minutes: only with --full"
        return reasons

    def image(self, dtype: torch.dtype = torch.float32, count: int | None = None) -> Tensor:
        """The pictures of every column; the truth of the shaken row sees them moved."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        image = pictures(count or self.batch, self.config.model.image_size).to(wide)
        if self.shake is not None:
            image = image * (1 + self.walk() * torch.randn(image.shape, generator=self.shake))
        return image.to(self.place)

    def error(self, got: Tensor, exact: Tensor) -> float:
        """The length of the error relative to that of the answer."""
        length = exact.norm().clamp_min(torch.finfo(torch.float64).tiny)
        return ((got - exact).norm() / length).nan_to_num(float("inf")).item()

    def walk(self) -> float:
        """Relative rounding error of an activation: a random walk over sums and over layers."""
        config = self.config.model
        widths = (*config.head_channels, *config.discriminator_channels, *config.patch_channels)
        terms, layers = 9 * max(widths), 4 * len(widths)  # a block has two, back they run again
        return torch.finfo(torch.float32).eps * math.sqrt(terms * layers)

    def bounds(self, key: str, plain: float) -> dict[str, float]:
        """Twice the plain version's error, the random walk, and the jumps of the truth itself."""
        return {name: 2 * plain + 4 * self.walk() + jump for name, jump in self.jumps.items()}

    @functools.cached_property
    def truths(self) -> dict[str, Answers]:
        return {}

    def truth(self, key: str) -> Answers:
        if key not in self.truths:
            column = PER_STYLE if key == PER_STYLE else "rewritten"
            self.truths[key] = self.calls(column, torch.float64)[1]()
        return self.truths[key]

    def truth_of(self, column: str) -> str:
        """Where a kernel's window reaches over a border of regions, a convolution a style and then
        selecting is another function than ours: 7.5e-4 of the length of an edit. Such a column is
        held to that function, computed from the rewritten operators."""
        return PER_STYLE if column == "published" else BLENDED

    @functools.cached_property
    def jumps(self) -> dict[str, float]:
        """How far the float64 truth itself moves when the pictures move by a column's rounding.

        Gradients jump where an activation crosses its kink. R1 of the demo, for one, jumps by 2e-4
        at an activation that lies within eight roundings of 0, and a column may round to its other
        side however exact it is. That a column computes the right formula is shown in float64.
        """
        exact, moved = self.truth(BLENDED), []
        for seed in range(SHAKES if self.least_rounds > 1 else 1):
            self.shake = torch.Generator().manual_seed(seed)
            try:
                answers = self.calls("rewritten", torch.float64)[1]()
            finally:
                self.shake = None
            moved.append(errors(self, answers, exact))
        return {name: max(found[name] for found in moved) for name in exact}

    def check_formula(self, column: str) -> None:
        """Raise `Wrong` unless the column in float64 is its truth, up to float64's rounding."""
        answers = self.calls(column, torch.float64)[1]()
        for name, error in errors(self, answers, self.truth(self.truth_of(column))).items():
            if not error <= EXACT:
                raise Wrong(f"{self.name}: {column} in float64: {name} is off by {error:.2g}")

    def calls(self, column: str, dtype: torch.dtype) -> tuple[list[Step], Callable[[], Answers]]:
        """The steps of a column, and what they compute."""
        raise NotImplementedError

    def build(self, column: str) -> Built:
        facts: dict = {}
        if column in ("published", OURS):
            self.check_formula(column)
        steps, answers = self.calls(column, DTYPES[self.dtype])
        if column == "compiled":
            with stopwatch(facts):
                for step in steps:
                    step.forward()
        elif column == "rewritten":
            self.work = {"total": Work(0, round(sum(map(operations, steps))))}
        else:
            steps[0].forward()  # what a first call leaves is not the peak of a call
        facts["peak_bytes"] = peak_memory(steps[0].forward)
        checked = None if column == "forward" else answers
        return Built(steps, checked, self.truth_of(column), facts)


@dataclass
class TrainingRow(NetworkRow):
    """One iteration, all lazy terms weighted as often as they are due.

    `common`: the commonest kind of iteration instead, on which R1 is not due. The float64 truths of
    large networks take minutes each.
    """

    common: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.common:
            self.note = "an iteration on which R1 is not due"

    def calls(self, column: str, dtype: torch.dtype) -> tuple[list[Step], Callable[[], Answers]]:
        trainer = make_trainer(self.config, column, dtype, self.place)
        image = self.image(dtype)

        def iterate(index: int) -> dict[str, Tensor]:
            counts, random = trainer.counts, random_source(self.place)
            counts.judge = counts.paint = index
            terms = trainer.step(image, SEEN, LATE, random)
            if counts.paint == index:  # judges and painters take turns: the painters are left
                terms |= trainer.step(image, SEEN, LATE, random)
            return terms

        kinds = self.kinds(trainer)
        if self.common:
            kinds = {max(kinds, key=kinds.get): 1.0}

        def answers() -> Answers:
            terms = iterate(min(kinds))  # at 0 everything is due
            return terms | gradients(trainer.nets.as_dict())

        run = inside(column, iterate)
        steps = [Step(lambda i=i: run(i), weight=w) for i, w in kinds.items()]
        return steps, inside(column, answers, apart=True)

    def kinds(self, trainer: Trainer) -> dict[int, float]:
        """Iterations that differ in what is due: the first of each kind, and its share."""
        loss, method, first, count = self.config.loss, trainer.method, {}, {}
        intervals = (loss.r1_interval, loss.consistency_interval, loss.alignment_interval)
        period = math.lcm(*intervals)
        for i in range(period):
            lazy = (i % loss.r1_interval == 0, method.consistency_due(SEEN, i))
            due = (*lazy, method.alignment_due(i))
            first.setdefault(due, i)
            count[due] = count.get(due, 0) + 1
        return {first[due]: n / period for due, n in count.items()}


class R1Row(NetworkRow):
    """R1 of both discriminators: double backward, gradients to their weights."""

    def missing(self, full: bool) -> dict[str, str]:
        reason = "torch.compile has no double backward"
        return {**super().missing(full), "compiled": reason}

    def truth_of(self, column: str) -> str:
        return BLENDED  # judges know no regions

    def calls(self, column: str, dtype: torch.dtype) -> tuple[list[Step], Callable[[], Answers]]:
        trainer = make_trainer(self.config, column, dtype, self.place)
        image = self.image(dtype)
        method, judges = trainer.method, trainer.judges

        def penalty() -> dict:
            for judge in judges.values():
                judge.zero_grad(set_to_none=True)
            terms = method.r1_terms(image, random_source(self.place))
            total(terms).backward()
            return terms

        @torch.no_grad()
        def forward() -> None:
            random, patches = random_source(self.place), judges["patches"]
            judges["discriminator"](image)
            pair = [patches.features(method.crops(image, random)) for _ in range(2)]
            patches(*pair)

        def answers() -> Answers:
            values = {name: term.value.detach() for name, term in penalty().items()}
            return values | gradients(judges)

        run = inside(column, forward if column == "forward" else penalty)
        return [Step(run)], inside(column, answers, apart=True)


def gradients(modules: dict) -> Answers:
    """Gradients of each network as one vector: of large parameters every n-th number."""
    every = lambda g: g.flatten()[:: 1 + g.numel() // MOST_SAMPLED].clone()
    return {
        name: torch.cat([every(_gradient(p)) for p in module.parameters()])
        for name, module in modules.items()
    }


def _gradient(parameter: Tensor) -> Tensor:
    """Zeros where none arrived: of what does not count some columns hand zeros on, some nothing."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class EditRow(NetworkRow):
    """RegionEditor.repaint: encode two pictures, paint one region in the other's style."""

    def calls(self, column: str, dtype: torch.dtype) -> tuple[list[Step], Callable[[], Answers]]:
        nets = build_networks(self.config)
        pair = [nets.encoder, nets.generator]
        last = torch.contiguous_format if column == "published" else torch.channels_last
        for network in pair:
            network.to(memory_format=last).eval().requires_grad_(False)
            network.to_compute(dtype if dtype == torch.bfloat16 else None)
            if dtype == torch.float64:
                network.double()
        if column == "compiled":
            compile_networks(pair)
        editor = RegionEditor(*pair)
        side = self.config.model.image_size
        content, style = self.image(dtype, count=2).split(1)
        mask = torch.zeros(1, 1, side, side)
        mask[..., side // 4 : side // 2, side // 3 :] = 1
        run = inside(column, lambda: editor.repaint(content, style, mask))
        return [Step(run)], lambda: {"edit": run()}


def rows() -> list[Row]:
    judges = ("published", "rewritten", "compiled", OURS, "forward")
    found: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        training = dict(dtype=dtype, title="training step")
        found += [
            TrainingRow("demo", 4, full=True, **training),
            TrainingRow("small-128", 2, full=True, least_rounds=3, **training),
            TrainingRow("paper-256", 2, full=True, least_rounds=1, common=True, **training),
            R1Row("demo", 4, dtype, True, columns=judges, title="R1 step"),
            R1Row("small-128", 2, dtype, True, 3, judges, title="R1 step"),
            EditRow("paper-256", 1, dtype, full=True, title="edit", least_rounds=3),
        ]
    return found
