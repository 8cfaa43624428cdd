import logging

import pytest
import torch

from rwm_fast.errors import UserError
from rwm_fast.training.checkpoint import Checkpoints, write_whole


class Value:
    def __init__(self, value: float):
        self.value = torch.tensor(value)

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_the_newest_state_comes_back(checkpoints):
    value = Value(0.0)
    assert checkpoints.load_latest({"v": value}) is None
    for nimg in (8, 16):
        checkpoints.save(nimg, {"v": Value(float(nimg))})
    assert checkpoints.load_latest({"v": value}) == 16
    assert value.value == 16


def test_old_ones_are_removed(tmp_path):
    for keep, left in ((2, [24, 32]), (0, [8, 16, 24, 32])):
        checkpoints = Checkpoints(tmp_path / str(keep), keep)
        for nimg in (8, 16, 24, 32):
            checkpoints.save(nimg, {})
        assert [int(p.stem.split("-")[1]) for p in checkpoints.paths()] == left


@pytest.mark.parametrize("size", [0, 1, 100, 900])
def test_a_torn_file_is_passed_over_and_said(checkpoints, caplog, size):
    for nimg in (8, 16):
        checkpoints.save(nimg, {"v": Value(float(nimg))})
    newest = checkpoints.paths()[-1]
    newest.write_bytes(newest.read_bytes()[:size])
    value = Value(0.0)
    with caplog.at_level(logging.WARNING, "rwm_fast"):
        assert checkpoints.load_latest({"v": value}) == 8
    assert value.value == 8
    assert newest.name in caplog.text and "cannot be read" in caplog.text


def test_when_all_are_torn_the_user_is_told(checkpoints):
    checkpoints.save(8, {})
    checkpoints.paths()[0].write_bytes(b"torn")
    with pytest.raises(UserError, match="all 1 are damaged"):
        checkpoints.load_latest({})


def test_a_file_of_another_version_is_refused_by_what_it_lacks(checkpoints):
    checkpoints.save(8, {"v": Value(8.0)})
    with pytest.raises(UserError, match="state-000000008.pt: expected the state of b, w, got"):
        checkpoints.load_latest({"v": Value(0.0), "w": Value(0.0), "b": Value(0.0)})


def test_an_interrupted_save_leaves_the_last_one(checkpoints, monkeypatch):
    checkpoints.save(8, {"v": Value(8.0)})
    save = torch.save

    def dies_halfway(state, path):
        save(state, path)
        path.write_bytes(path.read_bytes()[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies_halfway)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(16, {"v": Value(16.0)})
    assert checkpoints.load_latest({"v": Value(0.0)}) == 8
    assert len(list(checkpoints.folder.iterdir())) == 1  # nothing half-written lies about


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, lambda p: p.write_text("one"))
    seen = []
    write_whole(path, lambda p: (p.write_text("two"), seen.append(path.read_text())))
    assert seen == ["one"] and path.read_text() == "two"


def test_states_hold_no_code(checkpoints):
    class Sneaky(Value):
        def state_dict(self):
            return {"value": print}

    checkpoints.save(8, {"v": Sneaky(0.0)})
    with pytest.raises(UserError, match="damaged"):
        checkpoints.load_latest({"v": Value(0.0)})


def test_a_whole_file_is_readable_as_files_here_are(tmp_path):
    """Also where the writer makes a private file of its own, as safetensors does."""
    ordinary, ours = tmp_path / "ordinary", tmp_path / "ours"
    ordinary.touch()

    def write(path):
        path.unlink()
        path.touch(mode=0o600)

    write_whole(ours, write)
    assert ours.stat().st_mode == ordinary.stat().st_mode
