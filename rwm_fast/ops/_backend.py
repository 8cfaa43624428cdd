"""What a backend is: a module with these functions, for one operator on one kind of device.

To add one, put the file beside the operator's others under a name of the table `_dispatch.WAYS`
(or a new row there), or hand a module of your own to `_dispatch.register`. Nothing else is edited:
`explain`, the doctor and the standard tests find it.

A backend gets an operator's `call.py` object, in which every tensor is checked, dense and on one
device, and every result has its memory already; a call without elements reaches no backend. It
writes all of that memory, draws no random numbers, waits for no device, and adds up in an order
that depends on the sizes alone. What runs for each operator:

    bias_act           forward(call), backward(call)
    upfirdn2d          forward(call)
    masked_l1          forward(call), backward(call), mask_backward(call)
    crop_patches       forward(call), adjoint(call)
    modulated_conv2d   three passes and the demodulation: `layer.Passes`

`conv2d_bias_act` and `conv2d_resample` are made of these, so they have no backends of their own.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Call(Protocol):
    """What every operator's call tells."""

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the images."""


class Backend(Protocol):
    """The part that all operators share; the others are in the table above."""

    def supports(self, call: Call) -> str | None:
        """None if the backend serves the call, else one sentence why not; computes nothing."""
