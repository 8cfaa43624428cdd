"""How fast training pictures are read: `python -m benchmarks.loading` makes photos, lays them down
as a folder, a zip and tar shards, reads batches of crops from each in this process and in worker
processes, and prints images per second, CPU time per image, and images per second of one core: the
rate of a step that such a core can feed. Then short trainings of the small presets say what share
of their steps they waited for pictures that are not kept in memory; of every other preset one step
is timed (`--presets`, minutes each) and set against the time to read its pictures: what it would
wait if nothing were read ahead. Linux only. `--seconds` is the time of a row, `--out FILE` keeps
the JSON and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import cpu
from rwm_fast.config import PRESETS, DataConfig
from rwm_fast.data.loader import Loader, make_loader
from rwm_fast.data.packing import Packing, pack
from rwm_fast.data.photos import PhotoSet
from rwm_fast.data.pool import LandscapePool
from rwm_fast.examples import FOLDER
from rwm_fast.train import main as train
from rwm_fast.training.loop import step_generator
from rwm_fast.training.stats import JsonLines
from rwm_fast.training.trainer import Trainer

BATCH = 16
PHOTOS = {"800 x 600": (800, 600, 96), "4000 x 3000": (4000, 3000, 8)}  # width, height, count
TRAINED = {"demo": 0.8, "small-128": 0.128}  # kimg; steps of the others take a CPU minutes
_TICKS = os.sysconf("SC_CLK_TCK")


def make_photos(folder: Path) -> None:
    """JPEG files, windows of the package's own photos at the size of cameras and of the web."""
    own = [Image.open(path).convert("RGB") for path in sorted(FOLDER.glob("*.jpg"))]
    random = np.random.default_rng(0)
    for name, (width, height, count) in PHOTOS.items():
        (folder / name).mkdir()
        for k in range(count):
            image = own[k % len(own)]
            w = random.uniform(0.6, 1.0) * min(image.width, image.height * 4 / 3)
            h = w * 3 / 4
            left, top = random.uniform(0, 1, 2) * (image.width - w, image.height - h)
            box = (left, top, left + w, top + h)
            window = image.resize((width, height), Image.Resampling.LANCZOS, box)
            window.save(folder / name / f"{k:03}.jpg", quality=90)


def sources(folder: Path, size: int) -> dict[str, Path]:
    """The same photos in every form, made as small as training at `size` needs."""
    found = {f"folder, JPEG {name}": folder / name for name in PHOTOS}
    photos = str(folder / next(iter(PHOTOS)))
    for kind in ("png", "jpg"):
        for shards in (False, True):
            out = folder / f"{size}-{kind}{'' if shards else '.zip'}"
            pack([photos], out, Packing(size=size, format=kind, shards=shards, shard_pictures=16))
            found[f"{'shards' if shards else 'zip'}, {kind.upper()} {size}"] = out
    return found


def ticks(loader: Loader) -> float:
    """CPU seconds that this process and those that read for it have used."""
    used = time.process_time()
    for worker in loader._batches._workers:
        text = Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()
        used += (int(text[11]) + int(text[12])) / _TICKS
    return used


def measure(pictures: Any, seconds: float) -> dict[str, float]:
    """Batches for so long, after those that were prepared ahead at the start."""
    loader = make_loader(pictures, BATCH)
    try:
        for _ in range(4):
            next(loader)
        wall, used, images = time.monotonic(), ticks(loader), 0
        while time.monotonic() - wall < seconds:
            next(loader)
            images += BATCH
        wall, used = time.monotonic() - wall, ticks(loader) - used
    finally:
        loader.close()
    return {"images_per_second": images / wall, "cpu_ms": 1000 * used / images}


def rows(sizes: list[int], seconds: float) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        make_photos(Path(name))
        for size in sizes:
            for source, path in sources(Path(name), size).items():
                held = [p for p in path.glob("*") if p.suffix in (".jpg", ".tar")] or [path]
                for workers in (0, 2):
                    config = DataConfig((str(path),), resize=size, cache_mb=0.0, workers=workers)
                    pictures = PhotoSet(config, size)
                    kb = sum(p.stat().st_size for p in held) / len(pictures.photos) / 1000
                    row = {"px": size, "source": source, "workers": workers, "kb": kb}
                    yield row | measure(pictures, seconds)
        yield {"px": 64, "source": "landscapes, in memory", "workers": 0, "kb": 0.0} | measure(
            LandscapePool(256, 64), seconds
        )


def waiting(preset: str, kimg: float, workers: int) -> dict[str, Any]:
    """What the log of a training on shards says, without its first line, which has the start."""
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), PRESETS[preset].model.image_size
        make_photos(folder)
        shards = sources(folder, size)[f"shards, JPG {size}"]
        options = f"--preset {preset} --kimg {kimg} --data.cache-mb 0 --data.workers {workers}"
        words = [*options.split(), "--train.log-kimg", str(kimg / 4), "--data", str(shards)]
        assert train([*words, "--out", str(folder / "run")]) == 0
        log = JsonLines(folder / "run" / "log.jsonl").read()
    lines = [line for line in log if "loading_share" in line][1:]
    mean = lambda key: float(np.mean([line[key] for line in lines]))
    return {
        "preset": preset,
        "workers": workers,
        "images_per_second": mean("images_per_second"),
        "share": mean("loading_share"),
    }


def one_step(preset: str, seconds: float) -> dict[str, Any]:
    """A step of two pictures, without R1, and the reading of its pictures from shards that were
    made of camera files, a picture each."""
    config = PRESETS[preset]
    size, batch = config.model.image_size, 2
    with tempfile.TemporaryDirectory() as name:
        make_photos(Path(name))
        shards = Path(name) / "shards"
        packing = Packing(size=config.data.resize, format="jpg", shards=True)
        pack([str(Path(name) / list(PHOTOS)[-1])], shards, packing)
        data = replace(config.data, sources=(str(shards),), cache_mb=0.0, workers=0)
        read = 1 / measure(PhotoSet(data, size), seconds)["images_per_second"]
    config = replace(config, train=replace(config.train, batch=batch))
    trainer = Trainer(config, torch.device("cpu"), torch.float32)
    image = torch.rand(batch, 3, size, size) * 2 - 1
    begun = time.monotonic()
    trainer.step(image, batch, 0.5, step_generator(0, batch))
    step = (time.monotonic() - begun) / batch
    return {"preset": preset, "read_ms": 1000 * read, "step_ms": 1000 * step, "share": read / step}


def rows_table(found: list[dict[str, Any]]) -> list[str]:
    return [
        "| px | source | workers | KB | images/s | CPU ms | images/s of a core |",
        "|---" * 7 + "|",
    ] + [
        f"| {row['px']} | {row['source']} | {row['workers']} | {row['kb']:.0f} "
        f"| {row['images_per_second']:.0f} | {row['cpu_ms']:.2f} | {row['per_core']:.0f} |"
        for row in found
    ]


def trained_lines(found: list[dict[str, Any]]) -> list[str]:
    """What a step of each preset waits."""
    return [
        f"- {row['preset']}, {row['workers']} workers: {row['images_per_second']:.1f} images/s, "
        f"{row['share']:.2%} of the time waiting for pictures"
        if "workers" in row
        else f"- {row['preset']}: a picture takes {row['step_ms']:.0f} ms to learn from, "
        f"{row['read_ms']:.1f} to read, {row['share']:.2%} of it"
        for row in found
    ]


def table(found: dict[str, Any]) -> str:
    """Markdown of everything in the JSON."""
    head = f"{found['cpu']['name']}, {found['cpu']['cores']} cores{found['beside']}"
    rows, trained = rows_table(found["rows"]), trained_lines(found["trained"])
    return "\n".join([head, "", *rows, "", *trained, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 256, 128, 64])
    parser.add_argument(
        "--presets", nargs="*", default=[p for p in PRESETS if p not in TRAINED], choices=PRESETS
    )
    parser.add_argument("--out", type=Path, help="results as JSON, and a table beside it")
    parser.add_argument("--beside", default="", help="what else runs, to be said in the table")
    arguments = parser.parse_args()
    machine = cpu()
    print(f"{machine['name']}, {machine['cores']} cores, load {os.getloadavg()[0]:.1f}")
    print(*rows_table([]), sep="\n")
    done: list[dict[str, Any]] = []
    for row in rows(arguments.sizes, arguments.seconds):
        done.append(row | {"per_core": 1000 / row["cpu_ms"]})
        print(rows_table(done)[-1], flush=True)
    trained: list[dict[str, Any]] = []
    for preset, kimg in TRAINED.items():
        for workers in (0, 2):
            trained.append(waiting(preset, kimg, workers))
            print(trained_lines(trained)[-1], flush=True)
    for preset in arguments.presets:
        trained.append(one_step(preset, arguments.seconds))
        print(trained_lines(trained)[-1], flush=True)
    if arguments.out:
        beside = f", beside {arguments.beside}" if arguments.beside else ""
        found = {"cpu": machine, "beside": beside, "rows": done, "trained": trained}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(found))


if __name__ == "__main__":
    main()
