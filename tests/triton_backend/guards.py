"""Launches in the interpreter with a margin around every tensor.

Past its end a tensor's neighbour is a margin of NaN (7 for integers): a kernel that reads there
spoils its result, and one that writes there is told so.
"""

import dataclasses

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from rwm_fast.ops import _triton

MARGIN = 4096  # elements; more than a block reaches past an edge


class Guarded:
    """Stands for `_triton.launch`; counts launches."""

    def __init__(self):
        self.launches = 0
        self._launch = _triton.launch

    def __call__(self, kernel, programs, device, *args, **options):
        self.launches += 1
        copies = {}
        args = [self._guard(arg, copies) for arg in args]
        self._launch(kernel, programs, device, *args, **options)
        for original, copy, buffer, margin in copies.values():
            size = buffer.numel() - 2 * MARGIN
            around = torch.cat((buffer[:MARGIN], buffer[MARGIN + size :]))
            written = (~_same(around, margin)).sum().item()
            name = kernel.__name__
            shape = list(original.shape)
            assert not written, f"{name} writes {written} elements outside a tensor {shape}"
            if not _same(original, copy).all():  # autograd notes every write to an input
                original.copy_(copy)

    def _guard(self, arg, copies):
        if isinstance(arg, TensorDescriptor):
            return dataclasses.replace(arg, base=self._guard(arg.base, copies))
        if not isinstance(arg, torch.Tensor):
            return arg
        key = (arg.data_ptr(), arg.shape, arg.stride(), arg.dtype)
        if key not in copies:
            size = sum((n - 1) * s for n, s in zip(arg.shape, arg.stride(), strict=True)) + 1
            size = size if arg.numel() else 0
            margin = torch.tensor(float("nan") if arg.is_floating_point() else 7).to(arg.dtype)
            buffer = margin.repeat(size + 2 * MARGIN)
            copy = buffer[MARGIN : MARGIN + size].as_strided(arg.shape, arg.stride(), MARGIN)
            copies[key] = (arg, copy.copy_(arg), buffer, margin)
        return copies[key][1]


def _same(a, b):
    return (a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() else a == b
