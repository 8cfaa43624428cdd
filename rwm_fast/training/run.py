"""One run from its settings to its report."""

from __future__ import annotations

from pathlib import Path

from rwm_fast.config import Config
from rwm_fast.data.loader import TrainingSet, make_loader, open_training_set
from rwm_fast.device import prepare, search_algorithms
from rwm_fast.training.clock import Clock
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
    table,
)
from rwm_fast.training.run_folder import RunFolder
from rwm_fast.training.trainer import Trainer

REPORT_PAIRS = 256


def train(config: Config, out: str | Path, *, quick: bool = False) -> Report | None:
    """Train until the run is done, and report.

    config: every setting; see `rwm_fast.config.PRESETS`. out: the run folder; if it holds a run
    with the same settings, that run goes on. quick: judge by the pass mark of quick runs.

    Returns the content of report.json, or None if the run was stopped before its end (it is saved).
    Raises UserError for input that cannot be used, NotFiniteError when a loss term or a parameter
    stops being finite.
    """
    clock, progress, folder = Clock(config.train), Progress(), RunFolder(out)
    device, dtype = prepare(config.train.device, config.train.precision, config.train.threads)
    search_algorithms(device)
    folder.check(config)
    pictures = open_training_set(config, progress.preparing)
    folder.begin(config)
    save_report(folder.pictures, pictures.report())
    progress.say(f"{pictures.describe()}; {', '.join(map(str, machine(device, dtype).values()))}")
    trainer = Trainer(config, device, dtype)
    tune = held_out_pairs(config, "tune", SAMPLE_PAIRS, pictures)
    snapshots = Snapshots(folder, config, trainer.averages, tune)
    loop = Loop(
        trainer,
        snapshots,
        config.train,
        clock,
        folder.checkpoints(config.train.keep_checkpoints),
        folder.log,
        progress,
    )
    if loop.resume():
        progress.say(f"{folder.path}: going on after {loop.nimg / 1000:.3f} kimg")
    batches = make_loader(pictures, config.train.batch, start=loop.nimg, device=device)
    done = loop.run(batches)
    batches.close()
    save_report(folder.pictures, pictures.report())
    if not done:
        progress.say(
            f"stopped after {loop.nimg / 1000:.3f} kimg and saved in {folder.path}; "
            f"the same command goes on"
        )
        return None
    return finish(snapshots, loop, pictures, quick, machine(device, dtype))


def finish(
    snapshots: Snapshots, loop: Loop, pictures: TrainingSet, quick: bool, machine: Report
) -> Report:
    """The last pictures, curves and scores of a run that is done."""
    folder, config = snapshots.folder, snapshots.config
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
        **evaluate(snapshots.networks, pairs, quick),
        "seconds": loop.clock.seconds,
    }
    save_report(folder.report, report)
    print(table(report))
    print(f"{folder.path}: {loop.nimg / 1000:.1f} kimg in {loop.clock.seconds:.0f} s")
    return report
