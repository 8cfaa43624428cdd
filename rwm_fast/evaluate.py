"""Score a trained model: `python -m rwm_fast.evaluate --checkpoint RUN` prints the table and writes
scores.json and scores.png beside the weights. Of several folders of pictures every direction,
content of one and style of another, is scored too, with scores-1-2.png for content of the first in
the style of the second."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rwm_fast.app.command_line import parse_into
from rwm_fast.config import Config
from rwm_fast.data.formats import Limits
from rwm_fast.data.photos import PhotoSet
from rwm_fast.device import prepare
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.metrics.evaluate import Pairs
from rwm_fast.models import RegionEditor, read_config
from rwm_fast.models.pretrained import DEFAULT, is_name, resolve
from rwm_fast.models.weights import read_kimg
from rwm_fast.training.pairs import landscape_pairs, photo_directions, photo_pairs
from rwm_fast.training.report import (
    evaluate,
    machine,
    save_pairs_grid,
    save_report,
    text_of,
    text_of_directions,
)
from rwm_fast.training.step import Autoencoder

PAIRS = 256  # scored, if the pictures are not more


@dataclass(frozen=True)
class Direction:
    """Content of one domain in the style of another, or of the same."""

    domains: tuple[str, str]  # names, no two domains having the same
    grid: str  # file name
    pairs: Pairs


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    checkpoint: str = DEFAULT  # name of the package's own weights, run folder, or a weights file
    # folders or zips of pictures, all of which are scored; none = pictures of the kind that the
    # model was trained on, held out of training
    data: tuple[str, ...] = ()
    pairs: int | None = None  # pairs to score; none = 256, or as many as there are pictures
    split: Literal["report", "tune"] = "report"  # of landscapes: tune is for choosing settings
    quick: bool = False  # judge by the pass mark of quick runs
    strict: bool = False  # judge whatever was trained; exit with status 1 if the mark is missed
    out: Path | None = None  # folder of the results; none = that of the weights, or runs/NAME
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)
    device: str = "auto"  # cpu, cuda or cuda:N
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        if self.pairs is not None and self.pairs < 2:
            raise ValueError(f"--pairs: expected at least 2, got {self.pairs}")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse_into(Arguments, sys.argv[1:] if argv is None else argv, "evaluate", __doc__)
    device, dtype = prepare(arguments.device, arguments.precision)
    config, kimg = read_config(arguments.checkpoint), read_kimg(arguments.checkpoint)
    editor = RegionEditor.from_checkpoint(arguments.checkpoint, device=device, dtype=dtype)
    networks: Autoencoder = {"encoder": editor.encoder, "generator": editor.generator}
    pairs, across, scored = _pairs(arguments, config)
    print(scored)
    directions = {
        " -> ".join(way.domains): {"grid": way.grid, **evaluate(networks, way.pairs, False, None)}
        for way in across
    }
    report = {
        "checkpoint": arguments.checkpoint,
        "split": arguments.split,
        "scored": scored,
        **machine(device, dtype),
        **evaluate(networks, pairs, arguments.quick, None if arguments.strict else kimg),
        **({"directions": directions} if directions else {}),
    }
    folder = arguments.out or results_folder(arguments.checkpoint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_report(folder / "scores.json", report)
        save_pairs_grid(networks, pairs, folder / "scores.png")
        for way in across:
            save_pairs_grid(networks, way.pairs, folder / way.grid, way.domains)
    except OSError as error:
        raise UserError(
            f"--out: expected a folder that can be written, got {folder} ({error.strerror})"
        ) from None
    print(text_of(report))
    if directions:
        print(text_of_directions(directions))
    return int(arguments.strict and not report.get("passed", True))


def _pairs(arguments: Arguments, config: Config) -> tuple[Pairs, list[Direction], str]:
    """The pairs to score, those of every direction between several folders, and words on them."""
    sources, limits = arguments.data or config.data.sources, arguments.limits
    if not sources:
        pairs = landscape_pairs(arguments.split, arguments.pairs or PAIRS, config.model.image_size)
        return pairs, [], f"scored: {len(pairs)} pairs of landscapes"
    if not arguments.data and not resolve(arguments.checkpoint).is_dir():
        raise UserError(  # a weights file may be anybody's, and so may the folders that it names
            f"--data: expected the pictures to score, for {arguments.checkpoint} is no run folder "
            f"of which those of its training could be taken"
        )
    share = 0.0 if arguments.data else config.data.held_out  # given pictures are all scored
    data = replace(
        config.data,
        sources=sources,
        held_out=share,
        max_megapixels=limits.max_megapixels,
        max_member_mb=limits.max_member_mb,
    )
    pictures = PhotoSet(data, config.model.image_size, config.train.seed)
    among = pictures.held_out or pictures.training
    if len(among) < 2:  # nothing is learnt from a picture in its own style
        raise UserError(f"--data: expected at least 2 pictures to score, got {among[0]} alone")
    pairs = photo_pairs(pictures, arguments.pairs or max(PAIRS, len(among)), config.mask)
    used = min(len(among), arguments.pairs or len(among))
    kind = ", held out of training" if pictures.held_out else ""
    scored = (
        f"scored: {used} of {len(pictures.photos)} pictures{kind}, in {len(pairs)} pairs; "
        f"{pictures.describe()}"
    )
    if len(pictures.domains) == 1:
        return pairs, [], scored
    across, missing = _directions(pictures, arguments.pairs or PAIRS, config)
    return pairs, across, "\n".join([scored, *missing])


def _directions(
    pictures: PhotoSet, count: int, config: Config
) -> tuple[list[Direction], list[str]]:
    """Every direction, and a sentence on each that cannot be scored."""
    labels = pictures.domains
    names = [f"{x} ({k})" if labels.count(x) > 1 else x for k, x in enumerate(labels, 1)]
    across = photo_directions(pictures, count, config.mask)
    kind = "held out of training (--data scores all)" if pictures.held_out else "readable"
    found = [
        Direction((names[a], names[b]), f"scores-{a + 1}-{b + 1}.png", pairs)
        for (a, b), pairs in across.items()
    ]
    missing = []
    for k, name in enumerate(names):
        if not any(k in way for way in across):
            missing.append(f"not scored: {name} with anything, for no picture of it is {kind}")
        elif (k, k) not in across:
            missing.append(f"not scored: {name} -> {name}, for one picture of it is {kind}")
    return found, missing


def results_folder(checkpoint: str) -> Path:
    """Beside the weights; for the package's own in runs, as if they had been trained here."""
    if is_name(checkpoint):
        return Path("runs") / checkpoint
    path = Path(checkpoint)
    return path if path.is_dir() else path.parent


if __name__ == "__main__":
    sys.exit(main())
