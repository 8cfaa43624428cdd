"""What a command did, in words that can be given again, for the file it leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwm_fast._build import build_info
from rwm_fast.models.weights import locate

KEY = "rwm_fast"  # of the text in a PNG file
Texts = tuple[tuple[str, str], ...]


def texts(arguments: Any, command: str, weights: str, more: dict[str, Any] | None = None) -> Texts:
    """The texts of a PNG file: the program with its version, and as JSON the command line, the
    version, the weights' digest and what `more` there is. Of paths only the last part is named."""
    version = build_info()["version"]
    words = [f"python -m rwm_fast.{command}", *_options(arguments)]
    account = {"command": " ".join(words), "version": version, "weights": weights, **(more or {})}
    return (("Software", f"rwm_fast {version}"), (KEY, json.dumps(account)))


def digest_of(*paths: str | os.PathLike[str]) -> str:
    """BLAKE2 of files' bytes, 32 hex digits; of a run folder those of its weights."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(locate(path), "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _options(arguments: Any) -> Iterator[str]:
    """The options of a dataclass, and of those inside it, that are not what they are by default."""
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if dataclasses.is_dataclass(value):
            yield from _options(value)
            continue
        if value == field.default:
            continue
        name = f"--{field.name.replace('_', '-')}"
        if value is True:
            yield name
            continue
        for one in value if isinstance(value, tuple) else (value,):
            named = isinstance(one, Path) or field.name == "checkpoint"
            yield f"{name} {shlex.quote(Path(one).name if named else str(one))}"
