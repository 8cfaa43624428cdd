import io

from rwm_fast.config import TrainConfig
from rwm_fast.training.clock import Clock
from rwm_fast.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drive(stream) -> str:
    clock = Clock(TrainConfig(kimg=1.0))
    with Progress(stream) as progress:
        for nimg in range(8, 41, 8):
            progress.show(nimg, clock, 16.0)
        progress.losses({"patch": 0.25}, 40, clock, 16.0)
        progress.losses({"patch": 0.35}, 40, clock, 16.0)  # too soon for another plain line
        progress.show(40, clock, 16.0)
        progress.scores({"swap_closer": 0.5}, 40)
    return stream.getvalue()


def test_plain_lines_where_nobody_watches():
    assert drive(io.StringIO()).splitlines() == [
        "0.0 kimg, 1:00 left, 16 images/s patch 0.250",
        "0.0 kimg scores: swap_closer 0.500",
    ]


def test_a_bar_on_a_terminal():
    text = drive(Terminal())
    assert "\r" in text and "4%" in text
    assert "1:00 left, 16 images/s" in text and "scores: swap_closer 0.500" in text
