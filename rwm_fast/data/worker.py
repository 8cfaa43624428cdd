"""A process that reads training pictures for another one.

It is a fresh interpreter, not a copy of its parent and not a second run of the parent's script: a
copy of a process whose OpenMP threads have run, or that uses CUDA, hangs or breaks, and a second
run needs a script that is written for it. Pictures come back through a pipe, so no shared memory is
needed. The process is in a session of its own, out of reach of Ctrl-C, and ends when its standard
input does: with its parent, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from rwm_fast.errors import UserError

_START = "import sys; sys.path[:] = sys.argv[1:]; from rwm_fast.data.worker import serve; serve()"


class WorkerError(UserError):
    """A process that reads pictures is gone, or silent."""


class Worker:
    """One such process, as its parent sees it. `pictures.sample(position)` is what it does."""

    def __init__(self, pictures: Any):
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, *(path or os.getcwd() for path in sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerError(f"no process can be started to read pictures: {error}") from None
        self._send(pictures)

    def samples(self, positions: list[int], alive: Callable[[], object]) -> list[Any]:
        """`sample` at every position; `alive` is called after each. WorkerError when the process
        has died, UserError as the process raised it."""
        self._send(positions)
        result = []
        for _ in positions:
            try:
                kind, value = pickle.load(self._stdout)
            except (EOFError, OSError, pickle.UnpicklingError):
                raise self._gone() from None
            if kind == "error":
                raise UserError(value)
            alive()
            result.append(value)
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    @property
    def _stdout(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value]

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(value, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None

    def _gone(self) -> WorkerError:
        status = self._process.wait()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        hint = "; signal 9 without a person behind it means that memory ran out" * (status == -9)
        return WorkerError(f"a process that reads pictures has died ({how}){hint}")


def serve() -> None:
    """The other side: pictures first, then lists of positions, until standard input ends."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the results

    def listen() -> None:
        with contextlib.suppress(Exception):
            while True:
                requests.put(pickle.load(sys.stdin.buffer))
        os._exit(0)  # also in the middle of a picture that cannot be finished

    threading.Thread(target=listen, daemon=True).start()
    pictures = requests.get()
    while True:
        for position in requests.get():
            try:
                answer = ("sample", pictures.sample(position))
            except UserError as error:
                answer = ("error", str(error))
            except Exception as error:
                answer = ("error", f"pictures cannot be read: {type(error).__name__}: {error}")
            try:
                pickle.dump(answer, results, pickle.HIGHEST_PROTOCOL)
                results.flush()
            except OSError:
                os._exit(0)
