"""Several processes that train one run, as `torchrun` starts them: who is who, and what all decide.

Every process has all networks and optimizers and takes its share of every batch (`share.py`);
gradients are summed (`gradients.py`), so all make the same update of the same weights. The first
process has the run folder, the clock and the voice. Before every step all agree whether and where
they go on: what one cannot do, no one does.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rwm_fast.data.photos import Unreadable
from rwm_fast.errors import UserError
from rwm_fast.training.fits import Stateful
from rwm_fast.training.heartbeat import Heartbeat
from rwm_fast.training.share import Share

WAIT = datetime.timedelta(minutes=30)  # for a process that lives, but does not come
LAST_WORDS = datetime.timedelta(seconds=20)  # torchrun kills 30 s after the first process has ended
_PIECE = 1 << 28  # bytes of a state that are sent at once


class LostProcessError(UserError):
    """The connection to another process of the job is gone."""


class OtherFailedError(UserError):
    """Another process of the job cannot go on, and says why."""


class Processes:
    """One of the processes of a job; `ALONE` where there is one."""

    def __init__(self, rank: int = 0, count: int = 1, local: int = 0, store: Any = None):
        self.rank, self.count, self.local = rank, count, local
        self.share = Share(rank, count)
        self._store = store
        self._connected = count > 1
        self._in_step = False  # also after an error in it: then collectives no longer match
        self._waits = True  # at the end, for others: they know of it
        self.failed: int | None = None  # the first process that has
        self.news: list[Unreadable] = []  # what this one could not read,
        self.heard: Callable[[list[Unreadable]], object] = lambda news: None  # and now all know
        self._told = 0  # times that there were news
        self._alive = Heartbeat(store, rank, count) if count > 1 and store else None

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether it tells what all meet alike, so that a machine says it once."""
        return self.local == 0

    def device(self, name: str) -> str:
        """The device of this process: its own GPU, where `name` asks for one."""
        if self.count == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return name
        if name not in ("auto", "cuda"):
            raise UserError(
                f"--device: expected auto, cpu or cuda with several processes, got {name!r}"
            )
        return f"cuda:{self.local}"

    def agree(self, progress: float, ends: bool, failed: bool = False) -> tuple[float, bool]:
        """Before a step: the first one's progress, and whether any process wants to end here. News
        of one become news of all.

        OtherFailedError where one has failed: in all but the first one that has.
        """
        if not self._connected:
            return progress, ends
        row = [self.first * progress, ends, failed, len(self.news)]
        words = torch.tensor(row, dtype=torch.float64)
        try:
            with talk():
                if self.news:
                    self._store.set(
                        f"news/{self._told}/{self.rank}", json.dumps([*map(vars, self.news)])
                    )
                self.all_reduce(words)
                if words[2]:
                    failures = (r for r in range(self.count) if self._store.check([f"failed/{r}"]))
                    self.failed = next(failures)
        except LostProcessError:
            self._connected, self._waits = False, False
            raise
        if self.failed not in (None, self.rank):
            self._connected = False
            raise OtherFailedError(f"process {self.failed} of {self.count} has failed")
        if words[3] and not words[2]:
            self._tell_news()
        return float(words[0]), bool(words[1])

    def _tell_news(self) -> None:
        keys = [f"news/{self._told}/{rank}" for rank in range(self.count)]
        with talk():
            texts = [self._store.get(key) for key in keys if self._store.check([key])]
        self.news.clear()
        self._told += 1
        self.heard([Unreadable(**each) for text in texts for each in json.loads(text)])

    def all_reduce(self, row: Tensor) -> None:
        """The sum over all processes, in place."""
        self.wait(dist.all_reduce(row, async_op=True), row)

    def wait(self, work: Any, tensor: Tensor) -> None:
        """Until what was begun with a tensor is done; a device waits by itself."""
        if self._alive is None or tensor.device.type != "cpu":
            work.wait()
        else:
            self._alive.wait(work)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around what all do together: who fails within has no way to tell the others."""
        self._in_step = True
        yield
        self._in_step = False

    def fail(self) -> UserError | None:
        """Tell the others, where they listen, that this process cannot go on. What there is to say
        instead, where another one told so first."""
        said: UserError | None = None
        if self._connected and self._in_step:
            self._waits = False
        elif self._connected:
            try:
                self._store.set(f"failed/{self.rank}", "")
                self.agree(0.0, True, failed=True)
            except (OtherFailedError, LostProcessError) as error:
                said = error if isinstance(error, OtherFailedError) else None
        self._connected = False
        return said

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that all succeed in, or none: OtherFailedError for who could have gone on."""
        try:
            yield
        except BaseException as error:
            raise self.fail() or error from None
        self.agree(0.0, False)

    def speaks_of(self, error: OtherFailedError | LostProcessError) -> bool:
        """Whether this process tells of others that are gone: the first one, which knows what is
        saved; of those that it cannot tell of, one a machine."""
        return self.first or (self.speaks and isinstance(error, LostProcessError))

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, the same names everywhere, summed over all processes."""
        if self.count == 1 or not values:
            return values
        row = torch.stack([value.float() for value in values.values()])
        with talk():
            self.all_reduce(row)
        return dict(zip(values, row.unbind(), strict=True))

    def as_first(self, objects: Mapping[str, Stateful], nimg: int) -> int:
        """Give named objects the state that those of the first process have; returns its `nimg`."""
        if self.count == 1:
            return nimg
        file = io.BytesIO()
        if self.first:
            torch.save({"nimg": nimg, **{n: o.state_dict() for n, o in objects.items()}}, file)
        size = torch.tensor([file.tell()])
        with talk():
            self.wait(dist.broadcast(size, 0, async_op=True), size)
            data = torch.frombuffer(file.getbuffer(), dtype=torch.uint8) if self.first else None
            data = torch.empty(int(size), dtype=torch.uint8) if data is None else data
            for piece in data.split(_PIECE):
                self.wait(dist.broadcast(piece, 0, async_op=True), piece)
        if self.first:
            return nimg
        state = torch.load(
            io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True
        )
        for name, target in objects.items():
            target.load_state_dict(state[name])
        return int(state["nimg"])

    def check_same(self, value: str, what: str) -> None:
        """UserError, in all processes, unless a text is the same in all."""
        if self.count == 1:
            return
        values = torch.zeros(self.count, dtype=torch.int64)
        digest = hashlib.blake2b(value.encode(), digest_size=7).digest()
        values[self.rank] = int.from_bytes(digest, "big")
        with talk():
            self.all_reduce(values)
        differing = [rank for rank, other in enumerate(values) if other != values[0]]
        with self.together():
            if self.rank in differing:
                raise UserError(
                    f"process {self.rank} of {self.count} has other {what} than the first"
                )

    def leave(self) -> None:
        """The end of what is done together, for all at once."""
        if self._alive:
            self._alive.stop()
        if self._connected:
            self._connected = False
            dist.destroy_process_group()


ALONE = Processes()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The job that this process was started for, by the environment that torchrun makes: RANK,
    WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Inside another such block the same job.

    Who leaves with an error waits for the others' last words: torchrun ends all when one has ended.
    """
    global _joined
    if _joined is not None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield _joined or ALONE
        return
    _joined = job = _join()
    try:
        yield job
    except BaseException:
        _last_words(job)
        raise
    finally:
        _joined = None
        job.leave()


_joined: Processes | None = None


def _join() -> Processes:
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, expected {', '.join(missing)} too: "
            "start several processes by torchrun, or unset WORLD_SIZE"
        )
    rank, count, local = (int(os.environ[name]) for name in names[:3])
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, count = next(rendezvous("env://", timeout=WAIT))
    with talk():
        store = dist.PrefixStore(_meeting(store, rank, count), store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=WAIT)
    return Processes(rank, count, local, store)


def _meeting(store: Any, rank: int, count: int) -> str:
    """A name that the processes of this start have in common, and none of another one.

    The store outlives a restart, with all that was written into it, and neither the number of
    restarts nor the port is sure to be another one, or the same on all machines. So the first
    process names the place, and the others go there until it has greeted them.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("meeting", own)
        for other in range(1, count):
            store.set(f"{own}/go/{other}", store.get(f"{own}/here/{other}"))
        return own
    while True:
        place = store.get("meeting").decode()
        store.set(f"{place}/here/{rank}", own)
        with contextlib.suppress(RuntimeError):  # nobody there: it is of an earlier start
            store.wait([f"{place}/go/{rank}"], datetime.timedelta(seconds=1))
            if store.get(f"{place}/go/{rank}").decode() == own:
                return str(place)
        time.sleep(0.05)


def _last_words(job: Processes) -> None:
    """Wait for the first process, which may be saving, and for who failed, which may speak."""
    if job._waits:
        with contextlib.suppress(Exception):
            job._store.set(f"ended/{job.rank}", "")
            job._store.wait([f"ended/{rank}" for rank in {0, job.failed or 0}], LAST_WORDS)


@contextlib.contextmanager
def talk() -> Iterator[None]:
    """Around calls of torch.distributed: LostProcessError where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        first = re.sub(r"^\[[^]]*\] |\. This is typically.*", "", str(error).splitlines()[0])
        raise LostProcessError(f"another process of the job is gone ({first})") from None
