"""What an editor takes and gives: PIL images, numpy arrays and tensors, read in bands of rows so
that no large picture is ever held as floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from rwm_fast.models.compositing import averaging, exclusive
from rwm_fast.models.network import require

if TYPE_CHECKING:  # neither is imported before a picture of its kind comes
    import numpy as np
    from PIL import Image

    AnyPicture: TypeAlias = Image.Image | np.ndarray | Tensor
else:
    AnyPicture = Any

_BAND = 1 << 18  # pixels that are worked on at a time: a few MB of floats, near the processor
Rows = Callable[[int, int], Tensor]  # (top, bottom) → [N, C, bottom − top, W]


@dataclass(frozen=True, eq=False)
class Picture:
    """Pictures of one of the kinds: `values` [N, 3, H, W] are a view on what was given.

    uint8 levels run from 0 to 255, floats of an array from 0 to 1, those of a tensor from −1 to 1.
    """

    values: Tensor
    kind: str  # PIL, array or tensor
    batched: bool  # whether it came with an axis of pictures

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        return self.values.shape[2], self.values.shape[3]

    def rows(self, top: int, bottom: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Rows [N, 3, bottom − top, W] in [−1, 1]."""
        own = self.values[:, :, top:bottom].contiguous().to(device).to(dtype)
        if self.values.dtype == torch.uint8:
            return own.div(127.5).sub_(1)
        return own.mul(2).sub_(1) if self.kind == "array" else own

    def reduced(self, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The picture [N, 3, h, w] in [−1, 1] at a size that is not larger."""
        if size == self.size:
            return self.rows(0, size[0], dtype, device)
        return reduced(lambda t, b: self.rows(t, b, dtype, device), self.size, size)

    def empty(self) -> Picture:
        """One of the same kind and size, to be filled by `put`."""
        return Picture(torch.empty_like(self.values), self.kind, self.batched)

    def put(self, top: int, rows: Tensor) -> None:
        """Writes rows of values in [−1, 1], rounded to this picture's kind."""
        own = self.values[:, :, top : top + rows.shape[2]]
        if own.dtype == torch.uint8:
            own.copy_(rows.add(1).mul_(127.5).round_().clamp_(0, 255))
        else:
            own.copy_(rows.add(1).div_(2) if self.kind == "array" else rows)

    def restore(self, top: int, source: Picture, where: Tensor) -> None:
        """Writes the numbers of `source` into rows, where `where` [N or 1, 1, rows, W] holds."""
        own, theirs = (p.values[:, :, top : top + where.shape[2]] for p in (self, source))
        own.copy_(torch.where(where.to(own.device), theirs, own))

    def given(self) -> AnyPicture:
        """The picture as what its kind says."""
        if self.kind == "tensor":
            return self.values if self.batched else self.values[0]
        pixels = self.values.permute(0, 2, 3, 1).numpy()
        if self.kind == "array":
            return pixels if self.batched else pixels[0]
        from PIL import Image

        return Image.fromarray(pixels[0])


def picture_of(given: Any, name: str) -> Picture:
    """What was given as a `Picture`; ValueError where it is none, with `name`: "edit: content"."""
    if isinstance(given, Picture):
        return given
    if isinstance(given, Tensor):
        fits = given.ndim in (3, 4) and given.shape[-3] == 3
        _require(fits, name, "as a tensor must be [3, H, W] or [N, 3, H, W]", given)
        values, kind, batched = given.detach(), "tensor", given.ndim == 4
    elif _is_image(given):
        _require(given.mode in ("RGB", "L"), name, "as a PIL image must be RGB or L", given.mode)
        values, kind, batched = _tensor(given.convert("RGB")), "PIL", False
        values = values.permute(2, 0, 1)
    else:
        shape = list(getattr(given, "shape", ()))
        fits = len(shape) in (3, 4) and shape[-1] == 3
        rule = "must be a PIL image, a tensor, or an array [H, W, 3] or [N, H, W, 3]"
        _require(fits, name, rule, shape or type(given).__name__)
        values, kind, batched = _tensor(given).movedim(-1, -3), "array", len(shape) == 4
    numeric = values.dtype == torch.uint8 or values.is_floating_point()
    _require(numeric, name, "must be uint8 or floating-point", values.dtype)
    picture = Picture(values if batched else values[None], kind, batched)
    _require(picture.values.numel() > 0, name, "must have pixels", values)
    if kind == "array" and values.dtype != torch.uint8:
        low, high = values.min().item(), values.max().item()
        rule = "as an array of floats must be in [0, 1]"
        _require(low >= 0 and high <= 1, name, rule, f"{low:g} to {high:g}")
    return picture


@dataclass(frozen=True, eq=False)
class Planes:
    """K masks over pictures of one size, as planes that add up to at most 1."""

    masks: tuple[Tensor, ...]  # [N or 1, 1, H, W] each, or one [N or 1, K, H, W] of planes
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        return self.masks[0].shape[2], self.masks[0].shape[3]

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows [N or 1, K, bottom − top, W] in [0, 1]; where masks overlap, the later one wins."""
        taken = [self._share(mask, top, bottom) for mask in self.masks]
        return taken[0] if len(taken) == 1 else exclusive(torch.broadcast_tensors(*taken))

    def reduced(self, size: tuple[int, int]) -> Tensor:
        """The planes [N or 1, K, h, w] at a size that is not larger."""
        if size == self.size:
            return self.rows(0, size[0])
        return reduced(self.rows, self.size, size).clamp_(0, 1)

    def _share(self, mask: Tensor, top: int, bottom: int) -> Tensor:
        share = mask[:, :, top:bottom].to(self.device).to(self.dtype)
        return share / 255 if mask.dtype == torch.uint8 else share


def planes_of(
    given: Any,
    batch: int,
    size: tuple[int, int],
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Planes:
    """Masks as `Planes`; ValueError, with `name`, where they do not fit N pictures of a size.

    One tensor or array with four axes is [N, K, H, W] of planes; all else is one mask, or a list
    of masks: PIL images of mode L or 1, or [H, W], [1, H, W] or [N, 1, H, W] of bool, uint8 (0 to
    255, or 0 and 1) or floats in [0, 1].
    """
    several = isinstance(given, (list, tuple))
    masks = [_mask(mask, name) for mask in (given if several else [given])]
    k = 1 if several else masks[0].shape[1]
    for mask in masks:
        fits = tuple(mask.shape) in ((1, k, *size), (batch, k, *size))
        _require(fits, name, f"must be [{batch}, {k}, {size[0]}, {size[1]}]", mask)
    planes = Planes(tuple(masks), device, dtype)
    for mask in masks:
        if k > 1 or mask.is_floating_point():
            _check_range(planes, mask, k, name)
    return planes


def _check_range(planes: Planes, mask: Tensor, k: int, name: str) -> None:
    low, high = 0.0, 1.0
    for top, bottom in bands(planes.size):
        share = planes._share(mask, top, bottom)
        low, high = min(low, share.min().item()), max(high, share.sum(1).max().item())
    # one 8-bit step a plane: planes that were stored as pictures may overlap by rounding
    rule = "must be in [0, 1] and its planes must add up to at most 1"
    finite = bool(mask.isfinite().all())
    _require(finite and low >= -k / 255 and high <= 1 + k / 255, name, rule, f"{low:g} to {high:g}")


def _mask(given: Any, name: str) -> Tensor:
    """One mask [N, K, H, W] as it was given: bool, uint8 from 0 to 255, or float."""
    if _is_image(given):
        _require(given.mode in ("L", "1"), name, "as a PIL image must be L or 1", given.mode)
    mask = given.detach() if isinstance(given, Tensor) else _tensor(given)
    fits = mask.ndim in (2, 4) or (mask.ndim == 3 and mask.shape[0] == 1)
    _require(fits, name, "must be [H, W], [1, H, W] or [N, K, H, W]", mask)
    numeric = mask.dtype in (torch.bool, torch.uint8) or mask.is_floating_point()
    _require(numeric, name, "must be bool, uint8 or floating-point", mask.dtype)
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.dtype == torch.uint8 and mask.numel() and mask.max() <= 1:
        return mask.bool()
    return mask


def bands(size: tuple[int, int], least: int = 1) -> Iterator[tuple[int, int]]:
    """(top, bottom) of bands of `least` rows or more that make up a picture of size (H, W)."""
    height, width = size
    step = max(least, _BAND // width)
    for top in range(0, height, step):
        yield top, min(top + step, height)


def reduced(rows: Rows, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """What `rows` gives of an image of size (H, W), at the smaller size `to`: [N, C, *to].

    Each pixel is a mean weighted by a triangle as wide as two of the new pixels, as bilinear
    interpolation with antialiasing takes it.
    """
    down, across = averaging(to[0], size[0]), averaging(to[1], size[1])
    total: Tensor | None = None
    for top, bottom in bands(size):
        band = rows(top, bottom)
        part = band @ across.T.to(band)
        part = down[:, top:bottom].to(band) @ part
        total = part if total is None else total.add_(part)
    assert total is not None  # a picture has pixels
    return total


def _is_image(given: Any) -> bool:
    return type(given).__module__.partition(".")[0] == "PIL" or hasattr(given, "getbands")


def _tensor(given: Any) -> Tensor:
    """An array's or an image's numbers, shared where they can be."""
    import numpy as np

    array = np.asarray(given)
    if not array.flags.writeable or min(array.strides, default=1) < 0:
        array = array.copy()  # torch shares neither
    return torch.from_numpy(array)


def _require(condition: bool, name: str, rule: str, got: object) -> None:
    """`require` for a name such as "edit: mask"."""
    where, _, what = name.partition(": ")
    require(condition, where, f"{what} {rule}", got)
