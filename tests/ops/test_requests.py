"""A backend that is asked for serves the call or says why not: every operator, backend, dtype."""

import threading

import pytest
import torch
from grid import DTYPES

from rwm_fast import explain, use_backend
from rwm_fast.ops import _dispatch
from rwm_fast.ops._dispatch import MADE_OF, OPS, BackendError, backends
from rwm_fast.testing import compare
from rwm_fast.testing.cases import cases

ROWS = [(op, name) for op in (*OPS, *MADE_OF) for name in backends(op)]
by_row = pytest.mark.parametrize(("op", "name"), ROWS, ids="-".join)


def _refused(op, name):
    """(inputs, explain's sentence) of the calls that the backend does not serve."""
    for dtype in DTYPES.values():
        for case in cases(op)[:3]:
            inputs = case.inputs(dtype)
            with use_backend(name):
                sentence = explain(op, **inputs)[name]
            if sentence != "used":
                yield inputs, sentence


@by_row
def test_what_explain_refuses_is_refused(op, name):
    """Forward, without gradients, and backward after a forward pass of the eager backend."""
    for inputs, sentence in _refused(op, name):
        said = f"^{op}: backend '{name}' was asked for, but "
        with use_backend(name):
            for grad in (True, False):
                with pytest.raises(BackendError, match=said) as error, torch.set_grad_enabled(grad):
                    compare.call(op, inputs)
                assert str(error.value).endswith(sentence)
        if op in MADE_OF:
            continue
        with use_backend("eager"):
            y = compare.call(op, inputs)
        with use_backend(name), pytest.raises(BackendError, match=said):
            y.sum().backward()


def test_some_calls_are_refused():
    assert sum(1 for op, name in ROWS for _ in _refused(op, name)) > len(OPS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # raised by its own imports
@pytest.mark.parametrize("op", [*OPS, *MADE_OF])
def test_refused_inside_transforms(op):
    case = next(case for case in cases(op) if case.smooth)
    inputs = case.inputs(torch.float64, gradients=False)
    first, *_ = inputs
    function = lambda x: compare.call(op, {**inputs, first: x}).sum()
    with use_backend("native"), pytest.raises(BackendError, match="transforms run on the eager"):
        torch.func.grad(function)(inputs[first])
    with use_backend("native"), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[first], inputs[first])
        with pytest.raises(BackendError, match="forward-mode AD runs on the eager"):
            function(dual)


def _in_thread(function):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


def test_a_setter_reaches_threads_that_ask_for_nothing():
    """A block does not: it belongs to its thread."""
    try:
        use_backend("eager")
        assert _in_thread(_dispatch.requested) == "eager"
        with use_backend("native"):
            assert _dispatch.requested() == "native"
            assert _in_thread(_dispatch.requested) == "eager"

        def other():
            with use_backend("triton"):
                return _dispatch.requested()

        assert _in_thread(other) == "triton"
        assert _dispatch.requested() == _in_thread(_dispatch.requested) == "eager"
    finally:
        use_backend("auto")
    assert _in_thread(_dispatch.requested) is None
