"""Encoder and generator on disk: one safetensors file, with the config in its header."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rwm_fast.config import Config, ModelConfig
from rwm_fast.errors import UserError
from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator

FILE_NAME = "weights.safetensors"
Shapes = dict[str, tuple[int, ...]]


class WeightsError(UserError):
    """A weights file that is absent, unreadable, or made for another model."""


def save_weights(
    path: str | os.PathLike[str], encoder: Encoder, generator: Generator, config: Config
) -> None:
    """Writes the parameters of both networks, and the config as JSON in the header.

    Names are those of the modules after "encoder." and "generator."; the header's key is "config".
    The file appears whole or not at all.
    """
    if not encoder.config == generator.config == config.model:
        raise ValueError("save_weights: config.model must be what both networks are made from")
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    tensors = {k: v.detach().contiguous().cpu() for k, v in _parameters(encoder, generator).items()}
    save_file(tensors, partial, metadata={"config": config.to_json(indent=None), "format": "pt"})
    os.replace(partial, path)


def read_config(path: str | os.PathLike[str]) -> Config:
    """The config in the header of a weights file, or of the weights file in a folder."""
    path = locate(path)
    with _open(path) as file:
        metadata = file.metadata() or {}
    if "config" not in metadata:
        raise WeightsError(f"{path}: no config in the header, so not a rwm_fast weights file")
    try:
        return Config.from_json(metadata["config"])
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None


def load_weights(path: str | os.PathLike[str], encoder: Encoder, generator: Generator) -> Config:
    """Fills both networks from a weights file, or from the one in a folder; returns its config.

    Raises WeightsError, before anything is changed, if the file is absent or unreadable, was made
    for another model (the message names the fields), or lacks or adds a tensor or a shape.
    """
    path = locate(path)
    config = read_config(path)
    for network in (encoder, generator):
        differences = differing_fields(config.model, network.config)
        if differences:
            kind = type(network).__name__.lower()
            raise WeightsError(f"{path}: made for another {kind}: {differences}")
    wanted = _parameters(encoder, generator)
    with _open(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        _compare(path, shapes, {name: tuple(t.shape) for name, t in wanted.items()})
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(file.get_tensor(name))
    return config


def locate(path: str | os.PathLike[str]) -> Path:
    """The weights file at `path`, which may be its folder."""
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}: expected a {FILE_NAME} file or a run folder that holds one"
        )
    return path


def differing_fields(theirs: ModelConfig, ours: ModelConfig) -> str:
    """ "field THEIRS in the file, OURS here" for every field that differs; empty if none does."""
    names = (f.name for f in dataclasses.fields(ModelConfig))
    pairs = ((name, getattr(theirs, name), getattr(ours, name)) for name in names)
    return "; ".join(f"{name} {a} in the file, {b} here" for name, a, b in pairs if a != b)


def _parameters(encoder: Encoder, generator: Generator) -> dict[str, Tensor]:
    """Both networks' tensors under the names they have in a file."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, network in (("encoder", encoder), ("generator", generator))
        for name, tensor in network.state_dict(keep_vars=True).items()
    }


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from None


def _compare(path: Path, got: Shapes, wanted: Shapes) -> None:
    """Raises WeightsError unless both hold the same names with the same shapes."""
    for problem, names in (("lacks", wanted.keys() - got), ("has unknown", got.keys() - wanted)):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise WeightsError(f"{path}: {problem} {len(names)} tensors: {first}")
    for name, shape in sorted(wanted.items()):
        if got[name] != shape:
            raise WeightsError(f"{path}: {name} must be {list(shape)}, got {list(got[name])}")
