"""One run from its settings to its report."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from rwm_fast.config import Config
from rwm_fast.data.loader import TrainingSet, make_loader, open_training_set
from rwm_fast.device import prepare, search_algorithms
from rwm_fast.errors import UserError
from rwm_fast.training.clock import Clock
from rwm_fast.training.ending import say
from rwm_fast.training.identity import compare_pictures, identity, placed, read_identity
from rwm_fast.training.init import start_from
from rwm_fast.training.loop import Loop
from rwm_fast.training.pairs import held_out_pairs
from rwm_fast.training.pictures import save_curves
from rwm_fast.training.plan import lower, said
from rwm_fast.training.processes import Processes, joined
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
from rwm_fast.training.threads import chosen_threads
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

    Of several processes, as torchrun starts them, the first one has the run folder and reports; the
    others return an empty report as soon as training is done.
    """
    with joined() as job:
        return _train(placed(config), RunFolder(out), quick, init, job)


def _train(
    config: Config, folder: RunFolder, quick: bool, init: str | Path, job: Processes
) -> Report | None:
    stream = None if job.first else open(os.devnull, "w")  # noqa: SIM115
    progress = Progress(stream, terms=[n for rules in table(config.loss).values() for n in rules])
    try:
        with job.together():
            check_batch(config, job)
            device, dtype = prepare(
                job.device(config.train.device), config.train.precision, config.train.threads
            )
            search_algorithms(device)
            changed = folder.check(config) if job.first else {}
            pictures = open_training_set(config, progress.preparing)
            names = identity(pictures)
            if job.first:
                known = read_identity(folder.pictures)
                news = compare_pictures(known, names, folder.path) if folder.has_states() else ""
                folder.begin(config)
                save_report(folder.pictures, pictures.report() | {"identity": names})
            where = ", ".join(map(str, machine(device, dtype).values()))
            several = f"; {job.count} processes" * (job.count > 1)
            progress.say(f"{pictures.describe()}; {where}{several}")
            for line in said(config, dtype, device, job) if job.first else ():
                progress.say(line)
            loop = make_loop(config, folder, pictures, progress, device, dtype, job)
            loop.lower = lambda: lower(config, dtype, job)
            if job.first:
                say_how_it_starts(loop, init, changed, news)
        same = repr((names, pictures.report().get("unreadable")))
        job.check_same(same, "pictures")
        loop.start_as_first()
        done = run_loop(loop, pictures, config, device, job)
        if job.first:
            save_report(folder.pictures, pictures.report() | {"identity": names})
        if not done:
            progress.say(
                f"stopped after {loop.nimg / 1000:.3f} kimg and saved in {folder.path}; "
                f"the same command goes on"
            )
            return None
        if not job.first:
            return {}
        return finish(loop, config, folder, pictures, quick, machine(device, dtype))
    finally:
        folder.lock.release()


def check_batch(config: Config, job: Processes) -> None:
    """UserError unless every slice of every process's part of a batch is whole pairs."""
    accumulate, batch = config.train.accumulate, config.train.batch
    least = 2 * job.count * accumulate
    if batch % least:
        slices = f", {accumulate} slices (--train.accumulate) each" * (accumulate > 1)
        raise UserError(
            f"--batch: expected a multiple of {least}, pairs of pictures for each of {job.count} "
            f"processes{slices}, got {batch}: it is that of all processes together"
        )


def make_loop(
    config: Config,
    folder: RunFolder,
    pictures: TrainingSet,
    progress: Progress,
    device: torch.device,
    dtype: torch.dtype,
    job: Processes,
) -> Loop:
    """Networks, optimisers, and all that the loop calls now and then."""
    trainer = Trainer(config, device, dtype, job)
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
        job,
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


def run_loop(
    loop: Loop, pictures: TrainingSet, config: Config, device: torch.device, job: Processes
) -> bool:
    """Whether the run came to its end. From then on the first process is alone."""
    batch, tell = config.train.batch, job.news.extend if job.count > 1 else None
    with job.together():
        rows = job.share.rows(batch)
        batches = make_loader(pictures, batch, start=loop.nimg, rows=rows, device=device, tell=tell)
    if job.count > 1:
        job.heard = lambda news: batches.report(news, aloud=job.first)
    timed = config.train.seconds > 0 and not config.train.threads  # else steps repeat to the bit
    choosing = chosen_threads(loop) if timed and device.type == "cpu" and job.count == 1 else None
    try:
        with choosing or contextlib.nullcontext():
            done = loop.run(batches)
        job.leave()
        return done
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
