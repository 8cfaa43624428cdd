"""One run from its settings to its report."""

from __future__ import annotations

import logging
from pathlib import Path

from rwm_fast.config import Config
from rwm_fast.training import device as devices
from rwm_fast.training.clock import Clock
from rwm_fast.training.loop import Loop
from rwm_fast.training.pairs import held_out_pairs
from rwm_fast.training.progress import Progress
from rwm_fast.training.report import (
    Snapshots,
    evaluate,
    machine,
    save_final_pictures,
    save_report,
    table,
)
from rwm_fast.training.run_folder import RunFolder
from rwm_fast.training.source import open_source
from rwm_fast.training.trainer import Trainer

log = logging.getLogger("rwm_fast")
REPORT_PAIRS = 256


def train(config: Config, out: str | Path, *, quick: bool = False) -> dict | None:
    """Train until the run is done, and report.

    config: every setting; see `rwm_fast.config.PRESETS`. out: the run folder; if it holds a run
    with the same settings, that run goes on. quick: judge by the pass mark of quick runs.

    Returns the content of report.json, or None if the run was stopped before its end (it is saved).
    Raises UserError for input that cannot be used, NotFiniteError when a loss term or a parameter
    stops being finite.
    """
    clock = Clock(config.train)
    device, dtype = devices.prepare(config.train)
    folder = RunFolder(out)
    folder.begin(config)
    source = open_source(config, folder)
    trainer = Trainer(config, device, dtype)
    progress = Progress()
    networks = trainer.ema.modules
    snapshots = Snapshots(folder, config, networks, held_out_pairs(config, source, "tune"))
    loop = Loop(trainer, snapshots, config.train, clock,
                folder.checkpoints(config.train.keep_checkpoints), folder.log, progress, device)
    if loop.resume():
        progress.say(f"{folder.path}: going on after {loop.nimg / 1000:.1f} kimg")
    progress.say(f"{source.describe()}; {machine(device, dtype)}")
    if not loop.run(source.batches(loop.nimg)):
        progress.say(f"stopped after {loop.nimg / 1000:.1f} kimg and saved in {folder.path}; "
                     f"the same command goes on")
        return None
    save_final_pictures(snapshots, loop.nimg)
    report = {"preset": config.preset, "quick": quick, "seed": config.train.seed,
              "kimg": loop.nimg / 1000, **machine(device, dtype),
              **evaluate(networks, held_out_pairs(config, source, "report"), quick)}
    report["seconds"] = clock.seconds
    save_report(folder.report, report)
    print(table(report))
    return report
