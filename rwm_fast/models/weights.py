"""Encoder and generator on disk: one safetensors file, with the config in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rwm_fast.config import Config, ModelConfig
from rwm_fast.disk import write_whole
from rwm_fast.errors import UserError
from rwm_fast.models import pretrained
from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator

FILE_NAME = "weights.safetensors"
Shapes = dict[str, tuple[int, ...]]
_FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of weights, as safetensors names them
_LONGEST_CONFIG = 16_384  # characters; ours have less than 4,000


class WeightsError(UserError):
    """A weights file that is absent, unreadable, damaged, or made for another model."""


def save_weights(
    path: str | os.PathLike[str],
    encoder: Encoder,
    generator: Generator,
    config: Config,
    kimg: float | None = None,
) -> None:
    """Writes the parameters of both networks, and the config as JSON in the header.

    Names are those of the modules after "encoder." and "generator."; the header's keys are
    "config", "kimg" (thousands of images that training saw, if given) and "digest" (BLAKE2 of all
    the rest).
    The file appears whole, flushed to the disk, or not at all.
    """
    if not encoder.config == generator.config == config.model:
        raise ValueError("save_weights: config.model must be what both networks are made from")
    tensors = {k: v.detach().contiguous().cpu() for k, v in _parameters(encoder, generator).items()}
    header = {"config": config.to_json(indent=None), "format": "pt"}
    if kimg is not None:
        header["kimg"] = repr(kimg)
    header["digest"] = digest(tensors, header)
    write_whole(Path(path), lambda p: p.write_bytes(save(tensors, metadata=header)))


def read_config(path: str | os.PathLike[str]) -> Config:
    """The config in the header of a weights file, or of the weights file in a folder.

    Raises WeightsError, before memory is taken, unless the file's tensors are those that the config
    asks for.
    """
    path = locate(path)
    with _open(path) as file:
        text = (file.metadata() or {}).get("config")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    if text is None:
        raise WeightsError(f"{path}: no config in the header, so not a rwm_fast weights file")
    if len(text) > _LONGEST_CONFIG:
        raise WeightsError(
            f"{path}: expected a config of at most {_LONGEST_CONFIG} characters, got {len(text)}"
        )
    try:
        config = Config.from_json(text)
        with torch.device("meta"):  # shapes without memory
            wanted = _parameters(Encoder(config.model), Generator(config.model))
    except (ValueError, TypeError, OverflowError, RecursionError, RuntimeError) as error:
        raise WeightsError(f"{path}: {str(error).splitlines()[0]}") from None
    _compare(path, shapes, {name: tuple(t.shape) for name, t in wanted.items()})
    return config


def read_kimg(path: str | os.PathLike[str]) -> float | None:
    """Thousands of images that the weights' training saw, None where the file does not say."""
    with _open(locate(path)) as file:
        text = (file.metadata() or {}).get("kimg", "")
    try:
        return float(text) if math.isfinite(float(text)) else None
    except ValueError:
        return None


def load_weights(path: str | os.PathLike[str], encoder: Encoder, generator: Generator) -> Config:
    """Fills both networks from a weights file, or from the one in a folder; returns its config.

    Raises WeightsError, before anything is changed, if the file is absent, unreadable or damaged,
    was made for another model (the message names the fields), lacks or adds a tensor or a shape, or
    holds a number that is not finite.
    """
    path = locate(path)
    config = read_config(path)
    for network in (encoder, generator):
        differences = differing_fields(config.model, network.config)
        if differences:
            kind = type(network).__name__.lower()
            raise WeightsError(f"{path}: made for another {kind}: {differences}")
    tensors = read_tensors(path)
    with torch.no_grad():
        for name, parameter in _parameters(encoder, generator).items():
            parameter.copy_(tensors[name])
    return config


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weights file by name; WeightsError if they are damaged, no floating-point
    numbers, or not finite. A file without a digest (of another program) is taken as it is."""
    path = locate(path)
    with _open(path) as file:
        header = file.metadata() or {}
        for name in file.keys():
            kind = file.get_slice(name).get_dtype()
            if kind not in _FLOATS:
                raise WeightsError(
                    f"{path}: {name} must be one of {', '.join(_FLOATS)}, got {kind}"
                )
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    known = header.pop("digest", None)
    if known is not None and known != digest(tensors, header):
        raise WeightsError(f"{path}: damaged: its content is not what was written")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: {name} must be finite, got NaN or infinity")
    return tensors


def digest(tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    """BLAKE2 of a file's content: header entries, names, dtypes, shapes and values."""
    result = hashlib.blake2b(digest_size=16)
    for key, text in sorted(header.items()):
        result.update(f"{key}={text}\n".encode())
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def locate(path: str | os.PathLike[str]) -> Path:
    """The weights file at `path`, which may be its folder, or the name of weights that come with
    the package."""
    path = pretrained.resolve(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}: expected a {FILE_NAME} file or a run folder that holds one, or "
            f"one of the package's own names: {', '.join(pretrained.names())}"
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
