"""Which term is due when, and what it weighs: one table that every preset goes through.

A step makes up to three updates, in this order: the discriminators learn from `discriminators`,
then from `r1`; encoder and generator learn from `autoencoder`. Presets differ in the numbers of the
table and in two settings of the run. In its first part (ours), `train.reconstruction_fraction` of
it, the autoencoder learns alone, from the terms marked `first_part`, and nobody judges it. After
that, `train.step_order` "alternate" gives the batches to the two sides by turns, discriminators
first (base); "shared" gives every batch to both (ours): painted once, judged twice, the second time
by the discriminators that have just learned from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rwm_fast.config import LossConfig, TrainConfig

Weights = dict[str, float]  # of the terms that are due, by name


class Rule(NamedTuple):
    """When a term is due."""

    weight: float  # in the sum that its update minimises; 0 = never due
    every: int = 1  # on every k-th step of its side
    last: bool = False  # on the last step of k, not on the first
    first_part: bool = False  # in the first part of a run too
    start_kimg: float = 0.0  # not before so many images were seen


def table(loss: LossConfig) -> dict[str, dict[str, Rule]]:
    """The rules of every term, by update. A discriminator whose verdict nobody weighs does not
    learn; for the image discriminator each kind of painting weighs 1/2."""
    hybrids, patches = loss.gan_hybrid > 0, loss.patch > 0
    images = hybrids or loss.gan_reconstructed > 0 or loss.gan_swapped > 0
    r1_image, r1_patch = images * loss.r1_gamma / 2, patches * loss.r1_patch_gamma / 4
    r1_steps = loss.r1_interval, loss.r1_phase == "last"
    consistency = loss.code_consistency * loss.consistency_gain
    lazy, start = loss.consistency_interval, loss.consistency_start_kimg
    return {
        "discriminators": {
            "d_real": Rule(images * (2 + hybrids) / 2),
            "d_reconstructed": Rule(images / 2),
            "d_swapped": Rule(images / 2),
            "d_hybrid": Rule(hybrids / 2),
            "d_patch_real": Rule(float(patches)),
            "d_patch_swapped": Rule(float(patches)),
        },
        "r1": {  # lazy (base): rarely due, and weighted by the interval
            "r1": Rule(r1_image * loss.r1_interval, *r1_steps),
            "r1_patch": Rule(r1_patch * loss.r1_interval, *r1_steps),
        },
        "autoencoder": {
            "reconstruction": Rule(loss.reconstruction, first_part=True),
            "edge": Rule(loss.reconstruction * loss.edge, first_part=True),
            "gan_reconstructed": Rule(loss.gan_reconstructed),
            "gan_swapped": Rule(loss.gan_swapped),
            "gan_hybrid": Rule(loss.gan_hybrid),
            "patch": Rule(loss.patch),
            "consistency_content": Rule(consistency, lazy, start_kimg=start),
            "consistency_style": Rule(consistency * loss.style_lambda, lazy, start_kimg=start),
            "content_alignment": Rule(
                loss.content_alignment,
                loss.alignment_interval,
                first_part=loss.alignment_from_start,
            ),
        },
    }


@dataclass
class Counts:
    """Steps of each side since the first part of the run: they time the lazy terms."""

    discriminator: int = 0
    generator: int = 0

    def advance(self, due: Due) -> None:
        self.discriminator += due.discriminators is not None
        self.generator += due.autoencoder is not None and not due.first_part

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.discriminator, self.generator = state["discriminator"], state["generator"]


class Due(NamedTuple):
    """What one step does: the weights of each update, None where it is not that side's turn."""

    first_part: bool
    discriminators: Weights | None
    r1: Weights
    autoencoder: Weights | None

    @property
    def names(self) -> set[str]:
        """The terms that look at what is painted."""
        return {*(self.discriminators or ()), *(self.autoencoder or ())}


class Schedule:
    """What is due at a step: a function of settings, images seen and steps taken."""

    def __init__(self, loss: LossConfig, train: TrainConfig):
        self.train, self.table = train, table(loss)

    def due(self, nimg: int, progress: float, counts: Counts) -> Due:
        """`nimg` = images seen before the step, `progress` = share of the run before it."""
        if progress < self.train.reconstruction_fraction:
            step = nimg // self.train.batch
            return Due(True, None, {}, self.select("autoencoder", step, nimg, first_part=True))
        d, g = counts.discriminator, counts.generator
        shared = self.train.step_order == "shared"
        judged = shared or d == g
        return Due(
            False,
            self.select("discriminators", d, nimg) if judged else None,
            self.select("r1", d, nimg) if judged else {},
            self.select("autoencoder", g, nimg) if shared or not judged else None,
        )

    def all(self) -> Due:
        """Every term that has a weight, for both sides."""
        weigh = lambda rules: {k: rule.weight for k, rule in rules.items() if rule.weight > 0}
        return Due(False, *map(weigh, self.table.values()))

    def select(self, update: str, step: int, nimg: float, *, first_part: bool = False) -> Weights:
        """Weights of an update's terms that are due at a step of its side."""
        return {
            name: rule.weight
            for name, rule in self.table[update].items()
            if rule.weight > 0
            and step % rule.every == (rule.every - 1 if rule.last else 0)
            and nimg >= rule.start_kimg * 1000
            and (rule.first_part or not first_part)
        }
