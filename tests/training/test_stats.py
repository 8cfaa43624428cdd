import json

import pytest
import torch

from rwm_fast.training.stats import JsonLines, Stats


def test_each_term_has_the_mean_over_the_steps_it_was_due_on():
    stats = Stats()
    stats.add({"a": torch.tensor(1.0), "rare": torch.tensor(4.0)})
    stats.add({"a": torch.tensor(3.0)})
    assert stats.collect() == ({"a": 2.0, "rare": 4.0}, {})
    assert stats.collect() == ({}, {})


def test_what_is_not_finite_is_counted_apart():
    stats = Stats()
    for patch in (float("nan"), 1.0, float("inf"), 3.0):
        stats.add({"good": torch.tensor(1.0), "patch": torch.tensor(patch)})
    stats.add({"never": torch.tensor(float("nan"))})
    assert stats.collect() == ({"good": 1.0, "patch": 2.0}, {"patch": 2, "never": 1})


def test_lines_come_back_and_a_torn_one_is_dropped(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    assert log.read() == []
    log.append({"nimg": 8, "loss/a": 0.123456789})
    log.append({"nimg": 16, "loss/a": 1.0})
    with open(log.path, "a") as file:
        file.write('{"nimg": 24, "lo')
    assert log.read() == [{"nimg": 8, "loss/a": 0.123457}, {"nimg": 16, "loss/a": 1.0}]
    log.keep_until(8)
    assert [json.loads(line)["nimg"] for line in log.path.read_text().splitlines()] == [8]


@pytest.mark.parametrize(
    "odd",
    [
        b"\xff\xfe",
        b"7",
        b"[1]",
        b"null",
        b"{}",
        b"",
        b"[" * 10_000,
        *(b'{"nimg": %s}' % v for v in (b'"x"', b"null", b"NaN", b"1e999", b"9" * 5000, b"true")),
    ],
)
def test_odd_lines_stop_nobody_and_stay(tmp_path, odd):
    log = JsonLines(tmp_path / "log.jsonl")
    log.append({"nimg": 8})
    with open(log.path, "ab") as file:
        file.write(odd + b"\n")
    log.append({"nimg": 16})
    assert log.read() == [{"nimg": 8}, {"nimg": 16}]
    log.keep_until(8)
    assert log.path.read_bytes() == b'{"nimg": 8}\n' + odd + b"\n"


def test_dropping_records_is_all_or_nothing(tmp_path, monkeypatch):
    log = JsonLines(tmp_path / "log.jsonl")
    for nimg in (8, 16):
        log.append({"nimg": nimg})
    before = log.path.read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("rwm_fast.disk.os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        log.keep_until(8)
    assert log.path.read_bytes() == before
    log.start()
    assert log.read() == []
