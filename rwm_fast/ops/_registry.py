"""Registers operators with torch.library: schema, implementation, fake, derivative formula.

Every operator is registered in the namespace ``rwm_fast``, so that torch.compile, torch.export,
FakeTensor and opcheck know it. The implementation serves all devices: it chooses a backend when it
runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

LIBRARY = torch.library.Library("rwm_fast", "DEF")


def _without_autocast(implementation: Callable) -> Callable:
    """Operators work in the dtypes they are given: autocast must not reach the calls inside."""

    @functools.wraps(implementation)
    def run(*args: object) -> object:
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return implementation(*args)
        return implementation(*args)

    return run


def register(
    schema: str,
    implementation: Callable,
    fake: Callable,
    *,
    backward: Callable,
    setup_context: Callable,
) -> None:
    """Define ``rwm_fast::<schema>``: one implementation, one fake, one derivative formula."""
    LIBRARY.define(schema)
    name = f"rwm_fast::{schema.split('(')[0]}"
    LIBRARY.impl(name, _without_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=LIBRARY)
