"""`results.json` checked, as tables, as bars; `python -m benchmarks.gpu.report results.json`."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import check_spreads, need

OTHERS = ("published", "rewritten", "compiled", "ours-native", "ours-triton", "ceiling")
TIMED = ("operators", "layers", "networks")
RATES = {"bfloat16": "bfloat16", "float16": "float16", "tf32": "tf32"}


def checked(data: dict) -> dict:
    """The results themselves; BadResults if something is missing or not as it must be."""
    for key in ("version", "identity", "runs", "parts", "crashed"):
        need(key in data, "results", f"must have {key}")
    need(data["version"] == 1, "version", f"must be 1, got {data['version']!r}")
    need(bool(data["runs"]), "runs", "must have one at least")
    for part, content in data["parts"].items():
        for name, row in content["rows"].items():
            where = f"{part}[{name}]"
            known = row.get("run", -1) in range(len(data["runs"]))
            need(known, where, f"run must be one of the runs, got {row.get('run')!r}")
            if part in TIMED and not {"failed", "skipped"} & row.keys():
                _check_timed(row, where)
    return data


def _check_timed(row: dict, where: str) -> None:
    need("ours" in row.get("columns", {}), where, "must have the column ours")
    for name, column in row["columns"].items():
        told = [key for key in ("seconds", "failed", "wrong") if key in column]
        rule = f"must have one of seconds, failed and wrong, got {told}"
        need(len(told) == 1, f"{where}.{name}", rule)
        check_spreads(column.get("seconds", {}), f"{where}.{name}")
        check_spreads(column.get("over_ours", {}), f"{where}.{name}.over_ours")


def problems(data: dict) -> list[str]:
    """What makes the run a failure: everything that is wrong, and everything of ours that died."""
    found = []
    for part, content in data["parts"].items():
        for name, row in content["rows"].items():
            where = f"{part}: {name}"
            if "failed" in row and isinstance(row["failed"], str):
                found.append(f"{where}: {row['failed']}")
            if part == "check" and row.get("failures"):
                found.append(f"{where}: {row['failed']} cases, first {row['failures'][0]}")
            if part == "check" and row.get("crashed"):
                found.append(f"{where}: crashed in {', '.join(row['crashed'])}")
            if part == "tests" and row.get("failed_tests"):
                found.append(f"{where}: {row['failed_tests']} failed")
            for column, facts in row.get("columns", {}).items():
                if "wrong" in facts:
                    found.append(f"{where}: {column} is wrong: {facts['wrong']}")
                # a backend may refuse a call; anything else that ours raises is a defect
                why = facts.get("failed") or facts.get("graph_error", "")
                if column.startswith("ours") and why and not why.startswith("BackendError"):
                    found.append(f"{where}: {column}: {why}")
    return found


def pending(data: dict) -> list[str]:
    """Rows that no run has come to."""
    return [
        f"{part}: {name}"
        for part, content in data["parts"].items()
        for name in content.get("planned", ())
        if name not in content["rows"] or content["rows"][name].get("complete") is False
    ]


def ceiling(data: dict, name: str) -> float | None:
    """Bytes or operations a second that a row of the ceilings reached."""
    row = data["parts"].get("ceilings", {}).get("rows", {}).get(name)
    if row is None or "seconds" not in row:
        return None
    return (row["bytes"] or row["flops"]) / next(iter(row["seconds"].values()))["median"]


def share(data: dict, row: dict, phase: str) -> str:
    """Of the speed that bandwidth and matrix products of this device allow; – if not known."""
    seconds = row["columns"].get("ours", {}).get("seconds", {}).get(phase, {}).get("median")
    copy = ceiling(data, "copy")
    peak = ceiling(data, RATES.get(row["dtype"], ""))
    work = row["work"].get(phase)
    if not (seconds and copy and work):
        return "–"
    # float32 has no matrix product measured: its rows are judged by bandwidth alone
    least = max(work["bytes"] / copy, work["flops"] / peak if peak else 0.0)
    return f"{least / seconds:.0%}"


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:.4g}"


def _cell(row: dict, name: str, phase: str) -> str:
    facts = row["columns"].get(name)
    if facts is None:
        return ""
    for key in ("wrong", "failed"):
        if key in facts:
            return key
    ratio = facts.get("over_ours", {}).get(phase)
    if ratio is None:
        return "–"
    return f"{ratio['median']:.2f}× ({ratio['p20']:.2f}–{ratio['p80']:.2f})"


def _lines(data: dict, part: str, phase: str) -> Iterator[str]:
    """A table: our time in µs, and how many times as long the others take."""
    yield f"\n## {part}, {phase}\n"
    head = f"| row | ours, µs (20th–80th percentile) | {' | '.join(OTHERS)} | of roofline "
    yield head + "| GFLOP | MB | peak |"
    yield "|---" * (len(OTHERS) + 6) + "|"
    for name, row in data["parts"][part]["rows"].items():
        ours = row.get("columns", {}).get("ours", {})
        if "seconds" not in ours:
            why = row.get("failed") or row.get("skipped") or ours.get("wrong") or ours.get("failed")
            yield f"| {name} | {why} |" + " |" * (len(OTHERS) + 4)
            continue
        s = ours["seconds"].get(phase)
        if s is None:
            continue
        mine = f"{_micro(s['median'])} ({_micro(s['p20'])}–{_micro(s['p80'])})"
        cells = " | ".join(_cell(row, other, phase) for other in OTHERS)
        peak = f"{ours.get('peak_bytes', 0) / 2**20:.0f} MiB"
        work = row["work"].get(phase.removeprefix("eager "))
        least = f"{work['flops'] / 1e9:.4g} | {work['bytes'] / 1e6:.4g}" if work else "– | –"
        yield f"| {name} | {mine} | {cells} | {share(data, row, phase)} | {least} | {peak} |"


def _ceiling_lines(data: dict) -> Iterator[str]:
    yield "\n## ceilings\n"
    for name, row in data["parts"]["ceilings"]["rows"].items():
        if "seconds" not in row:
            yield f"- {name}: {row['failed']}"
            continue
        work, unit = (row["bytes"], "GB/s") if row["bytes"] else (row["flops"], "TFLOP/s")
        scale = 1e9 if row["bytes"] else 1e12
        rates = (f"{k} {work / s['median'] / scale:.1f}" for k, s in row["seconds"].items())
        yield f"- {name}: {', '.join(rates)} {unit}"


def _check_lines(data: dict) -> Iterator[str]:
    yield "\n## largest errors, relative to the largest value\n"
    yield "| row | cases | error | in case | failed | refused |"
    yield "|---|---|---|---|---|---|"
    for name, row in data["parts"]["check"]["rows"].items():
        if "cases" not in row:
            yield f"| {name} | {row['failed']} | | | | |"
            continue
        refused = sum(row["refused"].values())
        worst = f"{row['worst']:.2g} | {row['case']}"
        yield f"| {name} | {row['cases']} | {worst} | {row['failed']} | {refused} |"


def markdown(data: dict) -> str:
    """Everything a reader needs, problems first."""
    run = data["runs"][-1]
    device, soft = run["device"], run["software"]
    told = {**device, **soft, "commit": run["commit"], "started": run["started"]}
    lines = ["# On a GPU", "", ", ".join(f"{k} {v}" for k, v in told.items() if v), ""]
    lines += ["Medians; × = times as long as ours takes, round by round. forward = no gradients,"]
    lines += ["total = forward and backward, both replayed from a CUDA graph with cold caches;"]
    lines += ["eager = the same calls made one by one, on the wall clock; gpu = those between two"]
    lines += ["events. of roofline = the least time that this device's copy and matrix product"]
    lines += ["allow, over our time; GFLOP and MB are the work it is computed from.", ""]
    lines += [f"- PROBLEM: {p}" for p in problems(data)]
    for part in ("build", "tests", "sanitizer"):
        for name, row in data["parts"].get(part, {"rows": {}})["rows"].items():
            hidden = ("output", "failures", "run")
            lines.append(
                f"- {name}: {json.dumps({k: v for k, v in row.items() if k not in hidden})}"
            )
    if data["parts"].get("check", {}).get("rows"):
        lines += _check_lines(data)
    if data["parts"].get("ceilings", {}).get("rows"):
        lines += _ceiling_lines(data)
    for part in TIMED:
        if data["parts"].get(part, {}).get("rows"):
            for phase in phases(data, part) or ["forward"]:
                lines += _lines(data, part, phase)
    lines += _notes(data)
    left = pending(data)
    lines += ["\n## not yet\n", *(f"- {name}" for name in left)] if left else []
    return "\n".join(lines)


def phases(data: dict, part: str) -> list[str]:
    """Of the rows of a part, in the order in which they were timed."""
    rows = data["parts"].get(part, {"rows": {}})["rows"].values()
    ours = [row.get("columns", {}).get("ours", {}) for row in rows]
    return list(dict.fromkeys(phase for column in ours for phase in column.get("seconds", {})))


def _notes(data: dict) -> Iterator[str]:
    """Columns without a time, with the reason; rows during which the clock moved."""
    notes = []
    for part in TIMED:
        for name, row in data["parts"].get(part, {"rows": {}})["rows"].items():
            for column, facts in row.get("columns", {}).items():
                for key in ("wrong", "failed", "graph_error"):
                    if key in facts:
                        notes.append(f"- {name}: {column}: {key}: {facts[key]}")
            before, after = (row.get(k, {}).get("clocks.sm") for k in ("before", "after"))
            if _moved(before, after):
                notes.append(f"- {name}: the SM clock went from {before} to {after} MHz")
    yield from ["\n## notes\n", *notes] if notes else []


def _moved(before: str | None, after: str | None) -> bool:
    """By more than 3 %: then the two sides of a ratio may have run at different speeds."""
    try:
        first, last = float(before), float(after)
    except (TypeError, ValueError):
        return False
    return abs(last - first) > 0.03 * max(first, last)


def short(data: dict) -> str:
    """A line a row, for the end of a log that may be cut."""
    lines = []
    for part in TIMED:
        for name, row in data["parts"].get(part, {"rows": {}})["rows"].items():
            both = []
            for phase in ("forward", "total"):
                s = row.get("columns", {}).get("ours", {}).get("seconds", {}).get(phase)
                both.append(_micro(s["median"]) if s else "–")
            cells = [
                f"{c} {_cell(row, c, 'total').split(' ')[0]}" for c in OTHERS if "columns" in row
            ]
            lines.append(f"{name}: {'/'.join(both)} µs; {', '.join(cells)}")
    done = {part: len(content["rows"]) for part, content in data["parts"].items()}
    counts = ", ".join(f"{part} {n}" for part, n in done.items())
    return "\n".join([*lines, f"rows done: {counts}; not yet: {len(pending(data))}"])


def write(data: dict, folder: Path) -> None:
    """results.md, and results.png where matplotlib is."""
    checked(data)
    (folder / "results.md").write_text(markdown(data) + "\n")
    if importlib.util.find_spec("matplotlib") is not None:
        plot(data, folder / "results.png")


def plot(data: dict, path: Path) -> None:
    """Bars: how many times as long as ours the others take, forward and backward; 1 = level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [
        (name, row)
        for part in TIMED
        for name, row in data["parts"].get(part, {"rows": {}})["rows"].items()
        if "seconds" in row.get("columns", {}).get("ours", {})
    ][::-1]
    figure = Figure(figsize=(9, 1.5 + 0.6 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for k, name in enumerate(OTHERS):
        present = [
            (i, row["columns"][name]["over_ours"]["total"]["median"])
            for i, (_, row) in enumerate(rows)
            if "total" in row["columns"].get(name, {}).get("over_ours", {})
        ]
        places = [i + 0.13 * (2.5 - k) for i, _ in present]
        axes.barh(places, [ratio for _, ratio in present], 0.12, label=name)
    axes.axvline(1, color="black", lw=0.8)
    axes.set(xscale="log", xlabel="times as long as ours", yticks=range(len(rows)))
    axes.set_yticklabels([name for name, _ in rows], fontsize=7)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write(json.loads(source.read_text()), source.parent)
