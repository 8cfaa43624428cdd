"""Which pictures a run is of: their names and lengths, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from rwm_fast.config import Config
from rwm_fast.data.loader import TrainingSet
from rwm_fast.data.photos import PhotoSet
from rwm_fast.errors import UserError


def placed(config: Config) -> Config:
    """The settings with absolute paths of their pictures, which mean the same from everywhere."""
    sources = tuple(os.path.abspath(os.path.expanduser(s)) for s in config.data.sources)
    return replace(config, data=replace(config.data, sources=sources))


def identity(pictures: TrainingSet) -> list[str]:
    """A hash for every photo, in order: of its name below its folder and its length in bytes.
    Empty for landscapes, which the settings decide."""
    if not isinstance(pictures, PhotoSet):
        return []
    texts = (f"{photo.name}\0{photo.place.length(photo.name)}" for photo in pictures.photos)
    return [hashlib.blake2b(os.fsencode(text), digest_size=6).hexdigest() for text in texts]


def read_identity(path: Path) -> list[str]:
    """What `identity` was when pictures.json was written; empty where that is not known."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["identity"]
        return values if all(isinstance(value, str) for value in values) else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def compare_pictures(before: list[str], now: list[str], run: Path) -> str:
    """What has changed in the pictures of a run, empty if nothing has or it is not known. UserError
    when fewer than half of its pictures are left."""
    there, here = set(before), set(now)
    common = len(there & here)
    if before == now or not before:
        return ""
    if 2 * common < len(there):
        raise UserError(
            f"--data: {run} holds a run on other pictures ({common} of its {len(there)} are among "
            f"the {len(here)} here, by name and length); give those, or another --out"
        )
    if there == here:
        return "the same pictures as before, in another order"
    return f"{common} of the {len(there)} pictures of before, and {len(here - there)} new ones"
