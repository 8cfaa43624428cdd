"""The log as TensorBoard events: by a writer that takes notes, and by TensorBoard's own."""

import gc
import json
import sys
import warnings
from dataclasses import replace

import pytest

from rwm_fast.config import preset
from rwm_fast.errors import UserError
from rwm_fast.training import events
from rwm_fast.training.run_folder import RunFolder

RECORDS = [
    {"nimg": 8, "seconds": 1.5, "loss/a": 0.25, "changed": {"x": 1}},
    {"nimg": 16, "seconds": 3.0, "score/b": 0.5, "init": "photos"},
]


class Notes:
    """A writer's stand-in."""

    made: list = []

    def __init__(self, folder, purge_step):
        self.folder, self.first, self.scalars, self.flushed = folder, purge_step, [], 0
        self.made.append(self)

    def add_scalar(self, *scalar):
        self.scalars.append(scalar)

    def flush(self):
        self.flushed += 1

    def close(self):
        pass


@pytest.fixture
def wanted(tmp_path):
    """A run folder, and settings that ask for events."""
    config = preset("demo")
    config = replace(config, train=replace(config.train, tensorboard=True))
    return RunFolder(tmp_path / "run"), config


def test_numbers_go_to_the_log_and_to_the_writer(wanted, monkeypatch):
    folder, config = wanted
    Notes.made = []
    monkeypatch.setattr(events, "_writer_class", lambda: Notes)
    folder.check(config)
    folder.log.start()
    for record in RECORDS:
        folder.log.append(record)
    (writer,) = Notes.made
    assert writer.scalars == [
        ("seconds", 1.5, 8),
        ("loss/a", 0.25, 8),
        ("seconds", 3.0, 16),
        ("score/b", 0.5, 16),
    ]
    assert writer.folder == str(folder.path / "tensorboard") and writer.flushed == 2
    assert folder.log.read() == RECORDS
    folder.log.keep_until(8)
    folder.log.append({"nimg": 24, "loss/a": 1.0})
    assert Notes.made[1].first == 9 and Notes.made[1].scalars == [("loss/a", 1.0, 24)]


def test_nobody_asks_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "_writer_class", lambda: pytest.fail("asked for"))
    folder = RunFolder(tmp_path / "run")
    folder.check(preset("demo"))
    folder.log.append(RECORDS[0])
    assert json.loads(folder.log.path.read_text()) == RECORDS[0]


def test_without_the_package_it_is_refused_before_anything_is_written(wanted, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"--train.tensorboard needs the package tensorboard"):
        wanted[0].check(wanted[1])
    assert not wanted[0].path.exists()


def test_tensorboard_reads_the_events(wanted):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    with warnings.catch_warnings():  # of its own packages
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder, config = wanted
        folder.check(config)
        folder.log.start()
        for record in RECORDS:
            folder.log.append(record)
        folder.log.keep_until(8)
        folder.log.append({"nimg": 12, "loss/a": 0.75})
        read = EventAccumulator(str(folder.path / "tensorboard"))
        read.Reload()
        folder.log = None
        gc.collect()
    assert {"loss/a", "seconds"} <= set(read.Tags()["scalars"])
    assert [(e.step, e.value) for e in read.Scalars("loss/a")] == [(8, 0.25), (12, 0.75)]
    assert [e.step for e in read.Scalars("seconds")] == [8]  # 16 was taken back
