"""The standard tests of every operator on every backend; nothing here is about one operator.

Inputs are the named cases of `rwm_fast.testing.cases`, rows come from the table of
backends, and the one error rule is in `rwm_fast.testing.compare`.
"""

from itertools import product

import pytest
import torch
from grid import DTYPES, ROWS, grid, on_backend, rows_cases
from torch.utils._python_dispatch import TorchDispatchMode

from rwm_fast import use_backend
from rwm_fast.ops import _extension
from rwm_fast.ops._dispatch import MADE_OF, OPS, backends
from rwm_fast.ops._memory import is_channels_last
from rwm_fast.testing import compare
from rwm_fast.testing.cases import LAYOUTS, cases, in_layout, ops, refusals

by_row = pytest.mark.parametrize("row", ROWS, ids=str)
by_case = pytest.mark.parametrize(("row", "case"), rows_cases())
by_smooth_case = pytest.mark.parametrize(("row", "case"), rows_cases(lambda case: case.smooth))
# grid_sample got its second derivative in torch 2.13; before, only our own formulas have one.
second_order_truth = {"crop_patches": (2, 13)}


def _like(x, seed, layout="contiguous"):
    """Standard normal numbers in x's shape, dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return in_layout(numbers.to(x), layout)


def _compare(row, case, inputs, run, layout="contiguous"):
    """Check every tensor that run(op, inputs, dy) returns against the error rule."""
    with compare.plain(), torch.no_grad():
        dy = _like(compare.call(row.op, inputs), 0, layout)
    with on_backend(row, inputs):
        ours = run(row.op, inputs, dy)
    _check(row, case, inputs, run, ours, dy)
    return ours


def _check(row, case, inputs, run, ours, dy):
    with compare.plain():
        plain = run(row.op, inputs, dy)
        truth = run(row.op, compare.in_float64(inputs), dy.double())
    for i, versions in enumerate(zip(ours, plain, truth, strict=True)):
        label = f"{row} {case.name}, result {i} of {run.__name__}"
        compare.check(label, *versions, case, next(iter(inputs.values())).dtype)


def _second_order(op, inputs, dy):
    seconds = [_like(x, i + 1) for i, x in enumerate(compare.leaves(inputs))]
    return compare.second_order(op, inputs, dy, seconds)


def test_every_operator_has_cases():
    assert set(ops()) == {*OPS, *MADE_OF}
    assert all(backends(op)[-1] == "eager" for op in ops())


def test_the_grid_has_every_pair():
    """Of case, dtype and layout, on every backend."""
    found = {tuple(param.values) for param in grid()}
    for row in ROWS:
        mine = {point[1:] for point in found if point[0] == row}
        assert {(d, c) for d, _, c in mine} == set(product(DTYPES.values(), cases(row.op)))
        assert {(k, c) for _, k, c in mine} == set(product(LAYOUTS, cases(row.op)))
        assert {(d, k) for d, k, _ in mine} == set(product(DTYPES.values(), LAYOUTS))


@pytest.mark.parametrize(("row", "dtype", "layout", "case"), grid())
def test_equals_reference(row, dtype, layout, case):
    """Output and all gradients; the memory format of the first argument is kept."""
    inputs = case.inputs(dtype, layout, row.device)
    output, *_ = _compare(row, case, inputs, compare.first_order, layout)
    first = next(iter(inputs.values()))
    if output.ndim > 3 and output.numel() and is_channels_last(first):
        assert output.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@by_case
def test_second_order_equals_reference(row, case, dtype):
    if torch.__version__ < second_order_truth.get(row.op, (2,)):
        pytest.skip("this torch cannot differentiate the reference twice")
    _compare(row, case, case.inputs(dtype, "contiguous", row.device), _second_order)


@by_case
def test_mixed_layouts(row, case):
    """Each argument in a layout of its own."""
    layouts = ("channels_last", "contiguous", "sliced")
    inputs = case.inputs(torch.float32, "contiguous", row.device, gradients=False)
    for i, (name, value) in enumerate(inputs.items()):
        if isinstance(value, torch.Tensor):
            value = in_layout(value, layouts[i % len(layouts)])
            inputs[name] = value.requires_grad_(name in case.gradients)
    _compare(row, case, inputs, compare.first_order, "channels_last")


@by_smooth_case
def test_gradcheck(row, case):
    _check_by_differences(torch.autograd.gradcheck, row, case)


@by_smooth_case
def test_gradgradcheck(row, case):
    """In random directions, for the time: above, every second derivative is compared with torch's
    own."""
    _check_by_differences(torch.autograd.gradgradcheck, row, case, fast_mode=True)


def _check_by_differences(check, row, case, **options):
    inputs = case.inputs(torch.float64, "contiguous", row.device)

    def function(*values):
        return compare.call(row.op, {**inputs, **dict(zip(case.gradients, values, strict=True))})

    with on_backend(row, inputs):
        assert check(function, [inputs[name] for name in case.gradients], **options)


class _Recorder(TorchDispatchMode):
    """Notes the calls of our registered operators with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "rwm_fast":
            self.calls.setdefault(func, args)
        return func(*args, **(kwargs or {}))


def _fresh(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


@pytest.mark.parametrize("row", [row for row in ROWS if row.op in OPS], ids=str)
def test_opcheck(row):
    """Schema, fake, autograd registration and tracing of every registered operator behind it.

    They are the same on every backend: two of them share the layouts of a case, but of one."""
    smooth = [case for case in cases(row.op) if case.smooth]
    rows = [
        (case, layout)
        for i, case in enumerate(cases(row.op))
        for j, layout in enumerate(("contiguous", "channels_last"))
        if case is smooth[0] or (i + j) % 2 == (row.backend == "eager")
    ]
    for case, layout in rows:
        inputs = case.inputs(torch.float32, layout, row.device)
        with on_backend(row, inputs), _Recorder() as recorder:
            output = compare.call(row.op, inputs)
            _second_order(row.op, inputs, torch.ones_like(output))
        assert recorder.calls, "the call went past the registered operators"
        # Tracing takes a second: one case is enough. Shapes and strides are checked every time.
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        traced = case is smooth[0] and layout == "contiguous"
        with use_backend(row.backend):
            for operator, args in recorder.calls.items():
                args = tuple(_fresh(a) for a in args)
                torch.library.opcheck(
                    operator, args, test_utils=checks + ("test_aot_dispatch_dynamic",) * traced
                )


@by_case
def test_repeatable(row, case):
    """Bitwise the same over repeats (and thread counts); arguments, random state untouched."""
    inputs = case.inputs(torch.float32, "contiguous", row.device)
    tensors = [v for v in inputs.values() if isinstance(v, torch.Tensor)]
    copies, state = [t.detach().clone() for t in tensors], torch.get_rng_state()
    threads = torch.get_num_threads()
    results = []
    with on_backend(row, inputs):
        dy = _like(compare.call(row.op, inputs), 0)
        try:
            for count in (1, 1, 2, 3) if case.any_threads else (2, 2, 2):
                torch.set_num_threads(count)
                results.append(compare.first_order(row.op, inputs, dy))
        finally:
            torch.set_num_threads(threads)
    for again in results[1:]:
        for first, second in zip(results[0], again, strict=True):
            assert torch.equal(first.nan_to_num(7), second.nan_to_num(7))
    assert torch.equal(torch.get_rng_state(), state)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor.nan_to_num(7), copy.nan_to_num(7)) and tensor.grad is None


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize(("row", "case"), rows_cases(backend="native"))
def test_every_instruction_set(row, case, isa):
    """The compiled kernels at each instruction set that this CPU has."""
    if row.device != "cpu" or _extension.cpu() is None:
        pytest.skip("not a C++ kernel")
    best = _extension.cpu().isa()
    try:
        _extension.cpu().set_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        _compare(row, case, case.inputs(torch.float32, "sliced"), compare.first_order, "sliced")
    finally:
        _extension.cpu().set_isa(best)


@pytest.mark.parametrize(
    "refusal", [pytest.param(r, id=f"{r.op}-{r.name}") for op in ops() for r in refusals(op)]
)
def test_refusal(refusal):
    case = next(c for c in cases(refusal.op) if c.name == refusal.case)
    inputs = case.inputs(torch.float32, gradients=False)
    with pytest.raises(refusal.error, match=f"^{refusal.op}: .*{refusal.message}"):
        compare.call(refusal.op, {**inputs, **refusal.change(dict(inputs))})


@by_row
def test_compiled_equals_eager(row):
    """One graph, forward and backward, bit for bit: of two cases one with static and one with
    dynamic shapes, the other way round on the eager backend. (Compiling takes seconds.) What is
    made of other operators may be traced as others than it runs: it obeys the error rule."""
    chosen = [case for case in cases(row.op) if case.smooth][:2]
    for i, case in enumerate(chosen):
        inputs = case.inputs(torch.float32, "contiguous", row.device)
        function = compare.function(row.op)
        with on_backend(row, inputs):
            eager = function(**inputs)
            dy = _like(eager, 0)
            expected = torch.autograd.grad(eager, compare.leaves(inputs), dy)
            torch.compiler.reset()
            dynamic = (i == 1) != (row.backend == "eager")
            compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
            output = compiled(**inputs)
            grads = torch.autograd.grad(output, compare.leaves(inputs), dy)
            if row.op in MADE_OF:
                _check(row, case, inputs, compare.first_order, (output, *grads), dy)
            else:
                assert torch.equal(output, eager)
                assert all(map(torch.equal, grads, expected))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # raised by its own imports
@pytest.mark.parametrize("op", ops())
def test_inductor(op):
    """torch.compile as people call it."""
    case = next(case for case in cases(op) if case.smooth)
    inputs = case.inputs(torch.float32)
    torch.compiler.reset()
    # what is made of other operators is traced as it runs on the eager backend
    with use_backend("eager" if op in MADE_OF else "auto"):
        output = torch.compile(compare.function(op), fullgraph=True)(**inputs)
        assert torch.equal(output, compare.call(op, inputs))


@pytest.mark.parametrize(
    ("op", "case"),
    [pytest.param(o, c, id=f"{o}-{c.name}") for o in ops() for c in cases(o) if c.smooth],
)
def test_torch_func(op, case):
    """torch.func.vjp and vmap through the public function."""
    inputs = case.inputs(torch.float64)
    values = [inputs[name] for name in case.gradients]

    def function(*arguments):
        return compare.call(op, {**inputs, **dict(zip(case.gradients, arguments, strict=True))})

    output = function(*values)
    dy = _like(output, 0)
    expected = torch.autograd.grad(output, values, dy)
    detached = [v.detach() for v in values]
    found, pull_back = torch.func.vjp(function, *detached)
    grads = [found, *pull_back(dy)]
    for ours, wanted in zip(grads, [output, *expected], strict=True):
        compare.check(f"{op} {case.name} in vjp", ours, wanted, wanted, case, dy.dtype)
    batched = torch.func.vmap(function)(*(torch.stack((v, v.flip(0))) for v in detached))
    for i, wanted in enumerate((function(*detached), function(*(v.flip(0) for v in detached)))):
        label = f"{op} {case.name} in vmap"
        compare.check(label, batched[i], wanted, wanted, case, dy.dtype)
