"""Score a trained model: `python -m rwm_fast.evaluate --checkpoint RUN` prints the table and writes
scores.json and scores.png beside the weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rwm_fast.app.command_line import parse_into
from rwm_fast.device import prepare
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.models import RegionEditor, read_config
from rwm_fast.models.weights import read_kimg
from rwm_fast.training.pairs import held_out_pairs
from rwm_fast.training.report import evaluate, machine, save_pairs_grid, save_report, text_of
from rwm_fast.training.step import Autoencoder


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    checkpoint: Path  # run folder, or a weights file
    data: tuple[str, ...] = ()  # folders or zips of pictures; none = what the model was trained on
    pairs: int = 256  # held-out pairs to score
    split: Literal["report", "tune"] = "report"  # of landscapes: tune is for choosing settings
    quick: bool = False  # judge by the pass mark of quick runs
    strict: bool = False  # judge whatever was trained; exit with status 1 if the mark is missed
    out: Path | None = None  # folder of the results; none = that of the weights
    device: str = "auto"  # cpu, cuda or cuda:N
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        if self.pairs < 2:
            raise ValueError(f"--pairs: expected at least 2, got {self.pairs}")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse_into(Arguments, sys.argv[1:] if argv is None else argv, "evaluate", __doc__)
    device, dtype = prepare(arguments.device, arguments.precision)
    config, kimg = read_config(arguments.checkpoint), read_kimg(arguments.checkpoint)
    if arguments.data:
        config = replace(config, data=replace(config.data, sources=arguments.data))
    editor = RegionEditor.from_checkpoint(arguments.checkpoint, device=device, dtype=dtype)
    networks: Autoencoder = {"encoder": editor.encoder, "generator": editor.generator}
    pairs = held_out_pairs(config, arguments.split, arguments.pairs)
    report = {
        "checkpoint": str(arguments.checkpoint),
        "split": arguments.split,
        **machine(device, dtype),
        **evaluate(networks, pairs, arguments.quick, None if arguments.strict else kimg),
    }
    folder = arguments.out or weights_folder(arguments.checkpoint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_report(folder / "scores.json", report)
        save_pairs_grid(networks, pairs, folder / "scores.png")
    except OSError as error:
        raise UserError(
            f"--out: expected a folder that can be written, got {folder} ({error.strerror})"
        ) from None
    print(text_of(report))
    return int(arguments.strict and not report.get("passed", True))


def weights_folder(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


if __name__ == "__main__":
    sys.exit(main())
