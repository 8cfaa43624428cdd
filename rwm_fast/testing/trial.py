"""One random call on all backends, and what may not happen: `rwm_fast.testing.fuzz` tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rwm_fast.ops import _dispatch
from rwm_fast.ops._memory import is_channels_last
from rwm_fast.testing import compare
from rwm_fast.testing.cases import Inputs
from rwm_fast.testing.draws import Drawn
from rwm_fast.testing.memory import Margins, all_bytes
from rwm_fast.testing.views import VIEWS

REFUSALS = (ValueError, TypeError, NotImplementedError)
Results = list[Tensor]


class Wrong(AssertionError):
    """What may not happen."""


# ---- one call on one backend


def _like(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)


def _run(drawn: Drawn, inputs: Inputs, dy: Tensor | None) -> Results:
    """Output and gradients; with `second` what `compare.second_order` gives beside them."""
    if dy is None or not compare.leaves(inputs):
        return [compare.call(drawn.op, inputs)]
    results = compare.first_order(drawn.op, inputs, dy)
    if drawn.second:
        seconds = [_like(x, i + 1) for i, x in enumerate(compare.leaves(inputs))]
        results += compare.second_order(drawn.op, inputs, dy, seconds)
    return results


def _is_channels_last(x: Tensor) -> bool:
    """Whether the image is so by all of its strides, those of sides of one pixel too."""
    if x.layout is not torch.strided or not is_channels_last(x):
        return False
    return x.stride() == torch.empty_like(x, memory_format=torch.channels_last).stride()


def _refusal(op: str, error: Exception) -> str:
    """What was said, if it is a refusal as it should be."""
    text = str(error)
    if not isinstance(error, REFUSALS) or not text.startswith(f"{op}: "):
        raise Wrong(f"raises {type(error).__name__}: {text[:200]}") from None
    return f"{type(error).__name__}: {text}"


def _served(drawn: Drawn, backend: str, dy: Tensor | None) -> Results | str | None:
    """The results, or the refusal; None if the backend does not serve such calls."""
    tensors = [v for v in drawn.inputs.values() if isinstance(v, Tensor)]
    there = [all_bytes(t) for t in tensors if t.layout is torch.strided and not t.is_meta]
    copies = [t.clone() for t in there]
    with _dispatch.use_backend(backend), Margins() as margins:
        try:
            results = _run(drawn, drawn.inputs, dy)
        except _dispatch.BackendError as error:
            if not str(error).startswith(f"{drawn.op}: backend '{backend}' was asked for, but "):
                raise Wrong(f"raises BackendError: {error}") from None
            return None
        except Exception as error:
            return _refusal(drawn.op, error)
    if margins.written():
        raise Wrong("something was written around a result")
    first, output = next(iter(drawn.inputs.values())), results[0].detach()
    if output.ndim > 3 and output.numel() and _is_channels_last(first):
        if not output.flatten(0, -4).is_contiguous(memory_format=torch.channels_last):
            raise Wrong(f"{output.stride()} are the strides of a channels_last result")
    results = [r.detach().clone() for r in results]
    output.zero_()
    if not all(map(torch.equal, there, copies)):
        raise Wrong("an argument's memory changed, or it is the result's too")
    return results


# ---- one call on all backends


def backends(op: str, device: str) -> list[str]:
    """Those of an operator on a kind of device."""
    ways = _dispatch.ways(op)
    return list(dict.fromkeys(w.name for w in ways if w.device in (device, "any")))


def outcome(drawn: Drawn, names: Sequence[str]) -> dict[str, str]:
    """Of each backend: "agrees", "not served" or the refusal; raises `Wrong`."""
    expected, dy = None, None
    try:
        with compare.plain(), torch.no_grad():
            output = compare.call(drawn.op, drawn.inputs)
            dy = VIEWS[drawn.dy](_like(output, 0))
    except Exception as error:
        expected = error
    answers = {}
    for name in names:
        try:
            answers[name] = _served(drawn, name, dy)
        except Wrong as error:
            raise Wrong(f"{name}: {error}") from None
    refused = {a for a in answers.values() if isinstance(a, str)}
    served = {n: a for n, a in answers.items() if isinstance(a, list)}
    if len(refused) > 1 or (refused and served):
        raise Wrong(f"served by {', '.join(served) or 'none'}, refused otherwise: {refused}")
    if refused and not drawn.spoiled and expected is None:
        raise Wrong(f"refused without a reason: {refused}")
    if served:
        if dy is None:
            raise Wrong(f"served, though the reference raises {expected!r}")
        if not any(r[0].is_meta for r in served.values()):
            _compare(drawn, served, dy)
    said = lambda a: a if isinstance(a, str) else "not served" if a is None else "agrees"
    return {name: said(answer) for name, answer in answers.items()}


def _compare(drawn: Drawn, served: dict[str, Results], dy: Tensor) -> None:
    """Every result by the error rule."""
    truth = _in_plain_torch(drawn, compare.in_float64(drawn.inputs), dy.double())
    plain: Results = []
    for name, results in served.items():
        if results[0].dtype != dy.dtype:
            raise Wrong(f"{name}: the result is {results[0].dtype}, not {dy.dtype}")
        for i, (ours, true) in enumerate(zip(results, truth, strict=True)):
            if i and drawn.spoiled:  # another setting may bring values to a kink
                break
            if not _broken(drawn, ours, true.to(ours.dtype), true):
                continue  # without the help of the plain version, which is costly
            plain = plain or _in_plain_torch(drawn, drawn.inputs, dy)
            broken = _broken(drawn, ours, plain[i], true)
            if broken and not _is_rounding(drawn, dy, i, ours, true):
                raise Wrong(f"{name}, result {i}{broken}")


def _in_plain_torch(drawn: Drawn, inputs: Inputs, dy: Tensor) -> Results:
    with compare.plain():
        return _run(drawn, inputs, dy)


def _broken(drawn: Drawn, ours: Tensor, plain: Tensor, truth: Tensor) -> str:
    """What the error rule says."""
    try:
        compare.check("", ours, plain, truth, drawn.case, drawn.dtype)
    except AssertionError as error:
        return str(error)
    return ""


def _is_rounding(drawn: Drawn, dy: Tensor, i: int, ours: Tensor, truth: Tensor) -> bool:
    """Whether a result that breaks the rule is off by no more than the last places of the arguments
    are worth: so it is where all that was summed cancels, and the plain version was lucky."""
    reach = 0.0
    for seed in range(8):
        inputs = compare.in_float64(drawn.inputs)
        moved = {k: _moved(v, drawn.inputs[k], seed) for k, v in inputs.items()}
        results = _in_plain_torch(drawn, moved, _moved(dy.double(), dy, seed))
        reach = max(reach, compare.distance(results[i], truth))
    return compare.distance(ours, truth) <= 4 * reach < math.inf


def _moved(wide: Any, given: Any, seed: int) -> Any:
    """A float64 copy, each number one unit of the argument's dtype away."""
    if not isinstance(wide, Tensor) or not wide.is_floating_point():
        return wide
    unit = torch.finfo(given.dtype).eps
    return (wide.detach() * (1 + unit * _like(wide, seed).sign())).requires_grad_(
        wide.requires_grad
    )
