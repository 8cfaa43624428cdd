"""The method: what is painted, how it is judged, and who learns from which term.

Pictures come in pairs of neighbours: (2i, 2i + 1) exchange their content codes. So row k of
`swapped` is painted in the style of picture k on the content of its neighbour. In the words of the
paper (You et al., ACM MM 2021, arXiv 2108.08674), for row k: A = neighbour, B = picture k,
I_g = swapped, I_h = hybrid. "base" is the Swapping Autoencoder (Park et al., NeurIPS 2020): with
the weights of code consistency and content alignment at 0 the terms below are exactly its terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rwm_fast.config import LossConfig, MaskConfig
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
from rwm_fast.ops.crop_patches import crop_patches, sample_boxes


@dataclass(frozen=True)
class Networks:
    encoder: nn.Module
    generator: nn.Module
    discriminator: nn.Module  # judges whole images
    patches: nn.Module  # judges whether patches share one texture

    def as_dict(self) -> dict[str, nn.Module]:
        return dict(vars(self))


@dataclass(frozen=True)
class Term:
    """A mean over pictures and its weight in the sum that is minimised."""

    value: Tensor  # scalar
    weight: float


@dataclass(frozen=True)
class Painted:
    """One batch of pictures, its codes, and what the generator made of them."""

    image: Tensor  # [N, 3, H, W]
    content: Tensor  # [N, C, h, w]
    style: Tensor  # [N, D]
    reconstructed: Tensor  # [N/2, 3, H, W]
    swapped: Tensor  # [N, 3, H, W]
    noise: list[Tensor]  # maps of `swapped`, [N, 1, H_l, W_l] per layer
    mask: Tensor | None  # [N/2, 1, H, W], 1 = the region painted in style B
    hybrid: Tensor | None  # [N/2, 3, H, W], None on steps without it


def neighbours(t: Tensor) -> Tensor:
    """Exchange rows 2i and 2i + 1."""
    return t.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def total(terms: dict[str, Term]) -> Tensor:
    return torch.stack([term.value * term.weight for term in terms.values()]).sum()


class Method:
    """Every term of the objective as a function of the networks and a batch."""

    def __init__(self, nets: Networks, loss: LossConfig, mask: MaskConfig):
        self.nets, self.loss, self.mask = nets, loss, mask

    @property
    def judges_images(self) -> bool:
        loss = self.loss
        return loss.gan_reconstructed > 0 or loss.gan_swapped > 0 or loss.gan_hybrid > 0

    def encode(self, image: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """(C, S) = E(I). Content jitter (ours) mixes the colours that the content branch sees."""
        encoder, loss = self.nets.encoder, self.loss
        if not loss.content_jitter:
            return encoder(image)
        seen = color_jitter(image, loss.content_jitter, loss.content_jitter_keep, generator=random)
        return encoder.content(seen), encoder.style(image)

    def paint(self, image: Tensor, random: torch.Generator, hybrid: bool) -> Painted:
        """I_rec = G(C_A, S_A) on half of the batch (as in base), I_g = G(C_A, S_B), I_h."""
        generator, half = self.nets.generator, len(image) // 2
        content, style = self.encode(image, random)
        contents = torch.cat((content[:half], neighbours(content)))  # [3N/2, C, h, w]
        noise = generator.make_noise(contents, generator=random)
        both = generator(contents, torch.cat((style[:half], style)), noise=noise)
        reconstructed, swapped = both[:half], both[half:]
        noise = [maps[half:] for maps in noise]
        mask = painted = None
        if hybrid:
            mask, painted = self.paint_hybrid(
                neighbours(content)[:half], neighbours(style)[:half], style[:half], noise, random
            )
        return Painted(image, content, style, reconstructed, swapped, noise, mask, painted)

    def paint_hybrid(
        self,
        content: Tensor,
        own: Tensor,
        other: Tensor,
        noise: list[Tensor],
        random: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """M, and I_h = G(C_A; S_A outside M, S_B inside M), blended inside the generator.

        content [N, C, h, w], own = S_A and other = S_B [N, D], noise = the maps of I_g.
        """
        size, stride = content.shape[2:], self.nets.encoder.config.code_stride
        mask = sample_masks(
            len(content),
            tuple(side * stride for side in size),
            self.mask,
            generator=random,
            device=content.device,
        )
        styles = torch.stack((own, other), dim=1)  # [N, 2, D]
        regions = torch.cat((1 - mask, mask), dim=1)  # [N, 2, H, W]
        shared = [maps[: len(content)] for maps in noise] if self.loss.share_noise else "random"
        return mask, self.nets.generator(content, styles, regions, noise=shared, generator=random)

    def reconstruction_terms(self, reconstructed: Tensor, image: Tensor) -> dict[str, Term]:
        """L_rec = mean |I_rec - I_A| (base), and the same of outlines (ours)."""
        weight = self.loss.reconstruction
        terms = {"reconstruction": Term(reconstruction(reconstructed, image), weight)}
        if self.loss.edge:
            terms["edge"] = Term(edge(reconstructed, image), weight * self.loss.edge)
        return terms

    def autoencoder_terms(
        self, image: Tensor, random: torch.Generator, step: int
    ) -> dict[str, Term]:
        """The first part of a run (ours): reconstruction of the whole batch, nobody judges it.

        With `alignment_from_start` content alignment is already due, on half of the batch.
        """
        loss, generator, half = self.loss, self.nets.generator, len(image) // 2
        content, style = self.encode(image, random)
        terms = self.reconstruction_terms(generator(content, style, generator=random), image)
        if loss.alignment_from_start and self.alignment_due(step):
            content, own = neighbours(content)[:half], neighbours(style)[:half]
            noise = generator.make_noise(content, generator=random)
            with torch.set_grad_enabled(not loss.detach_swapped):
                swapped = generator(content, style[:half], noise=noise)
            mask, hybrid = self.paint_hybrid(content, own, style[:half], noise, random)
            terms |= self.alignment_terms(hybrid, swapped, neighbours(image)[:half], mask)
        return terms

    def alignment_terms(
        self, hybrid: Tensor, swapped: Tensor, image: Tensor, mask: Tensor
    ) -> dict[str, Term]:
        """L_CA = L1(I_h M, I_g M) + L1(I_h (1 - M), I_A (1 - M)).

        As a fixed target I_g is clamped to the range of pictures: nothing else may hold it there,
        and a hybrid that follows it out drags it farther.
        """
        if self.loss.detach_swapped:
            swapped = swapped.detach().clamp(-1, 1)
        distance = content_alignment(
            hybrid, swapped, image, mask, detach_swapped=self.loss.detach_swapped
        )
        return {"content_alignment": Term(distance, self.loss.content_alignment)}

    def crops(self, image: Tensor, random: torch.Generator) -> Tensor:
        """[N, P, 3, s, s]: P random windows of every image (base)."""
        loss, size = self.loss, self.nets.patches.config.patch_size
        boxes = sample_boxes(
            len(image), loss.num_patches, loss.patch_scale, generator=random, device=image.device
        )
        return crop_patches(image, boxes, size)

    def discriminator_terms(self, p: Painted, random: torch.Generator) -> dict[str, Term]:
        """Both discriminators: non-saturating logistic loss, each kind of painting weighs 1/2. A
        discriminator whose verdict nobody weighs does not learn."""
        judge, patches, terms = self.nets.discriminator, self.nets.patches, {}
        if self.judges_images:
            painted = [p.reconstructed, p.swapped]
            if self.loss.gan_hybrid and p.hybrid is not None:
                painted.append(p.hybrid)
            images = torch.cat([p.image, *(t.detach() for t in painted)])
            real, *fakes = judge(images).split([len(p.image), *map(len, painted)])
            terms["d_real"] = Term(real_loss(real), len(fakes) / 2)
            for name, logits in zip(("reconstructed", "swapped", "hybrid"), fakes, strict=False):
                terms["d_" + name] = Term(fake_loss(logits), 0.5)
        if not self.loss.patch:
            return terms
        # Row k of `swapped` wears the style of picture k: that picture is its reference.
        crops = [self.crops(t, random) for t in (p.image, p.image, p.swapped.detach())]
        reference, same, fake = patches.features(torch.cat(crops)).chunk(3)
        terms["d_patch_real"] = Term(real_loss(patches(reference, same)), 1.0)
        terms["d_patch_swapped"] = Term(fake_loss(patches(reference, fake)), 1.0)
        return terms

    def r1_terms(self, image: Tensor, random: torch.Generator) -> dict[str, Term]:
        """R1 of both discriminators, times the interval at which it is applied (lazy; base)."""
        loss, patches, terms = self.loss, self.nets.patches, {}
        if loss.r1_gamma and self.judges_images:
            image = image.detach().requires_grad_()
            penalty = r1_penalty(self.nets.discriminator(image), image)
            terms["r1"] = Term(penalty, loss.r1_interval * loss.r1_gamma / 2)
        if loss.r1_patch_gamma and loss.patch:
            pair = [self.crops(image, random).detach().requires_grad_() for _ in range(2)]
            penalty = r1_penalty(patches(*map(patches.features, pair)), *pair)
            terms["r1_patch"] = Term(penalty, loss.r1_interval * loss.r1_patch_gamma / 4)
        return terms

    def generator_terms(
        self, p: Painted, random: torch.Generator, nimg: int, step: int
    ) -> dict[str, Term]:
        """Everything encoder and generator learn from; `step` = generator steps so far."""
        loss, half = self.loss, len(p.image) // 2
        judge, patches = self.nets.discriminator, self.nets.patches
        terms = self.reconstruction_terms(p.reconstructed, p.image[:half])
        # L_adv: of the image discriminator on I_rec and I_g, of the patch discriminator on I_g.
        if loss.gan_reconstructed or loss.gan_swapped:
            logits = judge(torch.cat((p.reconstructed, p.swapped)))
            terms["gan_reconstructed"] = Term(generator_loss(logits[:half]), loss.gan_reconstructed)
            terms["gan_swapped"] = Term(generator_loss(logits[half:]), loss.gan_swapped)
        if loss.patch:
            with torch.no_grad():
                reference = patches.features(self.crops(p.image, random))
            target = patches.features(self.crops(p.swapped, random))
            terms["patch"] = Term(generator_loss(patches(reference, target)), loss.patch)
        if self.consistency_due(nimg, step):
            terms |= self.consistency_terms(p)
        if p.hybrid is not None and self.alignment_due(step):
            terms |= self.alignment_terms(
                p.hybrid, p.swapped[:half], neighbours(p.image)[:half], p.mask
            )
        if p.hybrid is not None and loss.gan_hybrid:
            terms["gan_hybrid"] = Term(generator_loss(judge(p.hybrid)), loss.gan_hybrid)
        return terms

    def consistency_due(self, nimg: int, step: int) -> bool:
        loss = self.loss
        return (
            loss.code_consistency > 0
            and step % loss.consistency_interval == 0
            and nimg >= loss.consistency_start_kimg * 1000
        )

    def hybrid_due(self, step: int) -> bool:
        return self.loss.gan_hybrid > 0 or self.alignment_due(step)

    def alignment_due(self, step: int) -> bool:
        return self.loss.content_alignment > 0 and step % self.loss.alignment_interval == 0

    def consistency_terms(self, p: Painted) -> dict[str, Term]:
        """L_CC = L1(C_g, C_A) + lambda L1(S_g, S_B) with (C_g, S_g) = E(I_g), targets fixed.

        By default the encoder is a ruler: it gets no gradient, neither as the one who measures nor
        through the codes that I_g was painted from.
        """
        loss, encoder = self.loss, self.nets.encoder
        content, style = neighbours(p.content).detach(), p.style.detach()
        if loss.consistency_trains == "generator":
            swapped = self.nets.generator(content, style, noise=p.noise)
            with frozen(encoder):
                codes = encoder(swapped)
        else:
            codes = encoder(p.swapped)
        distance = code_consistency(*codes, content, style, style_lambda=loss.style_lambda)
        weight = loss.code_consistency * loss.consistency_gain
        return {
            "consistency_content": Term(distance.content, weight),
            "consistency_style": Term(distance.style, weight * loss.style_lambda),
        }


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
