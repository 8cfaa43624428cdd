"""Free photos and masks to try things on: `python -m rwm_fast.examples` copies them into a folder.

Who made them, and under which licence, is in the folder's README.md.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rwm_fast.app.command_line import parse_into
from rwm_fast.disk import write_file
from rwm_fast.errors import UserError, reports_user_errors

FOLDER = Path(__file__).with_name("pictures")


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    out: Path = Path("pictures")  # folder that they are copied into; made if it is not there


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    out = parse_into(Arguments, given, "examples", __doc__).out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be made a folder: {error.strerror}") from None
    for file in sorted(FOLDER.iterdir()):
        target = out / file.name
        if not target.exists():  # what is there may be the user's own
            write_file(target, partial(shutil.copyfile, file))
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
