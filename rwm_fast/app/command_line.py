"""Command lines generated from dataclasses, with complaints of one sentence."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any, TypeVar

import tyro

from rwm_fast.errors import UserError

T = TypeVar("T")


def parse_into(
    kind: type[T], argv: list[str], command: str, description: str, default: T | None = None
) -> T:
    """`argv` as an instance of the dataclass `kind`; `default` fills what is not given.

    UserError for what does not fit, with the parser's first sentence. --help prints and exits.
    """
    complaint = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: T = tyro.cli(
                kind,
                args=argv,
                prog=f"python -m rwm_fast.{command}",
                description=description,
                **options,
            )
            return parsed
    except SystemExit as stop:
        if stop.code:
            raise UserError(first_sentence(complaint.getvalue())) from None
        raise
    except ValueError as error:  # from the dataclass itself; the parser passes some on
        raise UserError(str(error)) from None


def first_sentence(box: str) -> str:
    """The first paragraph of the parser's framed message, without the frame."""
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    lines = ["" if set(line) <= set("─-+╭╮╰╯") else line for line in lines]
    paragraph = re.split(r"\n{2,}", "\n".join(lines).strip())[0]
    return " ".join(paragraph.split()).rstrip(". ") + " (see --help)"
