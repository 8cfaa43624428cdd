"""modulated_conv2d in C++ on the CPU (`native_cpu`) and in CUDA (`native_cuda`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwm_fast.ops import _check
from rwm_fast.ops.modulated_conv2d import native_cpu, native_cuda
from rwm_fast.ops.modulated_conv2d._geometry import Settings
from rwm_fast.ops.modulated_conv2d.native_cpu_layer import computes_in

OP = "modulated_conv2d"


def supports(tensors: Sequence[Tensor | None], **facts: object) -> str | None:
    """Everything the operator takes; on the CPU all dtypes but float16."""
    backend = native_cuda if tensors[0].is_cuda else native_cpu
    return backend.supports(tensors, **facts)


def recommends_plain(x: Tensor, weight: Tensor, filter: Tensor | None, settings: Settings) -> bool:
    """Whether a layer without a style is faster here than as torch's convolution and `bias_act`:
    on CPUs, where it is convolved in C++; not measured on GPUs. Such layers do not enlarge."""
    return x.is_cpu and computes_in(x.dtype) != torch.bfloat16


def forward(x: Tensor, *arguments: object) -> Tensor:
    """y = act(b·conv(W, a·x) + strength·noise + bias)·gain, clamped, in x's memory format."""
    _check.tensor(OP, "x", x)
    return (native_cuda if x.is_cuda else native_cpu).forward(x, *arguments)


def backward(dy: Tensor, y: Tensor, x: Tensor, *arguments: object) -> tuple[Tensor, ...]:
    """The gradients that are needed, in the arguments' memory formats; the others are empty."""
    _check.tensor(OP, "x", x)
    return (native_cuda if x.is_cuda else native_cpu).backward(dy, y, x, *arguments)
