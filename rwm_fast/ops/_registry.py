"""Registers operators with torch.library: schema, implementation, fake, derivative formula.

Every operator is registered in the namespace ``rwm_fast``, so that torch.compile, torch.export,
FakeTensor and opcheck know it. The implementation serves all devices: it chooses a backend when it
runs.

The registered operator crosses between C++ and Python several times a call, which costs more than
the kernels of a small layer. So plain eager calls take the same implementation and the same formula
through a `torch.autograd.Function`, and nothing in between; whatever traces, fakes or wraps gets
the registered operator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

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
) -> Callable:
    """Define ``rwm_fast::<schema>``: one implementation, one fake, one derivative formula.

    Returns the function to call the operator by.
    """
    LIBRARY.define(schema)
    name = schema.split("(")[0]
    implementation = _without_autocast(implementation)
    backward, setup_context = _spare_zeros(backward), _remember_places(setup_context)
    LIBRARY.impl(f"rwm_fast::{name}", implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rwm_fast::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"rwm_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )
    registered = getattr(torch.ops.rwm_fast, name)
    direct = _direct(name, implementation, backward, setup_context)

    def call(*args: object) -> object:
        if not _is_plain(args):
            return registered(*args)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return direct.apply(*args)
        return implementation(*args)

    return call


def _spare_zeros(backward: Callable) -> Callable:
    """Where no gradient arrives none leaves: zeros would be pushed through all that came before."""

    @functools.wraps(backward)
    def run(ctx, *grads: Tensor | None) -> object:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        return backward(ctx, *grads)

    return run


def _remember_places(setup_context: Callable) -> Callable:
    @functools.wraps(setup_context)
    def run(ctx, inputs: tuple[object, ...], output: object) -> None:
        ctx.set_materialize_grads(False)
        ctx.tensor_places = [i for i, a in enumerate(inputs) if isinstance(a, Tensor)]
        setup_context(ctx, inputs, output)

    return run


def wanted(ctx, places: Sequence[int]) -> list[bool]:
    """Whether the running backward pass goes on from each of these inputs.

    `ctx.needs_input_grad` tells what asked for a gradient when the graph was recorded: under
    `autograd.grad(…, inputs)` also weights that nobody asks for now. Torch's own functions look at
    the pass itself; so does this.
    """
    needs, nodes = ctx.needs_input_grad, getattr(ctx, "next_functions", ())
    tensors = getattr(ctx, "tensor_places", range(len(nodes)))
    if len(tensors) != len(nodes):
        return [needs[place] for place in places]
    goes_on = {place: _goes_on(node) for place, (node, _) in zip(tensors, nodes, strict=True)}
    return [needs[place] and goes_on.get(place, True) for place in places]


def _goes_on(node: object) -> bool:
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that is asked for, or no backward pass that can be asked
        return True


def _direct(
    name: str, implementation: Callable, backward: Callable, setup_context: Callable
) -> type[torch.autograd.Function]:
    """The operator as an autograd function."""

    # one function, not `setup_context` apart: torch would bind the arguments by name on every call
    def forward(ctx, *args: object) -> object:
        output = implementation(*args)
        setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), members)


def _is_plain(args: tuple[object, ...]) -> bool:
    """Whether nothing but autograd needs to see this call.

    Not plain: torch.compile, export and JIT tracing, fake and other modes, meta tensors, tensor
    subclasses, torch.func transforms.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(isinstance(a, Tensor) and (type(a) not in _PLAIN or a.is_meta) for a in args)
    )


_PLAIN = (Tensor, torch.nn.Parameter)
