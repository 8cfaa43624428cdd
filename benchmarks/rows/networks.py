"""Rows of the whole method: training step, R1 step, edit. Same networks, other operators."""

from __future__ import annotations

import functools
import gc
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.rows import columns
from benchmarks.rows.columns import inside, make_trainer
from benchmarks.rows.row import (
    CPU,
    DTYPES,
    OURS,
    Answers,
    Built,
    Row,
    Step,
    Work,
    Wrong,
    errors,
    stopwatch,
)
from rwm_fast.config import Config, preset
from rwm_fast.models import RegionEditor
from rwm_fast.training.step import total
from rwm_fast.training.trainer import build_networks

PER_STYLE, BLENDED = "a style at a time", "blended styles"  # the two truths: see truth_of
EXACT = 1e-9  # relative error of a right formula in float64: 1e-15 measured, times conditioning
SHAKES = 3  # times that the truth is asked what rounding may turn
MOST_SAMPLED = 1 << 16  # numbers of one parameter's gradient that are compared
SEEN = 10**7  # images: past every start-up phase
LATE = 0.9  # of the run: past the reconstruction part
# Of a brief check: times the rewritten column's error, and where that is small by luck.
FAR, FLOORS = 5, {"float32": 0.02, "bfloat16": 0.1}
Calls = tuple[list[Step], Callable[[], Answers]]


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
    """`batch` pictures through the networks of a preset.

    `checked` pictures instead are a brief check, for networks whose float64 truths take minutes:
    one truth in float32, and no column further from it than a few times the rewritten one. Whole
    steps are not a test of kernels, those have their own; losses of absolute values turn roundings
    into jumps of gradients, so no bound follows from the dtype.
    """

    preset: str
    batch: int
    dtype: str = "float32"
    full: bool = False
    least_rounds: int = 5
    columns: tuple[str, ...] = ("published", "rewritten", "compiled", OURS)
    title: str = ""
    checked: int = 0
    group: str = "networks"
    shake: torch.Generator | None = None  # moves the pictures: see jumps
    place: torch.device = CPU
    truths: dict[str, Answers] = field(default_factory=dict)
    slow_in_half = True
    captured = False  # in a CUDA graph: nothing in it is drawn on the CPU

    def __post_init__(self):
        self.name = f"{self.title} {self.preset}, batch {self.batch} {self.dtype}"
        self.config: Config = preset(self.preset)
        self.flops = 0  # operations are counted while the rewritten column is built
        self.ceiling = "GFLOP/s of a matrix product"

    def work(self) -> dict[str, Work]:
        return {"total": Work(0, self.flops)}

    def missing(self, full: bool) -> dict[str, str]:
        reasons = {"ceiling": "no single call does this; the share is of the matrix product rate"}
        if "compiled" in self.columns and not full:
            reasons["compiled"] = "compiling whole networks takes minutes: with --full alone"
        return reasons

    def image(self, dtype: torch.dtype = torch.float32, count: int | None = None) -> Tensor:
        """The pictures of every column; the truth of the shaken row sees them moved."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        image = pictures(count or self.batch, self.config.model.image_size).to(wide)
        if self.shake is not None:
            image = image * (1 + self.walk() * torch.randn(image.shape, generator=self.shake))
        return image.to(self.place)

    def walk(self) -> float:
        """Relative rounding error of an activation: a random walk over sums and over layers."""
        config = self.config.model
        widths = (*config.head_channels, *config.discriminator_channels, *config.patch_channels)
        terms, layers = 9 * max(widths), 4 * len(widths)  # a block has two, back they run again
        return torch.finfo(torch.float32).eps * math.sqrt(terms * layers)

    def bounds(self, column: str, plain: Mapping[str, float]) -> dict[str, float]:
        """Twice the plain version's error, the random walk, and the jumps of the truth itself."""
        if self.checked:  # the rewritten column itself only has to be finite
            least = lambda name: max(FAR * plain[name], FLOORS[self.dtype]) if plain else FINITE
            return {name: least(name) for name in self.truth(BLENDED)}
        worst = max(plain.values(), default=0.0)
        return {name: 2 * worst + 4 * self.walk() + jump for name, jump in self.jumps.items()}

    def truth(self, key: str) -> Answers:
        if key not in self.truths:
            column = PER_STYLE if key == PER_STYLE else "rewritten"
            wide = torch.float32 if self.checked else torch.float64
            answers = self.calls(column, wide, self.checked or self.batch)[1]()
            self.truths[key] = {name: value.detach() for name, value in answers.items()}
        return self.truths[key]

    def truth_of(self, column: str) -> str:
        """Where a kernel's window reaches over a border of regions, a convolution a style and then
        selecting is another function than ours: 7.5e-4 of the length of an edit. Such a column is
        held to that function, computed from the rewritten operators."""
        return PER_STYLE if column == "published" and not self.checked else BLENDED

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
                answers = self.calls("rewritten", torch.float64, self.batch)[1]()
            finally:
                self.shake = None
            moved.append(errors(self, answers, exact))
        return {name: max(found[name] for found in moved) for name in exact}

    def check_formula(self, column: str) -> None:
        """Raise `Wrong` unless the column in float64 is its truth, up to float64's rounding."""
        answers = self.calls(column, torch.float64, self.batch)[1]()
        for name, error in errors(self, answers, self.truth(self.truth_of(column))).items():
            if not error <= EXACT:
                raise Wrong(f"{self.name}: {column} in float64: {name} is off by {error:.2g}")

    def calls(self, column: str, dtype: torch.dtype, batch: int) -> Calls:
        """The steps of a column, and what they compute."""
        raise NotImplementedError

    def build(self, column: str, cache: int = 0) -> Built:
        gc.collect()  # networks of the column before, in cycles with their optimisers
        facts: dict = {}
        dtype = DTYPES[self.dtype]
        steps, answers = self.calls(column, dtype, self.batch)
        if column == "compiled":
            with stopwatch(facts):
                for step in steps:
                    _once(step)
        if column == "rewritten":
            count = lambda step: step.weight * columns.operations(lambda: _once(step))
            self.flops = round(sum(map(count, steps)))

        def checked() -> Answers:
            if self.checked:
                return self.calls(column, dtype, self.checked)[1]()
            if column in ("published", OURS):
                self.check_formula(column)
            return answers()

        named = (lambda painted: {}) if self.captured else None
        once = lambda: _once(steps[0])
        known = None if column == "forward" else checked
        return Built(steps, known, self.truth_of(column), once, named, facts)

    def release(self) -> None:
        self.truths.clear()
        vars(self).pop("jumps", None)


FINITE = sys.float_info.max


def _once(step: Step) -> None:
    for call in step.calls.values():
        call()


@dataclass
class TrainingRow(NetworkRow):
    """One iteration, all lazy terms weighted as often as they are due.

    `common`: the commonest kind of iteration instead, on which R1 is not due. `halves`: the halves
    of an iteration are timed each alone, where discriminators and autoencoder take turns.
    """

    common: bool = False
    halves: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.common:
            self.note = "an iteration on which R1 is not due"

    def calls(self, column: str, dtype: torch.dtype, batch: int) -> Calls:
        trainer = make_trainer(self.config, column, dtype, self.place)
        image, turns = self.image(dtype, batch), columns.takes_turns(self.config)

        def half(index: int, second: bool, random: torch.Generator) -> dict[str, Tensor]:
            columns.set_counts(trainer, index + second, index)
            return trainer.step(image, SEEN, LATE, random)

        def iterate(index: int) -> dict[str, Tensor]:
            random = random_source(self.place)
            terms = half(index, False, random)
            return terms | half(index, True, random) if turns else terms

        def step(index: int) -> dict[str, Callable]:
            if not (self.halves and turns):
                return {"total": lambda: run(iterate, index)}
            one = lambda second: lambda: run(half, index, second, random_source(self.place))
            return {"discriminators": one(False), "autoencoder": one(True)}

        run = inside(column, lambda function, *arguments: function(*arguments))
        kinds = self.kinds()
        if self.common:
            kinds = {max(kinds, key=kinds.get): 1.0}

        def answers() -> Answers:
            terms = iterate(min(kinds))  # at 0 everything is due
            return terms | gradients(trainer.nets.as_dict())

        steps = [Step(step(i), weight=w) for i, w in kinds.items()]
        return steps, inside(column, answers, apart=True)

    def kinds(self) -> dict[int, float]:
        """Iterations that differ in what is due: the first of each kind, and its share."""
        loss, first = self.config.loss, {}
        every = (loss.r1_interval, loss.consistency_interval, loss.alignment_interval)
        due = [tuple(i % k == 0 for k in every) for i in range(math.lcm(*every))]
        for i, kind in enumerate(due):
            first.setdefault(kind, i)
        return {i: due.count(kind) / len(due) for kind, i in first.items()}


class R1Row(NetworkRow):
    """R1 of both discriminators: double backward, gradients to their weights."""

    def missing(self, full: bool) -> dict[str, str]:
        reason = "torch.compile has no double backward"
        return {**super().missing(full), "compiled": reason}

    def truth_of(self, column: str) -> str:
        return BLENDED  # discriminators know no regions

    def calls(self, column: str, dtype: torch.dtype, batch: int) -> Calls:
        trainer = make_trainer(self.config, column, dtype, self.place)
        image, method = self.image(dtype, batch), trainer.method
        both = columns.discriminators(trainer)

        def penalty() -> dict:
            for network in both.values():
                network.zero_grad(set_to_none=True)
            terms = method.r1_terms(image, random_source(self.place), *columns.r1_weights(trainer))
            total(terms).backward()
            return terms

        @torch.no_grad()
        def forward() -> None:
            random, patches = random_source(self.place), both["patches"]
            both["discriminator"](image)
            pair = [patches.features(method.crops(image, random)) for _ in range(2)]
            patches(*pair)

        def answers() -> Answers:
            values = {name: term.value.detach() for name, term in penalty().items()}
            return values | gradients(both)

        run = inside(column, forward if column == "forward" else penalty)
        return [Step({"total": run})], inside(column, answers, apart=True)


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


class InferenceRow(NetworkRow):
    """Two codes of every picture, and the picture painted from them; no noise, no gradients."""

    captured = True

    def networks(self, column: str, dtype: torch.dtype):
        nets = build_networks(self.config)
        order = torch.contiguous_format if column == "published" else torch.channels_last
        pair = (nets.encoder, nets.generator)
        for network in pair:
            network.to(self.place, memory_format=order).eval().requires_grad_(False)
            network.to_compute(dtype if dtype in (torch.bfloat16, torch.float16) else None)
            if dtype == torch.float64:
                network.double()
        if column == "compiled":
            columns.compile_networks(pair)
        return pair

    def calls(self, column: str, dtype: torch.dtype, batch: int) -> Calls:
        encoder, generator = self.networks(column, dtype)
        image = self.image(encoder.parameter_dtype, batch)

        @torch.no_grad()
        def paint() -> Tensor:
            return generator(*encoder(image), noise="none")

        run = inside(column, paint)
        return [Step({"total": run})], lambda: {"painted": run()}


class EditRow(InferenceRow):
    """RegionEditor.edit: encode two pictures, paint one region in the other's style."""

    captured = False

    def truth_of(self, column: str) -> str:
        return PER_STYLE if column == "published" else BLENDED

    def calls(self, column: str, dtype: torch.dtype, batch: int) -> Calls:
        editor = RegionEditor(*self.networks(column, dtype))
        side = self.config.model.image_size
        content, style = self.image(dtype, count=2).split(1)
        mask = torch.zeros(1, 1, side, side)
        mask[..., side // 4 : side // 2, side // 3 :] = 1
        run = inside(column, lambda: editor.edit(content, style, mask))
        return [Step({"total": run})], lambda: {"edit": run()}


def rows(tiny: bool = False) -> Iterator[Row]:
    """For a CPU; tiny: the demo's networks in the place of large ones."""
    both = ("published", "rewritten", "compiled", OURS, "forward")
    for dtype in ("float32", "bfloat16"):
        more = dict(dtype=dtype, full=True, **({"checked": 2, "least_rounds": 1} if tiny else {}))
        train, r1 = dict(title="training step", **more), dict(title="R1 step", columns=both, **more)
        yield TrainingRow("demo", 2 if tiny else 4, common=tiny, **train)
        yield R1Row("demo", 2 if tiny else 4, **r1)
        if not tiny:
            yield TrainingRow("small-128", 2, **{**train, "least_rounds": 3})
            paper = {**train, "least_rounds": 1}
            yield TrainingRow("paper-256", 2, common=True, **paper)
            yield R1Row("small-128", 2, **{**r1, "least_rounds": 3})
        name = "demo" if tiny else "paper-256"
        yield EditRow(name, 1, title="edit", **{"least_rounds": 3, **more})


def gpu_rows(tiny: bool = False) -> Iterator[Row]:
    """For a GPU: checked on two pictures, timed on a full batch; training first."""
    three = ("rewritten", "published", OURS)
    kind = dict(dtype="float32" if tiny else "bfloat16", checked=2, least_rounds=3)
    name, batch = ("demo", 2) if tiny else ("paper-256", 16)
    halves = dict(common=True, halves=True, columns=three, title="training step")
    yield TrainingRow(name, batch, **halves, **kind)
    five = dict(columns=(*three, "ours-native", "ours-triton"), **kind)
    if not tiny:
        yield R1Row(name, batch, title="R1 step", **five)
    for count in (1,) if tiny else (1, 16):
        yield InferenceRow(name, count, title="encode, paint", **five)
