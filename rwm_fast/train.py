"""Train: `python -m rwm_fast.train` runs the demo, `--data PHOTOS --preset paper-256` your photos.

Running the same command again goes on where it stopped, whatever ended it; Ctrl-C saves first.
`--init RUN` starts from the networks of another run, from a weights file or from the package's own
(`--init photos`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from rwm_fast.app.command_line import parse_into
from rwm_fast.config import PRESETS, Config, preset
from rwm_fast.device import prepare
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.training.ending import (
    STOPPED,
    complain,
    hold_standard_files,
    let_go_of_closed_streams,
    say,
    stops_interrupt,
)
from rwm_fast.training.guard import BrokenRunError
from rwm_fast.training.plan import plan
from rwm_fast.training.processes import (
    ALONE,
    LostProcessError,
    OtherFailedError,
    Processes,
    joined,
)
from rwm_fast.training.run import train

# Short names of settings; every other one has the long form --section.field.
SHORT = {
    "--data": "--data.sources",
    "--precision": "--train.precision",
    "--device": "--train.device",
    "--seed": "--train.seed",
    "--batch": "--train.batch",
    "--kimg": "--train.kimg",
    "--seconds": "--train.seconds",
    "--max-megapixels": "--data.max-megapixels",
    "--max-member-mb": "--data.max-member-mb",
}


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    config: Annotated[Config, tyro.conf.arg(name="")] = field(
        default_factory=lambda: PRESETS["demo"]
    )
    out: str = ""  # run folder; empty = runs/PRESET, or runs/PRESET-quick
    init: str = ""  # run folder, weights file or name (photos) whose networks a new run starts from
    quick: bool = False  # the two-minute form of the preset
    dry_run: bool = False  # print settings, parameter counts and memory, then stop


def parse(argv: list[str]) -> Arguments:
    """Arguments from a command line; UserError for what does not fit a setting."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default="demo")
    first.add_argument("--quick", action="store_true")
    try:
        start, _ = first.parse_known_args(argv)
        base = preset(start.preset)
        base = base.quick() if start.quick else base
    except (argparse.ArgumentError, ValueError) as error:
        raise UserError(str(error)) from None
    words = [_lengthen(word) for word in argv]
    given = {word.split("=")[0] for word in words}
    if "--train.kimg" in given and "--train.seconds" not in given:  # images, then, not time
        base = replace(base, train=replace(base.train, seconds=0.0))
    names = ", ".join(f"{short} = {long}" for short, long in SHORT.items())
    described = f"{__doc__}\nPresets: {', '.join(PRESETS)}. Short names: {names}."
    return parse_into(Arguments, words, "train", described, default=Arguments(config=base))


def _lengthen(word: str) -> str:
    name, equals, value = word.partition("=")
    return SHORT.get(name, name) + equals + value


def default_out(arguments: Arguments) -> str:
    """runs/PRESET, with what makes it another run: -quick, the names of the pictures' folders."""
    names = [Path(source).stem for source in arguments.config.data.sources]
    return "-".join(["runs/" + arguments.config.preset, *names, *["quick"] * arguments.quick])


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    hold_standard_files()
    try:
        with joined() as job:
            return command(sys.argv[1:] if argv is None else argv, job)
    finally:
        let_go_of_closed_streams()


@reports_user_errors
def command(argv: list[str], job: Processes) -> int:
    """Exit status of one process of a job. What several meet is said by one of them."""
    try:
        with stops_interrupt():
            with (
                job.together(),
                contextlib.redirect_stdout(sys.stdout if job.first else io.StringIO()),
            ):
                arguments = parse(argv)
            return run(arguments, job)
    except BrokenRunError as error:
        complain(f"error: {error}")
        return 1
    except (OtherFailedError, LostProcessError) as error:
        if job.speaks_of(error):
            raise
        sys.exit(2)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{name}{error.strerror or error}") from None
    except KeyboardInterrupt:
        if job.speaks:
            complain("stopped at once; the same command goes on from what was saved last")
        return STOPPED


def run(arguments: Arguments, job: Processes = ALONE) -> int:
    """Exit status of what the command line asks for."""
    config = arguments.config
    if arguments.dry_run:
        device, dtype = prepare(job.device(config.train.device), config.train.precision)
        if job.first:
            say(f"{config.to_json()}\n{plan(config, dtype, device, job)}")
        return 0
    out = arguments.out or default_out(arguments)
    report = train(config, out, quick=arguments.quick, init=arguments.init)
    return STOPPED if report is None else 0


if __name__ == "__main__":
    sys.exit(main())
