"""The two ways into an operator: straight for plain eager calls, registered for all else."""

import pytest
import torch
from grid import on_backend, rows_cases
from torch.utils._python_dispatch import TorchDispatchMode

from rwm_fast import bias_act, masked_l1
from rwm_fast.ops import _registry
from rwm_fast.testing import compare
from rwm_fast.testing.cases import case


class Seen(TorchDispatchMode):
    """The names of the operators that were called inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("row", "case"), rows_cases())
def test_both_ways_give_the_same_bits(row, case, monkeypatch):
    inputs = case.inputs(torch.float32, "contiguous", row.device)
    answers = []
    for plain in (True, False):
        if not plain:
            monkeypatch.setattr(_registry, "is_plain", lambda args: False)
        with on_backend(row, inputs):
            with torch.no_grad():
                dy = torch.ones_like(compare.call(row.op, inputs))
            answers.append(compare.first_order(row.op, inputs, dy))
    for straight, registered in zip(*answers, strict=True):
        torch.testing.assert_close(straight, registered, rtol=0, atol=0, equal_nan=True)


def test_modes_see_the_registered_operator():
    inputs = case("masked_l1", "soft").inputs(torch.float32)
    with Seen() as seen:
        masked_l1(*inputs.values()).backward()
    assert "rwm_fast::masked_l1" in seen.names and "rwm_fast::masked_l1_backward" in seen.names


def test_plain_calls_go_past_it(monkeypatch):
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    answer = bias_act(x)
    assert "rwm_fast" not in type(answer.grad_fn).__module__
    assert type(answer.grad_fn).__name__ == "bias_actBackward"
    monkeypatch.setattr(_registry, "is_plain", lambda args: False)
    assert type(bias_act(x).grad_fn).__name__ != "bias_actBackward"


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f(x.to("meta")),
        lambda f, x: f(x.as_subclass(type("Own", (torch.Tensor,), {}))),
        lambda f, x: torch.compile(f, fullgraph=True, backend="eager")(x),
    ],
    ids=["meta", "subclass", "compiled"],
)
def test_what_needs_the_registered_operator_gets_it(call, monkeypatch):
    took = []
    plain = _registry.is_plain
    monkeypatch.setattr(_registry, "is_plain", lambda args: took.append(plain(args)) or took[-1])
    answer = call(lambda x: bias_act(x), torch.ones(1, 2, 3, 3))
    assert answer.shape == (1, 2, 3, 3)
    assert not any(took)
