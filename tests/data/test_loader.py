import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from rwm_fast.config import Config, DataConfig, ModelConfig, TrainConfig, preset
from rwm_fast.data.loader import collate, make_loader, open_training_set
from rwm_fast.data.order import draws_at, picture_at
from rwm_fast.data.photos import PhotoSet
from rwm_fast.data.pool import LandscapePool
from rwm_fast.errors import UserError


@pytest.fixture
def photos(good_folder):
    def make(**options) -> PhotoSet:
        config = DataConfig(sources=(str(good_folder),), resize=16, **({"workers": 0} | options))
        return PhotoSet(config, 16, seed=5)

    return make


def take(pictures, count: int, batch_size: int = 6, **options) -> list[dict]:
    loader = make_loader(pictures, batch_size, **options)
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def same(first: list[dict], second: list[dict]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a
    )


def test_every_picture_comes_once_in_an_epoch():
    order = [picture_at(3, k, 50) for k in range(150)]
    for epoch in range(3):
        assert sorted(order[50 * epoch : 50 * epoch + 50]) == list(range(50))
    assert order[:50] != order[50:100] != list(range(50))
    assert order != [picture_at(4, k, 50) for k in range(150)]
    assert picture_at(3, 77, 50) == order[77]


def test_draws_are_uniform_and_differ_by_seed_and_position():
    u = np.array([draws_at(1, k, 4) for k in range(3000)])
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean(0) - 0.5).max() < 0.03
    assert abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.08
    assert draws_at(1, 7, 4) == u[7].tolist() != draws_at(2, 7, 4)


def test_batches_are_images_in_range_with_their_domains(photos):
    (batch,) = take(photos(), 1)
    assert batch["image"].shape == (6, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1
    assert batch["domain"].tolist() == [0] * 6 and batch["domain"].dtype == torch.int64


@pytest.mark.parametrize("kind", ["kept", "reread", "landscapes"])
def test_resuming_continues_the_stream(photos, kind):
    pictures = {
        "kept": lambda: photos(zoom=(1, 1.4)),
        "reread": lambda: photos(cache_mb=0.0, zoom=(1, 1.4)),
        "landscapes": lambda: LandscapePool(20, 16),
    }[kind]
    straight = take(pictures(), 9)
    resumed = take(pictures(), 3) + take(pictures(), 6, start=18)
    assert same(straight, resumed)
    assert not same(straight[:1], straight[1:2])


def test_batch_size_does_not_change_the_stream(photos):
    image = lambda batches: torch.cat([b["image"] for b in batches])
    assert torch.equal(image(take(photos(), 4, 6)), image(take(photos(), 3, 8)))


def test_worker_processes_and_threads_give_the_same_stream(photos, monkeypatch):
    """After parallel work in this process, which is what makes forked workers hang."""
    torch.rand(400, 400) @ torch.rand(400, 400)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    alone = take(photos(cache_mb=0.0), 8)
    before = torch.get_rng_state()
    assert same(alone, take(photos(cache_mb=0.0, workers=2), 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(take(photos(), 8), take(photos(workers=2), 8))


def test_trouble_while_loading_reaches_the_report_or_stops(photos, good_folder):
    pictures = photos(cache_mb=0.0)
    loader = make_loader(pictures, 6)
    (good_folder / pictures.training[3].name).unlink()
    for _ in range(12):
        next(loader)
    assert [bad.name for bad in pictures.unreadable] == [str(pictures.training[3])]
    for photo in pictures.training[4:9]:
        (good_folder / photo.name).write_bytes(b"")
    with pytest.raises(UserError, match="pictures .* cannot be read"):
        for _ in range(12):
            next(loader)
    loader.close()


@pytest.mark.parametrize("cache_mb", [1000.0, 0.0])
def test_a_closed_loader_has_no_thread_left(photos, cache_mb):
    known = set(threading.enumerate())
    loader = make_loader(photos(cache_mb=cache_mb, workers=2), 6)
    next(loader)
    assert set(threading.enumerate()) > known
    loader.close()
    assert set(threading.enumerate()) <= known


@pytest.fixture
def by_processes(photos, monkeypatch):
    """A loader with two processes, and their process ids."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    loader = make_loader(photos(cache_mb=0.0, workers=2), 6)
    next(loader)
    yield loader, [worker._process.pid for worker in loader._batches._workers]
    loader.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_dead_worker_ends_the_batches_with_its_reason(by_processes):
    loader, pids = by_processes
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(UserError, match=r"has died \(signal 9\); .* memory ran out"):
        for _ in range(40):
            next(loader)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_stuck_worker_ends_the_batches_with_its_reason(by_processes, monkeypatch):
    monkeypatch.setattr("rwm_fast.data.loader.STUCK_SECONDS", 2.0)
    loader, pids = by_processes
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(UserError, match="no picture has arrived for 2 s"):
        for _ in range(40):
            next(loader)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_workers_are_out_of_reach_of_ctrl_c_and_die_with_the_loader(by_processes):
    loader, pids = by_processes
    groups = {os.getpgid(pid) for pid in pids}
    assert len(groups) == len(pids) and os.getpgid(0) not in groups
    loader.close()
    with pytest.raises(StopIteration):
        next(loader)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


SCRIPT = """
import sys
from rwm_fast.config import DataConfig
from rwm_fast.data.loader import make_loader
from rwm_fast.data.photos import PhotoSet

pictures = PhotoSet(DataConfig(sources=(sys.argv[1],), resize=16, cache_mb=0, workers=1), 16)
loader = make_loader(pictures, 4)
next(loader)
print(loader._batches._workers[0]._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_script_needs_no_guard_and_its_kill_leaves_no_orphan(good_folder, tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "mine.py", good_folder]
    pipe = subprocess.PIPE
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as process:
        worker = int(process.stdout.readline())
        process.kill()
    for _ in range(600):
        if not alive(worker):
            break
        time.sleep(0.1)
    assert not alive(worker)


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_open_training_set_follows_the_config(good_folder):
    config = replace(preset("demo"), data=DataConfig(pool=5, resize=64))
    landscapes = open_training_set(config)
    assert isinstance(landscapes, LandscapePool) and len(landscapes) == 5
    assert landscapes.image_size == 64
    model = ModelConfig()
    config = Config(
        model=model, data=DataConfig(sources=(str(good_folder),)), train=TrainConfig(seed=3)
    )
    photos = open_training_set(config)
    assert isinstance(photos, PhotoSet) and photos.image_size == 256 and photos.seed == 3


def test_refuses_batches_that_do_not_divide():
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        make_loader(LandscapePool(2, 8), 0)


def test_a_process_that_reads_pictures_comes_up_without_torch():
    """Two hundred megabytes and seconds, for each of them."""
    code = (
        "import sys, rwm_fast.data.worker, rwm_fast.data.photos; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


def test_pictures_finished_for_a_cpu_are_those_that_a_device_finishes():
    crops = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    samples = [(crop, 0, []) for crop in crops]
    levels, finished = collate(samples)[0], collate(samples, finished=True)[0]
    assert levels.dtype == torch.uint8 and finished.dtype == torch.float32
    assert torch.equal(finished, levels.float().div_(127.5).sub_(1))
    assert (finished.min(), finished.max()) == (-1, 1)
