"""Edit a picture: `python -m rwm_fast.edit --checkpoint RUN --content a.jpg --style b.jpg
--mask m.png --out out.png`. Without a mask or click the whole picture takes the style. Of a folder
or zip as --content or --style every picture is taken, and --out is a folder."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from rwm_fast.app import metadata
from rwm_fast.app.batch import Batch
from rwm_fast.app.command_line import parse_into
from rwm_fast.app.edits import (
    Looks,
    Painting,
    composed,
    deepened,
    paint,
    read_looks,
    reduced,
    save_edit,
    series,
)
from rwm_fast.app.folders import File, Task, files_of, is_many, make_all, tasks_of
from rwm_fast.app.regions import Regions, read_regions, share
from rwm_fast.app.steps import Steps
from rwm_fast.data.decode import load_picture
from rwm_fast.data.files import printable
from rwm_fast.data.formats import LIMITS, Limits
from rwm_fast.data.photos import told_over
from rwm_fast.data.saving import check_target
from rwm_fast.device import prepare
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.models import RegionEditor
from rwm_fast.models.pretrained import DEFAULT, resolve
from rwm_fast.training.ending import STOPPED

_TOLD = 10  # pictures that are left out and named; the log names all
Group = tyro.conf.arg(name="")  # the options of a part, without the part's name before them


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    content: Path  # the picture to edit, or a folder or zip of pictures
    # picture to take the style from; repeatable. Or a folder or zip: every picture in every style
    style: tyro.conf.UseAppendAction[tuple[Path, ...]]
    out: Path  # the edited picture, a .gif or .mp4 of a series, or, of many pictures, their folder
    checkpoint: str = DEFAULT  # name of the package's own weights, run folder, or a weights file
    regions: Annotated[Regions, Group] = field(default_factory=Regions)
    painting: Annotated[Painting, Group] = field(default_factory=Painting)
    steps: Annotated[Steps, Group] = field(default_factory=Steps)
    extension: str = "png"  # of many pictures: what the names of the results end in
    max_megapixels: float = LIMITS.max_megapixels  # larger pictures are not read
    device: str = "auto"  # cpu, cuda or cuda:N
    precision: str = "auto"  # fp32, bf16 or fp16

    def __post_init__(self) -> None:
        if "." in self.extension or not self.extension:
            raise ValueError(f"--extension: expected one as png or jpg, got {self.extension!r}")


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    arguments = parse_into(Arguments, sys.argv[1:] if argv is None else argv, "edit", __doc__)
    many = is_many(arguments.content) or (len(arguments.style) == 1 and is_many(arguments.style[0]))
    return (_many if many else _one)(arguments)


def _one(arguments: Arguments) -> int:
    """One picture, or one series."""
    device, dtype = prepare(arguments.device, arguments.precision)
    out, styles, steps = arguments.out, len(arguments.style), arguments.steps
    series_of = steps.kind(out)
    arguments.regions.check(styles, mixed=bool(series_of))
    limits = Limits(max_megapixels=arguments.max_megapixels)
    picture = load_picture(arguments.content, limits)
    image = picture.shown()
    looks = read_looks(arguments.style, arguments.regions, limits)
    masks = read_regions(arguments.regions, (image.height, image.width), limits)
    editor = RegionEditor.load(arguments.checkpoint, device=device, dtype=dtype)
    texts = metadata.texts(arguments, "edit", metadata.digest_of(resolve(arguments.checkpoint)))
    edit = composed(image, looks, arguments.regions, masks, editor)
    said = [f"{image.width} x {image.height}", f"repaints {share(edit.regions):.1%}"]
    if series_of:
        shared = arguments.regions.shared(styles)
        make = lambda rows, side: series(editor, reduced(edit, side), arguments.painting, rows)
        said.append(steps.write(out, styles, shared, arguments.painting.strength, make, texts))
    else:
        edited = paint(editor, deepened(edit, picture, out), arguments.painting)
        existed = out.exists() and os.path.samefile(out, arguments.content)
        said += ["in place of the picture that was edited"] * existed
        said += filter(None, [save_edit(edited, out, picture, texts)])
    for remark in edit.remarks():
        print(remark, file=sys.stderr)
    print(printable(f"{out}: {', '.join(said)}"))
    return 0


def _many(arguments: Arguments) -> int:
    """Every picture of a folder or zip, in the styles given or in every style of another one."""
    device, dtype = prepare(arguments.device, arguments.precision)
    regions, out, limits = arguments.regions, arguments.out, Limits(arguments.max_megapixels)
    if arguments.steps != Steps():
        raise UserError("--strip, --grid and --frames: expected one picture as --content")
    regions.check(len(arguments.style))
    check_target(Path(f"name.{arguments.extension}"))
    contents, passed = files_of(arguments.content, limits)
    styles: list[File] = []
    looks: Looks | None = None
    if is_many(arguments.style[0]):
        styles, others = files_of(arguments.style[0], limits)
        passed |= others
    else:
        looks = read_looks(arguments.style, regions, limits)
    tasks = tasks_of(contents, styles, arguments.extension)
    editor = RegionEditor.load(arguments.checkpoint, device=device, dtype=dtype)
    weights = metadata.digest_of(resolve(arguments.checkpoint))
    files = metadata.digest_of(*(() if looks is None else arguments.style), *regions.style_mask)
    rest = replace(regions, mask=(), style_mask=())
    settings = repr((weights, files, rest, arguments.painting))
    texts = lambda task: metadata.texts(_alone(arguments, task), "edit", weights)
    batch = Batch(editor, arguments.painting, regions, limits, looks, settings, texts)
    with tqdm(total=len(tasks), unit=" pictures", disable=None) as bar:
        try:
            outcome = make_all(tasks, out, batch.key_of, batch.make, bar.update)
        except KeyboardInterrupt:
            bar.close()
            print("stopped; the same command goes on", file=sys.stderr)
            return STOPPED
    told = [f"{name}: {reason}" for name, reason in outcome.skipped.items()]
    if not outcome.made + outcome.kept:
        raise UserError(f"none of {len(tasks)} pictures could be edited, for example {told[0]}")
    for line in told[:_TOLD]:
        print(f"left out {line}", file=sys.stderr)
    counts = f"{outcome.made} made, {outcome.kept} there already, {len(told)} left out"
    over = [told_over(passed)] if passed else []
    print(printable(f"{out}: {'; '.join([counts, *over])}"))
    return 0


def _alone(arguments: Arguments, task: Task) -> Arguments:
    """The command that makes one result of many."""
    style = arguments.style if task.style is None else (Path(task.style.name),)
    content, out = Path(task.content.name), Path(task.target)
    return replace(arguments, content=content, style=style, out=out)


if __name__ == "__main__":
    sys.exit(main())
