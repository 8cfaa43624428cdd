"""The CUDA and the Triton kernels on a GPU: what tests without one cannot show.

The standard tests (tests/ops) have native-cuda and triton-cuda rows wherever there is a GPU; these
add benchmark sizes, streams, CUDA graphs, misaligned tensors and tensors of more than 2³¹ elements.
"""

import pytest
import torch

from rwm_fast import bias_act, upfirdn2d
from rwm_fast.ops import _dispatch, _extension
from rwm_fast.ops._dispatch import OPS, explain, requested, use_backend
from rwm_fast.testing import compare
from rwm_fast.testing.cases import cases

pytestmark = pytest.mark.gpu

BACKENDS = ("native", "triton")
SERVED = [
    (way.name, op)
    for op in OPS
    for way in _dispatch.ways(op)
    if way.name in BACKENDS and way.device == "cuda"
]


def _params(bench):
    return [
        pytest.param(backend, op, case, id=f"{backend}-{op}-{case.name}")
        for backend, op in SERVED
        for case in cases(op, bench=bench)
    ]


ALL, BENCH = _params(False), _params(True)
by_case = pytest.mark.parametrize(("backend", "op", "case"), ALL)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A convolution of torch is not ours to make repeatable.
REPEATABLE = [p for p in ALL if p.values[:2] != ("native", "modulated_conv2d")]


@pytest.fixture(autouse=True)
def gpu(backend):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if backend == "native" and _extension.why_not_cuda():
        pytest.skip(_extension.why_not_cuda())
    # The float32 rows are about float32: no TF32 in torch's convolutions.
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with use_backend(backend):
        yield
    torch.backends.cudnn.allow_tf32 = before


def _like(x, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)


def _cotangent(op, inputs):
    """Skips the test, with the reason, where the backend refuses the call."""
    answer = explain(op, **inputs)[requested()]
    if answer != "used":
        pytest.skip(f"{op}: {answer}")
    with compare.plain(), torch.no_grad():
        return _like(compare.call(op, inputs))


def _compare(op, case, inputs):
    dy = _cotangent(op, inputs)
    ours = compare.first_order(op, inputs, dy)
    with compare.plain():
        plain = compare.first_order(op, inputs, dy)
        truth = compare.first_order(op, compare.in_float64(inputs), dy.double())
    for i, versions in enumerate(zip(ours, plain, truth, strict=True)):
        dtype = next(iter(inputs.values())).dtype
        compare.check(f"{op} {case.name}, result {i}", *versions, case, dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@by_case
def test_equals_reference(backend, op, case, dtype, layout):
    _compare(op, case, case.inputs(DTYPES[dtype], layout, "cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("backend", "op", "case"), BENCH)
def test_sizes_people_use(backend, op, case, dtype):
    _compare(op, case, case.inputs(DTYPES[dtype], "channels_last", "cuda"))
    torch.cuda.empty_cache()


@by_case
def test_misaligned(backend, op, case):
    """Every tensor one element off a 16-byte boundary."""
    inputs = case.inputs(torch.bfloat16, "contiguous", "cuda")
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            shifted = value.new_empty(value.numel() + 1)[1:].view(value.shape)
            shifted.copy_(value.detach())
            inputs[name] = shifted.requires_grad_(value.requires_grad)
    _compare(op, case, inputs)


@pytest.mark.parametrize(("backend", "op", "case"), REPEATABLE)
def test_repeatable_on_two_streams(backend, op, case):
    """Bit for bit, thirty times, half of them on a second stream at the same time."""
    inputs = case.inputs(torch.float32, "channels_last", "cuda")
    dy = _cotangent(op, inputs)
    first = compare.first_order(op, inputs, dy)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    results = []
    for turn in range(30):
        with torch.cuda.stream(side if turn % 2 else torch.cuda.current_stream()):
            results.append(compare.first_order(op, inputs, dy))
    torch.cuda.synchronize()
    for result in results:
        for a, b in zip(first, result, strict=True):
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize(("backend", "op", "case"), [p for p in ALL if p.values[2].name != "empty"])
def test_graph(backend, op, case):
    """Captured once, replayed on new data: equal to the eager call, forward and backward."""
    static = case.inputs(torch.float32, "channels_last", "cuda")
    leaves = compare.leaves(static)
    dy = _cotangent(op, static)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # modules load and cuDNN chooses before the capture
        for _ in range(3):
            compare.first_order(op, static, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = compare.first_order(op, static, dy)
    for factor in (1.0, 0.75):
        with torch.no_grad():
            for leaf in leaves:
                leaf.mul_(factor)
        graph.replay()
        eager = compare.first_order(op, static, dy)
        for a, b in zip(captured, eager, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["bias_act", "upfirdn2d", "masked_l1"])
def test_beyond_two_to_the_31(backend, op):
    """Offsets in 64 bits: the far end of a huge tensor equals a small call on that end."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    n, c, h, w = 33, 64, 1024, 1024  # 2.2e9 elements, 4.4 GB
    x = torch.empty(n, c, h, w, dtype=torch.bfloat16, device="cuda").normal_()
    if op == "bias_act":
        bias = torch.randn(c, device="cuda")
        whole = bias_act(x, bias, activation="lrelu", gain=1.5)
        assert torch.equal(whole[-1:], bias_act(x[-1:], bias, activation="lrelu", gain=1.5))
    elif op == "upfirdn2d":
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device="cuda") / 8
        whole = upfirdn2d(x, taps, padding=[2, 1])
        assert torch.equal(whole[-1:], upfirdn2d(x[-1:], taps, padding=[2, 1]))
    else:
        mask = torch.rand(n, 1, h, w, device="cuda")
        zero = torch.zeros_like(x)
        loss, signs = torch.ops.rwm_fast.masked_l1(x, zero, zero, mask, True)
        _, last = torch.ops.rwm_fast.masked_l1(x[-1:], zero[-1:], zero[-1:], mask[-1:], True)
        assert torch.equal(signs[-1:], last)
        parts = [v.float().abs().mean(dtype=torch.float64) for v in x]  # |m| + |1 − m| = 1
        assert abs(loss.item() / (sum(parts) / n).item() - 1) < 1e-5
    torch.cuda.empty_cache()
