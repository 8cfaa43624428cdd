"""What a place of pictures holds, and how a file inside an archive is read within limits."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from rwm_fast.data.formats import NO_PICTURE, BadImageError, Limits

_LARGE = 32e6  # bytes; of larger members one is in memory at a time
_one_large = threading.RLock()


class Listing(NamedTuple):
    """What a place holds: every file is in one of the two."""

    pictures: list[str]  # sorted
    passed_over: dict[str, str]  # file: why it is no picture


def listing_of(reasons: dict[str, str | None]) -> Listing:
    """From why each file is no picture; None = it is one. A name that is none, as archives may
    have, is no picture's."""
    nameless = {name for name in reasons if not PurePosixPath(name).name}
    reasons = reasons | {name: reasons[name] or "it has no name" for name in nameless}
    pictures = [name for name, reason in reasons.items() if reason is None]
    return Listing(pictures, {name: why for name, why in reasons.items() if why is not None})


def hidden(name: str) -> str | None:
    """Why a file is passed over for its name alone."""
    parts = PurePosixPath(name).parts
    if "__MACOSX" in parts:
        return NO_PICTURE[2]
    return NO_PICTURE[1] if any(part.startswith(".") for part in parts) else None


def reason_of(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    return " ".join(str(error).split())[:300] or f"damaged ({type(error).__name__})"


def member_file(size: int, limits: Limits, read: Callable[[], bytes]) -> BinaryIO:
    """A member of an archive as a file in memory. BadImageError when `read` fails, or it is larger
    than admitted."""
    if size > limits.max_member_mb * 1e6:
        raise BadImageError(
            f"{size / 1e6:.0f} MB when unpacked, more than {limits.max_member_mb:g} "
            f"(--max-member-mb raises the limit)"
        )
    alone = size > _LARGE
    if alone:
        _one_large.acquire()
    try:
        data = read()
    except Exception as error:  # zlib.error, LZMAError, EOFError, NotImplementedError, ...
        if alone:
            _one_large.release()
        raise BadImageError(reason_of(error)) from None
    return _Alone(data) if alone else io.BytesIO(data)


class _Alone(io.BytesIO):
    """A large member; while it is open no other one is."""

    def close(self) -> None:
        if not self.closed:
            _one_large.release()
        super().close()
