"""Rows of the whole method: training step, R1 step, edit. Same networks, other operators."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import published, rewritten
from benchmarks.machine import peak_memory
from benchmarks.rows.row import DTYPES, OURS, Answers, Built, Row, Work, compiled, stopwatch
from benchmarks.timing import Step
from rwm_fast.config import Config, preset
from rwm_fast.models import RegionEditor
from rwm_fast.models.generator import Generator
from rwm_fast.training.step import total
from rwm_fast.training.trainer import Trainer, build_networks

# Where the networks and losses take the operators from.
PLACES = {
    "rwm_fast.nn.layers": ("modulated_conv2d", "bias_act", "conv2d_bias_act"),
    "rwm_fast.training.step": ("crop_patches",),
    "rwm_fast.losses.alignment": ("masked_l1",),
}
SEEN = 10**7  # images: past every start-up phase
LATE = 0.9  # of the run: past the reconstruction part


@contextlib.contextmanager
def operators_of(column: str) -> Iterator[None]:
    """Inside the block the networks run on the operators of a column, in its memory format."""
    with contextlib.ExitStack() as stack:
        patch = lambda place, value: stack.enter_context(mock.patch(place, value))
        if column in ("published", "rewritten", "compiled"):
            source = published if column == "published" else rewritten
            for place, names in PLACES.items():
                for name in names:
                    patch(f"{place}.{name}", getattr(source, name))
        if column == "published":
            patch("rwm_fast.models.network.Network.enter", _enter_contiguous)
            for module in ("encoder", "generator", "discriminators"):
                patch(f"rwm_fast.models.{module}.fold", _fold_contiguous)
        patch("rwm_fast.models.generator.Generator.make_noise", _noise)
        yield


def _enter_contiguous(network, x: Tensor) -> Tensor:
    return x.to(network.compute_dtype or network.parameter_dtype).contiguous()


def _fold_contiguous(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else torch.nn.functional.pixel_unshuffle(x, factor)


def _noise(network, content: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
    """Drawn in float32, so that float64 networks get the same maps."""
    drawn_on = content.device if generator is None else generator.device
    draw = lambda shape: torch.randn(shape, generator=generator, device=drawn_on)
    return [
        draw(s).to(content.device, network.parameter_dtype) for s in network.noise_shapes(content)
    ]


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

    def image(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return pictures(self.batch, self.config.model.image_size).to(self.place, dtype)

    def error(self, got: Tensor, exact: Tensor) -> float:
        """The length of the error relative to that of the answer."""
        length = exact.norm().clamp_min(torch.finfo(torch.float64).tiny)
        return ((got - exact).norm() / length).nan_to_num(float("inf")).item()

    def bounds(self, key: str, plain: float) -> dict[str, float]:
        """Twice the plain version's error, and a random walk over sums and over layers."""
        config = self.config.model
        widths = (*config.head_channels, *config.discriminator_channels, *config.patch_channels)
        terms, layers = 9 * max(widths), 4 * len(widths)  # a block has two, back they run again
        floor = 4 * torch.finfo(torch.float32).eps * math.sqrt(terms * layers)
        return dict.fromkeys(self.answer_names, 2 * plain + floor)

    def truth(self, key: str) -> Answers:
        calls, answers = self.calls("rewritten", torch.float64)
        found = answers()
        self.answer_names = tuple(found)
        return found

    def calls(self, column: str, dtype: torch.dtype) -> tuple[list[Step], Callable[[], Answers]]:
        """The steps of a column, and what they compute."""
        raise NotImplementedError

    def build(self, column: str) -> Built:
        facts: dict = {}
        steps, answers = self.calls(column, DTYPES[self.dtype])
        if column == "compiled":
            with stopwatch(facts):
                run_all(steps)
        elif column == "rewritten":
            self.work = {"total": Work(0, round(sum(map(operations, steps))))}
        else:
            run_all(steps)
        facts["peak_bytes"] = peak_memory(steps[0].forward)
        return Built(steps, None if column == "forward" else answers, "networks", facts)


def run_all(steps: list[Step]) -> None:
    for step in steps:
        step.forward()


def operations(step: Step) -> float:
    """Floating-point operations of convolutions and matrix products in one unit of the row."""
    with Operations() as counter:
        step.forward()
    return counter.total * step.weight


class Operations(TorchDispatchMode):
    """Adds up torch's own formulas; `FlopCounterMode` also follows modules, and breaks on R1."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def inside(column: str, function: Callable) -> Callable:
    def run(*arguments: object) -> object:
        with operators_of(column):
            return function(*arguments)

    return run


def make_trainer(
    config: Config, column: str, dtype: torch.dtype, place: torch.device | str = "cpu"
) -> Trainer:
    """Rates of 0: every call of every column meets the same weights, and Adam works as always."""
    narrow = torch.float32 if dtype == torch.float64 else dtype
    trainer = Trainer(config, torch.device(place), narrow)
    trainer.rates = dict.fromkeys(trainer.rates, 0.0)
    if dtype == torch.float64:
        for module in (*trainer.nets.as_dict().values(), *trainer.ema.modules.values()):
            module.double()
    for module in trainer.nets.as_dict().values():
        if column == "published":
            module.to(memory_format=torch.contiguous_format)
    if column == "compiled":
        compile_networks(trainer.nets.as_dict().values())
        eager = torch.compiler.set_stance("force_eager")  # torch.compile has no double backward
        penalties = trainer.method.r1_terms
        trainer.method.r1_terms = lambda *a: _within(eager, penalties, *a)
    return trainer


def _within(context, function: Callable, *arguments: object) -> object:
    with context:
        return function(*arguments)


def compile_networks(networks) -> None:
    """Every entry of every network becomes a compiled function."""
    for network in networks:
        for name in ("forward", "content", "style", "features"):
            if hasattr(network, name) and not (name == "features" and hasattr(network, "style")):
                setattr(network, name, compiled(getattr(network, name)))
        if isinstance(network, Generator):
            _draw_noise_outside(network)


def _draw_noise_outside(network: Generator) -> None:
    """Random numbers are drawn before the compiled function: a generator cannot be traced."""
    paint = network.forward

    def forward(content, style, regions=None, noise="random", generator=None):
        noise = network.make_noise(content, generator) if noise == "random" else noise
        return paint(content, style, regions, noise or "none")

    network.forward = forward


class TrainingRow(NetworkRow):
    """One iteration, all lazy terms weighted as often as they are due."""

    def calls(self, column: str, dtype: torch.dtype) -> tuple[list[Step], Callable[[], Answers]]:
        trainer = make_trainer(self.config, column, dtype, self.place)
        image = self.image(torch.float64 if dtype == torch.float64 else torch.float32)

        def iterate(index: int) -> dict[str, Tensor]:
            counts, random = trainer.counts, random_source(self.place)
            counts.judge = counts.paint = index
            terms = trainer.step(image, SEEN, LATE, random)
            if counts.paint == index:  # judges and painters take turns: the painters are left
                terms |= trainer.step(image, SEEN, LATE, random)
            return terms

        def answers() -> Answers:
            terms = iterate(0)  # everything is due
            return terms | gradients(trainer.nets.as_dict())

        kinds = self.kinds(trainer)
        run = inside(column, iterate)
        steps = [Step(lambda i=i: run(i), weight=w) for i, w in kinds.items()]
        return steps, inside(column, answers)

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

    def calls(self, column: str, dtype: torch.dtype) -> tuple[list[Step], Callable[[], Answers]]:
        trainer = make_trainer(self.config, column, dtype, self.place)
        image = self.image(torch.float64 if dtype == torch.float64 else torch.float32)
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
        return [Step(run)], inside(column, answers)


def gradients(modules: dict) -> Answers:
    """All gradients of each network as one vector."""
    return {
        name: torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        for name, module in modules.items()
    }


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
        content, style = (p[None].to(pair[0].parameter_dtype) for p in pictures(2, side))
        mask = torch.zeros(1, 1, side, side)
        mask[..., side // 4 : side // 2, side // 3 :] = 1
        run = inside(column, lambda: editor.repaint(content, style, mask))
        return [Step(run)], lambda: {"edit": run()}


def rows() -> list[Row]:
    # per-sample weights round an untrained painter three times as much as the bound allows
    eager = ("rewritten", "compiled", OURS)
    judges = ("published", "rewritten", "compiled", OURS, "forward")
    found: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        training = dict(dtype=dtype, title="training step")
        found += [
            TrainingRow("demo", 4, full=True, **training),
            TrainingRow("small-128", 2, full=True, least_rounds=3, **training),
            TrainingRow("paper-256", 2, full=True, least_rounds=1, **training),
            R1Row("demo", 4, dtype, True, columns=judges, title="R1 step"),
            R1Row("small-128", 2, dtype, True, 3, judges, title="R1 step"),
            EditRow("paper-256", 1, dtype, full=True, columns=eager, title="edit", least_rounds=3),
        ]
    return found
