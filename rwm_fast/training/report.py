"""What a run shows: picture grids and scores on the way, a report at the end."""

from __future__ import annotations

import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch

from rwm_fast.config import Config
from rwm_fast.disk import write_whole
from rwm_fast.metrics.evaluate import Pairs, gate, paint, score
from rwm_fast.models import save_weights
from rwm_fast.training.pictures import grid_rows, save_curves, save_grid
from rwm_fast.training.run_folder import RunFolder
from rwm_fast.training.stats import Record
from rwm_fast.training.step import Autoencoder

Report = dict[str, Any]  # what is written as JSON

COLUMNS = 10  # pictures a row of the grid
SAMPLE_PAIRS = 32  # scored at every grid; enough to see the trend, cheap enough to do often
# Thousands of pictures: the fewest with which the whole demo was measured to keep its limits
# (docs/data.md). The one limit of quick runs is for any number.
JUDGED_KIMG = 23.9
SHOWN = (  # at every grid: logged all, said as many as two lines hold
    "reconstruction_l1",
    "swap_closer",
    "inside_closer",
    "content_retention",
    "inside_style",
    "outside_leak",
    "inside_structure",
    "style_cosine_match",
    "style_cosine_apart",
    "swap_moved",
)
CURVES_SHARE = 0.01  # of the time, at most, goes into renewing the curves while training


class Snapshots:
    """Pictures, scores and weights of averaged networks on fixed inputs."""

    def __init__(self, folder: RunFolder, config: Config, networks: Autoencoder, pairs: Pairs):
        self.folder, self.config, self.networks = folder, config, networks
        self.pairs = pairs
        self._drawn, self._cost = time.monotonic(), 2.0  # s: when, and what the curves cost

    def sample(self, nimg: int) -> dict[str, float]:
        """A grid in samples/, named by images seen, and now and then the curves so far; returns the
        scores worth watching."""
        painted = paint(**self.networks, pairs=self.pairs)
        save_grid(grid_rows(self.pairs, painted, COLUMNS), self.folder.samples / f"{nimg:09d}.png")
        result = score(self.pairs, painted)
        shown = {name: result[name] for name in SHOWN if name in result}
        self._curves({"nimg": nimg} | {f"score/{name}": value for name, value in shown.items()})
        return shown

    def _curves(self, newest: Record) -> None:
        begun = time.monotonic()
        if begun - self._drawn > self._cost / CURVES_SHARE:
            save_curves([*self.folder.log.read(), newest], self.folder.curves)
            self._drawn = time.monotonic()
            self._cost = self._drawn - begun

    def judge(self, scores: dict[str, float]) -> tuple[str, float]:
        """The score that the best state is kept for, more being better: how much closer to the
        truth a swap is; for photos, which have no truth, minus the error of reconstructions."""
        if "swap_closer" in scores:
            return "swap_closer", scores["swap_closer"]
        return "reconstruction_l1", -scores["reconstruction_l1"]

    def export(self, nimg: int, best: bool = False) -> None:
        path = self.folder.best if best else self.folder.weights
        save_weights(path, **self.networks, config=self.config, kimg=nimg / 1000)


def evaluate(networks: Autoencoder, pairs: Pairs, quick: bool, kimg: float | None) -> Report:
    """Scores and, where the truth is known, the pass mark, as they stand in report.json.

    The pass mark is about networks that saw at least `JUDGED_KIMG` thousand pictures; where `kimg`
    says that these saw fewer, it is not applied. None: not known, or to be judged in any case.
    """
    result = score(pairs, paint(**networks, pairs=pairs))
    report: Report = {"pairs": len(pairs), "scores": result}
    least = 0.0 if quick else JUDGED_KIMG
    if pairs.truth is not None and kimg is not None and kimg < least:
        report["not_judged"] = (
            f"{kimg:.1f} thousand pictures seen, the pass mark is for {least:g} and more: a slow "
            f"machine needs a longer --seconds, or --kimg {least:g}"
        )
    elif pairs.truth is not None:
        lines = list(gate(result, quick))
        report["gate"] = [{"line": line.text, "passed": line.passed} for line in lines]
        report["passed"] = all(line.passed for line in lines)
    return report


def save_pairs_grid(
    networks: Autoencoder, pairs: Pairs, path: Path, of: tuple[str, str] = ("", "")
) -> None:
    """The first pairs and what the networks make of them; `of` names the domains of content and
    style."""
    first = pairs.first(COLUMNS)
    save_grid(grid_rows(first, paint(**networks, pairs=first), COLUMNS, of), path)


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, str | int]:
    """Where numbers were made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def save_report(path: Path, report: Report) -> None:
    plain = json.loads(json.dumps(report), parse_constant=lambda name: None)  # NaN is not JSON
    write_whole(path, lambda p: p.write_text(json.dumps(plain, indent=2) + "\n"))


TRUTH_ROWS = {"swap": "swap, from the truth", "inside": "edit inside the mask, from the truth"}
DETAIL_ROWS = {"outside": "change outside the mask", "outside_far": "  beyond 8 px of it"}
MODEL_ROWS = {
    "outside_leak": "  from its own reconstruction",
    "outside_leak_far": "  the same beyond 8 px",
    "reconstruction_l1": "reconstruction L1",
    "reconstruction_psnr": "reconstruction PSNR, dB",
    "swap_from_content": "swap, from its content picture",
    "swap_moved": "  share of the way it should move",
    "inside_style": "edit inside, colours' way to the style",
    "inside_structure": "edit inside, edges, cosine",
    "style_cosine_apart": "styles of different pictures, cosine",
    "style_cosine_match": "style of swap and reference, cosine",
    "content_retention": "content of swap and reference, cosine",
}


def text_of(report: Report) -> str:
    """The report as text for people."""
    scores = report["scores"]

    def row(text: str, *names: str, form: str = "{:9.3f}") -> str:
        known = lambda name: scores.get(name) is not None and not math.isnan(scores[name])
        cells = (form.format(scores[name]) if known(name) else " " * 9 for name in names)
        return f"{text:38}" + "".join(cells)

    lines = [
        f"{report['pairs']} pairs; distances are mean |difference| on [-1, 1]",
        f"{'':38}  nothing Reinhard    model   detail",
    ]
    for name, text in TRUTH_ROWS.items():
        if name in scores:
            ends = ("_nothing", "_reinhard", "", "_detail")
            lines += [
                row(text, *(name + end for end in ends)),
                row(
                    "  closer than doing nothing",
                    *(f"{name}_closer{end}" for end in ends),
                    form="{:9.0%}",
                ),
            ]
    lines += [row(text, "", "", name, name + "_detail") for name, text in DETAIL_ROWS.items()]
    lines += [row(text, "", "", name) for name, text in MODEL_ROWS.items() if name in scores]
    lines += [
        f"{'PASS' if line['passed'] else 'FAIL'}  {line['line']}" for line in report.get("gate", ())
    ]
    if "not_judged" in report:
        lines.append(f"not judged: {report['not_judged']}")
    return "\n".join(lines)


ACROSS = {
    "reconstruction_l1": "rebuilt",
    "swap_from_content": "moved",
    "inside_style": "colours",
    "inside_structure": "edges",
    "style_cosine_match": "style",
    "content_retention": "content",
    "outside_leak_far": "outside",
}
LEGEND = """\
rebuilt: reconstruction L1; moved: swap, from its content picture; colours, edges: edit inside the
mask, way to the style's colours, cosine with the content's edges; style, content: cosine of the
swap's code with the reference's; outside: beyond 8 px of the mask, from its own reconstruction"""


def text_of_directions(directions: dict[str, Report]) -> str:
    """One line for every direction, from content to style."""
    heading = "content -> style"
    width = max(map(len, (heading, *directions)))
    lines = [f"{heading:{width}}  pairs  " + "  ".join(f"{title:>7}" for title in ACROSS.values())]
    for name, report in directions.items():
        values = (report["scores"][key] for key in ACROSS)
        cells = (" " * 7 if math.isnan(value) else f"{value:7.3f}" for value in values)
        lines.append(f"{name:{width}}  {report['pairs']:5}  {'  '.join(cells)}  {report['grid']}")
    return "\n".join([*lines, LEGEND])
