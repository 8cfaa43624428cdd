"""What the command takes for a photo of 24 megapixels: `python -m benchmarks.large_photo`.

The photo is a picture of the package, enlarged to 6000 × 4000 pixels with grain, as JPEG; its mask
a PNG of that size. Each edit is a process of its own, with the shipped weights: seconds on the
clock on the wall and of the processor, and the most memory it held (VmHWM). `--threads` is how many
torch may use; `--out`, a Markdown file, keeps the table.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import machine
from rwm_fast.examples import FOLDER

SIZE = (6000, 4000)
GRAIN = 2.5  # standard deviation, of 255
EDITS = {
    "a mask file, to PNG": ("--mask", "mask.png", "--out", "out.png"),
    "a mask file, to JPEG": ("--mask", "mask.png", "--out", "out.jpg"),
    "… with a soft border": ("--mask", "mask.png", "--feather", "8", "--out", "out.png"),
    "a click": ("--click", "3000,600", "--out", "out.png"),
}
# The command, and what its process held at most; the rusage of a child starts with its parent's.
PROGRAM = """
import sys
from rwm_fast.edit import main
status = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
sys.exit(status)
"""


def draw(folder: Path, size: tuple[int, int] = SIZE) -> None:
    """photo.jpg, mask.png and style.jpg."""
    grain = np.random.default_rng(0)
    with Image.open(FOLDER / "castle.jpg") as photo:
        large = np.asarray(photo.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    for rows in np.array_split(large, 16):  # views: no second copy of all
        rows += GRAIN * grain.standard_normal(rows.shape, np.float32)
    Image.fromarray(large.round().clip(0, 255).astype(np.uint8)).save(
        folder / "photo.jpg", quality=95, subsampling=0
    )
    with Image.open(FOLDER / "castle-sky.png") as mask:
        mask.convert("L").resize(size, Image.Resampling.BICUBIC).save(folder / "mask.png")
    (folder / "style.jpg").write_bytes((FOLDER / "sunset.jpg").read_bytes())


def edit(folder: Path, options: tuple[str, ...], threads: int) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and MB of one edit."""
    command = [sys.executable, "-c", PROGRAM, "--content", "photo.jpg", "--style", "style.jpg"]
    path = os.pathsep.join([str(machine.ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [*command, *options], cwd=folder, env=environment, stdout=subprocess.PIPE, check=True
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, int(run.stdout.split()[-1]) * 1024 / 1e6


def table(threads: int, size: tuple[int, int] = SIZE) -> str:
    """A Markdown table, a row an edit."""
    about = machine.cpu()
    lines = [
        f"{about['name']}, {threads} threads, commit {machine.commit(machine.ROOT)}; "
        f"{size[0]} × {size[1]} pixels, weights: photos.",
        "",
        "| edit | seconds | CPU seconds | peak MB |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name), size)
        for title, options in EDITS.items():
            wall, cpu, peak = edit(Path(name), options, threads)
            lines.append(f"| {title} | {wall:.1f} | {cpu:.1f} | {peak:.0f} |")
            print(lines[-1], file=sys.stderr)
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.large_photo", description=__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args(argv)
    told = table(arguments.threads)
    if arguments.out:
        arguments.out.write_text(told, encoding="utf-8")
    print(told, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
