"""Picture grids and curves of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rwm_fast.disk import write_whole
from rwm_fast.metrics.evaluate import Painted, Pairs
from rwm_fast.metrics.reinhard import transfer_colors
from rwm_fast.metrics.scores import keep_detail
from rwm_fast.training.stats import Record

TILE = 128  # px, least side of a picture in a grid: small ones are enlarged without smoothing
LESS = {"reconstruction_l1", "outside_leak", "style_cosine_apart"}  # scores: errors and leaks
LABEL = 150  # px, width of the row names, if none is longer
NAME = 30  # characters of a folder's name that are shown


def grid_rows(
    pairs: Pairs, painted: Painted, columns: int, of: tuple[str, str] = ("", "")
) -> dict[str, Tensor]:
    """Rows of at most `columns` images [N, 3, H, W] by name; `of`: where contents and styles are
    from, if that is to be told.

    Kept detail (ours): content + edit - reconstruction.
    """
    kept = lambda image: keep_detail(pairs.content, image, painted.reconstructed)
    told = lambda what, where: f"{what}: {where[:NAME]}" if where else what
    rows = {
        told("content", of[0]): pairs.content,
        told("style", of[1]): pairs.style,
        "reconstruction": painted.reconstructed,
        "swap": painted.swapped,
        "swap, kept detail": kept(painted.swapped),
    }
    if pairs.truth is not None:
        rows["truth"] = pairs.truth
    rows["Reinhard"] = transfer_colors(pairs.content, pairs.style)
    rows["mask"] = pairs.mask.expand_as(pairs.content) * 2 - 1
    rows["region edit"] = painted.edited
    rows["edit, kept detail"] = kept(painted.edited)
    return {name: images[:columns] for name, images in rows.items()}


def save_grid(rows: dict[str, Tensor], path: Path) -> None:
    """One row of pictures per entry, its name at the left, as PNG."""
    images = torch.stack(list(rows.values())).clamp(-1, 1)  # [R, N, 3, H, W]
    factor = max(1, -(-TILE // images.shape[-1]))
    images = images.repeat_interleave(factor, 3).repeat_interleave(factor, 4)
    height = images.shape[3]
    tiles = images.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [R·H, N·W, 3]
    sheet = Image.fromarray(((tiles + 1) * 127.5).round().byte().cpu().numpy())
    font = ImageFont.load_default(size=15)
    label = max(LABEL, *(16 + math.ceil(font.getlength(name)) for name in rows))
    page = Image.new("RGB", (label + sheet.width, sheet.height), "white")
    page.paste(sheet, (label, 0))
    draw = ImageDraw.Draw(page)
    for k, name in enumerate(rows):
        draw.text((8, k * height + height // 2), name, fill="black", anchor="lm", font=font)
    write_whole(path, lambda temporary: page.save(temporary, "PNG"))


def save_curves(records: list[Record], path: Path) -> None:
    """Losses and scores over images seen, from the records of log.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, needed at the end
    from matplotlib.figure import Figure

    judging = lambda name: name.startswith(("d_", "r1"))
    panels = [
        ("losses of the autoencoder", _series(records, "loss/", lambda name: not judging(name))),
        ("losses of the discriminators", _series(records, "loss/", judging)),
        ("scores, more is better", _series(records, "score/", lambda name: name not in LESS)),
        ("scores, less is better", _series(records, "score/", LESS.__contains__)),
    ]
    panels = [(title, series) for title, series in panels if series]
    if not panels:
        return
    rows = 1 if len(panels) < 3 else 2
    across = -(-len(panels) // rows)
    figure = Figure(figsize=(7 * across, 5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    columns = np.ravel(figure.subplots(rows, across))[: len(panels)]
    for axes, (title, series) in zip(columns, panels, strict=True):
        for name, points in sorted(series.items()):
            marker = "." if len(points) < 30 else ""
            axes.plot(*zip(*points, strict=True), label=name, marker=marker)
        axes.set(title=title, xlabel="kimg")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def _series(
    records: list[Record], prefix: str, wanted: Callable[[str], bool]
) -> dict[str, list[tuple[float, float]]]:
    """(kimg, value) by name, for names that start with `prefix` and are wanted."""
    series: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith(prefix) and wanted(name := key.removeprefix(prefix)):
                series.setdefault(name, []).append((record["nimg"] / 1000, value))
    return series
