"""Which backend runs, who may choose it, and what is said when it cannot be had."""

import contextvars
import importlib.abc
import logging
import sys
import threading

import pytest
import torch

from rwm_fast import crop_patches, explain, masked_l1, use_backend
from rwm_fast.ops import _dispatch, _extension
from rwm_fast.ops._dispatch import BackendError
from rwm_fast.ops.masked_l1 import native, reference
from rwm_fast.testing.cases import case, cases

needs_native = pytest.mark.skipif(
    _extension.cpu() is None, reason=f"no C++ module: {_extension.why_not_cpu()}"
)


@pytest.fixture
def inputs():
    return case("masked_l1", "soft").inputs(torch.float32)


@pytest.fixture
def ran(monkeypatch):
    """The backends that computed masked_l1's forward and backward passes, in order."""
    names = []
    for module, name in ((native, "native"), (reference, "reference")):
        for function in ("forward", "backward"):
            monkeypatch.setattr(module, function, _noting(getattr(module, function), names, name))
    return names


def _noting(function, names, name):
    def run(*args):
        names.append(name)
        return function(*args)

    return run


@pytest.fixture
def unwilling(monkeypatch):
    """masked_l1's native backend refuses, with a reason that is new to this process."""
    reason = f"it is the day of test {len(_dispatch._announced)}"
    monkeypatch.setattr(native, "supports", lambda tensors, **facts: reason)
    return reason


@needs_native
def test_the_first_that_supports_the_call_runs(inputs, ran):
    masked_l1(**inputs).backward()
    assert ran == ["native", "native"]


def test_the_next_one_runs_where_the_first_refuses(inputs, ran, unwilling):
    masked_l1(**inputs).backward()
    assert ran == ["reference", "reference"]


def test_passing_over_a_backend_is_announced_once(inputs, unwilling, caplog):
    with caplog.at_level(logging.WARNING, "rwm_fast"):
        for _ in range(3):
            masked_l1(**inputs)
    sentence = f"masked_l1 runs on the reference backend; native: {unwilling}"
    assert caplog.messages == [sentence]


@needs_native
def test_a_backend_that_was_asked_for_runs(inputs, ran):
    for name in ("reference", "native"):
        with use_backend(name):
            masked_l1(**inputs).backward()
    assert ran == ["reference", "reference", "native", "native"]


def test_a_backend_that_refuses_is_never_swapped(inputs, ran, unwilling):
    with use_backend("native"), pytest.raises(BackendError) as error:
        masked_l1(**inputs)
    assert str(error.value) == f"masked_l1: backend 'native' was asked for, but {unwilling}"
    assert ran == []


def test_a_backend_that_the_operator_lacks_is_refused(inputs, monkeypatch):
    monkeypatch.setattr("rwm_fast.ops.masked_l1.BACKENDS", ("native", "reference"))
    with use_backend("triton"), pytest.raises(BackendError, match="but masked_l1 has no triton"):
        masked_l1(**inputs)


def test_a_device_that_a_backend_lacks_is_refused(inputs):
    meta = {name: value.to("meta") for name, value in inputs.items()}
    refusal = _dispatch._refusal("masked_l1", "native", list(meta.values()), {})
    assert refusal == "native runs on cpu and cuda, not on meta tensors"


@pytest.fixture
def imported_afresh(monkeypatch):
    """Triton's backend of masked_l1 is imported again, for CPU tensors too."""
    monkeypatch.setitem(_dispatch._DEVICES, "triton", ("cpu", "cuda"))
    monkeypatch.delitem(sys.modules, "rwm_fast.ops.masked_l1.triton_kernels", raising=False)
    _dispatch._module.cache_clear()
    yield
    _dispatch._module.cache_clear()


def test_a_missing_package_is_a_reason(inputs, monkeypatch, imported_afresh):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert explain(masked_l1, **inputs)["triton"] == "the package triton is not installed"


def test_a_package_that_does_not_load_is_a_reason(inputs, monkeypatch, imported_afresh):
    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.startswith("rwm_fast.ops.masked_l1.triton"):
                raise ImportError("no libfoo.so", name="triton")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert explain(masked_l1, **inputs)["triton"] == "triton does not load: no libfoo.so"


def test_names_are_checked():
    for name in ("nativ", "cuda", 3):
        with pytest.raises(ValueError, match="use_backend: backend must be one of native, triton"):
            use_backend(name)


def test_a_block_ends_and_a_setter_stays(inputs, ran):
    use_backend("reference")  # the fixture around every test takes it back
    masked_l1(**inputs)
    with use_backend("auto"):
        assert _dispatch.requested() is None
        with use_backend("reference"):
            assert _dispatch.requested() == "reference"
        assert _dispatch.requested() is None
    assert _dispatch.requested() == "reference"
    assert ran == ["reference"]


@needs_native
def test_the_backward_pass_follows_its_own_block(inputs, ran):
    with use_backend("reference"):
        loss = masked_l1(**inputs)
    loss.backward()
    assert ran == ["reference", "native"]


NO_TRITON = "triton runs on cuda, not on cpu tensors"


class _Deep(torch.autograd.Function):
    """A backward pass that starts a backward pass, and so on: deep down in another thread."""

    @staticmethod
    def forward(ctx, x, depth, note):
        ctx.depth, ctx.note = depth, note
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        if ctx.depth:
            with torch.enable_grad():
                _Deep.apply(torch.ones(1, requires_grad=True), ctx.depth - 1, ctx.note).backward()
        else:
            ctx.note(threading.get_ident(), _dispatch.requested())
        return dy, None, None


def test_the_threads_of_autograd_follow_the_block_too():
    """The backward pass of a GPU runs in one; on the CPU only a deeply nested one does."""
    seen = []
    for name, expected in (("reference", "reference"), ("auto", None), ("native", "native")):
        with use_backend(name):
            x = torch.ones(1, requires_grad=True)
            _Deep.apply(x, 70, lambda *facts: seen.append(facts)).backward()
        thread, requested = seen.pop()
        assert thread != threading.get_ident(), "autograd stayed in this thread: nothing is tested"
        assert requested == expected


def test_explain_names_every_backend(inputs, unwilling):
    answer = {"native": unwilling, "triton": NO_TRITON, "reference": "used"}
    assert explain(masked_l1, **inputs) == answer
    assert explain("masked_l1", *inputs.values()) == answer


@needs_native
def test_explain_says_why_the_others_do_not_run(inputs, ran):
    preferred = "supported, but a preferred backend is used"
    answer = {"native": "used", "triton": NO_TRITON, "reference": preferred}
    assert explain(masked_l1, **inputs) == answer
    with use_backend("reference"):
        asked = "supported, but 'reference' was asked for"
        answer = {"native": asked, "triton": NO_TRITON, "reference": "used"}
        assert explain(masked_l1, **inputs) == answer
    assert ran == [], "explain computes nothing"


def test_explain_checks_the_call(inputs):
    with pytest.raises(ValueError, match="mask must be"):
        explain(masked_l1, **{**inputs, "mask": inputs["mask"][:, 0]})
    with pytest.raises(ValueError, match="explain: op must be one of modulated_conv2d, masked_l1"):
        explain("relu", torch.zeros(1))


def test_transforms_take_the_reference(inputs):
    values = [value.detach() for value in inputs.values()]
    answers = []

    def loss(*values):
        answers.append(explain(masked_l1, *values))
        return masked_l1(*values)

    torch.func.grad(loss)(*values)
    reason = "torch.func transforms run on the reference backend only"
    assert answers == [{"native": reason, "triton": reason, "reference": "used"}]
    with use_backend("native"), pytest.raises(BackendError, match=f"asked for, but {reason}"):
        torch.func.grad(masked_l1)(*values)
    with use_backend("reference"):
        torch.func.grad(masked_l1)(*values)


@needs_native
def test_a_compiled_function_follows_the_context(inputs, ran):
    compiled = torch.compile(masked_l1, fullgraph=True, backend="aot_eager")
    for name in ("native", "reference", "native"):
        with use_backend(name):
            compiled(**inputs).backward()
    assert ran == ["native"] * 2 + ["reference"] * 2 + ["native"] * 2


def test_autocast_does_not_reach_inside(inputs):
    """Operators work in the dtypes they are given."""
    plain = masked_l1(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(masked_l1(**inputs), plain)
        with use_backend("reference"):
            assert masked_l1(**inputs).dtype == torch.float32


def test_environment_variable(monkeypatch, inputs):
    """Read at every call, where no block or setter has spoken: in a fresh context nobody has."""

    def answer(value):
        monkeypatch.setenv("RWM_FAST_BACKEND", value)
        return contextvars.Context().run(explain, masked_l1, **inputs)

    assert answer("reference")["reference"] == "used"
    assert "used" in answer("").values()
    assert "used" in answer("auto").values()
    with pytest.raises(ValueError, match="RWM_FAST_BACKEND: backend must be one of .*got 'fast'"):
        answer("fast")


def test_a_block_wins_over_the_environment(monkeypatch, inputs):
    monkeypatch.setenv("RWM_FAST_BACKEND", "triton")
    with use_backend("reference"):
        assert explain(masked_l1, **inputs)["reference"] == "used"
    with use_backend("auto"):
        assert _dispatch.requested() is None


def test_every_operator_explains_its_cases():
    """No operator computes before it chooses."""
    for op in _dispatch.OPS:
        first = cases(op)[0]
        assert "used" in explain(op, **first.inputs(torch.float32)).values()


def test_crop_patches_passes_tensors_not_sizes(monkeypatch):
    """`supports` sees the tensors of the call, so that it can refuse a device or a dtype."""
    seen = []
    module = _dispatch._module("crop_patches", "reference")
    monkeypatch.setattr(module, "supports", lambda tensors, **facts: seen.append(tensors))
    with use_backend("reference"):
        image, boxes = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4)
        crop_patches(image, boxes, 2)
    assert [t.shape for t in seen[0]] == [image.shape, boxes.shape]
