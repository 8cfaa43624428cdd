"""Prepare photos for training: `python -m rwm_fast.prepare PHOTOS --out set.zip`.

Every picture is decoded, turned upright, converted to sRGB, made as small as training needs and
packed into one zip file, or with --shards into tar shards in a folder. Files that cannot be read,
copies of a picture already packed and files that are no pictures are left out and listed. An
interrupted command, given again, goes on. Train with `--data set.zip`, or, when several sources
were packed and each is to be a domain, with `--data set.zip/one set.zip/two`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from rwm_fast.app.command_line import parse_into
from rwm_fast.data.formats import Limits
from rwm_fast.data.packing import Packing, pack
from rwm_fast.disk import writable, write_file
from rwm_fast.errors import UserError, reports_user_errors

STOPPED = 130  # exit status of a command ended by Ctrl-C, as shells have it


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    # folders, zip files, tar shards, or folders inside them, as set.zip/beach
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    packing: Annotated[Packing, tyro.conf.arg(name="")] = field(default_factory=Packing)
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)
    # zip file to write, with --shards a folder; without it, photos are only checked
    out: Path | None = None
    report: Path | None = None  # JSON file to write the whole report to; what is written holds it


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_into(Arguments, given, "prepare", __doc__)
    if not arguments.photos:
        raise UserError("expected at least one folder or zip file of pictures (see --help)")
    if arguments.report is not None:
        writable(arguments.report)
    with tqdm(unit=" pictures", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        sources = list(map(str, arguments.photos))
        try:
            report = pack(sources, arguments.out, arguments.packing, show, arguments.limits)
        except KeyboardInterrupt:
            bar.close()
            print("stopped; the same command goes on", file=sys.stderr)
            return STOPPED
    if arguments.report is not None:
        text = report.to_json()
        write_file(arguments.report, lambda temporary: temporary.write_text(text))
    print("\n".join(report.lines()))
    if arguments.out is None:
        print("checked only: --out set.zip packs them")
    else:
        shards = sorted(arguments.out.glob("*.tar"))
        size = sum(path.stat().st_size for path in shards or [arguments.out])
        what = f"{arguments.out}, {len(shards)} shards" if shards else arguments.out
        print(f"wrote {what}, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
