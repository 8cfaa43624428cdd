"""The method: what is painted, how it is judged, and what each term is.

Pictures come in pairs of neighbours: (2i, 2i + 1) exchange their content codes. So row k of
`swapped` is painted in the style of picture k on the content of its neighbour. In the words of the
paper (You et al., ACM MM 2021, arXiv 2108.08674), for row k: A = neighbour, B = picture k,
I_g = swapped, I_h = hybrid. "base" is the Swapping Autoencoder as its code has it (Park et al.,
NeurIPS 2020). With the weights of code consistency and content alignment at 0 the terms below are
its terms. The presets base-256, base-512 and base-1024 set all else in which its code differs, and
then steps are its steps: from the same draws losses, all gradients of an update, those of R1, and
parameters after Adam agree to 2e-8 in float64 (two ε of 1e-8 stand elsewhere; with those moved, to
1e-14: tests/models/test_official_training.py).
When a term is due and what it weighs stands in `schedule.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from rwm_fast.config import LossConfig, MaskConfig, ModelConfig
from rwm_fast.data.jitter import color_jitter
from rwm_fast.data.masks import sample_masks
from rwm_fast.losses import (
    code_consistency,
    content_alignment,
    edge,
    fake_loss,
    generator_loss,
    r1_penalty,
    real_loss,
    reconstruction,
)
from rwm_fast.models import Encoder, Generator, ImageDiscriminator, PatchDiscriminator
from rwm_fast.models.network import Network
from rwm_fast.ops.crop_patches import crop_patches, sample_boxes
from rwm_fast.training.schedule import Due, Weights
from rwm_fast.training.share import WHOLE, Share

# Terms that look at swaps of the whole batch, and at hybrids.
SWAPS = {"d_swapped", "d_patch_swapped", "gan_swapped", "patch"}
SWAPS |= {"consistency_content", "consistency_style"}
HYBRIDS = {"d_hybrid", "gan_hybrid", "content_alignment"}
RECONSTRUCTIONS = {"reconstruction", "edge", "d_reconstructed", "gan_reconstructed"}


@dataclass(frozen=True)
class Networks:
    encoder: Encoder
    generator: Generator
    discriminator: ImageDiscriminator  # judges whole images
    patches: PatchDiscriminator  # judges whether patches share one texture

    @staticmethod
    def of(config: ModelConfig) -> Networks:
        """The four networks with random weights, from torch's global random numbers."""
        return Networks(
            Encoder(config),
            Generator(config),
            ImageDiscriminator(config),
            PatchDiscriminator(config),
        )

    def as_dict(self) -> dict[str, Network]:
        return dict(vars(self))


class Autoencoder(TypedDict):
    """The two networks that edits need."""

    encoder: Encoder
    generator: Generator


class Term(NamedTuple):
    """A mean over pictures and its weight in the sum that is minimised."""

    value: Tensor  # scalar; of a share: its part of that mean, and the parts add up
    weight: float


Terms = dict[str, Term]


@dataclass(frozen=True)
class Painted:
    """One share of a batch of pictures, its codes, and what the generator made of them.

    R, S and F: see `Method.paint`.
    """

    share: Share
    image: Tensor  # [N, 3, H, W]
    content: Tensor  # [N, C, h, w]
    style: Tensor  # [N, D]
    reconstructed: Tensor  # [R, 3, H, W]
    swapped: Tensor  # [S, 3, H, W]
    noise: list[Tensor]  # maps of `swapped`, [S, 1, H_l, W_l] per layer
    mask: Tensor  # [F, 1, H, W], 1 = the region painted in style B; [0, 1, H, W] without hybrid
    hybrid: Tensor  # [F, 3, H, W], or [0, 3, H, W]
    halved: bool  # R = F


def neighbours(t: Tensor) -> Tensor:
    """Exchange rows 2i and 2i + 1."""
    return t.reshape(-1, 2, *t.shape[1:]).flip(1).flatten(0, 1)


def weighed(
    values: dict[str, Tensor], weights: Weights, share: Share, own: int, halved: bool = False
) -> Terms:
    """Terms of a share of so many `own` rows from its means: each times the share's part of the
    rows that the mean of the whole batch is over."""
    values = {name: value for name, value in values.items() if name in weights}
    if share.count > 1:
        halves = HYBRIDS | (RECONSTRUCTIONS if halved else set())
        first = share.first(own) / (own * share.count / 2)
        parts = {name: first if name in halves else 1 / share.count for name in values}
        # a mean of nothing is NaN, with gradients of 0
        values = {k: v * parts[k] if parts[k] else v.nan_to_num() for k, v in values.items()}
    return {name: Term(value, weights[name]) for name, value in values.items()}


def total(terms: Terms) -> Tensor:
    return torch.stack([term.value * term.weight for term in terms.values()]).sum()


class Method:
    """Every term of the objective as a function of the networks and a batch."""

    def __init__(self, nets: Networks, loss: LossConfig, mask: MaskConfig):
        self.nets, self.loss, self.mask = nets, loss, mask

    def encode(
        self, image: Tensor, random: torch.Generator, share: Share = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """(C, S) = E(I). Content jitter (ours) mixes the colours that the content branch sees."""
        encoder, loss = self.nets.encoder, self.loss
        if not loss.content_jitter:
            content, style = encoder(image)
            return content, style
        batch = len(image) * share.count
        seen = color_jitter(
            image, loss.content_jitter, loss.content_jitter_keep, generator=random,
            among=(batch, share.rows(batch)), tone=loss.content_jitter_tone,
        )  # fmt: skip
        return encoder.content(seen), encoder.style(image)

    def paint(
        self, image: Tensor, random: torch.Generator, due: Due, share: Share = WHOLE
    ) -> Painted:
        """I_rec = G(C_A, S_A) of the first R pictures, I_g = G(C_A, S_B) of S, and I_h of F.

        As in base, R = F and S = N; F = N/2 in a whole batch, in a share as many of its rows as lie
        in the batch's first half. Where no due term looks at all swaps R = N, and S = F if content
        alignment looks at those, else 0. Without a term for the autoencoder no graph is recorded,
        nor of swaps that are a fixed target only.
        """
        names, first = due.names, share.first(len(image))
        rows = share.rows(len(image) * share.count)
        half = len(image) * share.count // 2
        graph = due.autoencoder is not None and torch.is_grad_enabled()
        with torch.set_grad_enabled(graph):
            content, style = self.encode(image, random, share)
            noise: list[Tensor] = []
            swapped = hybrid = image[:0]
            mask = image[:0, :1]
            if names & SWAPS:
                contents = torch.cat((content[:first], neighbours(content)))  # [F + N, C, h, w]
                own = (*rows[:first], *(half + row for row in rows))
                noise = self.noise(contents, random, 3 * half, own)
                both = self.generate(contents, torch.cat((style[:first], style)), noise)
                reconstructed, swapped = both[:first], both[first:]
                noise = [maps[first:] for maps in noise]
            else:
                noise = self.noise(content, random, 2 * half, rows)
                reconstructed = self.generate(content, style, noise)
            if names & HYBRIDS:
                others, own_styles = neighbours(content)[:first], neighbours(style)[:first]
                if not len(swapped):
                    noise = self.noise(others, random, half, rows[:first])
                    with torch.set_grad_enabled(graph and not self.loss.detach_swapped):
                        swapped = self.generate(others, style[:first], noise)
                mask, hybrid = self.paint_hybrid(
                    others, own_styles, style[:first], noise, random, half, rows[:first]
                )
        halved = bool(names & SWAPS)
        return Painted(
            share, image, content, style, reconstructed, swapped, noise, mask, hybrid, halved
        )

    def generate(
        self, content: Tensor, style: Tensor, noise: list[Tensor], regions: Tensor | None = None
    ) -> Tensor:
        """What the generator paints; of no code, as a share may have, no picture."""
        if len(content):
            image: Tensor = self.nets.generator(content, style, regions, noise=noise)
            return image
        stride = self.nets.encoder.config.code_stride
        return content.new_zeros(0, 3, *(side * stride for side in content.shape[2:]))

    def noise(
        self, content: Tensor, random: torch.Generator, batch: int, rows: Sequence[int]
    ) -> list[Tensor]:
        """Noise maps for content codes that are these rows of a batch of so many.

        Every row has a seed of its own, so that no more is drawn than is used. A generator of
        another device has no shares: its seeds would have to be waited for.
        """
        generator = self.nets.generator
        if random.device.type != "cpu":
            return generator.make_noise(content, generator=random)
        maps = [
            torch.empty(s, dtype=generator.parameter_dtype) for s in generator.noise_shapes(content)
        ]
        if maps:
            seeds = torch.randint(2**32, (batch,), generator=random).tolist()
            for k, row in enumerate(rows):
                source = torch.Generator().manual_seed(seeds[row])
                for noise in maps:
                    noise[k].normal_(generator=source)
        return [noise.to(content.device) for noise in maps]

    def paint_hybrid(
        self,
        content: Tensor,
        own: Tensor,
        other: Tensor,
        noise: list[Tensor],
        random: torch.Generator,
        batch: int,
        rows: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """M, and I_h = G(C_A; S_A outside M, S_B inside M), blended inside the generator.

        content [F, C, h, w], own = S_A and other = S_B [F, D], noise = the maps of I_g; they are
        these rows of a batch of so many.
        """
        (height, width), stride = content.shape[2:], self.nets.encoder.config.code_stride
        mask = sample_masks(
            batch,
            (height * stride, width * stride),
            self.mask,
            generator=random,
            device=content.device,
            rows=rows,
        )
        styles = torch.stack((own, other), dim=1)  # [F, 2, D]
        regions = torch.cat((1 - mask, mask), dim=1)  # [F, 2, H, W]
        if self.loss.share_noise:
            noise = [maps[: len(content)] for maps in noise]
        else:
            noise = self.noise(content, random, batch, rows)
        return mask, self.generate(content, styles, noise, regions)

    def crops(self, image: Tensor, random: torch.Generator, share: Share = WHOLE) -> Tensor:
        """[N, P, 3, s, s]: P random windows of every image (base)."""
        loss, size = self.loss, self.nets.patches.config.patch_size
        batch = len(image) * share.count
        boxes = sample_boxes(batch, loss.num_patches, loss.patch_scale, generator=random)
        boxes = share.take(boxes, batch).to(image.device)
        if loss.patch_grid == "edges":  # the outermost of the points reach the box's edges
            boxes[..., 2:] *= size / (size - 1)
        return crop_patches(image, boxes, size)

    def verdicts(self, images: dict[str, Tensor], weights: Weights) -> dict[str, Tensor]:
        """The image discriminator's logits [N] by term, for the terms that have a weight."""
        images = {name: image for name, image in images.items() if name in weights}
        if not images:
            return {}
        logits = self.nets.discriminator(torch.cat(list(images.values())))
        rows = [len(image) for image in images.values()]
        return dict(zip(images, logits.split(rows), strict=True))

    def discriminator_terms(self, p: Painted, random: torch.Generator, weights: Weights) -> Terms:
        """Both discriminators: non-saturating logistic loss."""
        painted = {"reconstructed": p.reconstructed, "swapped": p.swapped, "hybrid": p.hybrid}
        images = {"d_real": p.image} | {f"d_{k}": t.detach() for k, t in painted.items()}
        values = {
            name: real_loss(logits) if name == "d_real" else fake_loss(logits)
            for name, logits in self.verdicts(images, weights).items()
        }
        if "d_patch_real" in weights:
            # Row k of `swapped` wears the style of picture k: that picture is its reference.
            patches = self.nets.patches
            whole = (p.image, p.image, p.swapped.detach())
            crops = [self.crops(t, random, p.share) for t in whole]
            reference, same, fake = patches.features(torch.cat(crops)).chunk(3)
            values["d_patch_real"] = real_loss(patches(reference, same))
            values["d_patch_swapped"] = fake_loss(patches(reference, fake))
        return weighed(values, weights, p.share, len(p.image), p.halved)

    def r1_terms(
        self, image: Tensor, random: torch.Generator, weights: Weights, share: Share = WHOLE
    ) -> Terms:
        """R1 of both discriminators at real pictures."""
        patches = self.nets.patches
        values: dict[str, Tensor] = {}
        if "r1" in weights:
            image = image.detach().requires_grad_()
            values["r1"] = r1_penalty(self.nets.discriminator(image), image)
        if "r1_patch" in weights:
            draw = lambda: self.crops(image, random, share).detach().requires_grad_()
            pair = [draw(), draw()]
            values["r1_patch"] = r1_penalty(patches(*map(patches.features, pair)), *pair)
        return weighed(values, weights, share, len(image))

    def autoencoder_terms(self, p: Painted, random: torch.Generator, weights: Weights) -> Terms:
        """Everything that encoder and generator learn from.

        L_rec = mean |I_rec - I_A| (base), the same of outlines (ours); L_adv of the image
        discriminator on I_rec and I_g (base) and I_h (ours), of the patch discriminator on I_g
        (base); L_CC and L_CA (the paper's).
        """
        distances = {"reconstruction": reconstruction, "edge": edge}
        image = p.image[: len(p.reconstructed)]
        values = {k: f(p.reconstructed, image) for k, f in distances.items() if k in weights}
        painted = {"reconstructed": p.reconstructed, "swapped": p.swapped, "hybrid": p.hybrid}
        logits = self.verdicts({f"gan_{k}": t for k, t in painted.items()}, weights)
        values |= {name: generator_loss(verdict) for name, verdict in logits.items()}
        if "patch" in weights:
            patches = self.nets.patches
            with torch.no_grad():
                reference = patches.features(self.crops(p.image, random, p.share))
            target = patches.features(self.crops(p.swapped, random, p.share))
            values["patch"] = generator_loss(patches(reference, target))
        if "consistency_content" in weights:
            content, style = self.consistency(p)
            values |= {"consistency_content": content, "consistency_style": style}
        if "content_alignment" in weights:
            values["content_alignment"] = self.alignment(p)
        return weighed(values, weights, p.share, len(p.image), p.halved)

    def alignment(self, p: Painted) -> Tensor:
        """L_CA = L1(I_h M, I_g M) + L1(I_h (1 - M), I_A (1 - M)).

        As a fixed target I_g is clamped to the range of pictures: nothing else may hold it there,
        and a hybrid that follows it out drags it farther.
        """
        half, detach = len(p.hybrid), self.loss.detach_swapped
        swapped = p.swapped[:half].detach().clamp(-1, 1) if detach else p.swapped[:half]
        image = neighbours(p.image)[:half]
        return content_alignment(p.hybrid, swapped, image, p.mask, detach_swapped=detach)

    def consistency(self, p: Painted) -> tuple[Tensor, Tensor]:
        """L_CC = L1(C_g, C_A) + lambda L1(S_g, S_B) with (C_g, S_g) = E(I_g), targets fixed: its
        two terms without lambda.

        By default the encoder is a ruler: it gets no gradient, neither as the one who measures nor
        through the codes that I_g was painted from.
        """
        loss, encoder = self.loss, self.nets.encoder
        content, style = neighbours(p.content).detach(), p.style.detach()
        if loss.consistency_trains == "generator":
            swapped = self.nets.generator(content, style, noise=p.noise)
            with frozen(encoder):
                seen, worn = encoder(swapped)
        else:
            seen, worn = encoder(p.swapped)
        distance = code_consistency(seen, worn, content, style, style_lambda=loss.style_lambda)
        return distance.content, distance.style


class frozen:
    """Inside the block, graphs are recorded without gradients to these modules' weights."""

    def __init__(self, *modules: nn.Module):
        self.modules = modules

    def __enter__(self) -> None:
        for module in self.modules:
            module.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.requires_grad_(True)
