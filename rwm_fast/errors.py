"""The one kind of error that is the user's to mend: bad input, told in one sentence."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_UNSEEN = "[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]"


class UserError(Exception):
    """Input that cannot be used. The message is one sentence: what was expected, what came."""


def printable(text: object) -> str:
    """The text on one line: bytes of a name that is not UTF-8 as \\xe9, and what breaks or turns
    lines, or commands a terminal, as an escape."""
    shown = re.sub(_UNSEEN, lambda found: repr(found[0])[1:-1], str(text))
    return shown.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def memory_ran_out(error: BaseException) -> str:
    """What to say of an error that means so, of the machine or of a device; else "". Torch raises a
    RuntimeError for the machine's."""
    of_torch = "OutOfMemoryError" in type(error).__name__ or "allocate memory" in str(error)
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and of_torch):
        return ""
    amount = re.search(r"allocate (\d[\d.]* ?\w+)", str(error))
    return f"memory ran out, asking for {amount[1]}" if amount else "memory ran out"


def sentence_of(error: Exception) -> str:
    """What a user is told of an error that is theirs to mend; "" for any other."""
    return printable(error) if isinstance(error, UserError) else memory_ran_out(error)


def reports_user_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Makes a command's `main` end a UserError as one sentence on stderr and exit status 2."""

    @functools.wraps(main)
    def wrapped(*arguments: P.args, **keywords: P.kwargs) -> R:
        if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that it cannot encode
            with contextlib.suppress(OSError):  # closed from the start: there is nothing to encode
                sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main(*arguments, **keywords)
        except (UserError, MemoryError, RuntimeError) as error:
            sentence = sentence_of(error)
            if not sentence:
                raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)

    return wrapped
