"""The number of threads follows what steps take: simulated machines, no clock."""

import contextlib
import os
import random

import pytest
import torch

from rwm_fast.training import run, threads
from rwm_fast.training.run import train
from rwm_fast.training.stats import JsonLines
from rwm_fast.training.threads import SHARE, Chooser, FreeCores, chosen_threads

STEP = 0.045  # seconds of a step of one thread on a free core: the demo's


def seconds(threads: int, cores: int, neighbours: float) -> float:
    """A step where every operator waits for its slowest thread. Free cores make threads faster
    (176 against 147 images/s on two); a taken core makes all wait, as measured: 88 against 40."""
    free = max(cores - neighbours, 0)
    if threads <= free:
        return STEP * (0.16 + 0.84 / threads**0.5)
    crowd = (neighbours + threads) / cores  # processes for each core
    alone = STEP * max(crowd, 1.0)
    return alone if threads == 1 else alone * (1.5 + 0.25 * threads)


class Machine:
    """Tells a chooser what its steps take; remembers what it did."""

    def __init__(self, cores: int, noise: float = 0.0, beside: float | None = None):
        self.cores, self.noise, self.random = cores, noise, random.Random(3)
        self.changes: list[tuple[int, int]] = []
        told = lambda before, after, gain: self.changes.append((before, after))
        self.tells = beside is not None  # which cores are free, with so many neighbours at first
        self.chooser = Chooser(cores, told, max(cores - beside, 0) if self.tells else None)
        self.step = 0

    def free(self, neighbours: float) -> float | None:
        """Idle cores and our own: those of idle threads, or the share that neighbours leave."""
        threads = self.chooser.threads
        share = self.cores * threads / (threads + neighbours)
        return max(self.cores - neighbours, min(share, threads)) if self.tells else None

    def run(self, neighbours: float, length: float, scale: float = 1.0) -> float:
        """Time of one thread for the same steps, over the time taken."""
        took = one = 0.0
        while took < length:
            kind = (self.step % 2, self.step % 16 == 0)
            work = scale * (1 + 0.5 * kind[0] + 0.8 * kind[1])
            wobble = 1 + self.noise * (2 * self.random.random() - 1)
            spent = work * wobble * seconds(self.chooser.threads, self.cores, neighbours)
            self.chooser.add(spent, kind, self.free(neighbours))
            took, one = took + spent, one + work * seconds(1, self.cores, neighbours)
            self.step += 1
        return one / took


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.25])
@pytest.mark.parametrize(
    ("cores", "neighbours", "best"),
    [(1, 0, 1), (1, 1, 1), (2, 0, 2), (2, 1, 1), (2, 2, 1), (2, 6, 1), (8, 0, 8), (8, 4, 4),
     (8, 8, 1), (64, 0, 64), (64, 60, 4)],
)  # fmt: skip
def test_it_comes_to_the_best_number_and_pays_little(cores, neighbours, best, noise):
    machine = Machine(cores, noise)
    first = machine.run(neighbours, 20 if cores < 64 else 90)
    assert machine.chooser.chosen == best
    later = machine.run(neighbours, 300)
    assert machine.chooser.chosen == best
    ideal = seconds(1, cores, neighbours) / seconds(best, cores, neighbours)
    assert later > (1 - 2 * SHARE) * ideal * (1 - noise / 10)
    assert first > 0.7 * ideal or cores == 64  # a step of 64 threads takes seconds there


@pytest.mark.parametrize("noise", [0.0, 0.25])
@pytest.mark.parametrize(
    ("cores", "neighbours"),
    [(1, 1), (2, 0), (2, 1), (2, 2), (2, 6), (8, 0), (8, 4), (8, 8), (64, 60)],
)
def test_where_free_cores_are_told_the_first_seconds_are_good(cores, neighbours, noise):
    machine = Machine(cores, noise, beside=neighbours)
    best = max(seconds(1, cores, neighbours) / seconds(n, cores, neighbours) for n in (1, 4, cores))
    assert machine.run(neighbours, 40, scale=9) > 0.95 * best  # the demo's steps as they are beside


def test_cores_that_become_free_are_tried_at_once_and_others_seldom():
    """A neighbour of low priority gives way, though its core is not free: only a try can tell."""
    machine = Machine(2, beside=1)
    machine.run(1, 30)
    machine.run(0, 5)
    assert machine.changes == [(1, 2)]
    used, chooser = [], Chooser(2, free=1.0)
    for _ in range(4000):
        used.append(chooser.threads)
        chooser.add(seconds(chooser.threads, 2, 2), None, 1.0)
    assert chooser.chosen == 1 and 0 < used.count(2) < 10


def test_free_cores_are_idle_ones_and_our_own(tmp_path, monkeypatch):
    cores = sorted(os.sched_getaffinity(0))

    def tell(idle, seconds, own):
        rows = [f"cpu{core} 5 0 5 {idle} 9 0 0 0 0 0" for core in cores] + ["cpu9999 0 0 0 7 0"]
        (tmp_path / "proc/stat").write_text("\n".join(["cpu 1 1 1 1 1", *rows, "intr 1"]))
        monkeypatch.setattr(threads.time, "monotonic", lambda: seconds)
        monkeypatch.setattr(threads.time, "process_time", lambda: own)

    (tmp_path / "proc").mkdir()
    tell(1000, 10.0, 1.0)
    free = FreeCores(tmp_path)
    assert free() is None
    tell(1000 + threads._TICKS, 12.0, 1.5)  # each core was idle for one second of two
    assert free() == pytest.approx(len(cores) / 2 + 0.25)
    tell(1000 + threads._TICKS, 12.01, 1.5)  # too soon to say
    assert free() == pytest.approx(len(cores) / 2 + 0.25)
    (tmp_path / "proc/stat").unlink()
    monkeypatch.setattr(threads.time, "monotonic", lambda: 20.0)
    assert free() is None


def test_neighbours_that_come_and_go_are_followed():
    machine = Machine(2, noise=0.1)
    for neighbours, best in [(0, 2), (2, 1), (0, 2), (1, 1), (0, 2), (5, 1)]:
        machine.run(neighbours, 40)
        assert machine.chooser.chosen == best
    assert machine.changes == [(2, 1), (1, 2), (2, 1), (1, 2), (2, 1)]


def test_a_neighbour_that_one_thread_does_not_feel_is_found_gone():
    machine = Machine(2)
    machine.run(1, 100)
    assert machine.chooser.chosen == 1
    machine.run(0, 170)
    assert machine.chooser.chosen == 2


def test_never_much_slower_than_one_thread():
    """Whatever happens, every 30 seconds: two threads of a crowded machine may take a hundred times
    as long, and then the step that finds it out is the only one."""
    machine, draw = Machine(2, noise=0.2), random.Random(5)
    machine.run(0, 10)
    for _ in range(60):
        assert machine.run(draw.choice([0, 1, 2, 6]), 30) > 0.9


def test_long_steps_need_few_of_them():
    machine = Machine(2)
    machine.run(2, 400, scale=200)  # nine seconds and more each
    assert machine.chooser.chosen == 1 and machine.step < 30


def test_another_kind_of_step_is_no_change_of_speed():
    machine = Machine(2)
    machine.run(0, 30)
    for k in range(200):  # the second part of a run: dearer steps, of kinds never seen
        machine.chooser.add(3 * STEP, ("second", k % 4))
    assert machine.changes == []


def test_one_core_has_nothing_to_choose():
    chooser = Chooser(1)
    for k in range(1000):
        chooser.add(1.0 + k % 7, None)
        assert chooser.threads == 1


class Steps:
    """What `chosen_threads` takes of a loop, on a machine that two neighbours share."""

    def __init__(self, folder):
        self.nimg, self.said, self.log = 0, [], JsonLines(folder / "log.jsonl")
        self.progress = self.clock = self
        self.seconds, self.say = 0.0, self.said.append

    def run(self, steps: int) -> list[int]:
        used = []
        for _ in range(steps):
            used.append(torch.get_num_threads())
            spent = seconds(used[-1], 2, 2)
            self.nimg, self.seconds = self.nimg + 8, self.seconds + spent
            self.took(spent, ("reconstruction",))
        return used


def test_the_choice_is_used_said_logged_and_taken_back(tmp_path, monkeypatch):
    now = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    monkeypatch.setattr(threads, "FreeCores", lambda: lambda: None)
    loop = Steps(tmp_path)
    loop.log.start()
    with chosen_threads(loop):
        used = loop.run(100)
    assert used[0] == 2 and used[-50:] == [1] * 50 and now == [2]
    (line,) = loop.said
    assert line == "CPU threads: 1 instead of 2, 2.7 times as fast beside what else runs here"
    (record,) = loop.log.read()
    assert record["threads"] == 1 and 0 < record["nimg"] < 800
    monkeypatch.setattr(threads, "FreeCores", lambda: lambda: 1.2)
    with chosen_threads(loop):
        assert loop.run(20) == [1] * 20
    assert loop.said[1:] == ["CPU threads: 1 instead of 2, as many as cores are free"]


@pytest.mark.parametrize(
    ("setting", "chooses"),
    [({"seconds": 1e6}, True), ({"seconds": 1e6, "threads": 1}, False), ({}, False)],
)
def test_runs_that_repeat_to_the_bit_and_explicit_numbers_keep_theirs(
    tiny, tmp_path, monkeypatch, setting, chooses
):
    entered = []
    monkeypatch.setattr(
        run, "chosen_threads", lambda loop: entered.append(1) or contextlib.nullcontext()
    )
    monkeypatch.setattr(run, "REPORT_PAIRS", 6)
    train(tiny(kimg=0.004, **setting), tmp_path)
    assert bool(entered) == chooses
