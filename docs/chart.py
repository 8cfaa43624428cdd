"""Draws docs/speed.png from the committed results: `python docs/chart.py`.

Bars say how many times faster ours is, forward and backward in one thread, than eager code as it is
published and than torch.compile of its best rewrite; 1 is level.
"""

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = ("epyc-zen3", "epyc-zen3-networks")
COLUMNS = {
    "published": ("#b8c4d6", "eager, as published"),
    "compiled": ("#2f5d9b", "torch.compile"),
}
ROWS = {
    "masked_l1 16x3x256x256 float32": "masked_l1, 16 images of 256 px",
    "crop_patches 16 images x 8 -> 64 px float32": "crop_patches, 16 × 8 crops of 64 px",
    "bias_act 4x64x64x64 float32": "bias_act, 64 channels",
    "FIR up 4x64x64x64 float32": "upfirdn2d, doubling 64 channels",
    "layer 3x3 512 ch @ 16 float32": "styled layer, 512 channels at 16 px",
    "layer 3x3 64 ch @ 64 float32": "styled layer, 64 channels at 64 px",
    "up x2 128 -> 64 ch @ 32 float32": "styled doubling, 128 → 64 at 32 px",
    "down x2 128 -> 256 ch @ 32 float32": "halving, 128 → 256 at 32 px",
    "regions K=4 64 ch @ 64 float32": "four styles in four regions, 64 px",
    "training step demo, batch 4 float32": "training step, the demo",
    "training step small-128, batch 2 float32": "training step, 128 px",
    "edit paper-256, batch 1 float32": "an edit, 256 px",
}


def ratios() -> dict[str, dict]:
    """Row → column → median and spread, of one thread; KeyError if a row is not in the results."""
    found = {}
    for name in RESULTS:
        text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text()
        for part in json.loads(text)["parts"].values():
            found |= part["rows"]  # those of more threads have other names
    return {
        row: {c: found[row]["columns"][c]["over_ours"]["total"] for c in COLUMNS} for row in ROWS
    }


def draw(path: Path) -> None:
    measured = ratios()
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(measured):
        for k, (column, (colour, label)) in enumerate(COLUMNS.items()):
            median = measured[row][column]["median"]
            at = place + 0.4 * (k - 0.5)
            axes.barh(at, median, 0.38, color=colour, label=label if place == 0 else None)
            axes.text(median * 1.03, at, f"{median:.1f}×", va="center", fontsize=8)
    axes.axvline(1, color="black", lw=0.8)
    axes.set(xscale="log", xlim=(0.9, 260), yticks=range(len(ROWS)), ylim=(len(ROWS) - 0.4, -0.6))
    axes.set_yticklabels(ROWS.values(), fontsize=9)
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1×", "2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.set_xlabel("times faster than")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, loc="lower right", frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    draw(ROOT / "docs" / "speed.png")
