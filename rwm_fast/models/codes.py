"""Codes that are kept, saved and used again, and the directions in which codes differ."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rwm_fast.disk import write_file
from rwm_fast.errors import UserError
from rwm_fast.models.network import require
from rwm_fast.models.pictures import Picture
from rwm_fast.models.weights import digest

_FORMAT = "rwm_fast codes 1"


@dataclass(frozen=True, eq=False)
class Codes:
    """What `RegionEditor.encode` makes of N pictures: `edit` takes it in the place of a picture,
    and then runs the generator alone.

    content [N, C, h, w] and style [N, D] are the codes; `size` is (H, W) of the pictures and `work`
    the (H, W) at which the networks saw them. `picture` holds them as they were given, `seen`
    [N, 3, *work] what the networks saw, where that is smaller, and `detail` [N, 3, *work] what
    they cannot paint, I − G(C, S). All three are None in codes made with `picture=False`.
    """

    content: Tensor
    style: Tensor
    size: tuple[int, int]
    work: tuple[int, int]
    picture: Picture | None = None
    seen: Tensor | None = None
    detail: Tensor | None = None

    def moved(self, axes: Axes, index: int, amount: float) -> Codes:
        """These codes, moved along axis `index` by `amount` times its spread.

        Axes of the style move `style`, those of the content every pixel of `content`.
        """
        rule = f"index must be from 0 to {len(axes.spread) - 1}"
        require(0 <= index < len(axes.spread), "moved", rule, index)
        code = self.style if axes.of == "style" else self.content
        way = axes.vectors[index] * (amount * axes.spread[index])
        way = way.to(code).reshape(1, -1, *(1,) * (code.ndim - 2))
        require(way.shape[1] == code.shape[1], "moved", "axes of another model", way)
        if axes.of == "style":
            return replace(self, style=code + way)
        return replace(self, content=code + way)

    def to(self, device: torch.device | str) -> Codes:
        """The same with codes, `seen` and `detail` on a device; the picture stays where it is."""
        content, style = self.content.to(device), self.style.to(device)
        seen, detail = _to(self.seen, device), _to(self.detail, device)
        return replace(self, content=content, style=style, seen=seen, detail=detail)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, whole or not at all; UserError where it cannot."""
        tensors = {"content": self.content, "style": self.style}
        header: dict[str, Any] = {"size": self.size, "work": self.work}
        if self.picture is not None:
            tensors["picture"] = self.picture.values
            header |= {"kind": self.picture.kind, "batched": self.picture.batched}
        tensors |= {n: t for n in ("seen", "detail") if (t := getattr(self, n)) is not None}
        tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
        words = {"format": _FORMAT, "codes": json.dumps(header)}
        words["digest"] = digest(tensors, words)
        write_file(Path(path), lambda p: p.write_bytes(save(tensors, metadata=words)))

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Codes:
        """Codes from a file that `save` wrote. UserError if it is none, or damaged."""
        if not Path(path).is_file():
            raise UserError(f"no codes at {path}: expected a file that Codes.save wrote")
        try:
            with safe_open(path, framework="pt") as file:
                words = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None
        if words.get("format") != _FORMAT:
            raise UserError(f"{path}: expected a file of codes, got one without {_FORMAT!r} in it")
        if words.pop("digest", None) != digest(tensors, words):
            raise UserError(f"{path}: damaged: its content is not what was written")
        header = json.loads(words["codes"])
        values, picture = tensors.pop("picture", None), None
        if values is not None:
            picture = Picture(values, header["kind"], header["batched"])
        codes = cls(
            **tensors, size=tuple(header["size"]), work=tuple(header["work"]), picture=picture
        )
        return codes.to(device)


@dataclass(frozen=True, eq=False)
class Axes:
    """Main directions of a set of codes, the widest first: `Codes.moved` goes along them.

    mean [D], vectors [K, D] of length 1, orthogonal, and spread [K], the standard deviation of
    the set along each; D is C for the content, of whose pixels each counts by itself.
    """

    of: str  # "content" or "style"
    mean: Tensor
    vectors: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Directions:
    """Main directions of the content codes and of the style codes of a set of pictures."""

    content: Axes
    style: Axes


class Moments:
    """Mean and covariance of rows [*, D], added up in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None  # [D]
        self.products: Tensor | None = None  # [D, D]

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        total, products = rows.sum(0), rows.T @ rows
        self.count += len(rows)
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products + products

    def axes(self, of: str, count: int) -> Axes:
        """The widest `count` axes, or as many as so many rows can have."""
        assert self.total is not None and self.products is not None
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)  # the narrowest first
        kept = min(count, self.count - 1, len(mean))
        values, vectors = values.flip(0)[:kept], vectors.flip(1).T[:kept]
        # a sign that does not depend on the solver: the largest number is positive
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        return Axes(of, mean, vectors * largest.sign(), values.clamp_min(0).sqrt())


def _to(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
