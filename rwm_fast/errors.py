"""The one kind of error that is the user's to mend: bad input, told in one sentence."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UserError(Exception):
    """Input that cannot be used. The message is one sentence: what was expected, what came."""


def reports_user_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Makes a command's `main` end a UserError as one sentence on stderr and exit status 2."""

    @functools.wraps(main)
    def wrapped(*arguments: P.args, **keywords: P.kwargs) -> R:
        if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that it cannot encode
            with contextlib.suppress(OSError):  # closed from the start: there is nothing to encode
                sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main(*arguments, **keywords)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped
