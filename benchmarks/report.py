"""Results checked, as tables, as bars.

`python -m benchmarks.report results.json [--markdown table.md] [--plot bars.png]`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.store import VERSION

OURS = "ours"
ORDER = ("published", "rewritten", "compiled", "ours-native", "ours-triton")
ORDER += (
    "eager",
    "ours compiled",
    "onnxruntime",
    "NVIDIA",
    "port",
    "Swapping",
    "NVIDIA, dropin",
    "port, dropin",
    "Swapping, dropin",
)
# as tables follow
TIMED = ("headline", "networks", "operators", "layers", "compiled", "second", "latency")
SPREAD = ("median", "p20", "p80")
HOW = """Medians; × = times as long as ours takes, round by round (20th to 80th percentile).
forward = no gradients, total = forward and backward, of networks a whole step; cold caches. of
ceiling = time of the bare convolution, or of a stream over the same bytes, over ours; of roofline =
the least time that the measured stream and matrix product of this device allow, over ours. On a GPU
a phase is a replay of a CUDA graph, of training eager calls between two events; eager = the same
calls made one by one, on the clock on the wall."""


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


def checked(data: dict) -> dict:
    """The results themselves; BadResults if something is missing or not as it must be."""
    for key in ("version", "identity", "runs", "parts", "crashed"):
        need(key in data, "results", f"must have {key}")
    need(data["version"] == VERSION, "version", f"must be {VERSION}, got {data['version']!r}")
    need(bool(data["runs"]), "runs", "must have one at least")
    for part, name, row in every_row(data):
        where = f"{part}[{name}]"
        known = row.get("run", -1) in range(len(data["runs"]))
        need(known, where, f"run must be one of the runs, got {row.get('run')!r}")
        if part in TIMED and not {"failed", "skipped"} & row.keys():
            _check_timed(row, where)
    return data


def _check_timed(row: dict, where: str) -> None:
    need(OURS in row.get("columns", {}), where, f"must have the column {OURS}")
    for name, column in row["columns"].items():
        told = [key for key in ("seconds", "failed", "wrong") if key in column]
        rule = f"must have one of seconds, failed and wrong, got {told}"
        need(len(told) == 1, f"{where}.{name}", rule)
        check_spreads(column.get("seconds", {}), f"{where}.{name}")
        check_spreads(column.get("over_ours", {}), f"{where}.{name}.over_ours")


def every_row(data: dict, parts: tuple[str, ...] | None = None) -> Iterator[tuple[str, str, dict]]:
    for part in data["parts"] if parts is None else parts:
        for name, row in data["parts"].get(part, {"rows": {}})["rows"].items():
            yield part, name, row


def named(name: str, threads: int) -> str:
    return name if threads == 1 else f"{name}, {threads} threads"


def problems(data: dict) -> list[str]:
    """What makes the run a failure: everything that is wrong, and everything of ours that died."""
    found = []
    for part, name, row in every_row(data):
        where = f"{part}: {name}"
        if isinstance(row.get("failed"), str):
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
            if column.startswith(OURS) and why and not why.startswith("BackendError"):
                found.append(f"{where}: {column}: {why}")
    return found


def pending(data: dict) -> list[str]:
    """Rows that no run has come to, or not to the end of."""
    return [
        f"{part}: {name}"
        for part, content in data["parts"].items()
        for name in content.get("planned", ())
        if name not in content["rows"] or content["rows"][name].get("complete") is False
    ]


# ---- numbers


def ceiling(data: dict, name: str, threads: int = 1) -> float | None:
    """Bytes or operations a second that a row of the ceilings reached."""
    rows = data["parts"].get("ceilings", {}).get("rows", {})
    row = rows.get(named(name, threads)) or rows.get(name)
    if row is None or "seconds" not in row:
        return None
    return (row["bytes"] or row["flops"]) / next(iter(row["seconds"].values()))["median"]


def roofline(data: dict, row: dict, phase: str) -> str:
    """Of the speed that bandwidth and matrix products of this device allow; – if not known."""
    seconds = row["columns"].get(OURS, {}).get("seconds", {}).get(phase, {}).get("median")
    threads = row.get("threads", 1)
    stream, peak = (ceiling(data, name, threads) for name in ("triad", row["dtype"]))
    work = row["work"].get(phase)
    if not (seconds and stream and work) or not (work["bytes"] or peak):
        return "–"
    # where no matrix product was measured a row is judged by bandwidth alone
    least = max(work["bytes"] / stream, work["flops"] / peak if peak else 0.0)
    return f"{least / seconds:.0%}"


def rate(row: dict, phase: str, seconds: float) -> str:
    work = row["work"].get(phase)
    if not work:
        return "–"
    if work["bytes"] and work["flops"] <= 20 * work["bytes"]:
        return f"{work['bytes'] / seconds / 1e9:.3g} GB/s"
    scale, unit = (1e9, "G") if work["flops"] / seconds < 1e12 else (1e12, "T")
    return f"{work['flops'] / seconds / scale:.3g} {unit}FLOP/s"


def duration(seconds: float) -> str:
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    return f"{seconds * scale:.3g} {unit}"


def _cell(row: dict, name: str, phase: str) -> str:
    facts = row["columns"].get(name, {})
    for key in ("wrong", "failed"):
        if key in facts:
            return key
    ratio = facts.get("over_ours", {}).get(phase)
    if ratio is None:
        return "–"
    seconds = facts.get("compile_seconds")
    compiled = f", {seconds:.0f} s to compile" if seconds else ""
    return f"{ratio['median']:.2f}× ({ratio['p20']:.2f}–{ratio['p80']:.2f}{compiled})"


# ---- tables


def _others(data: dict, rows: dict) -> list[str]:
    """Columns of a table beside ours and the ceiling: those of the order first."""
    found = dict.fromkeys(n for row in rows.values() for n in row.get("columns", {}))
    compared = data["runs"][-1].get("compared", {})
    return [n for n in (*ORDER, *compared, "memory kept", "per style", "one style") if n in found]


def phases(data: dict, part: str) -> list[str]:
    """Of the rows of a part, in the order in which they were timed; on a CPU the total alone, but
    for edits, whose phases are calls of their own."""
    ours = [row.get("columns", {}).get(OURS, {}) for _, _, row in every_row(data, (part,))]
    found = list(dict.fromkeys(phase for column in ours for phase in column.get("seconds", {})))
    every = part == "latency" or "eager total" in found
    return [p for p in found if p == "total" or every] or ["total"]


def _lines(data: dict, part: str, phase: str) -> Iterator[str]:
    """A table: our time, and how many times as long the others take."""
    rows = data["parts"][part]["rows"]
    others = _others(data, rows)
    yield f"\n## {part}, {phase}\n"
    yield f"| row | ours | {' | '.join([*others, ''])}rate | of ceiling | of roofline | peak |"
    yield "|---" * (len(others) + 6) + "|"
    for name, row in rows.items():
        ours = row.get("columns", {}).get(OURS, {})
        if "seconds" not in ours:
            why = row.get("failed") or ours.get("wrong") or ours.get("failed")
            why = f"skipped: {row['skipped']}" if "skipped" in row else why
            yield f"| {name} | {why} |" + " |" * (len(others) + 4)
        elif phase in ours["seconds"]:
            yield f"| {name} | {' | '.join(_cells(data, row, others, phase))} |"


def _cells(data: dict, row: dict, others: list[str], phase: str) -> Iterator[str]:
    ours = row["columns"][OURS]
    seconds = ours["seconds"][phase]
    yield duration(seconds["median"])
    for name in others:
        yield _cell(row, name, phase)
    yield rate(row, phase.removeprefix("eager "), seconds["median"])
    bare = row["columns"].get("ceiling", {}).get("over_ours", {}).get(phase)
    yield f"{bare['median']:.0%}" if bare else "–"
    yield roofline(data, row, phase)
    peak = ours.get("peak_bytes")
    yield f"{peak / 2**20:.0f} MiB" if peak else "–"


def _ceiling_lines(data: dict) -> Iterator[str]:
    yield "\n## ceilings\n"
    for _, name, row in every_row(data, ("ceilings",)):
        if "seconds" not in row:
            yield f"- {name}: {row['failed']}"
            continue
        work, unit = (row["bytes"], "GB/s") if row["bytes"] else (row["flops"], "GFLOP/s")
        rates = (f"{k} {work / s['median'] / 1e9:.4g}" for k, s in row["seconds"].items())
        yield f"- {name}: {', '.join(rates)} {unit}"


def _check_lines(data: dict) -> Iterator[str]:
    yield "\n## largest errors, relative to the largest value\n"
    yield "| row | cases | error | in case | failed | refused |"
    yield "|---|---|---|---|---|---|"
    for _, name, row in every_row(data, ("check",)):
        if "cases" not in row:
            yield f"| {name} | {row['failed']} | | | | |"
            continue
        refused = sum(row["refused"].values())
        worst = f"{row['worst']:.2g} | {row['case']}"
        yield f"| {name} | {row['cases']} | {worst} | {row['failed']} | {refused} |"


def markdown(data: dict) -> str:
    """Everything a reader needs, problems first."""
    run = data["runs"][-1]
    told = {**run["device"], **run["software"], "commit": run["commit"]}
    told |= {name: run.get(name) for name in ("started", "compared")}
    lines = [", ".join(f"{k} {v}" for k, v in told.items() if v), "", *HOW.splitlines(), ""]
    lines += [f"- PROBLEM: {p}" for p in problems(data)]
    hidden = ("output", "failures", "run")
    for _, name, row in every_row(data, ("build", "tests", "sanitizer")):
        shown = {k: v for k, v in row.items() if k not in hidden}
        lines.append(f"- {name}: {json.dumps(shown)}")
    for part, tables in (("check", _check_lines), ("ceilings", _ceiling_lines)):
        lines += tables(data) if data["parts"].get(part, {}).get("rows") else []
    for part in TIMED:
        if data["parts"].get(part, {}).get("rows"):
            for phase in phases(data, part):
                lines += _lines(data, part, phase)
    notes = list(_notes(data))
    lines += ["\n## notes\n", *notes] if notes else []
    left = pending(data)
    lines += ["\n## not yet\n", *(f"- {name}" for name in left)] if left else []
    return "\n".join(lines)


def _notes(data: dict) -> Iterator[str]:
    """What rows are about, columns without a time, rows during which the clock moved."""
    for _, name, row in every_row(data, TIMED):
        if row.get("note"):
            yield f"- {name}: {row['note']}"
        for column, facts in row.get("columns", {}).items():
            for key in ("wrong", "failed", "graph_error"):
                if key in facts:
                    yield f"- {name}: {column}: {key}: {facts[key]}"
        before, after = (row.get(k, {}).get("clocks.sm", "") for k in ("before", "after"))
        # then the two sides of a ratio may have run at different speeds
        if before.isdigit() and after.isdigit() and abs(int(after) / int(before) - 1) > 0.03:
            yield f"- {name}: the SM clock went from {before} to {after} MHz"


def short(data: dict) -> str:
    """A line a row, for the end of a log that may be cut."""
    lines = []
    for part, name, row in every_row(data, TIMED):
        seconds = row.get("columns", {}).get(OURS, {}).get("seconds", {})
        ours = "/".join(duration(s["median"]) for p, s in seconds.items() if "eager" not in p)
        others = (n for n in row.get("columns", {}) if n != OURS)
        cells = (f"{n} {_cell(row, n, 'total').split(' ')[0]}" for n in others)
        lines.append(f"{part}: {name}: {ours or '–'}; {', '.join(cells)}")
    counts = (f"{part} {len(content['rows'])}" for part, content in data["parts"].items())
    return "\n".join([*lines, f"rows done: {', '.join(counts)}; not yet: {len(pending(data))}"])


def plot(data: dict, path: Path) -> None:
    """Bars: how many times as long as ours the others take, on a logarithmic axis; 1 = level."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    timed = [(n, row["columns"]) for _, n, row in every_row(data, TIMED) if "columns" in row]
    rows = [(n, columns) for n, columns in timed if "seconds" in columns.get(OURS, {})][::-1]
    names = [n for n in ORDER if any("over_ours" in c.get(n, {}) for _, c in rows)]
    figure = Figure(figsize=(9, 1.2 + 0.14 * (len(names) + 1) * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    step = 0.8 / max(len(names), 1)
    for k, name in enumerate(names):
        ratio = lambda columns, name=name: columns.get(name, {}).get("over_ours", {}).get("total")
        present = [(i, r) for i, (_, columns) in enumerate(rows) if (r := ratio(columns))]
        places = [i + step * ((len(names) - 1) / 2 - k) for i, _ in present]
        medians = [r["median"] for _, r in present]
        low = [r["median"] - r["p20"] for _, r in present]
        high = [r["p80"] - r["median"] for _, r in present]
        bars = {"label": name, "xerr": [low, high], "error_kw": {"lw": 0.8}}
        axes.barh(places, medians, 0.9 * step, **bars)
    axes.axvline(1, color="black", lw=0.8)
    axes.set(xscale="log", xlabel="times as long as ours", yticks=range(len(rows)))
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.xaxis.set_major_formatter(LogFormatter())  # 10, not 10 to a power
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.set_yticklabels([name for name, _ in rows], fontsize=8)
    if names:
        figure.legend(fontsize=8, loc="outside upper right", ncols=len(names))
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
