"""RegionEditor: what people do with an encoder and a generator."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rwm_fast.models import official
from rwm_fast.models.codes import Codes, Directions, Moments
from rwm_fast.models.compositing import feathered, radius_of, working_size
from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator
from rwm_fast.models.network import placed, require
from rwm_fast.models.painter import Painter, short_side
from rwm_fast.models.pictures import AnyPicture, Picture, Planes, bands, picture_of, planes_of
from rwm_fast.models.pretrained import resolve
from rwm_fast.models.upsampling import enlarged
from rwm_fast.models.weights import load_weights, read_config

Content: TypeAlias = AnyPicture | Codes
Style: TypeAlias = AnyPicture | Codes | Tensor


class RegionEditor(Painter):
    """Repaints pictures, whole or by region, in the style of others.

    Pictures are PIL images (RGB or L), numpy arrays (uint8, or floats in [0, 1]; [H, W, 3] or
    [N, H, W, 3]) or tensors (floats in [−1, 1], or uint8; [3, H, W] or [N, 3, H, W]), of any size.
    Results are of the content picture's kind, dtype, device and size. Style pictures may be of
    other kinds and sizes; a batch of one serves all. The place of every picture can be taken by
    the `Codes` that `encode` made of it, which leaves the generator alone to run; that of a style
    by style codes [N, D] too. No gradients; an editor changes nothing in itself, so threads may
    share it.

    Networks see pictures mirrored up to their stride, and, of a picture whose short side is larger
    than the crops they were trained on, one reduced to that (`work_size`). The change is then
    brought to full size along the picture's own edges (`rwm_fast.models.upsampling`), in bands:
    beside picture and result no memory grows with their size.

    With `noise_seed` an integer, models with noise inputs get the same maps in every call; with
    None they get none.
    """

    def __init__(
        self, encoder: Encoder, generator: Generator, *, noise_seed: int | None = 0
    ) -> None:
        super().__init__(encoder, generator, noise_seed)

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
    def encode(
        self,
        image: AnyPicture,
        *,
        work_size: int | None = None,
        picture: bool = True,
        tile: int = 0,
    ) -> Codes:
        """Codes of pictures, to be edited or to give their style; `work_size` and `tile` as in
        `edit`, which then needs neither.

        `picture=False` leaves out the picture and its reconstruction (a generator's run): enough
        for a style, and for painting at the size at which the networks saw it, as a tensor.
        """
        given, short = picture_of(image, "encode: image"), short_side(self, work_size, tile)
        codes = self.codes_of(given, short, tile, detail=picture)
        return codes if picture else replace(codes, picture=None, seen=None)

    @torch.no_grad()
    def edit(
        self,
        content: Content,
        styles: Style | Sequence[Style],
        masks: AnyPicture | Sequence[AnyPicture] = (),
        *,
        style_masks: AnyPicture | Sequence[AnyPicture | None] = (),
        strength: float | Sequence[float] = 1.0,
        keep_detail: bool | None = None,
        feather: float | None = None,
        work_size: int | None = None,
        tile: int = 0,
    ) -> Any:
        """The content picture in the style of others: everywhere, or style k inside mask k.

        masks: K masks of the content picture's size, bool, uint8 (0 to 255, or 0 and 1), floats in
        [0, 1] or PIL images of mode L or 1, each [H, W], [1, H, W] or [N, 1, H, W]; where they
        overlap the later one wins. Or one array or tensor [N, K, H, W] of planes that add up to
        at most 1. What they leave keeps the style of the content picture. styles: one without
        masks, else K.

        style_masks: one for each style, None or a mask of that style picture's size: the style is
        taken from the part that it selects (`Encoder.style`).

        strength: how far the style goes from that of the content picture, 0, to its own, 1; one
        number, or one for each style. Below 0 and above 1 it goes further.

        keep_detail (ours, not the paper's): picture + edit − reconstruction, so that what the
        networks cannot paint is carried over; None = where they work on a reduced picture.

        feather: pixels of a soft border with which the edit is pasted over the untouched picture,
        outside of which every number stays what it was; None shows the whole painting.

        work_size: short side in pixels at which the networks work, never enlarging; 0 = that of
        each picture; None = `config.image_size` of the model. tile: side in pixels of the tiles in
        which the networks work, 0 = whole pictures; they overlap, so that the result is that of
        whole pictures but for rounding. With a tile None stands for 0 as work_size.

        ValueError when the arguments do not fit each other.
        """
        given: list[Any] = list(styles) if isinstance(styles, (list, tuple)) else [styles]
        count = _count(masks)
        rule = "give one style without a mask, or as many masks as styles"
        got = f"{len(given)} styles and {count} masks"
        require(len(given) == (count or 1), "edit", rule, got)
        if feather is not None:
            require(feather >= 0, "edit", "feather must be at least 0 pixels", feather)
            require(count > 0, "edit", "feather needs a mask", None)
        short = short_side(self, work_size, tile)
        codes = self._content(content, short, tile, keep_detail)
        keep = codes.work != codes.size if keep_detail is None else keep_detail
        if codes.picture is None:
            plain = codes.work == codes.size and not keep and feather is None
            rule = "keep_detail, feather and a size that is not the networks' need the picture"
            require(plain, "edit", rule, "codes made with picture=False")
        planes = None
        if count:
            n = len(codes.style)
            planes = planes_of(masks, n, codes.size, "edit: mask", self.device, self.dtype)
        mixed = self._styles(codes, given, style_masks, strength, short, tile)
        small = None if planes is None else planes.reduced(codes.work)
        painted = self.paint(codes, mixed, small, tile)
        if keep:
            assert codes.detail is not None  # codes with a picture have it, `_content` saw to it
            painted = painted.add_(codes.detail).clamp_(-1, 1)
        if codes.picture is None:
            return painted
        if codes.seen is None:
            rows_of = lambda own, _, top: painted[:, :, top : top + own.shape[2]]
        else:
            rows_of = enlarged(codes.seen, small, painted, codes.size, keep).rows
        return _finished(self, codes.picture, rows_of, planes, feather)

    def swap(self, content: Content, style: Style, **options: Any) -> Any:
        """G(C_A, S_B): the content picture in the other's style; `edit` without masks."""
        return self.edit(content, style, **options)

    @torch.no_grad()
    def reconstruct(self, image: Content, *, work_size: int | None = None, tile: int = 0) -> Any:
        """G(C, S) with both codes from the picture: what the networks can paint of it."""
        codes = self._content(image, short_side(self, work_size, tile), tile, False)
        return self.edit(codes, codes.style, keep_detail=False, tile=tile)

    @torch.no_grad()
    def interpolate(
        self,
        content: Content,
        styles: Sequence[Style],
        weights: Sequence[float] | Sequence[Sequence[float]] | Tensor,
        mask: AnyPicture | None = None,
        *,
        style_masks: Sequence[AnyPicture | None] = (),
        keep_detail: bool | None = None,
        feather: float | None = None,
        work_size: int | None = None,
        tile: int = 0,
    ) -> list[Any]:
        """T pictures, the t-th in the style Σ_k w[t, k]·S_k, as `edit` makes them.

        weights: [T, K], a row a picture; or [T] for two styles, w standing for (1 − w, w). The mix
        is scaled to unit length by the generator. With a mask only the region changes. Pictures
        are encoded once.
        """
        rule = f"weights must be [T, {len(styles)}], or [T] for two styles"
        mix = torch.as_tensor(weights, dtype=torch.float64)
        if mix.ndim == 1 and len(styles) == 2:
            mix = torch.stack([1 - mix, mix], 1)
        fits = mix.ndim == 2 and mix.shape[1] == len(styles)
        require(fits, "interpolate", rule, torch.as_tensor(weights))
        short = short_side(self, work_size, tile)
        codes = self._content(content, short, tile, keep_detail)
        ends = self._styles(codes, list(styles), style_masks, 1.0, short, tile)
        frames = torch.einsum("tk,knd->tnd", mix.to(ends[0]), torch.stack(ends))
        options: dict[str, Any] = dict(keep_detail=keep_detail, feather=feather, tile=tile)
        masks = () if mask is None else (mask,)
        return [self.edit(codes, style, masks, **options) for style in frames]

    @torch.no_grad()
    def pca(
        self,
        pictures: Iterable[Content],
        count: int = 8,
        *,
        work_size: int | None = None,
    ) -> Directions:
        """The `count` widest directions of the content codes (of every pixel) and of the style
        codes of a set of pictures, at most one fewer than there are of them.

        `Codes.moved` goes along them. ValueError for fewer than two pictures.
        """
        require(count >= 1, "pca", "count must be at least 1", count)
        content, style = Moments(), Moments()
        for each in pictures:
            if isinstance(each, Codes):
                codes = each
            else:
                codes = self.encode(each, work_size=work_size, picture=False)
            content.add(codes.content.movedim(1, -1).flatten(0, -2))
            style.add(codes.style)
        require(style.count >= 2, "pca", "expected two pictures or more", style.count)
        return Directions(content.axes("content", count), style.axes("style", count))

    def _content(self, content: Content, short: int, tile: int, keep_detail: bool | None) -> Codes:
        if isinstance(content, Codes):
            return content.to(self.device)
        picture = picture_of(content, "edit: content")
        reduced = working_size(picture.size, short) != picture.size
        return self.codes_of(picture, short, tile, reduced if keep_detail is None else keep_detail)

    def _styles(
        self,
        codes: Codes,
        styles: list[Style],
        masks: Any,
        strength: float | Sequence[float],
        short: int,
        tile: int,
    ) -> list[Tensor]:
        """Style codes [N, D], each as far from the content's own as its strength says."""
        parts = list(masks) if isinstance(masks, (list, tuple)) else [masks]
        parts = parts or [None] * len(styles)
        amounts = [strength] * len(styles) if isinstance(strength, (int, float)) else list(strength)
        for name, values in (("style_masks", parts), ("strength", amounts)):
            rule = f"{name} must be as many as styles, {len(styles)}"
            require(len(values) == len(styles), "edit", rule, len(values))
        mixed = []
        for style, part, amount in zip(styles, parts, amounts, strict=True):
            require(math.isfinite(amount), "edit", "strength must be finite", amount)
            code = self._style(style, part, short, tile).to(codes.style)
            fits = code.shape[0] in (1, len(codes.style)) and code.shape[1] == codes.style.shape[1]
            n, size = codes.style.shape
            rule = f"a style must be of one picture or of {n}, its code [{n}, {size}]"
            require(fits, "edit", rule, code)
            mixed.append(torch.lerp(codes.style, code.expand_as(codes.style), amount))
        return mixed

    def _style(self, given: Style, mask: AnyPicture | None, short: int, tile: int) -> Tensor:
        code = given.style if isinstance(given, Codes) else given
        if isinstance(code, Tensor) and code.ndim == 2:
            rule = "a style mask needs the style picture, not its code"
            require(mask is None, "edit", rule, "codes")
            return code
        return self.style_of(picture_of(code, "edit: style"), mask, short, tile)


def _count(masks: Any) -> int:
    """How many regions masks are: of one array or tensor with four axes as many as planes."""
    if isinstance(masks, (list, tuple)):
        return len(masks)
    shape = list(getattr(masks, "shape", ()))
    return int(shape[1]) if len(shape) == 4 else 1


def _finished(
    painter: Painter,
    picture: Picture,
    rows_of: Callable[[Tensor, Tensor | None, int], Tensor],
    planes: Planes | None,
    feather: float | None,
) -> AnyPicture:
    """An edit as a picture of the content's kind, made in bands: `rows_of` gives the edited rows
    for those of picture and planes, and the first row's number."""
    result, height = picture.empty(), picture.size[0]
    beyond = 2 * radius_of(feather or 0)
    for top, bottom in bands(picture.size, least=1 + beyond):
        own = picture.rows(top, bottom, painter.dtype, painter.device)
        rows = rows_of(own, None if planes is None else planes.rows(top, bottom), top)
        if planes is None or feather is None:
            result.put(top, rows)
            continue
        first, last = max(0, top - beyond), min(height, bottom + beyond)
        mask = planes.rows(first, last).sum(1, keepdim=True).clamp(0, 1)
        weight = feathered(mask, feather)[:, :, top - first : bottom - first]
        result.put(top, torch.lerp(own, rows, weight))
        result.restore(top, picture, weight == 0)
    return result.given()
