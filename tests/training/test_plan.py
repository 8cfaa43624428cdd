"""What a run is told to need: counted on tensors without memory, for the device at hand."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rwm_fast.device import Memory
from rwm_fast.errors import UserError
from rwm_fast.training import plan as planning
from rwm_fast.training.plan import Live, lower, needed, said
from rwm_fast.training.processes import Processes
from rwm_fast.training.run import train
from rwm_fast.training.trainer import Trainer

CPU = torch.device("cpu")


def test_live_counts_what_is_there_at_a_time():
    with Live() as live:
        a = torch.empty(1000, device="meta")
        b = a + 1  # two of 4000 bytes
        view = b[:10]
        del a, b
        assert live.now == 4000  # the view holds its whole storage
        del view
        c = torch.empty(500, device="meta")
    assert (live.now, live.peak) == (2000, 8000)
    assert live.heap_peak == int(8000 * planning.HEAP)
    del c


def test_parameters_are_left_out_and_large_blocks_go_back_whole():
    weight = torch.empty(planning.SMALL // 4, device="meta")
    with Live() as live:
        live.leave_out(weight)
        weight.mul_(2)
        assert live.now == 0
        weight * 2
    assert live.peak == live.heap_peak == planning.SMALL


def test_a_step_grows_with_the_pictures_in_memory_and_the_state_does_not(tiny):
    whole = needed(tiny(batch=16), torch.float32)
    half = needed(tiny(batch=16, accumulate=2), torch.float32)
    assert (whole.rows, half.rows) == (16, 8) and whole.state == half.state
    assert 0.4 * whole.step < half.step < 0.7 * whole.step
    shared = needed(tiny(batch=16), torch.float32, processes=2)
    assert shared.rows == 8 and shared.state > whole.state  # and what gradients are summed in
    assert half.step < shared.step < 0.7 * whole.step  # painted once for both sides


@pytest.mark.parametrize("order", ["shared", "alternate"])
def test_every_update_is_rehearsed(tiny, order, monkeypatch):
    add = planning.total
    for gamma, r1 in ((0.0, []), (1.0, ["r1"])):
        config = tiny(loss={"r1_gamma": gamma, "r1_patch_gamma": 0.0}, step_order=order)
        seen: list[dict] = []
        monkeypatch.setattr(planning, "total", lambda terms, s=seen: s.append(terms) or add(terms))
        planning.rehearse(config, planning.meta_networks(config, torch.float32), 4)
        first = ["d_real", *r1, "reconstruction"]
        assert len(seen) == len(first)
        assert all(name in terms for name, terms in zip(first, seen, strict=True))


@pytest.mark.parametrize(("free", "fits"), [(2**40, True), (2**20, False)])
def test_it_is_said_whether_it_fits(tiny, monkeypatch, free, fits):
    monkeypatch.setattr(planning, "memory", lambda device: Memory(free, 2**40))
    lines = said(tiny(batch=8), torch.float32, CPU)
    assert lines[0].startswith("memory: 0.") and "a step of 8 pictures in float32" in lines[0]
    assert f"{free / 2**30:.1f} of 1024.0 GiB are free" in lines[1]
    assert len(lines) == 3 - fits
    if not fits:
        assert lines[2].startswith("this will not fit; --train.accumulate 2 takes a step from 0.0")


def test_several_processes_of_a_machine_share_its_memory(tiny, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config, job = tiny(batch=8), Processes(0, 2, 0)
    need = needed(config, torch.float32, 2).on(CPU)
    for free, fits in ((2 * need, True), (2 * need - 1, False)):
        monkeypatch.setattr(planning, "memory", lambda device, f=free: Memory(f, 2**40))
        lines = said(config, torch.float32, CPU, job)
        assert "GiB in each process: " in lines[0] and "free for 2 processes" in lines[1]
        assert (len(lines) == 2) == fits


def test_what_to_lower_is_named_with_its_effect(tiny):
    config = tiny(batch=12)
    step = [f"{needed(c, torch.float32).step / 2**30:.2f}" for c in (config, tiny(batch=6))]
    text = lower(config, torch.float32)
    assert f"--train.accumulate 2 takes a step from {step[0]} to " in text
    assert f"--batch 6 takes a step from {step[0]} to {step[1]} GiB, in a new run" in text
    assert "--train.accumulate 3 " in lower(replace(config, train=replace(config.train, batch=6)),
                                            torch.float32)  # fmt: skip
    assert lower(tiny(batch=2), torch.float32).startswith("--precision bf16 takes a step from 0.")
    assert "--model.image-size" in lower(tiny(batch=2), torch.bfloat16)


def test_where_memory_has_run_out_the_setting_is_told_all_the_same(tiny, monkeypatch):
    def fails(*arguments):
        raise MemoryError

    monkeypatch.setattr(planning, "needed", fails)
    assert lower(tiny(), torch.float32).startswith("a larger --train.accumulate holds less")


def test_a_run_that_runs_out_of_memory_says_what_to_lower(tiny, tmp_path, monkeypatch, capsys):
    """A step asks for a petabyte: the error is the machine's own."""
    monkeypatch.setattr(Trainer, "step", lambda *a: torch.empty(1 << 48))
    with pytest.raises(UserError) as caught:
        train(tiny(), tmp_path)
    said = str(caught.value)
    assert said.startswith("training stopped after 0.000 kimg: memory ran out, asking for ")
    assert "(--train.accumulate 2 takes a step from 0.0" in said and "\n" not in said
    shown = capsys.readouterr().err
    assert "memory: 0.0" in shown and " GiB are free" in shown


LIMITED = """
import resource, sys
from rwm_fast.train import main
from rwm_fast.training.loop import Loop
step = Loop.step
def limited(self, image):
    if self.nimg:  # threads and libraries are there: what a larger step needs is not
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), -1))
        image = image.repeat(128, 1, 1, 1)
    step(self, image)
Loop.step = limited
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits are told by Linux")
def test_a_process_with_little_address_space_ends_with_what_to_lower(tmp_path):
    """The command, whose second step needs more than the system gives."""
    words = ["--data.pool", "16", "--train.threads", "1", "--kimg", "0.024"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words, "--out", str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: training stopped after 0.008 kimg: memory ran out"), last
    assert "--train.accumulate 2 takes a step from 0." in last or "a larger --train.acc" in last
    assert "Traceback" not in done.stderr and "the same command goes on" in last
