"""Names of members, such as any system can unpack, and no two the same."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows


def free_name(label: str, name: str, extension: str, taken: set[str], plain: bool = False) -> str:
    """A member name that is not taken; a.png and a.jpg of one folder would both become a.png, and
    A.png and a.png are one file on some systems. `plain`: no dot but the extension's, for what
    stands before the first one is WebDataset's name of a picture."""
    parts = PurePosixPath(name).with_suffix("").parts
    if plain:
        parts = (*parts[:-1], parts[-1].replace(".", "_"))
    stem = "/".join([label, *map(safe, parts)])
    candidate, number = f"{stem}.{extension}", 2
    folded = lambda text: unicodedata.normalize("NFC", text).casefold()
    while folded(candidate) in taken:
        candidate, number = f"{stem}-{number}.{extension}", number + 1
    taken.add(folded(candidate))
    return candidate


def safe(part: str) -> str:
    """A name that any system can unpack: bytes that are not UTF-8 as %E9, no separators or drives,
    no reserved names, not too long."""
    part = re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", part)
    part = part.encode("utf-8", "replace")[:120].decode("utf-8", "ignore")
    part = re.sub(r'[<>:"|?*/\\\x00-\x1f\x7f]', "_", part).rstrip(". ") or "_"
    return f"_{part}" if _RESERVED.fullmatch(part) else part


def distinct(labels: Sequence[str]) -> list[str]:
    """The labels, with a number behind the second and later ones of a name."""
    result: list[str] = []
    for label in labels:
        candidates = itertools.chain([label], (f"{label}-{k}" for k in itertools.count(2)))
        result.append(next(name for name in candidates if name not in result))
    return result
