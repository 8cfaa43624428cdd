from dataclasses import replace

import pytest

from rwm_fast.config import TrainConfig
from rwm_fast.training.clock import Clock


class Watch:
    def __init__(self):
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_by_images():
    clock = Clock(TrainConfig(kimg=2.0))
    assert clock.progress(500) == 0.25
    assert not clock.done(1999) and clock.done(2000) and clock.progress(5000) == 1.0
    assert clock.remaining(1000, images_per_second=10.0) == 100.0


def test_by_time_slow_machines_keep_the_promise():
    watch = Watch()
    clock = Clock(TrainConfig(kimg=1000.0, seconds=10.0), watch)
    watch.time += 50  # opening the pictures
    assert clock.seconds == 0 and not clock.done(0)
    clock.start()
    watch.time += 5
    clock.start()  # only the first one counts
    assert clock.progress(8) == 0.5 and clock.remaining(8, 1.0) == 5.0
    watch.time += 5
    assert clock.done(8)


def test_a_time_budget_ends_at_its_images_too():
    clock = Clock(TrainConfig(kimg=1.0, seconds=1e6))
    assert clock.done(1000)


def test_time_of_earlier_sittings_counts():
    watch = Watch()
    config = TrainConfig(kimg=1000.0, seconds=10.0)
    first = Clock(config, watch)
    first.start()
    watch.time += 4
    state = first.state_dict()
    watch.time += 1000  # the machine was off
    second = Clock(config, watch)
    second.load_state_dict(state)
    second.start()
    watch.time += 1
    assert second.seconds == pytest.approx(5.0)
    longer = Clock(replace(config, seconds=20.0), watch)
    longer.load_state_dict(state)
    assert longer.progress(0) == pytest.approx(0.2)
