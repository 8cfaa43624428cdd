"""One run from its settings to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rwm_fast.config import Config
from rwm_fast.data.loader import TrainingSet, make_loader, open_training_set
from rwm_fast.device import prepare, search_algorithms
from rwm_fast.training.clock import Clock
from rwm_fast.training.ending import say
from rwm_fast.training.identity import compare_pictures, identity, placed, read_identity
from rwm_fast.training.init import start_from
from rwm_fast.training.loop import Loop
from rwm_fast.training.pairs import held_out_pairs
from rwm_fast.training.pictures import save_curves
from rwm_fast.training.progress import Progress
from rwm_fast.training.report import (
    SAMPLE_PAIRS,
    Report,
    Snapshots,
    evaluate,
    machine,
    save_report,
    text_of,
)
from rwm_fast.training.run_folder import RunFolder
from rwm_fast.training.schedule import table
from rwm_fast.training.trainer import Trainer

REPORT_PAIRS = 256


def train(
    config: Config, out: str | Path, *, quick: bool = False, init: str | Path = ""
) -> Report | None:
    """Train until the run is done, and report.

    config: every setting; see `rwm_fast.config.PRESETS`. out: the run folder; if it holds a run
    with the same settings on the same pictures, wherever they lie now, that run goes on. quick:
    judge by the pass mark of quick runs. init: a run folder or weights file whose networks a new
    run starts from; a run that goes on has no use for it, and says so.

    Returns the content of report.json, or None if the run was stopped before its end (it is saved).
    Raises UserError for what the user can mend: input that cannot be used, a full disk, a process
    that reads pictures and died; BrokenRunError when training came to numbers that are not finite
    or out of all bounds. What had been learned before is saved (`Loop.run`).
    """
    config, folder = placed(config), RunFolder(out)
    progress = Progress(terms=[n for rules in table(config.loss).values() for n in rules])
    device, dtype = prepare(config.train.device, config.train.precision, config.train.threads)
    search_algorithms(device)
    try:
        changed = folder.check(config)
        pictures = open_training_set(config, progress.preparing)
        known, names = read_identity(folder.pictures), identity(pictures)
        news = compare_pictures(known, names, folder.path) if folder.has_states() else ""
        folder.begin(config)
        save_report(folder.pictures, pictures.report() | {"identity": names})
        progress.say(
            f"{pictures.describe()}; {', '.join(map(str, machine(device, dtype).values()))}"
        )
        loop = make_loop(config, folder, pictures, progress, device, dtype)
        say_how_it_starts(loop, init, changed, news)
        if not run_loop(loop, pictures, config, device):
            progress.say(
                f"stopped after {loop.nimg / 1000:.3f} kimg and saved in {folder.path}; "
                f"the same command goes on"
            )
            return None
        save_report(folder.pictures, pictures.report() | {"identity": names})
        return finish(loop, config, folder, pictures, quick, machine(device, dtype))
    finally:
        folder.lock.release()


def make_loop(
    config: Config,
    folder: RunFolder,
    pictures: TrainingSet,
    progress: Progress,
    device: torch.device,
    dtype: torch.dtype,
) -> Loop:
    """Networks, optimisers, and all that the loop calls now and then."""
    trainer = Trainer(config, device, dtype)
    tune = held_out_pairs(config, "tune", SAMPLE_PAIRS, pictures)

    def ready() -> None:
        if folder.restore(config):
            save_report(folder.pictures, pictures.report() | {"identity": identity(pictures)})
            progress.say(f"{folder.path} was taken away and is made anew")

    return Loop(
        trainer,
        Snapshots(folder, config, trainer.averages, tune),
        config,
        Clock(config.train),
        folder.checkpoints(config.train.keep_checkpoints),
        folder.log,
        progress,
        ready,
    )


def say_how_it_starts(loop: Loop, init: str | Path, changed: dict[str, Any], news: str) -> None:
    """Resume, or start from `init`, or from random networks; what differs from the last sitting is
    said and recorded in the log."""
    say, folder = loop.progress.say, loop.checkpoints.folder.parent
    if loop.resume():
        say(f"{folder}: going on after {loop.nimg / 1000:.3f} kimg")
        differing = [f"{name} {a} -> {b}" for name, (a, b) in changed.items()]
        for line in (*differing, *[news] * bool(news)):
            say(f"changed: {line}")
        if differing or news:
            record = {"nimg": loop.nimg, "seconds": loop.clock.seconds, "changed": changed}
            loop.log.append(record | ({"pictures": news} if news else {}))
        if init:
            say(f"--init {init} is not used: the run has begun")
    elif init:
        assert isinstance(loop.task, Trainer)
        line = start_from(loop.task, init)
        say(line)
        loop.log.append({"nimg": 0, "seconds": 0.0, "init": line})


def run_loop(loop: Loop, pictures: TrainingSet, config: Config, device: torch.device) -> bool:
    """Whether the run came to its end."""
    batches = make_loader(pictures, config.train.batch, start=loop.nimg, device=device)
    try:
        return loop.run(batches)
    finally:
        batches.close()


def finish(
    loop: Loop,
    config: Config,
    folder: RunFolder,
    pictures: TrainingSet,
    quick: bool,
    machine: Report,
) -> Report:
    """The last pictures, curves and scores of a run that is done."""
    assert isinstance(loop.snapshots, Snapshots)
    if loop.pictured != loop.nimg:
        loop.sample()
    save_curves(folder.log.read(), folder.curves)
    pairs = held_out_pairs(config, "report", REPORT_PAIRS, pictures)
    report = {
        "preset": config.preset,
        "quick": quick,
        "seed": config.train.seed,
        "kimg": loop.nimg / 1000,
        **machine,
        **evaluate(loop.snapshots.networks, pairs, quick, loop.nimg / 1000),
        "seconds": loop.clock.seconds,
    }
    save_report(folder.report, report)
    say(text_of(report))
    say(f"{folder.path}: {loop.nimg / 1000:.1f} kimg in {loop.clock.seconds:.0f} s")
    return report
