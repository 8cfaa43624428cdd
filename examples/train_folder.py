"""Train on a folder of pictures.

    python examples/train_folder.py                        # some drawn landscapes, a few iterations
    python examples/train_folder.py PHOTOS --kimg 2000     # your photos, at 128 px: hours on a GPU

The command `python -m rwm_fast.train --data PHOTOS --preset small-128` does the same.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from rwm_fast.config import preset
from rwm_fast.data import landscapes
from rwm_fast.data.decode import save_image
from rwm_fast.training.run import train


def draw(folder, count=24):
    """Landscapes in place of photos, so that the example runs by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = list(range(count))
    pictures, _ = landscapes.render(landscapes.content(seeds), landscapes.style(seeds), size=80)
    for seed in seeds:
        save_image(pictures[seed : seed + 1], folder / f"{seed:03}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*", help="folders or zips; each is a domain")
    parser.add_argument("--kimg", type=float, default=0.08, help="thousand pictures to see")
    parser.add_argument("--folder", type=Path, default=Path("runs/example-train"))
    arguments = parser.parse_args()
    config = preset("small-128" if arguments.photos else "demo")
    sources = tuple(arguments.photos)
    if not sources:
        draw(arguments.folder / "pictures")
        sources = (str(arguments.folder / "pictures"),)
    config = replace(
        config,
        data=replace(config.data, sources=sources),
        train=replace(config.train, kimg=arguments.kimg, seconds=0.0),
    )
    train(config, arguments.folder / "run")  # goes on where it stopped, if it did
    report = json.loads((arguments.folder / "run" / "report.json").read_text())
    print({name: report[name] for name in ("kimg", "seconds")})
