"""The bodies of modulated_conv2d on the CPU: who serves a layer, decided by a test."""

import contextlib
from unittest import mock

from rwm_fast.ops.modulated_conv2d import cpu
from rwm_fast.ops.modulated_conv2d.cpu import winograd


def could(shape) -> bool:
    """Whether Winograd's algorithm can serve a layer, paying or not."""
    return tuple(shape.weight[2:]) == (3, 3) and shape.geometry.up <= 2 and shape.geometry.down == 1


@contextlib.contextmanager
def by_winograd(always: bool):
    """Winograd's algorithm wherever it can be, or nowhere; nothing is remembered."""
    with (
        mock.patch.object(winograd, "serves", could if always else lambda shape: False),
        mock.patch.object(cpu, "_records", cpu._records.__wrapped__),
    ):
        yield
