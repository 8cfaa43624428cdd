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

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops import _dispatch
from rwm_fast.ops._torch_private import (
    any_autocast,
    dispatch_modes,
    forward_ad,
    function_modes,
    interpreter,
    is_batched,
    saved_hooks,
    tracing_state,
    will_run,
)

LIBRARY = torch.library.Library("rwm_fast", "DEF")
# Every operator that has one -> the same in plain torch: an exported graph of these needs nothing
# of this package.
TRUTHS: dict[Any, Callable] = {}


def register(
    schema: str,
    implementation: Callable,
    fake: Callable,
    *,
    backward: Callable,
    setup_context: Callable,
    truth: Callable | None = None,
    prepare: Callable | None = None,
) -> Callable:
    """Define ``rwm_fast::<schema>``: one implementation, one fake, one derivative formula.

    Returns the function to call the operator by. `truth` takes the same arguments in plain torch:
    it runs where torch.func transforms the call, which no registered formula can follow. With
    `prepare` the implementation takes what that makes of the arguments; the backward pass of a
    plain eager call finds it in `ctx.call`, if it holds no other memory than saved tensors do.
    """
    LIBRARY.define(schema)
    name = schema.split("(")[0]
    run = _without_autocast(implementation)
    implementation = run if prepare is None else lambda *args: run(prepare(*args))
    arguments = getattr(torch.ops.rwm_fast, name).default._schema.arguments
    tensors = sum("Tensor" in str(argument.type) for argument in arguments)  # they come first
    backward, setup_context = _undefined_stay_undefined(backward, setup_context, len(arguments))
    LIBRARY.impl(f"rwm_fast::{name}", implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rwm_fast::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"rwm_fast::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )
    registered = getattr(torch.ops.rwm_fast, name)
    direct = _direct(name, tensors, run, prepare, backward, setup_context)
    truth = None if truth is None else _without_autocast(truth)
    if truth is not None:
        TRUTHS[registered.default] = truth

    def call(*args: Any) -> Any:
        given = args[:tensors]
        if torch.compiler.is_compiling() or not is_plain(given):
            if truth is not None and _dispatch.in_transform(name, given):
                return truth(*args)
            return registered(*args)
        if torch.is_grad_enabled():
            for t in given:
                if t is not None and t.requires_grad:
                    return direct.apply(*given, args[tensors:])
        return run(*args) if prepare is None else run(prepare(*args))

    return call


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Keeps autocast out of a block, where it reaches the device at all (not: meta)."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _without_autocast(implementation: Callable) -> Callable:
    """Operators work in the dtypes they are given: autocast must not reach the calls inside."""

    @functools.wraps(implementation)
    def run(*args: Any) -> Any:
        if any_autocast():
            with without_autocast(args[0].device):
                return implementation(*args)
        return implementation(*args)

    return run


def _undefined_stay_undefined(
    backward: Callable, setup_context: Callable, count: int
) -> tuple[Callable, Callable]:
    """Where no gradient arrives none is handed on, as in torch's own operators.

    By default torch makes zeros of it. Then the second half of R1, which reaches the forward pass
    through its outputs' saved signs alone, runs the whole backward pass on zeros.
    """

    @functools.wraps(setup_context)
    def setup(ctx: Any, inputs: tuple, output: object) -> None:
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)

    @functools.wraps(backward)
    def derivative(ctx: Any, *grads: Tensor | None) -> object:
        for grad in grads:
            if grad is not None:
                return backward(ctx, *grads)
        return (None,) * count

    return derivative, setup


def _direct(
    name: str,
    tensors: int,
    run: Callable,
    prepare: Callable | None,
    backward: Callable,
    setup_context: Callable,
) -> Any:
    """The operator as an autograd function of its tensors and one tuple of all other arguments:
    torch looks at every argument several times."""

    # one function, not `setup_context` apart: torch would bind the arguments by name on every call
    def forward(ctx: Any, *args: Any) -> object:
        args = (*args[:tensors], *args[tensors])
        if prepare is None:
            output = run(*args)
        else:
            call = prepare(*args)
            output = run(call)
            keep = call.holds_only(args[0]) and saved_hooks(False) is None
            ctx.call = call if keep else None
        setup_context(ctx, args, output)
        return output

    def derivative(ctx: Any, *grads: Tensor | None) -> tuple:
        return *backward(ctx, *grads)[:tensors], None

    members = {"forward": staticmethod(forward), "backward": staticmethod(derivative)}
    return type(name, (torch.autograd.Function,), members)


def pulled_back(
    truth: Callable, tensors: Sequence[Tensor | None], needs: Sequence[bool], dy: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of truth(*tensors) that are needed, the others without elements: the truth of
    a backward operator, where torch.func or forward-mode AD follows that."""

    def function(*asked: Tensor) -> Tensor:
        left = iter(asked)
        return truth(*[next(left) if need else t for t, need in zip(tensors, needs, strict=True)])

    asked = [t for t, need in zip(tensors, needs, strict=True) if need]
    grads = iter(torch.func.vjp(function, *asked)[1](dy))
    return tuple(next(grads) if need else dy.new_empty(0) for need in needs)


def nothing_else(dy: Tensor) -> bool:
    """Whether a backward pass is plain arithmetic: nothing records, casts or watches it."""
    if torch.is_grad_enabled() or any_autocast():
        return False
    return not torch.compiler.is_compiling() and is_plain((dy,))


def needed(ctx: Any, count: int, costly: Sequence[int] | None = None) -> list[bool]:
    """Which of the first inputs this backward pass needs a gradient of.

    `ctx.needs_input_grad` knows which inputs have one; in `torch.autograd.grad(y, [x])`, as R1
    calls it, the weights' are computed for nobody. The engine knows what it will run. Asked about a
    leaf that was asked for it raises, which costs more than a small kernel: so only inputs whose
    gradients are `costly` (default all) are asked about, the others count as needed.
    """
    needs = list(ctx.needs_input_grad[:count])
    asked = range(count) if costly is None else [i for i in costly if needs[i]]
    if not asked:
        return needs
    nodes = [node for node, _ in getattr(ctx, "next_functions", ()) if node is not None]
    if len(nodes) == sum(ctx.needs_input_grad):
        places = [i for i, need in enumerate(ctx.needs_input_grad) if need]
        for i, node in zip(places, nodes, strict=True):
            if i < count and i in asked:
                needs[i] = will_run(node)
    return needs


def is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether nothing but autograd needs to see this call, which nothing compiles.

    Not plain: JIT tracing, fake and other modes, meta tensors, tensor subclasses, torch.func
    transforms, forward-mode AD, many gradients at once (`is_grads_batched`: the first tensor of a
    backward operator).
    """
    if dispatch_modes() or function_modes() or tracing_state() is not None:
        return False
    if interpreter() is not None or forward_ad._current_level >= 0:
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.is_meta):
            return False
    return not (tensors and is_batched(tensors[0]))


_PLAIN = (Tensor, torch.nn.Parameter)
