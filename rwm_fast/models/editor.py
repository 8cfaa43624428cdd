"""RegionEditor: what people do with an encoder and a generator."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwm_fast.models import official
from rwm_fast.models.compositing import composite, exclusive, resized
from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator, Noise
from rwm_fast.models.network import placed, require
from rwm_fast.models.pretrained import resolve
from rwm_fast.models.weights import load_weights, read_config
from rwm_fast.nn.layers import mirror


class RegionEditor(nn.Module):
    """Repaints pictures, whole or by region, in the style of others: `edit` does all of it, `swap`,
    `repaint` and `interpolate` are its common forms.

    Images are [N, 3, H, W] in [−1, 1], of any float dtype and size: they are mirrored up to the
    networks' stride and cropped back. Style images may have other sizes than the content image; a
    batch of one serves all. Results are in [−1, 1], on the content image's grid, in the dtype of
    the parameters (float32), whatever the networks compute in. No gradients.

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
        path: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> RegionEditor:
        """An editor from the name of weights that come with the package ("photos"), a weights file,
        a run folder, or what the official Swapping Autoencoder saves; `dtype` is what the networks
        compute in: None (float32), bfloat16 or float16.

        Raises `rwm_fast.models.WeightsError` if there is none, or it does not fit.
        """
        path = resolve(path)
        if official.is_checkpoint(path):
            networks = official.load(path, dtype)[1]
            encoder, generator = networks["encoder"], networks["generator"]
        else:
            config = read_config(path)
            encoder, generator = Encoder(config.model, dtype), Generator(config.model, dtype)
            load_weights(path, encoder, generator)
        editor = placed(cls(encoder, generator), device)
        return editor.eval().requires_grad_(False)

    load = from_checkpoint

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Content code [N, C, h, w] of the mirrored-up image, and style code [N, D]."""
        content, style = self.encoder(self._pad(image))
        return content, style

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """G(C, S) with both codes from the image: what the networks can paint of it."""
        content, style = self.encode(image)
        return self._paint(image, content, style, [style])

    @torch.no_grad()
    def edit(
        self,
        content: Tensor,
        styles: Tensor | Sequence[Tensor],
        masks: Tensor | Sequence[Tensor] = (),
        *,
        keep_detail: bool = False,
        feather: float | None = None,
        work_size: int = 0,
    ) -> Tensor:
        """The content image in the style of others: everywhere, or style k inside mask k.

        styles: one image without masks, else K. masks: K masks [N, 1, H, W] in [0, 1] of the
        content image's size, where they overlap the later one wins; or one tensor [N, K, H, W] of
        planes that add up to at most 1. What they leave keeps the style of the content image. In
        place of N, 1 serves all.

        feather: pixels of a soft border with which the edit is pasted over the untouched image;
        None shows the whole painting. work_size: short side in pixels at which the networks work,
        0 = that of each image; with `keep_detail` only the change is enlarged again.

        ValueError when styles, masks and the other arguments do not fit each other.
        """
        images = [styles] if isinstance(styles, Tensor) else list(styles)
        count = len(masks)
        if isinstance(masks, Tensor):
            count = masks.shape[1] if masks.ndim == 4 else 1
        rule = "give one style without a mask, or as many masks as styles"
        got = f"{len(images)} styles and {count} masks"
        require(len(images) == (count or 1), "edit", rule, got)
        require(work_size >= 0, "edit", "work_size must be at least 0 pixels", work_size)
        if feather is not None:
            require(feather >= 0, "edit", "feather must be at least 0 pixels", feather)
            require(count > 0, "edit", "feather needs a mask", None)
        # around the networks everything is in the dtype of the parameters
        content, *images = (x.to(self.generator.parameter_dtype) for x in (content, *images))
        planes = self._planes(content, masks, count) if count else None  # [N, K, H, W]
        small = resized(content, work_size)
        images = [resized(image, work_size) for image in images]
        small_planes = None if planes is None else resized(planes, work_size).clamp(0, 1)
        edited = self._repaint(small, images, small_planes, keep_detail)
        if small.shape != content.shape:
            size = (content.shape[2], content.shape[3])
            enlarge = lambda x: F.interpolate(x, size, mode="bicubic", align_corners=False)
            edited = content + enlarge(edited - small) if keep_detail else enlarge(edited)
            edited = edited.clamp(-1, 1)
        if planes is None or feather is None:
            return edited
        return composite(content, edited, planes.sum(1, keepdim=True).clamp(0, 1), feather)

    def swap(
        self, content_image: Tensor, style_image: Tensor, *, keep_detail: bool = False
    ) -> Tensor:
        """G(C_A, S_B): the content image in the other's style; `edit` without a mask."""
        return self.edit(content_image, style_image, keep_detail=keep_detail)

    def repaint(
        self,
        content_image: Tensor,
        style_images: Tensor | Sequence[Tensor],
        mask: Tensor,
        *,
        keep_detail: bool = False,
    ) -> Tensor:
        """The content image with the regions of `mask` [N, K, H, W] in the K styles; `edit` with
        planes, which must add up to at most 1."""
        return self.edit(content_image, style_images, mask, keep_detail=keep_detail)

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
        a, b = self._styles(content_image, [style_a, style_b])
        planes = None if mask is None else self._planes(content_image, mask, 1)
        frames = []
        for weight in torch.as_tensor(weights).tolist():
            style = torch.lerp(a, b, weight)
            frames.append(self._paint(content_image, content, own, [style], planes))
        return torch.stack(frames)

    def _repaint(
        self, image: Tensor, styles: Sequence[Tensor], planes: Tensor | None, keep_detail: bool
    ) -> Tensor:
        """The image painted in the styles [N, 3, H_k, W_k] of the planes [N, K, H, W]."""
        content, own = self.encode(image)
        edit = self._paint(image, content, own, self._styles(image, styles), planes)
        if not keep_detail:
            return edit
        detail = image - self._paint(image, content, own, [own])
        return (edit + detail).clamp(-1, 1)

    def _styles(self, image: Tensor, styles: Sequence[Tensor]) -> list[Tensor]:
        """Style codes [N, D] for an image [N, 3, H, W]."""
        return [self.encoder.style(self._pad(s)).expand(image.shape[0], -1) for s in styles]

    def _paint(
        self,
        image: Tensor,
        content: Tensor,
        own: Tensor,
        styles: Sequence[Tensor],
        planes: Tensor | None = None,
    ) -> Tensor:
        """The generator's picture of codes, cropped to the image's size and clamped.

        Without planes in the one style; else in `styles` inside them and in `own` outside.
        """
        style, regions = styles[0], None
        if planes is not None:
            style = torch.stack([own, *styles], 1)  # [N, 1 + K, D]
            regions = torch.cat([1 - planes.sum(1, keepdim=True), planes], 1).clamp_min(0)
            regions = self._pad(regions / regions.sum(1, keepdim=True))
        noise: Noise = "none"
        if self.noise_seed is not None:
            source = torch.Generator().manual_seed(self.noise_seed)
            noise = self.generator.make_noise(content, source)
        painted: Tensor = self.generator(content, style, regions, noise)
        return painted[:, :, : image.shape[2], : image.shape[3]].clamp(-1, 1)

    def _pad(self, image: Tensor) -> Tensor:
        """[N, C, H, W] continued right and below to a multiple of the stride."""
        stride = self.encoder.config.stride
        below, right = -image.shape[2] % stride, -image.shape[3] % stride
        return mirror(image, [0, right, 0, below]) if below or right else image

    def _planes(self, image: Tensor, masks: Tensor | Sequence[Tensor], count: int) -> Tensor:
        """The K planes [N, K, H, W] of masks, checked."""
        n, _, h, w = image.shape
        whole = isinstance(masks, Tensor)
        k, planes = count if whole else 1, []
        for mask in [masks] if isinstance(masks, Tensor) else masks:
            fits = tuple(mask.shape) in ((1, k, h, w), (n, k, h, w))
            require(fits, "edit", f"mask must be [{n}, {k}, {h}, {w}]", mask)
            mask = mask.to(image.device, self.generator.parameter_dtype).expand(n, -1, -1, -1)
            # one 8-bit step a plane: planes that were stored as pictures may overlap by rounding
            low, high = (mask.min().item(), mask.sum(1).max().item()) if mask.numel() else (0, 1)
            rule = "mask must be in [0, 1] and its planes must add up to at most 1"
            require(low >= -k / 255 and high <= 1 + k / 255, "edit", rule, f"{low} to {high}")
            planes.append(mask)
        return planes[0] if whole else exclusive(planes)
