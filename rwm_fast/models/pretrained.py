"""Weights that come with the package, by name."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "weights"  # a file a name, and its model card
DEFAULT = "photos"


def names() -> list[str]:
    """The names that stand for weights, the default first."""
    return sorted((file.stem for file in FOLDER.glob("*.safetensors")), key=lambda n: n != DEFAULT)


def is_name(where: str | os.PathLike[str]) -> bool:
    """Whether `where` means weights of the package: a string that is one of the names. A `Path` is
    a path, and so is "./photos"."""
    return isinstance(where, str) and where in names()


def resolve(where: str | os.PathLike[str]) -> Path:
    """The file of the name, else the path. A name is the name whatever lies in the working folder,
    where "photos" may well be a folder of pictures."""
    return FOLDER / f"{where}.safetensors" if is_name(where) else Path(where)
