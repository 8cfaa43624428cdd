"""How a run is stopped from outside, and what a command says at its end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

STOPPED = 130  # exit status of a command that was asked to stop, as shells have it for Ctrl-C
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a polite kill, a terminal that is closed
# Of a cluster before it kills, and at a limit on computing time; where nobody else uses them.
_WARNINGS = ("SIGUSR1", "SIGUSR2", "SIGXCPU")


class StopSignal:
    """Within the block Ctrl-C, a polite kill, a closed terminal or a cluster's warning asks for a
    stop after the present step; a second Ctrl-C stops at once, except from who is `patient`: under
    torchrun one Ctrl-C comes twice, from the terminal and from there. What the process was started
    to ignore, as by nohup, stays ignored, and only the main thread has signals."""

    def __init__(self, patient: bool = False) -> None:
        self.asked, self.patient = False, patient
        self._before: dict[int, Any] = {}  # handlers, in the forms that the signal module has

    def __enter__(self) -> StopSignal:
        self._before = _handle(self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT and not self.patient:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stops_interrupt() -> Iterator[None]:
    """Within the block a polite kill and a closed terminal raise KeyboardInterrupt, as Ctrl-C does:
    for the parts of a command that have nothing to save."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = _handle(interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Any) -> dict[int, Any]:
    """Set a handler for all that stops a run; returns those of before."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in filter(lambda name: hasattr(signal, name), (*_NAMES, *_WARNINGS)):
            number = getattr(signal, name)
            known = signal.getsignal(number)
            free = known is signal.SIG_DFL or getattr(known, "__module__", "") == __name__
            if known is not signal.SIG_IGN and (free or name in _NAMES):
                before[number] = signal.signal(number, handler)
    return before


def hold_standard_files() -> None:
    """Put the null device where standard input, output or error is closed: the next file that is
    opened would get its number, and with it whatever a library prints."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def say(text: str) -> None:
    """Print, if anybody reads it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, flush=True)


def complain(text: str) -> None:
    """The same on standard error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


def let_go_of_closed_streams() -> None:
    """At the end of a command: what cannot be written to a reader that is gone is no error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            with contextlib.suppress(OSError, ValueError):
                os.dup2(null, stream.fileno())
        except AttributeError:  # there is none
            pass
