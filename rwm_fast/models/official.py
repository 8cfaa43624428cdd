"""What the Swapping Autoencoder's published code saves, as networks of ours, and the other way.

That file is a state dict of tensors under the prefixes E., G., D. and Dpatch. (torch.save, so a
zip). Shapes and blur kernels determine the whole ModelConfig; demodulation is "weight". Every
tensor is copied, but the kernels of convolutions that double are turned over: theirs are used in a
transposed convolution as they are stored, ours as a correlation.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwm_fast.config import Config, ModelConfig
from rwm_fast.errors import UserError
from rwm_fast.models.discriminators import ImageDiscriminator, PatchDiscriminator
from rwm_fast.models.encoder import Encoder
from rwm_fast.models.generator import Generator
from rwm_fast.models.official_names import (
    PREFIXES,
    RULES,
    halving_names,
    kernels,
    names,
    taps_of,
)
from rwm_fast.models.weights import WeightsError

PRESET = "paper-256"  # the nearest: what comes from such a file differs from it by its model
# what their networks always are
FIXED: dict[str, Any] = {
    "fold": 1,
    "input_kernel": 1,
    "encoder_padding": "reflect",
    "style_blocks": "valid",
    "normalize_codes": True,
    "content_fold": 1,
    "code_modulation": True,
    "unit_rms_codes": False,
    "tail_channels": (),
    "skip_activation": True,
    "noise": True,
    "demodulation": "weight",
}
KINDS = {
    "encoder": Encoder,
    "generator": Generator,
    "discriminator": ImageDiscriminator,
    "patch": PatchDiscriminator,
}


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file as torch.save writes it, so none of safetensors."""
    return Path(path).is_file() and zipfile.is_zipfile(path)


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, by their names in it.

    Only tensors are read: nothing in the file is executed. Raises WeightsError with the reason if
    it is another file.
    """
    try:
        # rosinality's holds its arguments; they are looked at to be refused by name
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path}: not a readable checkpoint of tensors ({first})") from None
    held = set(state) if isinstance(state, dict) else set()
    if {"e", "g", "d", "cooccur"} <= held:
        raise WeightsError(
            f"{path}: rosinality's Swapping Autoencoder is other networks (width changes in the"
            " first convolution of a block, zeros around halvings, other skips and heads), which"
            " no settings here describe"
        )
    if not {"E.FromRGB.Conv.weight", "G.ToRGB.conv.weight"} <= held:
        known = ", ".join(sorted(map(str, held))[:3]) or type(state).__name__
        raise WeightsError(
            f"{path}: not an official Swapping Autoencoder checkpoint, holds {known}"
        )
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def load(
    path: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> tuple[Config, dict[str, Any]]:
    """The config and the networks ("encoder", "generator", and, if the file has them,
    "discriminator" and "patch") of an official checkpoint; `dtype` is what they compute in.

    Raises WeightsError if a tensor is missing, unknown, of another shape, or a blur is another.
    """
    state = read(path)
    try:
        model = config_of(state)
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}: its shapes fit no network here ({error})") from None
    parts = [
        part for part in KINDS if f"{PREFIXES[part]}" in {n.split(".")[0] + "." for n in state}
    ]
    networks = {part: KINDS[part](model, dtype) for part in parts}
    _check(path, state, model, parts)
    for part, network in networks.items():
        found = {ours: RULES[rule][0](state[theirs]) for theirs, ours, rule in names(part, model)}
        _fill(path, network, found)
    return Config(PRESET, model), networks


def state_of(model: ModelConfig, networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The networks' tensors as an official checkpoint holds them.

    Raises UserError if the settings are none that the official networks have.
    """
    other = [f"{k} {getattr(model, k)}" for k, v in FIXED.items() if getattr(model, k) != v]
    if other:
        raise UserError(
            f"the official Swapping Autoencoder has no networks with {', '.join(other)}"
        )
    state = {"num_discriminator_iters": torch.zeros(1, dtype=torch.long)}
    for part, network in networks.items():
        held = network.state_dict()
        for theirs, ours, rule in names(part, model):
            state[theirs] = RULES[rule][1](held[ours]).detach().cpu().contiguous()
        state |= dict(kernels(part, model))
    return state


def _fill(path: str | os.PathLike[str], network: nn.Module, found: dict[str, Tensor]) -> None:
    for name, parameter in network.state_dict(keep_vars=True).items():
        shape = list(parameter.shape)
        if list(found[name].shape) != shape:
            got = list(found[name].shape)
            raise WeightsError(f"{path}: {name} must be {shape}, got {got}")
        with torch.no_grad():
            parameter.copy_(found[name])


def _check(path: Any, state: dict[str, Tensor], model: ModelConfig, parts: list[str]) -> None:
    """Raises WeightsError unless the file holds what the networks need and nothing else."""
    wanted = {theirs for part in parts for theirs, _, _ in names(part, model)}
    got = {name for name in state if not name.endswith(".kernel")} - {"num_discriminator_iters"}
    for problem, other in (("lacks", wanted - got), ("has unknown", got - wanted)):
        if other:
            first = ", ".join(sorted(other)[:3])
            raise WeightsError(f"{path}: {problem} {len(other)} tensors: {first}")
    for part in parts:
        for name, kernel in kernels(part, model):
            theirs = state.get(name, kernel)
            if theirs.shape != kernel.shape or not torch.allclose(theirs, kernel, atol=1e-6):
                raise WeightsError(f"{path}: {name} is another blur than that of its network")


# ---- settings


def config_of(state: dict[str, Tensor]) -> ModelConfig:
    """The settings that shapes and blurs determine; those of absent discriminators are ours."""
    found = FIXED | _encoder_settings(state) | _generator_settings(state)
    if "D.stylegan2_D.convs.0.Conv.weight" in state:
        found |= _discriminator_settings(state)
    if "Dpatch.convs.0.Conv.weight" in state:
        found |= _patch_settings(state)
    return ModelConfig(**found)


def _widths(state: dict[str, Tensor], pattern: str, numbers: Iterator[int], dim: int) -> list[int]:
    """Sizes of a numbered row of weights, as far as it goes."""
    widths = []
    for number in numbers:
        weight = state.get(pattern.format(number))
        if weight is None:
            break
        widths.append(weight.shape[dim])
    return widths


def _powers(start: int) -> Iterator[int]:
    return (2 ** (start + i) for i in range(32))


def _encoder_settings(state: dict[str, Tensor]) -> dict[str, Any]:
    block = "E.DownToSpatialCode.ResBlockDownBy{}.conv2"
    trunk = _widths(state, block + ".Conv.weight", _powers(0), 0)
    head = "E.DownToGlobalCode.ConvLayerDownBy{}.Conv.weight"
    return {
        "encoder_channels": (state["E.FromRGB.Conv.weight"].shape[0], *trunk),
        "encoder_filter": taps_of(state[block.format(1) + ".Blur.kernel"]),
        "content_channels": state["E.ToSpatialCode.1.Conv.weight"].shape[0],
        "content_kernel": state["E.ToSpatialCode.0.Conv.weight"].shape[-1],
        "style_channels": tuple(_widths(state, head, _powers(len(trunk)), 0)),
        "style_dim": state["E.ToGlobalCode.0.weight"].shape[0],
    }


def _generator_settings(state: dict[str, Tensor]) -> dict[str, Any]:
    head = _widths(state, "G.HeadResnetBlock{}.conv2.conv.weight", iter(range(32)), 1)
    up = _widths(state, "G.UpsamplingResBlock{}.conv2.conv.weight", _powers(4), 1)
    return {
        "head_channels": tuple(head),
        "up_channels": tuple(up),
        "rgb_kernel": state["G.ToRGB.conv.weight"].shape[-1],
        "generator_filter": taps_of(state["G.UpsamplingResBlock16.conv1.conv.blur.kernel"]),
    }


def _trunk(state: dict[str, Tensor], prefix: str, numbered: int, last: int) -> tuple[Any, Tensor]:
    """Widths of halving blocks, and the blur of one; those from number `last` on are others."""
    found = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    halving = {n for n in found if "x" in n or 0 < int(n) < last}
    rows = [f"{prefix}{name}.conv2" for name in halving_names(len(halving), numbered)]
    widths = [state[f"{prefix}0.Conv.weight"].shape[0]]
    widths += [state[f"{row}.Conv.weight"].shape[0] for row in rows]
    return tuple(widths), state[f"{rows[0]}.Blur.kernel"]


def _discriminator_settings(state: dict[str, Tensor]) -> dict[str, Any]:
    widths, kernel = _trunk(state, "D.stylegan2_D.convs.", 8, 99)
    hidden, inputs = state["D.stylegan2_D.final_linear.0.weight"].shape
    side = math.isqrt(inputs // widths[-1])
    return {
        "image_size": side << (len(widths) - 1),
        "discriminator_channels": widths,
        "discriminator_hidden": hidden,
        "discriminator_filter": taps_of(kernel),
    }


def _patch_settings(state: dict[str, Tensor]) -> dict[str, Any]:
    widths, _ = _trunk(state, "Dpatch.convs.", 6, 5)
    channels = state["Dpatch.convs.6.Conv.weight"].shape[0]
    inputs = state["Dpatch.pairlinear.0.weight"].shape[1]
    side = math.isqrt(inputs // (2 * channels))
    return {
        "patch_size": (side + 2) << (len(widths) - 1),
        "patch_channels": widths,
        "patch_wide_channels": state["Dpatch.convs.5.conv2.Conv.weight"].shape[0],
        "patch_feature_channels": channels,
        "patch_hidden": tuple(state[f"Dpatch.pairlinear.{i}.weight"].shape[0] for i in range(3)),
    }
