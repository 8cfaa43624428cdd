"""Networks, optimisers and averages of one run: when each learns, at which rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rwm_fast.config import Config
from rwm_fast.models import Encoder, Generator, ImageDiscriminator, PatchDiscriminator
from rwm_fast.training.ema import Ema
from rwm_fast.training.step import Method, Networks, Term, frozen, total


def build_networks(config: Config) -> Networks:
    """The four networks with random weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        kinds = (Encoder, Generator, ImageDiscriminator, PatchDiscriminator)
        return Networks(*(kind(config.model) for kind in kinds))


def absent_is_zero(module: nn.Module) -> None:
    """Give every parameter of a module that learns a gradient: Adam passes over those without one.

    R1 is an update of its own and depends on no bias. Their averages decay in it like the others'.
    """
    parameters = list(module.parameters())
    if any(p.grad is not None for p in parameters):
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad


class Trainer:
    """What the loop drives: `step` learns from a batch, `state` names all that a run must keep."""

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype):
        self.config, self.device, train = config, device, config.train
        self.nets = build_networks(config)
        for module in self.nets.as_dict().values():
            module.to(device, memory_format=torch.channels_last)
            module.to_compute(None if dtype == torch.float32 else dtype)
        self.method = Method(self.nets, config.loss, config.mask)
        self.painters = {"encoder": self.nets.encoder, "generator": self.nets.generator}
        self.judges = {"discriminator": self.nets.discriminator, "patches": self.nets.patches}
        self.ema = Ema(self.painters, train.ema_half_life_kimg, train.ema_rampup)
        self.paint_optimizer = adam(self.painters, train.learning_rate, train.betas)
        rate, betas = train.discriminator_learning_rate, train.discriminator_betas
        if train.lazy_r1_correction:  # an R1 step is one more update every r1_interval updates
            share = config.loss.r1_interval / (config.loss.r1_interval + 1)
            rate, betas = rate * share, tuple(beta**share for beta in betas)
        self.judge_optimizer = adam(self.judges, rate, betas)
        self.rates = {"paint": train.learning_rate, "judge": rate}  # before any schedule
        self.counts = Counts()

    def step(
        self, image: Tensor, nimg: int, progress: float, random: torch.Generator
    ) -> dict[str, Tensor]:
        """Learn from one batch; `nimg` = images seen before it. Returns the terms, unweighted."""
        train = self.config.train
        alone = progress < train.reconstruction_fraction
        self._set_rates(progress, 1.0 if alone else train.second_part_gain)
        if alone:
            terms = self.method.autoencoder_terms(image, random, nimg // train.batch)
            self._update(self.paint_optimizer, terms, nimg + len(image), len(image))
        elif train.step_order == "shared":
            terms = self._shared(image, nimg, random)
        else:
            terms = self._alternate(image, nimg, random)
        return {name: term.value.detach() for name, term in terms.items()}

    def _shared(self, image: Tensor, nimg: int, random: torch.Generator) -> dict[str, Term]:
        """Both sides on one batch: painted once, judged twice, the second time by the judges that
        have just learned from it (ours)."""
        painted = self.method.paint(image, random, self.method.hybrid_due(self.counts.paint))
        terms = self._judges_learn(painted, random)
        return terms | self._painters_learn(painted, nimg, random)

    def _alternate(self, image: Tensor, nimg: int, random: torch.Generator) -> dict[str, Term]:
        """Batches go to the judges and to the painters by turns, judges first (base)."""
        if self.counts.judge == self.counts.paint:
            with torch.no_grad():
                painted = self.method.paint(image, random, self.config.loss.gan_hybrid > 0)
            terms = self._judges_learn(painted, random)
            self._average(nimg + len(image), len(image))
            return terms
        painted = self.method.paint(image, random, self.method.hybrid_due(self.counts.paint))
        return self._painters_learn(painted, nimg, random)

    def _judges_learn(self, painted, random: torch.Generator) -> dict[str, Term]:
        terms = self.method.discriminator_terms(painted, random)
        self._update(self.judge_optimizer, terms)
        if self.counts.judge % self.config.loss.r1_interval == 0:
            penalty = self.method.r1_terms(painted.image, random)
            self._update(self.judge_optimizer, penalty)
            terms |= penalty
        self.counts.judge += 1
        return terms

    def _painters_learn(self, painted, nimg: int, random: torch.Generator) -> dict[str, Term]:
        with frozen(*self.judges.values()):
            terms = self.method.generator_terms(painted, random, nimg, self.counts.paint)
            self._update(self.paint_optimizer, terms, nimg + len(painted.image), len(painted.image))
        self.counts.paint += 1
        return terms

    def _update(
        self,
        optimizer: torch.optim.Optimizer,
        terms: dict[str, Term],
        nimg: int = 0,
        batch: int = 0,
    ) -> None:
        if terms:
            optimizer.zero_grad(set_to_none=True)
            total(terms).backward()
            if optimizer is self.judge_optimizer:
                for module in self.judges.values():
                    absent_is_zero(module)
            optimizer.step()
        if batch:
            self._average(nimg, batch)

    def _average(self, nimg: int, batch: int) -> None:
        self.ema.update(batch, nimg)

    def _set_rates(self, progress: float, gain: float) -> None:
        train = self.config.train
        left = min(1.0, (1 - progress) / train.decay_fraction) if train.decay_fraction else 1.0
        fall = train.decay_floor + (1 - train.decay_floor) * left
        for optimizer, rate in (
            (self.paint_optimizer, self.rates["paint"] * gain),
            (self.judge_optimizer, self.rates["judge"]),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * fall

    def facts(self) -> dict[str, float]:
        """What a log line says beside the losses."""
        facts = {
            "learning_rate": self.paint_optimizer.param_groups[0]["lr"],
            "generator_steps": self.counts.paint,
            "discriminator_steps": self.counts.judge,
        }
        if self.device.type == "cuda":
            facts["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return facts

    def state(self) -> dict:
        """Everything that training changes, by name."""
        return {
            **self.nets.as_dict(),
            "ema": self.ema,
            "paint_optimizer": self.paint_optimizer,
            "judge_optimizer": self.judge_optimizer,
            "counts": self.counts,
        }

    def broken_parameter(self) -> str | None:
        """The name of a parameter that is not finite, or None. Waits for the device."""
        for network, module in self.nets.as_dict().items():
            names, tensors = zip(*module.named_parameters(), strict=True)
            finite = torch.stack([n.isfinite() for n in torch._foreach_norm(tensors)]).tolist()
            if not all(finite):
                return f"{network}.{names[finite.index(False)]}"
        return None


class Counts:
    """Steps taken by each side; they time the lazy terms."""

    def __init__(self):
        self.paint = self.judge = 0

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        self.paint, self.judge = state["paint"], state["judge"]


def adam(modules: dict[str, nn.Module], rate: float, betas: tuple[float, float]):
    parameters = [p for module in modules.values() for p in module.parameters()]
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True)
