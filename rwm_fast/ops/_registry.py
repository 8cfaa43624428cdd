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
    arguments = getattr(torch.ops.rwm_fast, name).default._schema.arguments
    tensors = sum("Tensor" in str(argument.type) for argument in arguments)  # they come first
    backward, setup_context = _undefined_stay_undefined(backward, setup_context, len(arguments))
    LIBRARY.impl(f"rwm_fast::{name}", implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rwm_fast::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"rwm_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )
    registered = getattr(torch.ops.rwm_fast, name)
    direct = _direct(name, tensors, implementation, backward, setup_context)

    def call(*args: object) -> object:
        given = args[:tensors]
        if not is_plain(given):
            return registered(*args)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
            return direct.apply(*given, args[tensors:])
        return implementation(*args)

    return call


def _undefined_stay_undefined(
    backward: Callable, setup_context: Callable, count: int
) -> tuple[Callable, Callable]:
    """Where no gradient arrives none is handed on, as in torch's own operators.

    By default torch makes zeros of it. Then the second half of R1, which reaches the forward pass
    through its outputs' saved signs alone, runs the whole backward pass on zeros.
    """

    @functools.wraps(setup_context)
    def setup(ctx, inputs: tuple, output: object) -> None:
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)

    @functools.wraps(backward)
    def derivative(ctx, *grads: Tensor | None) -> object:
        if all(grad is None for grad in grads):
            return (None,) * count
        return backward(ctx, *grads)

    return derivative, setup


def _direct(
    name: str, tensors: int, implementation: Callable, backward: Callable, setup_context: Callable
) -> type[torch.autograd.Function]:
    """The operator as an autograd function of its tensors and one tuple of all other arguments:
    torch looks at every argument several times."""

    # one function, not `setup_context` apart: torch would bind the arguments by name on every call
    def forward(ctx, *args: object) -> object:
        args = (*args[:tensors], *args[tensors])
        output = implementation(*args)
        setup_context(ctx, args, output)
        return output

    def derivative(ctx, *grads: Tensor | None) -> tuple:
        return *backward(ctx, *grads)[:tensors], None

    members = {"forward": staticmethod(forward), "backward": staticmethod(derivative)}
    return type(name, (torch.autograd.Function,), members)


def needed(ctx: object, count: int, costly: Sequence[int] | None = None) -> list[bool]:
    """Which of the first inputs this backward pass needs a gradient of.

    `ctx.needs_input_grad` knows which inputs have one; in `torch.autograd.grad(y, [x])`, as R1
    calls it, the weights' are computed for nobody. The engine knows what it will run. Asked about a
    leaf that was asked for it raises, which costs more than a small kernel: so only inputs whose
    gradients are `costly` (default all) are asked about, the others count as needed.
    """
    needs = list(ctx.needs_input_grad)
    nodes = [node for node, _ in getattr(ctx, "next_functions", ()) if node is not None]
    if len(nodes) == sum(needs):
        places = [i for i, need in enumerate(needs) if need]
        for i, node in zip(places, nodes, strict=True):
            needs[i] = not (costly is None or i in costly) or _will_run(node)
    return needs[:count]


def _will_run(node: object) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):  # another torch; a leaf whose gradient was asked for
        return True


def is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
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
        or any(t is not None and (type(t) not in _PLAIN or t.is_meta) for t in tensors)
    )


_PLAIN = (Tensor, torch.nn.Parameter)
