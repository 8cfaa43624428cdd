"""Private names of torch: that they do what we use them for, on whatever torch is installed."""

import gc
import inspect
import re
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rwm_fast.ops import _memory, _torch_private

NAMES = re.findall(r"`(?:torch\.)?([\w.]+)`", inspect.getdoc(_torch_private))


@pytest.fixture
def without(monkeypatch):
    """without("_C._a", …): the module as it is in a torch that lacks these names."""

    def make(*paths):
        for path in paths:
            *parents, name = path.split(".")
            owner = torch
            for parent in parents:
                owner = getattr(owner, parent)
            monkeypatch.delattr(owner, name)
        fresh = type(sys)("fresh")
        exec(inspect.getsource(_torch_private), fresh.__dict__)
        return fresh

    return make


def test_this_torch_has_every_name():
    assert len(NAMES) > 10
    of_cuda = {"_C._cuda_getCurrentRawStream"} if torch.version.cuda is None else set()
    absent = {name for name in NAMES if _torch_private._of_torch(name, None) is None}
    assert absent == of_cuda


# ---- _stash_obj_in_tls, _get_obj_in_tls, _is_key_in_tls


def test_what_is_stashed_lives_as_long_as_it_is_stashed():
    value = ("a request", object())
    held = sys.getrefcount(value)
    _torch_private.stash("rwm_fast_test", value)
    assert sys.getrefcount(value) == held + 1
    _torch_private.stash("rwm_fast_test", None)
    assert sys.getrefcount(value) == held


def test_a_torch_that_steals_references_is_given_one(monkeypatch):
    """As torch 2.11 does: the object was freed, and another was read in its place."""
    kept = {}

    def steal(key, value):
        kept[key] = id(value)  # holds no reference, as a raw pointer does

    monkeypatch.setattr(_torch_private, "_stash", steal)
    _torch_private._steals.cache_clear()
    try:
        assert _torch_private._steals()
        value = object()
        held = sys.getrefcount(value)
        _torch_private.stash("rwm_fast_test", value)
        assert sys.getrefcount(value) == held + 1
    finally:
        monkeypatch.undo()
        _torch_private._steals.cache_clear()


@pytest.mark.parametrize("rounds", (1, 1000))
def test_a_stashed_tuple_is_read_back(rounds):
    for i in range(rounds):
        _torch_private.stash("rwm_fast_test", (i, "native"))
        others = [(j, object()) for j in range(50)]  # take the memory of anything freed
        assert _torch_private.stashed("rwm_fast_test") == (i, "native")
        del others
    gc.collect()
    assert _torch_private.stashed("rwm_fast_nothing") is None


def test_without_a_store_nothing_is_stashed(without):
    fresh = without("_C._stash_obj_in_tls", "_C._get_obj_in_tls", "_C._is_key_in_tls")
    fresh.stash("rwm_fast_test", "native")
    assert fresh.stashed("rwm_fast_test") is None


# ---- peek_interpreter_stack


def seen_inside(wrap):
    """in_transform() and is_watched() as a function sees them that `wrap` runs on a tensor."""
    seen = []

    def function(x):
        seen.append((_torch_private.in_transform(), _torch_private.is_watched()))
        return x.sum()

    wrap(function, torch.ones(2, 3))
    return seen[0]


@pytest.mark.parametrize("transform", (torch.func.grad, torch.func.vmap, torch.func.functionalize))
def test_transforms_are_seen(transform):
    assert seen_inside(lambda f, x: transform(f)(x)) == (True, True)
    assert seen_inside(lambda f, x: f(x)) == (False, False)


def test_without_the_name_no_transform_is_seen(without):
    fresh = without("_C._functorch.peek_interpreter_stack")
    torch.func.vmap(lambda x: (x, fresh.in_transform() and 1 / 0)[0])(torch.ones(2))
    assert not fresh.is_watched()


# ---- _len_torch_dispatch_stack, _len_torch_function_stack, _get_tracing_state


class FunctionMode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", (lambda: FlopCounterMode(display=False), FunctionMode))
def test_modes_watch(mode):
    with mode():
        assert _torch_private.is_watched()
        assert not _torch_private.in_transform()
    assert not _torch_private.is_watched()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")  # it is deprecated
def test_jit_tracing_watches():
    assert seen_inside(torch.jit.trace) == (False, True)


@pytest.mark.parametrize("name", ("_len_torch_dispatch_stack", "_len_torch_function_stack"))
def test_without_a_count_of_modes_every_call_is_watched(without, name):
    assert without(f"_C.{name}").is_watched()


def test_without_a_tracing_state_nothing_traces(without):
    assert not without("_C._get_tracing_state").is_watched()


# ---- _will_engine_execute_node


class Asks(torch.autograd.Function):
    """x · y, and what `will_run` said about the nodes of both."""

    will_run = staticmethod(_torch_private.will_run)
    said = ()

    @staticmethod
    def forward(ctx, x, y):
        return x * y

    @staticmethod
    def backward(ctx, grad):
        Asks.said = [Asks.will_run(node) for node, _ in ctx.next_functions]
        return grad, grad


def asked(wanted):
    """What it says about y and x where `wanted` of them get a gradient."""
    leaves = [torch.ones(2, requires_grad=True) for _ in range(2)]
    inner = [leaf * 2 for leaf in leaves]
    torch.autograd.grad(Asks.apply(*inner).sum(), [leaves[i] for i in wanted])
    return Asks.said


def test_only_nodes_on_the_way_to_a_wanted_gradient_run():
    assert asked([0]) == [True, False]
    assert asked([1]) == [False, True]
    assert asked([0, 1]) == [True, True]


def test_a_leaf_that_was_asked_for_counts_as_needed():
    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Asks.apply(x, torch.ones(2, requires_grad=True)).sum(), x)
    assert Asks.said[0] is True


def test_outside_a_backward_pass_and_without_the_name_every_node_counts_as_needed(without):
    node = (torch.ones(2, requires_grad=True) * 2).grad_fn
    assert _torch_private.will_run(node) is True
    assert without("_C._will_engine_execute_node").will_run(node) is True


# ---- devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_raw_stream_is_the_current_stream():
    with torch.cuda.stream(torch.cuda.Stream()):
        assert _torch_private.raw_stream(0) == torch.cuda.current_stream(0).cuda_stream != 0


def test_without_the_raw_stream_the_public_one_is_asked(monkeypatch):
    class Stream:
        def __init__(self, index):
            self.cuda_stream = 1000 + index

    monkeypatch.setattr(_torch_private, "_raw_stream", None)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    assert _torch_private.raw_stream(3) == 1003


def test_c_functions_have_an_address_and_unknown_ones_have_none():
    assert _torch_private.c_function("torch_parallel_for") != 0
    assert _torch_private.c_function("torch_get_num_threads") != 0
    assert _torch_private.c_function("torch_parallel_for_of_the_future") == 0


# ---- _foreach_lerp_, _foreach_norm


@pytest.mark.parametrize("lacking", ([], ["_foreach_lerp_"]))
def test_lerp_moves_every_tensor(without, lacking):
    tensors, ends = [torch.zeros(3), torch.ones(2, 2)], [torch.ones(3), torch.full((2, 2), 3.0)]
    without(*lacking).lerp_(tensors, ends, 0.25)
    assert torch.equal(tensors[0], torch.full((3,), 0.25))
    assert torch.equal(tensors[1], torch.full((2, 2), 1.5))


@pytest.mark.parametrize("lacking", ([], ["_foreach_norm"]))
def test_norms(without, lacking):
    tensors = [torch.tensor([3.0, 4.0]), torch.full((2, 2), 2.0), torch.tensor([torch.inf])]
    assert [n.item() for n in without(*lacking).norms(tensors)] == [5.0, 4.0, torch.inf]


def test_compiled_code_is_in_a_transform_only_where_it_is():
    """What torch.compile traces has an interpreter always, which must not pass for torch.func's."""

    def seen(x):
        said = []

        def inner(t):
            said.append(_torch_private.in_transform())
            return t.sum()

        inner(x)
        torch.func.grad(inner)(x)
        y = _memory.channels_last(x)
        return x + 1, said, y

    x = torch.randn(1, 2, 3, 3)
    for function in (seen, torch.compile(seen, backend="eager", fullgraph=True)):
        _, said, y = function(x)
        assert said == [False, True] and y.is_contiguous(memory_format=torch.channels_last)
