"""Which backend runs, who may choose it, and what is said when it cannot be had."""

import contextvars
import importlib.abc
import importlib.util
import logging
import sys
import threading
import types

import pytest
import torch

from rwm_fast import crop_patches, explain, masked_l1, use_backend
from rwm_fast.ops import _dispatch, _extension
from rwm_fast.ops._dispatch import BackendError
from rwm_fast.ops.crop_patches import eager as eager_crop
from rwm_fast.ops.masked_l1 import cpu, eager
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
    for module, name in ((cpu, "native"), (eager, "eager")):
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
    monkeypatch.setattr(cpu, "supports", lambda call: reason)
    return reason


@needs_native
def test_the_first_that_supports_the_call_runs(inputs, ran):
    masked_l1(**inputs).backward()
    assert ran == ["native", "native"]


def test_the_next_one_runs_where_the_first_refuses(inputs, ran, unwilling):
    masked_l1(**inputs).backward()
    assert ran == ["eager", "eager"]


def test_passing_over_a_backend_is_announced_once(inputs, unwilling, caplog):
    with caplog.at_level(logging.WARNING, "rwm_fast"):
        for _ in range(3):
            masked_l1(**inputs)
    sentence = f"masked_l1 runs on the eager backend; native: {unwilling}"
    assert caplog.messages == [sentence]


@needs_native
def test_a_backend_that_was_asked_for_runs(inputs, ran):
    for name in ("eager", "native"):
        with use_backend(name):
            masked_l1(**inputs).backward()
    assert ran == ["eager", "eager", "native", "native"]


def test_a_backend_that_refuses_is_never_swapped(inputs, ran, unwilling):
    with use_backend("native"), pytest.raises(BackendError) as error:
        masked_l1(**inputs)
    assert str(error.value) == f"masked_l1: backend 'native' was asked for, but {unwilling}"
    assert ran == []


@pytest.fixture
def toy():
    """A backend from outside the package: every loss is 42."""
    module = types.ModuleType("toy")
    module.supports = lambda call: None if call.dtype == torch.float32 else "it knows float32 only"
    module.forward = lambda call: call.loss.fill_(42)
    take_back = _dispatch.register("masked_l1", "toy", "cpu", module)
    yield take_back
    take_back()


def test_a_backend_from_outside(inputs, toy):
    plain = {name: value.detach() for name, value in inputs.items()}
    with use_backend("toy"):
        assert masked_l1(**plain) == 42
        assert explain(masked_l1, **plain)["toy"] == "used"
        with pytest.raises(BackendError, match="'toy' was asked for, but it knows float32 only"):
            masked_l1(**{name: value.double() for name, value in plain.items()})
    assert _dispatch.backends("masked_l1")[0] == "toy"
    assert masked_l1(**plain) == 42, "it goes before the others"
    with use_backend("eager"):
        assert masked_l1(**plain) != 42
        assert explain(masked_l1, **plain)["toy"] == "supported, but 'eager' was asked for"
    toy()
    assert "toy" not in explain(masked_l1, **plain)
    assert masked_l1(**plain) != 42
    with pytest.raises(ValueError, match="use_backend: backend must be one of native, triton, eag"):
        use_backend("toy")


def test_a_backend_serves_an_operator_that_there_is():
    with pytest.raises(ValueError, match="register: op must be one of modulated_conv2d, masked_l1"):
        _dispatch.register("relu", "toy", "cpu", types.ModuleType("toy"))


def test_a_backend_that_the_operator_lacks_is_refused(toy):
    image, boxes = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4)
    with use_backend("toy"), pytest.raises(BackendError, match="but crop_patches has no toy"):
        crop_patches(image, boxes, 2)


def test_a_device_that_a_backend_lacks_is_refused():
    call = types.SimpleNamespace(device=torch.device("meta"))
    refusal = _dispatch._refusal("masked_l1", "native", call)
    assert refusal == "native runs on cpu and cuda, not on meta tensors"


@pytest.fixture
def imported_afresh(monkeypatch):
    """Triton's backend of masked_l1 is imported again, for CPU tensors too."""
    way = _dispatch.Way("triton", "cpu", "triton_kernels")
    monkeypatch.setattr(_dispatch, "WAYS", (way, *_dispatch.WAYS))
    monkeypatch.delitem(sys.modules, "rwm_fast.ops.masked_l1.triton_kernels", raising=False)
    _dispatch._ways_on.cache_clear()
    yield
    _dispatch._ways_on.cache_clear()


def test_a_missing_package_is_a_reason(inputs, monkeypatch, imported_afresh):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert explain(masked_l1, **inputs)["triton"] == "the package triton is not installed"


def test_a_package_that_does_not_load_is_a_reason(inputs, monkeypatch, imported_afresh):
    class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path, target=None):
            ours = name.startswith("rwm_fast.ops.masked_l1.triton")
            return importlib.util.spec_from_loader(name, self) if ours else None

        def exec_module(self, module):
            raise ImportError("no libfoo.so", name="triton")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert explain(masked_l1, **inputs)["triton"] == "triton does not load: no libfoo.so"


def test_names_are_checked():
    for name in ("nativ", "cuda", 3):
        with pytest.raises(ValueError, match="use_backend: backend must be one of native, triton"):
            use_backend(name)


def test_a_block_ends_and_a_setter_stays(inputs, ran):
    use_backend("eager")  # the fixture around every test takes it back
    masked_l1(**inputs)
    with use_backend("auto"):
        assert _dispatch.requested() is None
        with use_backend("eager"):
            assert _dispatch.requested() == "eager"
        assert _dispatch.requested() is None
    assert _dispatch.requested() == "eager"
    assert ran == ["eager"]


@needs_native
def test_the_backward_pass_follows_its_own_block(inputs, ran):
    with use_backend("eager"):
        loss = masked_l1(**inputs)
    loss.backward()
    assert ran == ["eager", "native"]


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
    for name, expected in (("eager", "eager"), ("auto", None), ("native", "native")):
        with use_backend(name):
            x = torch.ones(1, requires_grad=True)
            _Deep.apply(x, 70, lambda *facts: seen.append(facts)).backward()
        thread, requested = seen.pop()
        assert thread != threading.get_ident(), "autograd stayed in this thread: nothing is tested"
        assert requested == expected


def test_explain_names_every_backend(inputs, unwilling):
    answer = {"native": unwilling, "triton": NO_TRITON, "eager": "used"}
    assert explain(masked_l1, **inputs) == answer
    assert explain("masked_l1", *inputs.values()) == answer


@needs_native
def test_explain_says_why_the_others_do_not_run(inputs, ran):
    preferred = "supported, but a preferred backend is used"
    answer = {"native": "used", "triton": NO_TRITON, "eager": preferred}
    assert explain(masked_l1, **inputs) == answer
    with use_backend("eager"):
        asked = "supported, but 'eager' was asked for"
        answer = {"native": asked, "triton": NO_TRITON, "eager": "used"}
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
    reason = "torch.func transforms run on the eager backend only"
    assert answers == [{"native": reason, "triton": reason, "eager": "used"}]
    with use_backend("native"), pytest.raises(BackendError, match=f"asked for, but {reason}"):
        torch.func.grad(masked_l1)(*values)
    with use_backend("eager"):
        torch.func.grad(masked_l1)(*values)


@needs_native
def test_a_compiled_function_follows_the_context(inputs, ran):
    compiled = torch.compile(masked_l1, fullgraph=True, backend="aot_eager")
    for name in ("native", "eager", "native"):
        with use_backend(name):
            compiled(**inputs).backward()
    assert ran == ["native"] * 2 + ["eager"] * 2 + ["native"] * 2


def test_autocast_does_not_reach_inside(inputs):
    """Operators work in the dtypes they are given."""
    plain = masked_l1(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(masked_l1(**inputs), plain)
        with use_backend("eager"):
            assert masked_l1(**inputs).dtype == torch.float32


@pytest.fixture
def environment(monkeypatch):
    """Sets RWM_FAST_BACKEND as if the process had started with it."""

    def start(value):
        monkeypatch.setenv("RWM_FAST_BACKEND", value)
        _dispatch._of_environment.cache_clear()

    monkeypatch.setattr(_dispatch.use_backend, "everywhere", None)  # no setter has spoken
    yield start
    monkeypatch.undo()
    _dispatch._of_environment.cache_clear()


def test_environment_variable(environment, inputs):
    """It counts where no block or setter has spoken: in a fresh context nobody has."""

    def answer(value):
        environment(value)
        return contextvars.Context().run(explain, masked_l1, **inputs)

    assert answer("eager")["eager"] == "used"
    assert "used" in answer("").values()
    assert "used" in answer("auto").values()
    with pytest.raises(ValueError, match="RWM_FAST_BACKEND: backend must be one of .*got 'fast'"):
        answer("fast")


def test_the_environment_is_read_once(environment, monkeypatch, inputs):
    environment("eager")
    for value in ("eager", "native"):
        monkeypatch.setenv("RWM_FAST_BACKEND", value)
        assert contextvars.Context().run(explain, masked_l1, **inputs)["eager"] == "used"


def test_a_block_wins_over_the_environment(environment, inputs):
    environment("triton")
    with use_backend("eager"):
        assert explain(masked_l1, **inputs)["eager"] == "used"
    with use_backend("auto"):
        assert _dispatch.requested() is None


def test_every_operator_explains_its_cases():
    """No operator computes before it chooses."""
    for op in (*_dispatch.OPS, *_dispatch.MADE_OF):
        first = cases(op)[0]
        assert "used" in explain(op, **first.inputs(torch.float32)).values()


def test_a_backend_is_asked_about_the_checked_call(monkeypatch):
    """`supports` sees dense tensors, device and dtype, so that it can refuse any of them."""
    seen = []
    monkeypatch.setattr(eager_crop, "supports", lambda call: seen.append(call))
    with use_backend("eager"):
        image, boxes = torch.zeros(1, 3, 4, 8)[..., ::2], torch.zeros(1, 1, 4)
        crop_patches(image, boxes, 2)
    (call,) = seen
    assert call.image.shape == image.shape and call.image.is_contiguous()
    assert (call.device, call.dtype) == (image.device, image.dtype)
