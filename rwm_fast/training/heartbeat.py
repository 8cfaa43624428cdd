"""Signs of life between the processes of a job.

Who is killed closes its connections, and the others know at once. A machine that loses its power or
its network says nothing, and neither does a process that is stopped: their connections stay open,
and the others would wait for them until a time limit that also has to suffer who is only slow. So a
thread in each process gives a sign every few seconds, whatever the process is busy with.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import threading
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 5.0  # between two signs
MISSED = 8  # signs in a row, after which a process counts as gone
ENDING_SECONDS = 2.0  # that the end waits for a sign that is being given


class Heartbeat:
    """The signs of this process, and who gives none any more (`silent`, a rank).

    The first process listens to all, the others to the first alone, which tells them who is silent.
    What is counted are the listener's own turns, not time: a job that is stopped as a whole, with
    its machine or from a keyboard, goes on afterwards.
    """

    def __init__(self, store: Any, rank: int, count: int):
        self.rank, self.count, self.seconds = rank, count, SECONDS
        self.silent: int | None = None
        self._store = store.clone()  # a connection of its own, on which nobody else waits
        self._turns = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, work: Any) -> None:
        """Until what all do together is done. RuntimeError where that fails, or where a process is
        silent: it is named."""
        turns, waits = self._turns, 0
        while self.silent is None:
            with contextlib.suppress(RuntimeError):
                work.wait(datetime.timedelta(seconds=self.seconds))
                return
            if work.is_completed():  # it has failed, or was done in this moment
                work.wait()
                return
            turns, waits = self._turns, waits + 1 if turns == self._turns else 0
            if waits > MISSED:  # our own thread waits for the first process, which has the store
                self.silent = 0
        _abandon_group()
        raise RuntimeError(
            f"process {self.silent} of {self.count} has given no sign of life for "
            f"{self.seconds * MISSED:.0f} s"
        )

    def stop(self) -> None:
        """Give no more signs. Python's end would tear the thread out of a call of the store, and
        abort the process; but a store that does not answer is left."""
        self._end.set()
        self._thread.join(ENDING_SECONDS)

    def _run(self) -> None:
        heard: dict[int, tuple[str, int]] = {}  # the last sign and when it came, by rank
        while not self._end.wait(self.seconds):
            self._turns += 1
            try:
                silent = "" if self.silent is None else self.silent
                self._store.set(f"alive/{self.rank}", f"{self._turns} {silent}")
                for other in range(1, self.count) if self.rank == 0 else (0,):
                    self._listen(other, heard)
            except RuntimeError:  # the store is gone, and the first process with it
                return

    def _listen(self, other: int, heard: dict[int, tuple[str, int]]) -> None:
        key = f"alive/{other}"
        sign = self._store.get(key).decode() if self._store.check([key]) else ""
        if other not in heard or heard[other][0] != sign:
            heard[other] = (sign, self._turns)
        told = sign.partition(" ")[2]
        if self.silent is None and told:
            self.silent = int(told)
        elif self.silent is None and self._turns - heard[other][1] >= MISSED:
            self.silent = other


def _abandon_group() -> None:
    """Leave the connections as they are: to take them down is to wait for who does not answer."""
    group = dist.group.WORLD
    assert group is not None
    for held in (group, group._get_backend(torch.device("cpu"))):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
