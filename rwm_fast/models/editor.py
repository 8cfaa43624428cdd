"""RegionEditor: what people do with an encoder and a generator."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator
from rwm_fast.models.network import require
from rwm_fast.models.weights import load_weights, read_config
from rwm_fast.nn.layers import mirror


class RegionEditor(nn.Module):
    """Repaints pictures, whole or by region, in the style of others.

    Images are float [N, 3, H, W] in [−1, 1] of any size: they are mirrored up to the networks'
    stride and cropped back. Style images may have other sizes than the content image; a batch of
    one serves all. Results are in [−1, 1], on the content image's grid. No gradients.

    With `noise_seed` an integer, models with noise inputs get the same maps in every call; with
    None they get none.

    `keep_detail` (ours, not the paper's) returns I_A + edit − reconstruction, clamped: what the
    networks cannot paint, but leave alone, is carried over from the content image.
    """

    def __init__(
        self, encoder: Encoder, generator: Generator, *, noise_seed: int | None = 0
    ) -> None:
        super().__init__()
        self.encoder, self.generator, self.noise_seed = encoder, generator, noise_seed

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> RegionEditor:
        """An editor from a weights file or a run folder; `dtype` is what the networks compute in.

        Raises `rwm_fast.models.WeightsError` if there is none, or it does not fit.
        """
        config = read_config(path)
        encoder, generator = Encoder(config.model, dtype), Generator(config.model, dtype)
        load_weights(path, encoder, generator)
        editor = cls(encoder, generator).to(device, memory_format=torch.channels_last)
        return editor.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Content code [N, C, h, w] of the mirrored-up image, and style code [N, D]."""
        return self.encoder(self._pad(image))

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """G(C, S) with both codes from the image: what the networks can paint of it."""
        content, style = self.encode(image)
        return self._paint(image, content, style)

    def swap(
        self, content_image: Tensor, style_image: Tensor, *, keep_detail: bool = False
    ) -> Tensor:
        """G(C_A, S_B): the content image in the other's style."""
        return self.repaint(content_image, style_image, None, keep_detail=keep_detail)

    @torch.no_grad()
    def repaint(
        self,
        content_image: Tensor,
        style_images: Tensor | Sequence[Tensor],
        mask: Tensor | None,
        *,
        keep_detail: bool = False,
    ) -> Tensor:
        """The content image with regions in the style of others, the rest in its own style.

        `mask` [N, K, H, W] in [0, 1], of the content image's size, one plane per style image and
        adding up to at most 1; what they leave keeps the style of the content image. None repaints
        everything in the style of the one style image.
        """
        images = [style_images] if isinstance(style_images, Tensor) else list(style_images)
        content, own = self.encode(content_image)
        n = content_image.shape[0]
        styles = [self.encoder.style(self._pad(image)).expand(n, -1) for image in images]
        if mask is None:
            require(len(styles) == 1, "repaint", "without a mask, give 1 style image", len(styles))
            edit = self._paint(content_image, content, styles[0])
        else:
            regions = self._regions(content_image, mask, len(styles))
            edit = self._paint(content_image, content, torch.stack([own, *styles], 1), regions)
        if not keep_detail:
            return edit
        detail = content_image - self._paint(content_image, content, own)
        return (edit + detail).clamp(-1, 1)

    @torch.no_grad()
    def interpolate(
        self,
        content_image: Tensor,
        style_a: Tensor,
        style_b: Tensor,
        weights: Sequence[float] | Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Images [T, N, 3, H, W], the t-th in the style (1 − w_t)·S_a + w_t·S_b.

        The mix is scaled to unit length by the generator. With `mask` [N, 1, H, W] only the region
        changes, and the rest keeps the style of the content image.
        """
        content, own = self.encode(content_image)
        n = content_image.shape[0]
        a, b = (self.encoder.style(self._pad(s)).expand(n, -1) for s in (style_a, style_b))
        regions = None if mask is None else self._regions(content_image, mask, 1)
        frames = []
        for weight in torch.as_tensor(weights).tolist():
            style = torch.lerp(a, b, weight)
            style = style if regions is None else torch.stack([own, style], 1)
            frames.append(self._paint(content_image, content, style, regions))
        return torch.stack(frames)

    def _paint(
        self, image: Tensor, content: Tensor, style: Tensor, regions: Tensor | None = None
    ) -> Tensor:
        """The generator's picture, cropped to the image's size and clamped."""
        noise = "none"
        if self.noise_seed is not None:
            source = torch.Generator().manual_seed(self.noise_seed)
            noise = self.generator.make_noise(content, source)
        painted = self.generator(content, style, regions, noise)
        return painted[:, :, : image.shape[2], : image.shape[3]].clamp(-1, 1)

    def _pad(self, image: Tensor) -> Tensor:
        """[N, C, H, W] continued right and below to a multiple of the stride."""
        stride = self.encoder.config.stride
        below, right = -image.shape[2] % stride, -image.shape[3] % stride
        return mirror(image, [0, right, 0, below]) if below or right else image

    def _regions(self, image: Tensor, mask: Tensor, styles: int) -> Tensor:
        """[N, 1 + K, H', W'] from a mask [N, K, H, W]: what it leaves over, then its planes."""
        n, _, h, w = image.shape
        planes = [(1, styles, h, w), (n, styles, h, w)]
        require(
            tuple(mask.shape) in planes, "repaint", f"mask must be [{n}, {styles}, {h}, {w}]", mask
        )
        mask = mask.to(image.device, self.generator.parameter_dtype).expand(n, -1, -1, -1)
        rest = 1 - mask.sum(1, keepdim=True)  # [N, 1, H, W]
        least = min(mask.min().item(), rest.min().item()) if mask.numel() else 0.0
        # one 8-bit step a plane: planes that were stored as pictures may overlap by rounding
        rule = "mask must be in [0, 1] and its planes must add up to at most 1"
        require(least >= -styles / 255, "repaint", rule, f"{mask.min()} to {mask.sum(1).max()}")
        regions = torch.cat([rest, mask], 1).clamp_min(0)
        return self._pad(regions / regions.sum(1, keepdim=True))
