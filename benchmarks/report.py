"""Results as a checked file, a Markdown table and a bar plot.

`python -m benchmarks.report results.json [--markdown table.md] [--plot bars.png]`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ORDER = ("published", "rewritten", "compiled")
SPREAD = ("median", "p20", "p80")


class BadResults(ValueError):
    """A results file that is not as this version writes it; the message names the place."""


def need(condition: bool, where: str, rule: str) -> None:
    if not condition:
        raise BadResults(f"{where}: {rule}")


def check_spreads(value: dict, where: str) -> None:
    for phase, spread in value.items():
        need(set(spread) == set(SPREAD), f"{where}.{phase}", f"must have {SPREAD}")
        for name, number in spread.items():
            good = isinstance(number, (int, float)) and number > 0
            need(good, f"{where}.{phase}.{name}", f"must be a positive number, got {number!r}")


def checked(results: dict) -> dict:
    """The results themselves; BadResults if something is missing or not as it must be."""
    for key in ("version", "machine", "software", "allocator", "ceilings", "rows"):
        need(key in results, "results", f"must have {key}")
    need(results["version"] == 1, "version", "must be 1")
    names = [(row.get("name"), row.get("threads")) for row in results["rows"]]
    need(len(set(names)) == len(names), "rows", "must have different names")
    for row in results["rows"]:
        where = f"rows[{row.get('name')}]"
        if "skipped" in row:
            need(bool(row["skipped"]), where, "must say why it was skipped")
            continue
        need(row.get("columns", {}).keys() >= {"ours"}, where, "must have the column ours")
        for name, column in row["columns"].items():
            check_spreads(column.get("seconds", {"total": {}}), f"{where}.{name}")
        others = set(row["columns"]) - {"ours"}
        need(set(row["ratios"]) == others, where, "must have a ratio for every other column")
        for name, ratios in row["ratios"].items():
            check_spreads(ratios, f"{where}.ratios.{name}")
    return results


def markdown(results: dict) -> str:
    """A row each: our time, how many times faster than the others, share of the ceiling."""
    rows = [row for row in results["rows"] if "skipped" not in row]
    asked = (*results.get("compared", ()), "memory kept")
    names = [*ORDER, *(n for n in asked if any(n in row["ratios"] for row in rows))]
    lines = [
        f"{describe(results)}",
        "",
        f"| row | ours, ms | {' | '.join(names)} | rate | of ceiling |",
        "|---" * (4 + len(names)) + "|",
    ]
    for row in rows:
        cells = [ratio(row, name) for name in names]
        mine = row["columns"]["ours"]["seconds"]["total"]["median"]
        lines.append(
            f"| {label(row)} | {1e3 * mine:.3g} | {' | '.join(cells)} "
            f"| {rate(row, mine)} | {share(results, row, mine)} |"
        )
    for row in results["rows"]:
        if "skipped" in row:
            cells = " |" * (2 + len(names))
            lines.append(f"| {label(row)} | skipped: {row['skipped']} |{cells}")
    notes = {row["name"]: row["note"] for row in rows if row.get("note")}
    return "\n".join([*lines, *([""] if notes else []), *(f"- {n}: {t}" for n, t in notes.items())])


def label(row: dict) -> str:
    return row["name"] if row["threads"] == 1 else f"{row['name']}, {row['threads']} threads"


def describe(results: dict) -> str:
    m, s, c = results["machine"], results["software"], results["ceilings"]
    clocks = {row["clock"] for row in results["rows"] if "clock" in row}
    return (
        f"{m['cpu']} ({', '.join(m['features'])}), {m['cores']} cores, torch {s['torch']}, "
        f"{'/'.join(sorted(clocks))} time; ceilings measured in the run: "
        f"{c['gigabytes_per_second']:.1f} GB/s, {c['gigaflops_float32']:.0f} GFLOP/s. "
        f"Times faster than: median (20th to 80th percentile) of the rounds' ratios."
    )


def ratio(row: dict, name: str) -> str:
    if name not in row["ratios"]:
        return "–"
    found = row["ratios"][name]["total"]
    seconds = row["columns"][name].get("compile_seconds")
    compiled = f", {seconds:.0f} s to compile" if seconds else ""
    return f"{found['median']:.2f}× ({found['p20']:.2f}–{found['p80']:.2f}{compiled})"


def rate(row: dict, seconds: float) -> str:
    work = row["work"]["total"]
    if work["flops"] > 20 * max(work["bytes"], 1):
        return f"{work['flops'] / seconds / 1e9:.0f} GFLOP/s"
    if work["bytes"]:
        return f"{work['bytes'] / seconds / 1e9:.1f} GB/s"
    return f"{work['flops'] / seconds / 1e9:.0f} GFLOP/s"


def share(results: dict, row: dict, seconds: float) -> str:
    """Of the row's own ceiling column, measured in its rounds; else of the matrix product rate."""
    if "ceiling" in row["ratios"]:
        return f"{row['ratios']['ceiling']['total']['median']:.0%}"
    ceilings = results.get("ceilings_by_threads", {}).get(str(row["threads"]), results["ceilings"])
    peak = ceilings.get(f"gigaflops_{row['dtype']}")
    if not peak or not row["work"]["total"]["flops"]:
        return "–"
    return f"{row['work']['total']['flops'] / seconds / 1e9 / peak:.0%}"


def plot(results: dict, path: Path) -> None:
    """Bars: how many times faster than each other column, on a logarithmic axis; 1 = level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    rows = [row for row in results["rows"] if "skipped" not in row][::-1]
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for k, name in enumerate(ORDER):
        present = [
            (i, row["ratios"][name]["total"]) for i, row in enumerate(rows) if name in row["ratios"]
        ]
        places = [i + 0.26 * (1 - k) for i, _ in present]
        medians = [r["median"] for _, r in present]
        low = [r["median"] - r["p20"] for _, r in present]
        high = [r["p80"] - r["median"] for _, r in present]
        axes.barh(places, medians, 0.24, xerr=[low, high], label=name, error_kw={"lw": 0.8})
    axes.axvline(1, color="black", lw=0.8)
    axes.set(xscale="log", xlabel="times faster than", yticks=range(len(rows)))
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.xaxis.set_major_formatter(LogFormatter())  # 10, not 10 to a power
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.set_yticklabels([label(row) for row in rows], fontsize=8)
    figure.legend(fontsize=8, loc="outside upper right", ncols=len(ORDER))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    results = checked(json.loads(arguments.results.read_text()))
    if arguments.markdown:
        arguments.markdown.write_text(markdown(results) + "\n")
    if arguments.plot:
        plot(results, arguments.plot)
    if not (arguments.markdown or arguments.plot):
        print(markdown(results))


if __name__ == "__main__":
    main()
