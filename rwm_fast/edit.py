"""Edit a picture: `python -m rwm_fast.edit --checkpoint RUN --content a.jpg --style b.jpg
--mask m.png --out out.png`. Without a mask the whole picture takes the style."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from rwm_fast.app.command_line import parse_into
from rwm_fast.data.decode import load_image, load_mask, save_image
from rwm_fast.device import prepare
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.models import RegionEditor


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    checkpoint: Path  # run folder, or a weights file
    content: Path  # the picture to edit
    style: tyro.conf.UseAppendAction[tuple[Path, ...]]  # picture to take the style from; repeatable
    out: Path  # the edited picture, of the content picture's size
    # white = repaint; of the content picture's size; repeatable, the k-th goes with the k-th style
    mask: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    keep_detail: bool = False  # carry over what the networks cannot paint (ours, not the paper's)
    feather: float | None = None  # px, paste over the untouched picture with a border this soft
    work_size: int = 0  # px, short side at which the networks work; 0 = that of the pictures
    device: str = "auto"  # cpu, cuda or cuda:N
    precision: str = "auto"  # fp32 or bf16


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse_into(Arguments, sys.argv[1:] if argv is None else argv, "edit", __doc__)
    device, dtype = prepare(arguments.device, arguments.precision)
    if not arguments.out.absolute().parent.is_dir():
        raise UserError(f"--out: expected a path in a folder that exists, got {arguments.out}")
    content = load_image(arguments.content)
    styles = [load_image(path) for path in arguments.style]
    masks = [load_mask(path, (content.shape[2], content.shape[3])) for path in arguments.mask]
    editor = RegionEditor.from_checkpoint(arguments.checkpoint, device=device, dtype=dtype)
    try:
        edited = editor.edit(
            content.to(device),
            [style.to(device) for style in styles],
            [mask.to(device) for mask in masks],
            keep_detail=arguments.keep_detail,
            feather=arguments.feather,
            work_size=arguments.work_size,
        )
    except ValueError as error:  # of arguments that do not fit each other
        raise UserError(str(error)) from None
    save_image(edited, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
