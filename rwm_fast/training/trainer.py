"""Networks, optimisers and averages of one run: who learns at a step, at which rate."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from rwm_fast.config import Config
from rwm_fast.models.network import Network, placed
from rwm_fast.ops import _torch_private
from rwm_fast.training.ema import Ema
from rwm_fast.training.fits import Stateful
from rwm_fast.training.gradients import Gradients
from rwm_fast.training.guard import Undo, step_if_finite
from rwm_fast.training.processes import ALONE, Processes
from rwm_fast.training.recomputing import recompute_blocks
from rwm_fast.training.schedule import Counts, Due, Schedule
from rwm_fast.training.share import Share
from rwm_fast.training.step import Autoencoder, Method, Networks, Painted, Terms, frozen, total


def build_networks(config: Config) -> Networks:
    """The four networks with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return Networks.of(config.model)


def biases(modules: Iterable[nn.Module]) -> set[Tensor]:
    """What R1 of discriminators with piecewise linear activations does not depend on."""
    named = (pair for module in modules for pair in module.named_parameters())
    return {p for name, p in named if name.rpartition(".")[2] == "bias"}


def absent_is_zero(module: nn.Module) -> None:
    """Give every parameter of a module that learns a gradient: Adam passes over those without one.

    R1 is an update of its own and depends on no bias. Their averages decay in it like the others'.
    """
    parameters = list(module.parameters())
    if any(p.grad is not None for p in parameters):
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad


class Slice:
    """What is worked on at once: the pictures of one share of a batch, and their random numbers."""

    def __init__(self, image: Tensor, share: Share, random: torch.Generator):
        self.image, self.share, self.random = image, share, random

    @classmethod
    def of(cls, image: Tensor, share: Share, random: torch.Generator, count: int) -> list[Slice]:
        """A share of a batch in so many slices; each draws what the whole would."""
        if count == 1:
            return [cls(image, share, random)]
        rows = [list(Share(k, count).rows(len(image))) for k in range(count)]
        return [
            cls(image[own], part, clone(random))
            for own, part in zip(rows, share.split(count), strict=True)
        ]


def clone(random: torch.Generator) -> torch.Generator:
    """Draws what `random` will draw."""
    return torch.Generator(random.device).set_state(random.get_state())


class Trainer:
    """What the loop drives: `step` learns from a batch, `state` names all that a run must keep.

    Of several processes each has such a trainer, gives it its share of the batch, and all make the
    same update, of gradients summed over the processes. `train.accumulate` slices of a share come
    one after the other.
    """

    def __init__(
        self, config: Config, device: torch.device, dtype: torch.dtype, job: Processes = ALONE
    ):
        self.config, self.device, self.job, train = config, device, job, config.train
        self.nets = build_networks(config)
        for module in self.nets.as_dict().values():
            placed(module, device).to_compute(None if dtype == torch.float32 else dtype)
        self.method = Method(self.nets, config.loss, config.mask)
        self.schedule = Schedule(config.loss, train)
        self.autoencoder: dict[str, Network] = {
            "encoder": self.nets.encoder,
            "generator": self.nets.generator,
        }
        self.discriminators: dict[str, Network] = {
            "discriminator": self.nets.discriminator,
            "patches": self.nets.patches,
        }
        self.ema = Ema(self.autoencoder, train.ema_half_life_kimg, train.ema_rampup)
        if train.checkpoint_activations:  # after the averages: those learn nothing
            recompute_blocks(self.nets.as_dict().values())
        self.generator_optimizer = adam(self.autoencoder, train.learning_rate, train.betas)
        rate, betas = train.discriminator_learning_rate, train.discriminator_betas
        if train.lazy_r1_correction:  # an R1 step is one more update every r1_interval updates
            share = config.loss.r1_interval / (config.loss.r1_interval + 1)
            rate, betas = rate * share, (betas[0] ** share, betas[1] ** share)
        self.discriminator_optimizer = adam(self.discriminators, rate, betas)
        self.gradients: dict[torch.optim.Optimizer, Gradients] = {
            self.generator_optimizer: Gradients(job, self.autoencoder.values()),
            self.discriminator_optimizer: Gradients(job, self.discriminators.values()),
        }
        self._biases = biases(self.discriminators.values())
        # before any schedule
        self.rates = {"generator": train.learning_rate, "discriminator": rate}
        self.counts = Counts()
        self.skipped = torch.zeros((), device=device)  # 1 if the last step left out an update
        self._undo = Undo(self.discriminator_optimizer)
        self._nimg: int | None = None  # images seen at the end of the last finished step
        self._changed = ""  # by a step that is not finished: "", "can be undone", "for good"

    def step(
        self, image: Tensor, nimg: int, progress: float, random: torch.Generator
    ) -> dict[str, Tensor]:
        """Learn from one batch; `nimg` = images seen before it. `image`: this process's share.
        Returns the terms, unweighted, of the whole batch."""
        due, method = self.schedule.due(nimg, progress, self.counts), self.method
        batch = len(image) * self.job.count
        terms: dict[str, Tensor] = {}
        slices = Slice.of(image, self.job.share, random, self.config.train.accumulate)
        self._set_rates(progress, 1.0 if due.first_part else self.config.train.second_part_gain)
        self.skipped = torch.zeros_like(self.skipped)
        paint = self._painter(due, slices)
        if due.discriminators is not None:
            if due.r1 or due.autoencoder is not None:  # more is to come, and may fail
                self._undo.remember()
                self._changed = "can be undone"
            judged = lambda s: method.discriminator_terms(paint(s), s.random, due.discriminators)
            terms |= self._update(self.discriminator_optimizer, slices, judged)
            penalty = lambda s: method.r1_terms(s.image, s.random, due.r1, s.share)
            terms |= self._update(self.discriminator_optimizer, slices, penalty, self._biases)
        if due.autoencoder is not None:
            learned = lambda s: method.autoencoder_terms(paint(s), s.random, due.autoencoder)
            with frozen(*self.discriminators.values()):
                terms |= self._update(self.generator_optimizer, slices, learned)
        terms = self.job.sum(terms)
        self.counts.advance(due)
        self.ema.update(batch, nimg + batch)
        self._changed, self._nimg = "", nimg + batch
        return terms

    def _painter(self, due: Due, slices: list[Slice]) -> Callable[[Slice], Painted]:
        """What the generator makes of a slice: once for both sides. Where slices come one after the
        other so that memory holds one, each side has it painted anew, from the same random numbers;
        only the autoencoder needs the graph."""
        keep = len(slices) == 1
        twice = due.discriminators is not None and due.autoencoder is not None and not keep
        known: dict[Slice, Painted] = {}
        starts: dict[Slice, torch.Generator] = {}

        def paint(part: Slice) -> Painted:
            if part in known:
                return known[part]
            again = part in starts
            random = starts[part] if again else part.random
            if twice and not again:
                starts[part] = clone(part.random)
            with torch.set_grad_enabled(again or not twice):
                painted = self.method.paint(part.image, random, due, part.share)
            if keep:
                known[part] = painted
            return painted

        return paint

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        slices: list[Slice],
        terms_of: Callable[[Slice], Terms],
        without: Container[Tensor] = (),
    ) -> dict[str, Tensor]:
        """One step of an optimizer; returns the terms' values, summed over the slices. `without`:
        parameters that the terms do not depend on."""
        gradients = self.gradients[optimizer]
        values: dict[str, Tensor] = {}
        for part in slices:
            terms = terms_of(part)
            if not terms:
                return {}
            if part is slices[0]:
                optimizer.zero_grad(set_to_none=True)
            if part is slices[-1]:
                gradients.expect(without)
            total(terms).backward()
            for name, term in terms.items():
                value = term.value.detach()
                values[name] = values[name] + value if name in values else value
        if optimizer is self.discriminator_optimizer:
            for module in self.discriminators.values():
                absent_is_zero(module)
        gradients.finish()
        if optimizer is self.generator_optimizer or not self._changed:
            self._changed = "for good"
        self.skipped = torch.maximum(self.skipped, step_if_finite(optimizer))
        return values

    def undo(self, nimg: int) -> int | None:
        """After an error: be as at the end of the last finished step, and say how many images had
        been seen then (`nimg` before the first step). None if the error came in a step's very last
        update: that cannot be brought back."""
        changed, self._changed = self._changed, ""
        if changed == "can be undone":
            self._undo.bring_back()
        return None if changed == "for good" else nimg if self._nimg is None else self._nimg

    def _set_rates(self, progress: float, gain: float) -> None:
        train = self.config.train
        left = min(1.0, (1 - progress) / train.decay_fraction) if train.decay_fraction else 1.0
        fall = train.decay_floor + (1 - train.decay_floor) * left
        for optimizer, rate in (
            (self.generator_optimizer, self.rates["generator"] * gain),
            (self.discriminator_optimizer, self.rates["discriminator"]),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * fall

    @property
    def averages(self) -> Autoencoder:
        """Encoder and generator with averaged weights."""
        return cast(Autoencoder, self.ema.modules)

    def facts(self) -> dict[str, float]:
        """What a log line says beside the losses."""
        facts = {
            "learning_rate": self.generator_optimizer.param_groups[0]["lr"],
            "generator_steps": self.counts.generator,
            "discriminator_steps": self.counts.discriminator,
        }
        if self.device.type == "cuda":
            facts["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return facts

    def state(self) -> dict[str, Stateful]:
        """Everything that training changes, by name."""
        return {
            **self.nets.as_dict(),
            "ema": self.ema,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "counts": self.counts,
        }

    def broken_parameter(self) -> str | None:
        """The name of a parameter that is not finite, or None. Waits for the device."""
        for network, module in self.nets.as_dict().items():
            names, tensors = zip(*module.named_parameters(), strict=True)
            finite = torch.stack([n.isfinite() for n in _torch_private.norms(tensors)]).tolist()
            if not all(finite):
                return f"{network}.{names[finite.index(False)]}"
        return None


def adam(
    modules: Mapping[str, nn.Module], rate: float, betas: tuple[float, float]
) -> torch.optim.Adam:
    parameters = [p for module in modules.values() for p in module.parameters()]
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True)
