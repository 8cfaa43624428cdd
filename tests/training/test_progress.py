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
        "   0.0 kimg    1:00 left   16 img/s  patch   0.25",
        "0.0 kimg scores: swap closer 0.500",
    ]


def test_a_bar_on_a_terminal():
    text = drive(Terminal())
    assert "\r" in text and "4%" in text
    assert "1:00 left   16 img/s  patch" in text and "scores: swap closer 0.500" in text


def test_columns_keep_their_places_and_fit():
    progress = Progress(
        io.StringIO(), terms=["edge", "patch", "gan_swapped", "reconstruction", "r1"]
    )
    lines = []
    for losses in ({"edge": 12345.678, "reconstruction": 0.25}, {"r1": 1e-9, "gan_swapped": 0.5}):
        progress._values = losses
        lines.append(progress.line("start", 50))
    assert lines == [
        "start  rec   0.25  swap      -  patch      -",
        "start  rec      -  swap    0.5  patch      -",
    ]
    assert "r1  1e-09" in progress.line("start", 100)


def test_a_reader_that_is_gone_is_noticed_and_harmless():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    progress = Progress(Closed())
    assert not progress.gone
    progress.say("anything")
    progress.say("anything")
    assert progress.gone
