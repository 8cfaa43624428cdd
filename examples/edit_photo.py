"""Repaint a region of a picture in the style of another.

    python examples/edit_photo.py                                          # drawn landscapes
    python examples/edit_photo.py RUN CONTENT STYLE MASK OUT               # your weights and photos

Without files it draws both pictures and trains for `--seconds` first, so the result is rough.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from rwm_fast import RegionEditor
from rwm_fast.config import preset
from rwm_fast.data import landscapes
from rwm_fast.data.decode import load_image, load_mask, save_image
from rwm_fast.training.run import train


def edit(run, content, style, mask, out):
    editor = RegionEditor.from_checkpoint(run)
    picture = load_image(content)  # [1, 3, H, W] in [-1, 1]
    region = load_mask(mask, tuple(picture.shape[2:]))  # [1, 1, H, W], 1 = repaint
    save_image(editor.edit(picture, load_image(style), region, keep_detail=True), out)


def short_run(folder, seconds):
    """The demo's networks, trained on some drawn landscapes for so many seconds."""
    demo = preset("demo")
    train(
        replace(
            demo,
            data=replace(demo.data, pool=256),
            train=replace(demo.train, seconds=seconds),
        ),
        folder,
    )


def drawn(folder):
    """Two landscapes, and the sky of the first as a mask."""
    pictures, regions = landscapes.render(
        landscapes.content([1, 2]), landscapes.style([3, 4]), size=64
    )
    save_image(pictures[:1], folder / "content.png")
    save_image(pictures[1:], folder / "style.png")
    sky = regions[:1, :1].expand(-1, 3, -1, -1)
    save_image(sky * 2 - 1, folder / "mask.png")
    return folder / "content.png", folder / "style.png", folder / "mask.png"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="RUN CONTENT STYLE MASK OUT")
    parser.add_argument("--seconds", type=float, default=20.0, help="of training, without files")
    parser.add_argument("--folder", type=Path, default=Path("runs/example-edit"))
    arguments = parser.parse_args()
    if arguments.files:
        edit(*arguments.files)
    else:
        short_run(arguments.folder, arguments.seconds)
        edited = arguments.folder / "edited.png"
        edit(arguments.folder, *drawn(arguments.folder), edited)
        print(f"see {edited}")
