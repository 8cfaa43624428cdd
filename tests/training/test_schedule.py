"""The table of terms: what is due at which step, for every preset."""

import pytest

from rwm_fast.config import PRESETS, LossConfig, TrainConfig, preset
from rwm_fast.training.schedule import Counts, Schedule

BASE = {"reconstruction", "gan_reconstructed", "gan_swapped", "patch"}
CONSISTENCY = {"consistency_content", "consistency_style"}
JUDGED = {"d_real", "d_reconstructed", "d_swapped", "d_patch_real", "d_patch_swapped"}
R1 = {"r1", "r1_patch"}


def steps(name: str, count: int, progress: float) -> list:
    """What is due at the first steps of a part of a run."""
    config, counts, found = preset(name), Counts(), []
    schedule = Schedule(config.loss, config.train)
    for k in range(count):
        due = schedule.due(k * config.train.batch, progress, counts)
        counts.advance(due)
        found.append(due)
    return found


@pytest.mark.parametrize("name", ["paper-256", "paper-512", "paper-1024", "small-128"])
def test_paper_presets_take_turns(name):
    due = steps(name, 66, 0.0)
    for k in range(0, 66, 2):
        assert set(due[k].discriminators) == JUDGED and due[k].autoencoder is None
        assert set(due[k].r1) == (R1 if k % 32 == 0 else set())
        lazy = CONSISTENCY if k % 32 == 0 else set()
        assert set(due[k + 1].autoencoder) == BASE | {"content_alignment"} | lazy
        assert due[k + 1].discriminators is None and not due[k + 1].r1


def test_base_presets_take_turns_and_end_every_sixteenth_with_r1():
    due = steps("base-256", 66, 0.0)
    for k in range(0, 66, 2):
        assert set(due[k].discriminators) == JUDGED and due[k].autoencoder is None
        assert set(due[k].r1) == (R1 if k in (30, 62) else set())  # the 16th and the 32nd
        assert set(due[k + 1].autoencoder) == BASE and due[k + 1].discriminators is None


def test_the_demo_reconstructs_first_and_then_trains_both_sides():
    for k, due in enumerate(steps("demo", 8, 0.79)):
        lazy = {"content_alignment"} if k % 2 == 0 else set()
        assert due.first_part and set(due.autoencoder) == {"reconstruction", "edge"} | lazy
        assert due.discriminators is None and not due.r1
    for k, due in enumerate(steps("demo", 20, 0.8)):
        lazy = {"content_alignment"} if k % 2 == 0 else set()
        lazy |= CONSISTENCY if k % 4 == 0 else set()
        assert set(due.autoencoder) == BASE | {"edge"} | lazy
        assert set(due.discriminators) == JUDGED
        assert set(due.r1) == (R1 if k % 16 == 0 else set())


def test_the_first_part_counts_no_steps():
    schedule, counts = Schedule(LossConfig(), TrainConfig(reconstruction_fraction=0.5)), Counts()
    counts.advance(schedule.due(0, 0.4, counts))
    assert counts == Counts(0, 0)
    counts.advance(schedule.due(16, 0.5, counts))
    assert counts == Counts(1, 0)
    counts.advance(schedule.due(32, 0.5, counts))
    assert counts == Counts(1, 1)


def test_weights_are_those_of_the_settings():
    loss = LossConfig(gan_hybrid=0.3, consistency_gain=2.0, edge=0.5, reconstruction=3.0)
    due = Schedule(loss, TrainConfig()).all()
    assert due.r1 == {"r1": 16 * 10 / 2, "r1_patch": 16 * 1 / 4}
    assert due.autoencoder["edge"] == 1.5
    assert (due.autoencoder["consistency_content"], due.autoencoder["consistency_style"]) == (2, 32)
    judged = due.discriminators
    assert judged["d_real"] == judged["d_reconstructed"] * 3 == judged["d_hybrid"] * 3


def test_code_consistency_is_lazy_and_can_start_late():
    loss = LossConfig(consistency_interval=4, consistency_start_kimg=1.0)
    schedule = Schedule(loss, TrainConfig())
    due = lambda step, nimg: "consistency_style" in schedule.select("autoencoder", step, nimg)
    assert [due(step, 1000) for step in range(5)] == [True, False, False, False, True]
    assert not due(0, 999)


@pytest.mark.parametrize("name", PRESETS)
def test_every_weight_of_the_settings_has_its_terms(name):
    loss = preset(name).loss
    full = Schedule(loss, preset(name).train).all()
    assert set(full.discriminators) == JUDGED and set(full.r1) == R1
    papers = set() if name.startswith("base") else CONSISTENCY | {"content_alignment"}
    assert set(full.autoencoder) == BASE | papers | ({"edge"} if loss.edge else set())
