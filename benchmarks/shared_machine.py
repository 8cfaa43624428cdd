"""The demo's speed beside busy neighbours: one thread, all threads, and the number chosen by time.

`python -m benchmarks.shared_machine --out results.json`, on a quiet machine.
The fair share of N cores beside M busy processes is N / (N + M) of the best quiet speed, at most
all of it. The columns take turns, so that all see the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = ("1", "all", "auto")
BUSY = "import numpy\nx = numpy.ones(4096)\nwhile True:\n    x = x * 0.5 + 0.5"


def train_for(column: str, seconds: float) -> dict:
    """images/s of the demo's steps in this process, in which nothing was trained before."""
    import torch

    from rwm_fast.config import PRESETS
    from rwm_fast.device import usual_threads
    from rwm_fast.training.loop import step_generator
    from rwm_fast.training.threads import GLANCE, Chooser, FreeCores
    from rwm_fast.training.trainer import Trainer

    config, most = PRESETS["demo"], usual_threads()
    torch.set_num_threads(1 if column == "1" else most)
    chooser = None
    trainer = Trainer(config, torch.device("cpu"), torch.float32)
    size, batch = config.model.image_size, config.train.batch
    image = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    nimg, begun = 0, None
    if column == "auto":  # as `chosen_threads` begins
        free = FreeCores()
        time.sleep(GLANCE)
        chooser = Chooser(most, free=free())
        torch.set_num_threads(chooser.threads)
    while begun is None or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        # the last part of a run: every term is due at its time
        terms = trainer.step(image, nimg, 0.9, step_generator(0, nimg))
        nimg += batch
        if begun is None:  # libraries load with the first step
            begun, nimg = time.perf_counter(), batch
        elif chooser is not None:
            chooser.add(time.perf_counter() - start, tuple(terms), free())
            torch.set_num_threads(chooser.threads)
    rate = (nimg - batch) / (time.perf_counter() - begun)
    return {"rate": rate, "threads": chooser.chosen if chooser else torch.get_num_threads()}


def measure(seconds: float, turns: int, neighbours: list[int]) -> list[dict]:
    rows = []
    for count in neighbours:
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        try:
            runs: dict[str, list[dict]] = {column: [] for column in COLUMNS}
            for _ in range(turns):
                for column in COLUMNS:
                    command = [
                        sys.executable,
                        "-m",
                        "benchmarks.shared_machine",
                        "--column",
                        column,
                    ]
                    command += ["--seconds", str(seconds)]
                    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
                    runs[column].append(json.loads(output))
        finally:
            for process in busy:
                process.kill()
                process.wait()
        rates = {c: statistics.median(run["rate"] for run in runs[c]) for c in COLUMNS}
        rows.append({"neighbours": count, "rates": rates, "runs": runs})
    return rows


def table(rows: list[dict], cores: int) -> str:
    """Markdown: images/s, and what the chosen number reaches."""
    best = max(rows[0]["rates"].values()) if rows[0]["neighbours"] == 0 else 0.0
    lines = [
        f"demo, images/s on {cores} cores beside busy processes:\n",
        "| busy processes | 1 thread | all threads | chosen | threads chosen | of the fair share |"
        " of one thread |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        one, every, auto = (row["rates"][column] for column in COLUMNS)
        fair = best * min(cores / (cores + row["neighbours"]), 1.0)
        used = "/".join(str(run["threads"]) for run in row["runs"]["auto"])
        share = f"{auto / fair:.0%}" if fair else ""
        lines.append(
            f"| {row['neighbours']} | {one:.1f} | {every:.1f} | {auto:.1f} | {used} | {share} "
            f"| {auto / one:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=9.0, help="of one measurement")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", default="", help="results as JSON, and a table beside it")
    parser.add_argument("--column", choices=COLUMNS, help="measure this one here, and print it")
    arguments = parser.parse_args()
    if arguments.column:
        print(json.dumps(train_for(arguments.column, arguments.seconds)))
        return
    from rwm_fast.device import cores

    count = cores()
    rows = measure(arguments.seconds, arguments.turns, sorted({0, 1, count}))
    print(table(rows, count))
    if arguments.out:
        path = Path(arguments.out)
        load = os.getloadavg()[0]
        path.write_text(json.dumps({"cores": count, "load": load, "rows": rows}, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(rows, count))


if __name__ == "__main__":
    main()
