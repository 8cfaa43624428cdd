"""What torch does to functions: forward-mode AD, torch.func, autocast, compiling, symbolic tracing.

Every operator; the right value each time, in float64 by differences or from a plain call.
"""

import pytest
import torch
import torch._dynamo.testing
import torch.autograd.forward_ad as forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from rwm_fast import bias_act, conv2d_bias_act, crop_patches, masked_l1, modulated_conv2d, upfirdn2d
from rwm_fast.testing import compare
from rwm_fast.testing.cases import cases, ops

# raised by torch's own imports
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
by_op = pytest.mark.parametrize("op", ops())


def _smooth(op):
    """(function of the arguments that have gradients, those, directions) of an operator's case."""
    case = next(case for case in cases(op) if case.smooth)
    inputs, function = case.inputs(torch.float64, gradients=False), compare.function(op)
    values = [inputs[name] for name in case.gradients]
    source = torch.Generator().manual_seed(7)
    ways = [torch.randn(v.shape, generator=source, dtype=v.dtype) for v in values]

    def call(*arguments):
        return function(**{**inputs, **dict(zip(case.gradients, arguments, strict=True))})

    return call, values, ways


def _gradient(call, values):
    """dL/d(first) of L = sum of squares, by torch.func."""
    loss = lambda first: call(first, *values[1:]).square().sum()
    return torch.func.grad(loss)(values[0])


def _difference(function, values, ways, step=1e-6):
    ends = [[v + s * w for v, w in zip(values, ways, strict=True)] for s in (step, -step)]
    return (function(*ends[0]) - function(*ends[1])) / (2 * step)


def _near(found, wanted):
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@by_op
def test_tangents(op):
    """Of the result, of the gradient, and of the gradient where dy alone has one."""
    call, values, ways = _smooth(op)
    gradient = lambda *values: _gradient(call, values)
    wanted = _difference(call, values, ways), _difference(gradient, values, ways)
    _near(torch.func.jvp(call, tuple(values), tuple(ways))[1], wanted[0])
    _near(torch.func.jvp(gradient, tuple(values), tuple(ways))[1], wanted[1])
    leaves = [v.clone().requires_grad_() for v in values]
    y, dy = call(*leaves), torch.ones_like(wanted[0])
    (linear,) = torch.autograd.grad(y, leaves[0], dy, retain_graph=True)
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(v, w) for v, w in zip(leaves, ways, strict=True)]
        result = call(*dual)
        _near(forward_ad.unpack_dual(result).tangent, wanted[0])
        (dx,) = torch.autograd.grad(result.square().sum(), dual[0])
        _near(forward_ad.unpack_dual(dx).tangent, wanted[1])
        (dx,) = torch.autograd.grad(y, leaves[0], forward_ad.make_dual(dy * 2, dy))
        _near(forward_ad.unpack_dual(dx).tangent, linear)
        assert forward_ad.unpack_dual(call(*values)).tangent is None


@by_op
def test_gradients_of_each(op):
    """vmap of grad, and many cotangents at once."""
    call, values, _ = _smooth(op)
    both = [torch.stack((v, v.flip(0))) for v in values]
    found = torch.func.vmap(lambda *v: _gradient(call, v))(*both)
    for i, one in enumerate(found):
        _near(one, _gradient(call, [b[i] for b in both]))
    leaves = [v.clone().requires_grad_() for v in values]
    y = call(*leaves)
    pull = lambda dy: torch.autograd.grad(y, leaves[0], dy, retain_graph=True)[0]
    dy = torch.stack((torch.ones_like(y), y.detach()))
    for found, one in zip(torch.func.vmap(pull)(dy), dy, strict=True):
        _near(found, pull(one))


@by_op
def test_many_gradients_at_once(op):
    """`is_grads_batched`: each as alone, on whatever backend serves the call."""
    call, values, _ = _smooth(op)
    leaves = [v.clone().requires_grad_() for v in values]
    y = call(*leaves)
    pull = lambda dy, many: torch.autograd.grad(
        y, leaves, dy, retain_graph=True, is_grads_batched=many
    )
    dy = torch.stack((torch.ones_like(y), y.detach()))
    together = pull(dy, True)
    for i, one in enumerate(dy):
        for found, wanted in zip(together, pull(one, False), strict=True):
            _near(found[i], wanted)


@by_op
def test_transforms_inside_compile(op):
    call, values, ways = _smooth(op)
    functions = (
        lambda *v: _gradient(call, v),
        lambda *v: torch.func.jvp(call, v, tuple(ways))[1],
        lambda *v: torch.func.vmap(call)(*(torch.stack((t, t.flip(0))) for t in v)),
    )
    for function in functions:
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*values), function(*values))


FILTER, WEIGHT = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, torch.randn(16, 8, 3, 3).double()
SIZED = {
    "modulated_conv2d": lambda x, s: modulated_conv2d(x, WEIGHT, s, x[:, :1], padding=1),
    "regions": lambda x, s: modulated_conv2d(
        x, WEIGHT, torch.stack((s, s), 1), padding=1, up=2, resample_filter=FILTER,
        regions=x[:, :2],
    ),
    "bias_act": lambda x, s: bias_act(x, s[0], activation="lrelu"),
    "upfirdn2d": lambda x, s: upfirdn2d(x, FILTER, down=2, padding=1),
    "masked_l1": lambda x, s: masked_l1(x, 2 * x, 3 * x, x[:, :1]),
    "crop_patches": lambda x, s: crop_patches(x, x[:, :2, 0, :4].detach(), 8),
    "conv2d_bias_act": lambda x, s: conv2d_bias_act(x, WEIGHT, padding=1, down=2),
}  # fmt: skip


def _sizes():
    """Three batches and pictures, none of a size met before."""
    for n in (2, 3, 5):
        yield torch.rand(n, 8, 14 + n, 20 - n).double().requires_grad_(), torch.randn(n, 8).double()


@pytest.mark.parametrize("name", SIZED)
def test_two_graphs_for_all_sizes(name):
    """The first and a dynamic one, forward and backward, equal to plain calls."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(SIZED[name], fullgraph=True, backend=counter)
    for x, s in _sizes():
        results = [f(x, s) for f in (compiled, SIZED[name])]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in results))
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", SIZED)
def test_symbolic_tracing(name):
    def gradient(x, s):
        y = SIZED[name](x, s)
        return y, torch.autograd.grad(y.square().sum(), x)[0]

    (x, s), *others = _sizes()
    traced = make_fx(gradient, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x, s)
    for x, s in others:
        torch.testing.assert_close(traced(x, s), gradient(x, s))


HALVES = (torch.bfloat16, torch.float16)
WIDTHS = (*HALVES, torch.float32)


@pytest.mark.parametrize("autocast", HALVES, ids=str)
@by_op
def test_mixtures_of_autocast(op, autocast):
    """Every argument in a dtype of its own, forward and backward: result in the first one's dtype
    (masked_l1: float32), near float64."""
    case = next(case for case in cases(op) if case.smooth)
    plain = case.inputs(torch.float64)
    truth = compare.call(op, plain)
    for shift in range(len(WIDTHS)):
        inputs = dict(plain)
        for i, name in enumerate(case.gradients):
            dtype = WIDTHS[(i + shift) % len(WIDTHS)]
            inputs[name] = plain[name].detach().to(dtype).requires_grad_()
        first = next(iter(inputs.values()))
        with torch.autocast("cpu", autocast):
            y = compare.call(op, inputs)
            leaves = [inputs[name] for name in case.gradients]
            grads = torch.autograd.grad(y.float().sum(), leaves)
        assert y.dtype == (torch.float32 if op == "masked_l1" else first.dtype)
        assert [g.dtype for g in grads] == [leaf.dtype for leaf in leaves]
        # bfloat16 keeps 8 bits, of every argument and of the result
        assert (y - truth).abs().max() <= 16 * 2**-8 * truth.abs().max()


def test_mixtures_are_refused_elsewhere():
    x, s = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 8).bfloat16()
    with pytest.raises(ValueError, match="styles must have x's dtype"):
        modulated_conv2d(x, WEIGHT, s)
