"""Where a run computes, and in which precision."""

import torch

from rwm_fast.config import TrainConfig
from rwm_fast.errors import UserError


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA when there is one; UserError for a device this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device: this machine has {torch.cuda.device_count()} CUDA devices, got {name!r}"
        )
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where matrix units take it: CUDA since Ampere, CPUs with AMX."""
    if name == "auto":
        if device.type == "cuda":
            matrix_units = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            matrix_units = torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if matrix_units else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def prepare(config: TrainConfig) -> tuple[torch.device, torch.dtype]:
    """Device and compute dtype of a run; sets the number of CPU threads if one is asked for."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    return device, resolve_precision(config.precision, device)
