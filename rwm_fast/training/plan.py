"""What a run would be: parameter counts and memory, found without computing anything."""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.config import Config
from rwm_fast.training.schedule import Schedule
from rwm_fast.training.step import Method, Networks, frozen, total

GIB = 2**30


def plan(config: Config, dtype: torch.dtype) -> str:
    """Parameter counts and memory of a run as text."""
    nets = meta_networks(config, dtype)
    counts = {
        name: sum(p.numel() for p in net.parameters()) for name, net in nets.as_dict().items()
    }
    autoencoder = counts["encoder"] + counts["generator"]
    rows = [f"{name:24}{count / 1e6:9.3f} M parameters" for name, count in counts.items()]
    # Weights, gradients and two moments of Adam for all four, averages for two; float32.
    state = 4 * (4 * sum(counts.values()) + autoencoder)
    batch = config.train.batch
    graph = step_bytes(config, nets, batch)
    rows += [
        f"{'weights and optimisers':24}{state / GIB:9.2f} GiB",
        f"{'graph of a step':24}{graph / GIB:9.2f} GiB at batch {batch}, {_name(dtype)}",
        f"{'together':24}{(state + graph) / GIB:9.2f} GiB, and the libraries' work space",
    ]
    return "\n".join(rows)


def meta_networks(config: Config, dtype: torch.dtype) -> Networks:
    """Networks that have shapes and no memory."""
    with torch.device("meta"):
        nets = Networks.of(config.model)
    for net in nets.as_dict().values():
        net.to_compute(None if dtype == torch.float32 else dtype)
    return nets


def step_bytes(config: Config, nets: Networks, batch: int) -> int:
    """Bytes that the largest generator step keeps for its backward pass, every term due."""
    size = config.model.image_size
    held: dict[int, int] = {}  # bytes by storage; tensors kept alive so that no id comes twice
    alive: list[Tensor] = [p for net in nets.as_dict().values() for p in net.parameters()]
    own = {p.untyped_storage()._cdata for p in alive}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    method, due = Method(nets, config.loss, config.mask), Schedule(config.loss, config.train).all()
    random = torch.Generator().manual_seed(0)
    image = torch.empty(batch, 3, size, size, device="meta")
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, frozen(nets.discriminator, nets.patches):
        painted = method.paint(image, random, due)
        total(method.autoencoder_terms(painted, random, due.autoencoder or {}))
    return sum(held.values())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
