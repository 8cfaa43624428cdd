"""Where networks compute, and in which precision."""

import torch

from rwm_fast.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """ "auto" is bfloat16 on CUDA since Ampere, and float32 on every CPU: it never takes what was
    measured to be slower. A name of PRECISIONS is what it says. UserError for any other.

    | CPU feature | bfloat16 against float32                                                    |
    |-------------|-----------------------------------------------------------------------------|
    | AMX         | measured: layers reach 37 to 60 % of the bare convolution, lose to          |
    |             | torch.compile on 3 rows of 10 and to the eager rewrite on 7; 64 channels at |
    |             | 64 px take 13.9 ms, in float32 (Winograd) 13.4 ms                           |
    | without AMX | computed in float32 and rounded, so nothing to gain                         |
    """
    if name == "auto":
        ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if ampere else torch.float32
    if name not in PRECISIONS:
        names = ", ".join(PRECISIONS)
        raise UserError(f"--precision: expected one of auto, {names}, got {name!r}")
    return PRECISIONS[name]


def prepare(device: str, precision: str, threads: int = 0) -> tuple[torch.device, torch.dtype]:
    """Device and compute dtype from their names; sets the number of CPU threads, if one is asked
    for."""
    if threads:
        torch.set_num_threads(threads)
    place = resolve_device(device)
    return place, resolve_precision(precision, place)


def search_algorithms(device: torch.device) -> None:
    """On CUDA, let cuDNN time its algorithms once for every shape: for training, whose shapes stay.

    With it cuDNN's bfloat16 convolutions reach 800 TFLOP/s on an H100, the rate of a matrix
    product.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
