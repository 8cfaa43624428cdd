"""How whole networks run in a column: the operators they take, their layout, compiled or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import published, rewritten
from benchmarks.rows.row import BACKENDS, compiled, on_backend
from rwm_fast.config import Config
from rwm_fast.losses import alignment
from rwm_fast.models.generator import Generator
from rwm_fast.training.ema import Ema
from rwm_fast.training.trainer import Trainer

# Where the networks and losses take the operators from.
PLACES = {
    "rwm_fast.nn.layers": ("modulated_conv2d", "bias_act", "conv2d_bias_act"),
    "rwm_fast.training.step": ("crop_patches",),
    "rwm_fast.losses.alignment": ("masked_l1",),
}


APART = 2**-6  # far above rounding, far below the range of pictures
OWN = (*BACKENDS, "forward")  # columns on our operators


@contextlib.contextmanager
def operators_of(column: str, apart: bool = False) -> Iterator[None]:
    """Inside the block the networks run on the operators of a column, in its memory format.

    `apart` moves the target of content alignment: deep inside a mask it is the hybrid itself, up to
    rounding, and the derivative of |rounding| is a coin toss in every column, the truth included.
    """
    with contextlib.ExitStack() as stack:
        patch = lambda place, value: stack.enter_context(mock.patch(place, value))
        if column not in OWN:
            source = published if column == "published" else rewritten
            for place, names in PLACES.items():
                for name in names:
                    patch(f"{place}.{name}", getattr(source, name))
        if column == "a style at a time":
            by_style = rewritten.a_style_at_a_time(rewritten.modulated_conv2d)
            patch("rwm_fast.nn.layers.modulated_conv2d", by_style)
        if apart:
            patch("rwm_fast.losses.alignment.masked_l1", _apart(alignment.masked_l1))
        if column == "published":
            patch("rwm_fast.models.network.Network.enter", _enter_contiguous)
            for module in ("encoder", "generator", "discriminators"):
                patch(f"rwm_fast.models.{module}.fold", _fold_contiguous)
        patch("rwm_fast.models.generator.Generator.make_noise", _noise)
        stack.enter_context(on_backend(column))
        yield


def _apart(loss: Callable) -> Callable:
    # masks are drawn in float32, whatever the networks compute in
    return lambda h, inside, outside, mask: loss(h, inside + APART, outside, mask.to(h.dtype))


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


def inside(column: str, function: Callable, apart: bool = False) -> Callable:
    def run(*arguments: object) -> object:
        with operators_of(column, apart):
            return function(*arguments)

    return run


def make_trainer(
    config: Config, column: str, dtype: torch.dtype, place: torch.device | str = "cpu"
) -> Trainer:
    """Rates of 0: every call of every column meets the same weights, and Adam works as always."""
    narrow = torch.float32 if dtype == torch.float64 else dtype
    trainer = Trainer(config, torch.device(place), narrow)
    trainer.rates = dict.fromkeys(trainer.rates, 0.0)
    for module in trainer.nets.as_dict().values():
        if dtype == torch.float64:
            module.double()
        if column == "published":
            module.to(memory_format=torch.contiguous_format)
    train = config.train  # the averages of the networks as they are now
    trainer.ema = Ema(autoencoder(trainer), train.ema_half_life_kimg, train.ema_rampup)
    if column == "compiled":
        compile_networks(trainer.nets.as_dict().values())
        trainer.method.r1_terms = _eager(trainer.method.r1_terms)
    return trainer


# What the rows know of a trainer beside its `step`, `nets` and `method`: its sides and its counts.
# Both are also found under the names that they had in 0.1, for --compare.


def autoencoder(trainer: Trainer) -> dict[str, torch.nn.Module]:
    return getattr(trainer, "autoencoder", None) or trainer.painters


def discriminators(trainer: Trainer) -> dict[str, torch.nn.Module]:
    return getattr(trainer, "discriminators", None) or trainer.judges


def r1_weights(trainer: Trainer) -> list[dict[str, float]]:
    """What `r1_terms` is told of them."""
    return [trainer.schedule.all().r1] if hasattr(trainer, "schedule") else []


def set_counts(trainer: Trainer, discriminator: int, generator: int) -> None:
    """How often each side has learned; where both take turns, the side that is behind is next."""
    sides = ("discriminator", "generator")
    sides = sides if hasattr(trainer.counts, sides[0]) else ("judge", "paint")
    for side, count in zip(sides, (discriminator, generator), strict=True):
        setattr(trainer.counts, side, count)


def takes_turns(config: Config) -> bool:
    """Whether a step teaches one side, discriminators first, or both."""
    return config.train.step_order == "alternate"


def _eager(function: Callable) -> Callable:
    """What torch.compile cannot do: it has no double backward."""

    def run(*arguments: object) -> object:
        # made here: `set_stance` holds from the moment it is made
        with torch.compiler.set_stance("force_eager"):
            return function(*arguments)

    return run


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


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of convolutions and matrix products in a call."""
    with Operations() as counter:
        call()
    return counter.total


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
