import json

import pytest
import torch

from rwm_fast.training.stats import JsonLines, NotFiniteError, Stats


def test_each_term_has_the_mean_over_the_steps_it_was_due_on():
    stats = Stats()
    stats.add({"a": torch.tensor(1.0), "rare": torch.tensor(4.0)})
    stats.add({"a": torch.tensor(3.0)})
    assert stats.collect() == {"a": 2.0, "rare": 4.0}
    assert stats.collect() == {}


def test_a_term_that_is_not_finite_is_named():
    stats = Stats()
    stats.add({"good": torch.tensor(1.0), "patch": torch.tensor(float("nan"))})
    stats.add({"good": torch.tensor(1.0), "patch": torch.tensor(1.0)})
    with pytest.raises(NotFiniteError, match="patch = nan"):
        stats.collect()


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
