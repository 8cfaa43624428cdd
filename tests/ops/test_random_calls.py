"""The short form of `python -m rwm_fast.testing.fuzz`, and that it finds what it should."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rwm_fast.ops import _dispatch, _extension
from rwm_fast.ops.bias_act import eager
from rwm_fast.testing.cases import ops
from rwm_fast.testing.draws import draw
from rwm_fast.testing.fuzz import failure, fuzz
from rwm_fast.testing.trial import backends
from rwm_fast.testing.views import VIEWS


@pytest.mark.parametrize("op", ops())
def test_random_calls(op):
    counts = fuzz(240, 1, (op,))
    assert not counts.failures
    ran = {name for name, row in counts.calls.items() if row.get("float32")}
    compiled = {f"{op} native"} if _extension.cpu() is not None else set()
    assert ran >= {f"{op} eager"} | compiled


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 0, 4, 1)])
def test_views_show_the_same(name, shape):
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        x = torch.randn(shape).mul(3).to(dtype)
        view = VIEWS[name](x)
        assert (view.shape, view.dtype) == (x.shape, x.dtype)
        assert " for all" in name or torch.equal(view, x)


def _adds_one(call):
    call.y.add_(1)


def _writes_around(call):
    beyond = call.y.as_strided((1,), (1,), call.y.storage_offset() + call.y.numel())
    beyond.fill_(7)


def _writes_into_its_input(call):
    call.x.fill_(7)


def _leaves_a_gap(call):
    call.y.view(-1).fill_(float("nan"))


def _says_nothing(call):
    raise RuntimeError("CUDA error")


def _refuses(call):
    raise ValueError("bias_act: x must be of another kind, got this")


WRONG = {
    _adds_one: "off the float64 reference by",
    _leaves_a_gap: "off the float64 reference by",
    _writes_around: "something was written around",
    _writes_into_its_input: "an argument's memory changed",
    _says_nothing: "raises RuntimeError: CUDA error",
    _refuses: "served by",
}


@pytest.mark.parametrize("change", WRONG)
def test_what_may_not_happen_is_found(change, capsys):
    """The line repeats the case, alone."""

    def forward(call):
        eager.forward(call)
        if call.y.is_contiguous():
            change(call)

    backend = SimpleNamespace(supports=lambda call: None, forward=forward, backward=eager.backward)
    take_back = _dispatch.register("bias_act", "wrong", "cpu", backend)
    try:
        counts = fuzz(60, 0, ("bias_act",))
        assert counts.failures and all(WRONG[change] in text for text in counts.failures)
        assert counts.failures[0] in capsys.readouterr().err
        number = int(counts.failures[0].split("--case ")[1].split(":")[0])
        assert WRONG[change] in failure(draw(0, number, ("bias_act",)), backends("bias_act", "cpu"))
    finally:
        take_back()


def test_the_command():
    command = [sys.executable, "-m", "rwm_fast.testing.fuzz", "--calls", "30", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["failures"] == [] and result["cases"] >= 10
