"""Two processes of the CPU train as one does, stop and fail as one, and go on as one or as two."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import one_of_several
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from states import same

from rwm_fast.errors import UserError
from rwm_fast.training import heartbeat, processes
from rwm_fast.training.processes import Processes, joined
from rwm_fast.training.run import check_batch, train

SCRIPT = Path(one_of_several.__file__)


@pytest.fixture
def several(tiny, tmp_path):
    """Runs two processes; returns their exit statuses and what they said."""

    def start(what, out, config, count=2, stopped=None):
        """`stopped`: the process that stops, on another machine as far as it knows."""
        (tmp_path / "config.json").write_text(config.to_json())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable, SCRIPT, what, tmp_path / "config.json", tmp_path / out]
        known = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        known |= {"OMP_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "lo"}
        known |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        children = []
        for rank in range(count):
            local = rank if stopped is None else 0
            own = {name: str(v) for name, v in (known | dict(RANK=rank, LOCAL_RANK=local)).items()}
            children.append(
                subprocess.Popen(
                    words, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            )
        try:
            if stopped is not None:
                children[1 - stopped].wait(timeout=120)
                children[stopped].kill()
            said = [child.communicate(timeout=300)[0].decode() for child in children]
        finally:
            for child in children:
                child.kill()
        return [child.returncode for child in children], said

    return start


def test_two_processes_make_the_steps_of_one(tiny, several, tmp_path):
    """Losses and weights to float32 rounding, through R1's and consistency's second order; a step
    that is not finite in one is left out by both."""
    config = tiny(dict(content_jitter=1.0, r1_interval=1, consistency_interval=1))
    statuses, said = several("steps", "found", config)
    assert statuses == [0, 0], said
    found, other = (torch.load(tmp_path / f"found-{rank}") for rank in range(2))
    for name, each in one_of_several.variants(config).items():
        for k, (terms, nets, skipped) in enumerate(one_of_several.steps(each)):
            close = dict(rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")
            terms_there, nets_there, skipped_there = found[name][k]
            assert skipped == skipped_there == float(k == 1)
            torch.testing.assert_close(terms_there, terms, **close)
            torch.testing.assert_close(nets_there, nets, **close)
            torch.testing.assert_close(other[name][k][1], nets_there, rtol=0, atol=0)


def state(folder, nimg):
    return torch.load(folder / "checkpoints" / f"state-{nimg:09d}.pt", weights_only=True)


def test_a_run_goes_on_in_as_many_processes_bit_for_bit_and_in_one(
    tiny, several, tmp_path, monkeypatch
):
    for name in ("REPORT_PAIRS", "SAMPLE_PAIRS"):
        monkeypatch.setattr(f"rwm_fast.training.run.{name}", 4)
    config = tiny(dict(r1_interval=1), kimg=0.016, checkpoint_kimg=0.008, keep_checkpoints=0)
    statuses, said = several("run", "straight", config)
    assert statuses == [0, 0], said
    assert "2 processes" in said[0] and not said[1]
    straight = state(tmp_path / "straight", 16)
    for name in ("two", "one"):
        shutil.copytree(tmp_path / "straight", tmp_path / name)
        (tmp_path / name / "checkpoints" / "state-000000016.pt").unlink()
        (tmp_path / name / "checkpoints" / "best.pt").unlink()
    statuses, said = several("run", "two", config)
    assert statuses == [0, 0] and "going on after 0.008 kimg" in said[0], said
    again = state(tmp_path / "two", 16)
    assert all(same(again[part], straight[part]) for part in straight.keys() - {"clock"})
    train(config, tmp_path / "one")
    for part in ("encoder", "generator", "discriminator", "patches", "ema"):
        one = state(tmp_path / "one", 16)[part]
        torch.testing.assert_close(one, straight[part], rtol=1e-4, atol=1e-5)
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert [r["nimg"] for r in log if "loss/patch" in r] == [4, 8, 12, 16]


@pytest.mark.parametrize(
    ("what", "statuses", "said_first", "said_second", "saved"),
    [
        ("killed", [2, -9], "another process of the job is gone", "", 8),
        ("unreadable", [2, 2], "process 1 of 2 has failed", "error: no pictures any more", 8),
        ("asked", [130, 130], "stopped after 0.008 kimg", "", 8),
    ],
)
def test_what_ends_one_ends_all_and_the_first_saves(
    tiny, several, tmp_path, what, statuses, said_first, said_second, saved
):
    found, said = several(what, "run", tiny())
    assert found == statuses, said
    assert said_first in said[0] and said_second in said[1], said
    assert "Traceback" not in said[0] + said[1]
    assert state(tmp_path / "run", saved)["nimg"] == saved


@pytest.mark.parametrize(("what", "stopped"), [("stopped", 1), ("first stopped", 0)])
def test_who_falls_silent_ends_the_job_and_who_is_slow_does_not(
    tiny, several, tmp_path, what, stopped
):
    """A stopped process is like a machine without power: its connections stay open. Before it
    stops it is slow for longer than it may be silent."""
    found, said = several(what, "run", tiny(checkpoint_kimg=0.004), stopped=stopped)
    assert found[1 - stopped] == 2 and found[stopped] == -9, said
    assert f"process {stopped} of 2 has given no sign of life for 2 s" in said[1 - stopped]
    assert "Traceback" not in said[1 - stopped]
    assert state(tmp_path / "run", 8)["nimg"] == 8


def test_what_one_cannot_read_is_named_once_by_the_first(tiny, several, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(8):
        Image.new("RGB", (24, 24), (30 * k, 90, 200)).save(folder / f"{k}.png")
    config = tiny(kimg=0.016)
    data = replace(config.data, sources=(str(folder),), workers=0, max_bad_fraction=0.25)
    statuses, said = several("spoilt", "run", replace(config, data=data))
    assert statuses == [0, 0], said
    for name in ("0.jpg", "1.jpg"):
        assert (said[0] + said[1]).count(f"{name} cannot be read any more: gone") == 1, said
        assert name in said[0]
    report = json.loads((tmp_path / "run" / "pictures.json").read_text())
    assert [bad["name"] for bad in report["unreadable"]] == ["0.jpg", "1.jpg"]
    shutil.rmtree(tmp_path / "run")  # together they are too many, though for neither alone
    data = replace(data, max_bad_fraction=0.2)
    statuses, said = several("spoilt", "run", replace(config, data=data))
    assert statuses == [2, 2], said
    assert "2 of 8 pictures in" in said[0] and "0.jpg: gone" in said[0]
    assert "2 of 8 pictures" not in said[1]


def test_a_batch_is_that_of_all_processes(tiny):
    check_batch(tiny(batch=8, accumulate=2), Processes(1, 2))
    with pytest.raises(UserError, match="--batch: expected a multiple of 6, .* got 8"):
        check_batch(tiny(batch=8), Processes(1, 3))
    with pytest.raises(ValueError, match="train.accumulate must divide the 4 pairs of a batch"):
        replace(tiny().train, batch=8, accumulate=3)


def test_a_job_without_a_meeting_place_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="WORLD_SIZE is 2, expected LOCAL_RANK, MASTER_ADDR"):
        with joined():
            pass


def test_a_gpu_of_its_own_for_every_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (
        Processes(5, 8, 1).device("auto") == "cuda:1" and Processes(5, 8, 1).device("cpu") == "cpu"
    )
    assert Processes().device("cuda:3") == "cuda:3"
    with pytest.raises(UserError, match="--device: expected auto, cpu or cuda with several"):
        Processes(0, 2).device("cuda:0")


def test_no_thread_outlives_a_job_that_failed(monkeypatch):
    """One that gives signs of life at Python's end would abort the process, whatever its status."""
    monkeypatch.setattr(heartbeat, "SECONDS", 1e-3)
    job = Processes(0, 2, store=dist.HashStore())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_join", lambda: job)
    with pytest.raises(OSError), joined():
        job._connected = False  # what a failure leaves
        raise OSError
    assert not job._alive._thread.is_alive()
