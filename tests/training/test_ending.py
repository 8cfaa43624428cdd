"""Every way for a run to end, and that its last finished step is kept."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_run import final_state, records, same

from rwm_fast.data.worker import WorkerError
from rwm_fast.errors import UserError
from rwm_fast.training.ending import StopSignal, stops_interrupt
from rwm_fast.training.lock import Lock
from rwm_fast.training.loop import Loop
from rwm_fast.training.report import Snapshots
from rwm_fast.training.run import train
from rwm_fast.training.step import Method
from rwm_fast.training.trainer import Trainer

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and locks of POSIX")


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    for name, count in (("REPORT_PAIRS", 6), ("SAMPLE_PAIRS", 4)):
        monkeypatch.setattr(f"rwm_fast.training.run.{name}", count)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Keeps the states of an undisturbed run, made once, by images seen."""
    folder = tmp_path_factory.mktemp("straight")

    def state(config, nimg) -> dict:
        if not any(folder.iterdir()):
            often = replace(config.train, checkpoint_kimg=0.004, keep_checkpoints=0)
            train(replace(config, train=often), folder)
        path = folder / "checkpoints" / f"state-{nimg:09d}.pt"
        return torch.load(path, weights_only=True)

    return state


def breaks(method: str, nth: int, error: BaseException, owner, monkeypatch) -> None:
    """The nth call of a method raises."""
    calls, original = [], getattr(owner, method)

    def wrapped(self, *arguments, **keywords):
        calls.append(0)
        if len(calls) == nth:
            raise error
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(owner, method, wrapped)


@pytest.mark.parametrize(
    ("owner", "method", "nth", "nimg"),
    [
        (Trainer, "step", 7, 24),
        (Method, "discriminator_terms", 7, 24),
        (Method, "r1_terms", 7, 24),
        (Method, "autoencoder_terms", 1, 0),
        (Method, "autoencoder_terms", 7, 24),  # the discriminators have learned from it already
        (Loop, "tick", 7, 24),
        (Snapshots, "sample", 1, 20),
    ],
)
def test_an_error_of_any_sort_leaves_the_last_finished_step(
    tiny, tmp_path, monkeypatch, straight, owner, method, nth, nimg
):
    """What goes on from there is, to the bit, what would have been."""
    config = tiny(loss=dict(r1_interval=1))
    reference = straight(config, 40)
    with monkeypatch.context() as patch:
        patch.setattr("rwm_fast.training.run.REPORT_PAIRS", 6)
        breaks(method, nth, RuntimeError("odd"), owner, patch)
        with pytest.raises(RuntimeError, match="odd"):
            train(config, tmp_path)
    assert final_state(tmp_path)["nimg"] == nimg
    assert train(config, tmp_path)["kimg"] == 0.04
    newest = final_state(tmp_path)
    for name in ("encoder", "generator", "discriminator", "patches", "ema", "counts"):
        assert same(newest[name], reference[name]), name


def test_errors_that_the_user_can_mend_are_one_sentence(tiny, tmp_path, monkeypatch, capsys):
    sentences = {
        WorkerError("a process has died (signal 9)"): "has died (signal 9); saved as",
        OSError(errno.ENOSPC, "No space left", "x.png"): "x.png: No space left; saved as",
        MemoryError(): "memory ran out (--train.accumulate 2 takes",
        RuntimeError(
            "[enforce] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
            "4096 bytes."
        ): "memory ran out, asking for 4096 bytes (--train",
        torch.OutOfMemoryError("Tried to allocate 2.00 GiB."): "asking for 2.00 GiB (--train",
    }
    for k, (error, text) in enumerate(sentences.items()):
        with monkeypatch.context() as patch:
            breaks("sample", 1, error, Snapshots, patch)
            with pytest.raises(UserError) as caught:
                train(tiny(), tmp_path / str(k))
        said = str(caught.value)
        assert said.startswith("training stopped after 0.020 kimg: ") and text in said
        assert "\n" not in said


def test_a_full_disk_leaves_the_last_good_state(tiny, tmp_path, monkeypatch):
    def full(state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def arrange(*_):
        monkeypatch.setattr(torch, "save", full)

    config = tiny(checkpoint_kimg=0.012)
    sample = Snapshots.sample
    monkeypatch.setattr(Snapshots, "sample", lambda *a: (arrange(), sample(*a))[1])
    with pytest.raises(UserError, match="No space left .*last good state is .*state-000000012.pt"):
        train(config, tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["state-000000012.pt"]
    monkeypatch.undo()
    assert final_state(tmp_path)["nimg"] == 12


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 1)])
def test_signals_ask_and_what_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.default_int_handler)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), number)
            assert stop.asked
        signal.signal(number, signal.SIG_IGN)
        with StopSignal() as stop:
            os.kill(os.getpid(), number)
            assert not stop.asked
    finally:
        signal.signal(number, before)


@posix
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_warnings_of_a_cluster_ask_unless_they_are_used_otherwise(name):
    number, seen = getattr(signal, name), []
    before = signal.getsignal(number)
    try:
        for mine in (signal.SIG_DFL, lambda *_: seen.append(number)):
            signal.signal(number, mine)
            with stops_interrupt(), StopSignal() as stop:
                os.kill(os.getpid(), number)
                assert stop.asked == (mine is signal.SIG_DFL)
            assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)
    assert seen == [number]


def test_a_reader_that_is_gone_stops_and_saves(tiny, tmp_path, monkeypatch):
    class Closed:
        def __init__(self):
            self.left = 3

        def write(self, text):
            self.left -= 1
            if self.left < 0:
                raise BrokenPipeError

        def flush(self):
            pass

        def isatty(self):
            return False

    monkeypatch.setattr("sys.stderr", Closed())
    monkeypatch.setattr("rwm_fast.training.progress.PLAIN_SECONDS", 0.0)
    assert train(tiny(kimg=1e3), tmp_path) is None
    assert final_state(tmp_path)["nimg"] < 400


@posix
def test_one_process_at_a_time(tiny, tmp_path):
    other = Lock(tmp_path)
    other.take()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        train(tiny(kimg=0.004), tmp_path)
    other.release()
    assert train(tiny(kimg=0.004), tmp_path)


def test_a_folder_that_is_taken_away_is_made_anew(tiny, tmp_path, at_step):
    folder = tmp_path / "run"
    at_step(24, lambda: folder.rename(tmp_path / "gone"))
    assert train(tiny(), folder)["kimg"] == 0.04
    assert (folder / "config.json").exists() and (folder / "pictures.json").exists()
    assert final_state(folder)["nimg"] == 40


@pytest.fixture
def at_step(monkeypatch):
    def arrange(wanted, action):
        step = Trainer.step

        def wrapped(self, image, nimg, *rest):
            if nimg == wanted:
                action()
            return step(self, image, nimg, *rest)

        monkeypatch.setattr(Trainer, "step", wrapped)

    return arrange


def test_without_its_settings_file_a_run_is_still_known(tiny, tmp_path):
    config = tiny(kimg=0.008)
    train(config, tmp_path)
    (tmp_path / "config.json").unlink()
    other = replace(config, train=replace(config.train, seed=3))
    with pytest.raises(UserError, match="train.seed 0 there, 3 here"):
        train(other, tmp_path)
    assert train(config, tmp_path)["kimg"] == 0.008


def test_a_run_that_left_no_state_leaves_no_log(tiny, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"nimg": 4, "loss/patch": 1}\n')
    train(tiny(kimg=0.008), tmp_path)
    assert [r["nimg"] for r in records(tmp_path) if "loss/patch" in r] == [4, 8]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    for k in range(6):
        Image.new("RGB", (20, 20 + k), (40 * k, 100, 50)).save(folder / f"{k}.png")
    return folder


def test_a_run_is_its_pictures_wherever_they_lie(tiny, tmp_path, photos, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = tiny(kimg=0.004)

    def go(source, kimg):
        data = replace(config.data, sources=(str(source),), workers=0)
        return train(replace(config, data=data, train=replace(config.train, kimg=kimg)), "run")

    assert go("p", 0.004)
    photos.rename(tmp_path / "q")
    assert go("q", 0.008)["kimg"] == 0.008
    assert "pictures of before" not in capsys.readouterr().err
    Image.new("RGB", (20, 33)).save("q/7.png")
    assert go("q", 0.012)
    assert "changed: 6 of the 6 pictures of before, and 1 new ones" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    for k in range(6):
        Image.new("RGB", (40, 40 + k)).save(f"other/{k}.jpg")
    with pytest.raises(UserError, match="a run on other pictures .0 of its 7 are among the 6 here"):
        go("other", 0.016)


def test_a_run_starts_from_another_ones_networks(tiny, tmp_path, capsys, caplog):
    config = tiny(kimg=0.008)
    train(config, tmp_path / "a")
    for source in ("a", "a/weights.safetensors"):
        capsys.readouterr()
        rates = dict(learning_rate=1e-9, discriminator_learning_rate=1e-9, kimg=0.004)
        tuned = replace(config, train=replace(config.train, **rates))
        out = tmp_path / f"b-{len(source)}"
        train(tuned, out, init=tmp_path / source)
        assert "starting from" in capsys.readouterr().err
        donor = final_state(tmp_path / "a")
        donor = donor["encoder"] if source == "a" else donor["ema"]["encoder"]
        torch.testing.assert_close(final_state(out)["encoder"], donor, rtol=0, atol=1e-6)
        train(tuned, out, init=tmp_path / source)
        assert "is not used: the run has begun" in capsys.readouterr().err
    wider = replace(config, model=replace(config.model, style_dim=12))
    train(wider, tmp_path / "c", init=tmp_path / "a")
    assert "do not fit and stay random, for example" in caplog.text
    with pytest.raises(UserError, match="no weights at"):
        train(config, tmp_path / "d", init=tmp_path / "nowhere")


@posix
def test_closed_streams_harm_nothing(tmp_path):
    """Standard error and output closed from the start: nothing is written into the run's files."""
    arguments = "--kimg 0.02 --data.pool 8 --train.threads 1 --train.sample-kimg 100".split()
    code = (
        "import os, sys; os.close(1); os.close(2); import rwm_fast.train as t, "
        "rwm_fast.training.run as r; r.SAMPLE_PAIRS = r.REPORT_PAIRS = 2; "
        "sys.exit(t.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments, "--out", str(tmp_path / "r")]
    assert subprocess.run(command, timeout=600).returncode == 0
    assert final_state(tmp_path / "r")["nimg"] >= 20


@posix
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, mounts")
def test_the_storm_in_its_short_form():
    """A process of its own: it forks."""
    storm = Path(__file__).parents[2] / ".ci" / "storm.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, storm, "--short"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
