import logging

import pytest
import torch

from rwm_fast.disk import write_whole
from rwm_fast.errors import UserError
from rwm_fast.training.checkpoint import Checkpoints


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

    def dies_halfway(state, file):
        save(state, file)
        file.truncate(50)
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


def numbers(checkpoints) -> list[int]:
    return [int(p.stem.split("-")[1]) for p in checkpoints.paths()]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_damaged_files_push_out_no_good_ones(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    for nimg in range(8, 8 * keep + 1, 8):
        checkpoints.save(nimg, {"v": Value(float(nimg))})
    torn = [tmp_path / f"state-{nimg:09d}.pt" for nimg in range(100, 100 + keep)]
    for path in torn:
        path.write_bytes(b"torn")
    for nimg in (64, 72):  # lower numbers than the torn ones have
        checkpoints.save(nimg, {"v": Value(float(nimg))})
        good = [n for n in numbers(checkpoints) if n < 100]
        assert nimg in good and len(good) >= keep
    value = Value(0.0)
    assert Checkpoints(tmp_path, keep).load_latest({"v": value}) == 72 and value.value == 72
    for nimg in range(104, 108):  # beyond the torn ones: now they go
        checkpoints.save(nimg, {"v": Value(float(nimg))})
    assert numbers(checkpoints) == list(range(108 - keep, 108))


def test_every_bit_that_matters_is_seen(checkpoints, caplog):
    """One bit at a time, all over the file: passed over, or what comes back is what was saved."""
    for nimg in (8, 16):
        checkpoints.save(nimg, {"v": Value(float(nimg))})
    newest = checkpoints.paths()[-1]
    content, noticed = newest.read_bytes(), 0
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        newest.write_bytes(flipped)
        value = Value(0.0)
        nimg = checkpoints.load_latest({"v": value})
        assert value.value == nimg and nimg in (8, 16)
        noticed += nimg == 8
    assert noticed > 50


def test_a_state_that_does_not_fit_changes_nothing_and_the_one_before_is_used(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=0)
    one, other = Value(1.0), Value(2.0)
    checkpoints.save(8, {"a": one, "b": other})
    odd = [
        {"a": Value(0.0), "b": Value([1.0, 2.0])},
        {"a": Value(0.0)},
        {"a": Value(0.0), "b": Listed()},
    ]
    for k, objects in enumerate(odd):
        checkpoints.save(16 + k, objects)
    torch.save([1], checkpoints.path(30))
    torch.save({"a": one.state_dict(), "b": other.state_dict(), "nimg": "x"}, checkpoints.path(31))
    a, b = Value(5.0), Value(5.0)
    with caplog.at_level(logging.WARNING, "rwm_fast"):
        assert Checkpoints(checkpoints.folder).load_latest({"a": a, "b": b}) == 8
    assert (a.value, b.value) == (1.0, 2.0)
    for reason in (
        "b.value must be float32 [], got float32 [2]",
        "expected the state of b, got another version's",
        "b must be a dictionary, got list",
        "expected the state of a, b, got",
        "nimg must be a number of images, got 'x'",
    ):
        assert reason in caplog.text, reason


class Listed:
    def state_dict(self):
        return [1]


def test_adams_state_is_looked_at_before_it_is_taken(checkpoints):
    def adam(*shapes):
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        optimizer = torch.optim.Adam(parameters, fused=True)
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        return optimizer

    checkpoints.save(8, {"o": adam((2,), (3,))})
    fresh = torch.optim.Adam([torch.zeros(2), torch.zeros(3)], fused=True)
    assert checkpoints.load_latest({"o": fresh}) == 8 and fresh.state
    for shapes, message in (
        (((2,), (4,)), r"o.state.1.exp_avg must be float32 \[4\], got float32 \[3\]"),
        (((2,),), "o.0.params must be 1 values"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.load_latest({"o": adam(*shapes)})


def test_the_best_one_stays_and_is_the_last_resort(checkpoints):
    value = Value(0.0)
    checkpoints.write(checkpoints.best, 4, {"v": Value(4.0)}, score=("l1", 0.5))
    assert checkpoints.best_score() == ("l1", 0.5)
    for nimg in (8, 16, 24):
        checkpoints.save(nimg, {"v": Value(float(nimg))})
    assert checkpoints.load_latest({"v": value}) == 24
    for path in checkpoints.paths():
        path.write_bytes(b"torn")
    assert checkpoints.load_latest({"v": value}) == 4 and value.value == 4
    assert checkpoints.loaded == checkpoints.best
    checkpoints.best.write_bytes(b"torn")
    assert checkpoints.best_score() is None and checkpoints.newest() is None


def test_what_a_kill_left_half_written_goes(checkpoints):
    checkpoints.save(8, {"v": Value(8.0)})
    (checkpoints.folder / "state-000000016.pt.partial").write_bytes(b"half")
    checkpoints.clean()
    assert [p.name for p in checkpoints.folder.iterdir()] == ["state-000000008.pt"]
