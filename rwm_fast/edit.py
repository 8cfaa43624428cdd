"""Edit a picture: `python -m rwm_fast.edit --checkpoint RUN --content a.jpg --style b.jpg
--mask m.png --out out.png`. Without a mask the whole picture takes the style."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from rwm_fast.app.command_line import parse_into
from rwm_fast.data.decode import load_image, load_picture, read_mask, save_image
from rwm_fast.data.files import printable
from rwm_fast.data.formats import LIMITS, Limits
from rwm_fast.data.mask_file import Mask
from rwm_fast.data.saving import check_target
from rwm_fast.device import prepare
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.models import RegionEditor
from rwm_fast.models.pretrained import DEFAULT


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    content: Path  # the picture to edit
    style: tyro.conf.UseAppendAction[tuple[Path, ...]]  # picture to take the style from; repeatable
    out: Path  # the edited picture, of the content picture's size
    checkpoint: str = DEFAULT  # name of the package's own weights, run folder, or a weights file
    # white = repaint; of the content picture's size; repeatable, the k-th goes with the k-th style
    mask: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    # which level, palette index or colour (rrggbb) of a mask with several; one serves all masks
    mask_label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    keep_detail: bool = False  # carry over what the networks cannot paint (ours, not the paper's)
    feather: float | None = None  # px, paste over the untouched picture with a border this soft
    work_size: int = 0  # px, short side at which the networks work; 0 = that of the pictures
    max_megapixels: float = LIMITS.max_megapixels  # larger pictures are not read
    device: str = "auto"  # cpu, cuda or cuda:N
    precision: str = "auto"  # fp32, bf16 or fp16

    def __post_init__(self) -> None:
        if self.mask_label and (not self.mask or len(self.mask_label) not in (1, len(self.mask))):
            raise ValueError(
                f"--mask-label: expected one, or one for each of {len(self.mask)} masks, got "
                f"{len(self.mask_label)}"
            )


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse_into(Arguments, sys.argv[1:] if argv is None else argv, "edit", __doc__)
    device, dtype = prepare(arguments.device, arguments.precision)
    check_target(arguments.out)
    limits = Limits(max_megapixels=arguments.max_megapixels)
    picture = load_picture(arguments.content, limits)
    content = picture.tensor()
    styles = [load_image(path, limits) for path in arguments.style]
    masks = _masks(arguments, (content.shape[2], content.shape[3]), limits)
    editor = RegionEditor.from_checkpoint(arguments.checkpoint, device=device, dtype=dtype)
    try:
        edited = editor.edit(
            content.to(device),
            [style.to(device) for style in styles],
            [torch.from_numpy(mask.plane)[None, None].to(device) for mask in masks],
            keep_detail=arguments.keep_detail,
            feather=arguments.feather,
            work_size=arguments.work_size,
        )
    except ValueError as error:  # of arguments that do not fit each other
        raise UserError(str(error)) from None
    for path, mask in zip(arguments.mask, masks, strict=True):
        if remark := mask.remark():
            print(printable(f"mask {path} {remark}"), file=sys.stderr)
    existed = arguments.out.exists() and os.path.samefile(arguments.out, arguments.content)
    note = save_image(edited, arguments.out, like=picture)
    said = [f"{content.shape[3]} x {content.shape[2]}", f"repaints {_share(masks):.1%}"]
    said += ["in place of the picture that was edited"] * existed + [note] * bool(note)
    print(printable(f"{arguments.out}: {', '.join(said)}"))
    return 0


def _masks(arguments: Arguments, size: tuple[int, int], limits: Limits) -> list[Mask]:
    labels = arguments.mask_label or ("",)
    labels = labels if len(labels) > 1 else labels * len(arguments.mask)
    pairs = zip(arguments.mask, labels, strict=True)
    return [read_mask(path, size, label, limits) for path, label in pairs]


def _share(masks: list[Mask]) -> float:
    """The part of the picture that the masks repaint together; all of it without a mask."""
    left = 1.0
    if not masks:
        return left
    kept = torch.stack([1 - torch.from_numpy(mask.plane) for mask in masks]).prod(0)
    return 1 - float(kept.mean())


if __name__ == "__main__":
    sys.exit(main())
