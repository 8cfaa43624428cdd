"""Weights of the official Swapping Autoencoder: `python -m rwm_fast.convert latest_checkpoint.pth
--out weights.safetensors`, and with `--save swapae` ours as its code reads them. `--save float16`
stores ours in half the bytes.

The encoder and the generator are converted; nothing in the checkpoint is executed and no options
file is needed. The result keeps the licence of the weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from rwm_fast.app.command_line import parse_into
from rwm_fast.errors import UserError, reports_user_errors
from rwm_fast.models import Encoder, Generator, load_weights, official, read_config, save_weights
from rwm_fast.models.weights import read_kimg


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    # an official checkpoint; with --save swapae or float16 a run folder or a weights file of ours
    weights: Annotated[str, tyro.conf.Positional]
    out: Path  # the file to write
    save: Literal["rwm_fast", "swapae", "float16"] = "rwm_fast"  # the form it takes


@reports_user_errors
def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_into(Arguments, given, "convert", __doc__)
    if not arguments.out.absolute().parent.is_dir():
        raise UserError(f"--out: expected a path in a folder that exists, got {arguments.out}")
    forms = {"rwm_fast": _from_official, "swapae": _to_official, "float16": _to_float16}
    forms[arguments.save](arguments.weights, arguments.out)
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size / 1e6:.1f} MB")
    return 0


def _from_official(path: str, out: Path) -> None:
    config, networks = official.load(path)
    save_weights(out, networks["encoder"], networks["generator"], config)
    model = config.model
    print(f"image size {model.image_size} px, content code {model.content_channels} channels, "
          f"style code {model.style_dim} numbers, demodulation {model.demodulation}")  # fmt: skip


def _to_float16(path: str, out: Path) -> None:
    """Also leaves out where the pictures of training lay: such a file goes to other people."""
    config = read_config(path)
    names = tuple(Path(source).name for source in config.data.sources)
    config = replace(config, data=replace(config.data, sources=names))
    encoder, generator = Encoder(config.model), Generator(config.model)
    load_weights(path, encoder, generator)
    save_weights(out, encoder.half(), generator.half(), config, read_kimg(path))


def _to_official(path: str, out: Path) -> None:
    model = read_config(path).model
    encoder, generator = Encoder(model), Generator(model)
    load_weights(path, encoder, generator)
    state = official.state_of(model, {"encoder": encoder, "generator": generator})
    partial = out.with_name(out.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, out)


if __name__ == "__main__":
    sys.exit(main())
