"""The two networks as an editor uses them: any size, whole or in tiles, several styles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rwm_fast.models.codes import Codes
from rwm_fast.models.compositing import working_size
from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator, Noise
from rwm_fast.models.network import require
from rwm_fast.models.pictures import AnyPicture, Picture, planes_of
from rwm_fast.models.tiling import tiled_features, tiled_painting
from rwm_fast.nn.layers import mirror


class Painter(nn.Module):
    """From pictures to codes and from codes to paintings. `short` is the short side at which the
    networks work (0 = the picture's), `tile` the side of tiles (0 = whole pictures)."""

    def __init__(self, encoder: Encoder, generator: Generator, noise_seed: int | None) -> None:
        super().__init__()
        self.encoder, self.generator, self.noise_seed = encoder, generator, noise_seed

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generator.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What pictures are computed in around the networks: at least float32."""
        return torch.promote_types(self.generator.parameter_dtype, torch.float32)

    def codes_of(self, picture: Picture, short: int, tile: int, detail: bool) -> Codes:
        """Codes that hold their picture, with what the networks cannot paint if asked for."""
        work = working_size(picture.size, short)
        seen = picture.reduced(work, self.dtype, self.device)
        content, style = self.encoder.heads(self._features(seen, tile))
        codes = Codes(content, style, picture.size, work)
        lost = seen - self.paint(codes, [style], None, tile) if detail else None
        smaller = seen if work != picture.size else None
        return Codes(content, style, picture.size, work, picture, smaller, lost)

    def style_of(self, picture: Picture, mask: AnyPicture | None, short: int, tile: int) -> Tensor:
        """Style codes [N, D] of pictures, or of the part of them that a mask selects."""
        work = working_size(picture.size, short)
        part = None
        if mask is not None:
            name, n = "edit: style mask", len(picture.values)
            planes = planes_of(mask, n, picture.size, name, self.device, self.dtype)
            part = self._pad(planes.reduced(work))
        features = self._features(picture.reduced(work, self.dtype, self.device), tile)
        return self.encoder.style_of(features, part)

    def paint(
        self, codes: Codes, styles: Sequence[Tensor], planes: Tensor | None, tile: int
    ) -> Tensor:
        """The generator's picture [N, 3, *work] of codes, clamped.

        Without planes [N or 1, K, *work] in the one style; else in `styles` inside them and in the
        codes' own outside.
        """
        style, regions = styles[0], None
        if planes is not None:
            style = torch.stack([codes.style, *styles], 1)  # [N, 1 + K, D]
            regions = torch.cat([1 - planes.sum(1, keepdim=True), planes], 1).clamp_min(0)
            regions = self._pad(regions / regions.sum(1, keepdim=True))
            regions = regions.expand(len(style), -1, -1, -1)
        noise: Noise = "none"
        if self.noise_seed is not None:
            source = torch.Generator().manual_seed(self.noise_seed)
            noise = self.generator.make_noise(codes.content, source)
        if tile:
            painted = tiled_painting(self.generator, codes.content, style, regions, noise, tile)
        else:
            painted = self.generator(codes.content, style, regions, noise)
        return painted[:, :, : codes.work[0], : codes.work[1]].to(self.dtype).clamp(-1, 1)

    def _features(self, seen: Tensor, tile: int) -> Tensor:
        image = self._pad(seen)
        return tiled_features(self.encoder, image, tile) if tile else self.encoder.features(image)

    def _pad(self, image: Tensor) -> Tensor:
        """[N, C, H, W] continued right and below to a multiple of the stride."""
        stride = self.encoder.config.stride
        below, right = -image.shape[2] % stride, -image.shape[3] % stride
        return mirror(image, [0, right, 0, below]) if below or right else image


def short_side(painter: Painter, work_size: int | None, tile: int) -> int:
    """`work_size` as `short`: None is the size of training, with tiles that of the picture."""
    require(tile >= 0, "edit", "tile must be at least 0 pixels", tile)
    if work_size is None:
        return 0 if tile else painter.encoder.config.image_size
    require(work_size >= 0, "edit", "work_size must be at least 0 pixels", work_size)
    return work_size
