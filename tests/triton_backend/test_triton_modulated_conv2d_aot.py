"""modulated_conv2d's Triton kernels through Triton's compiler and ptxas: every row of the tables.

The launches are those that the backend would make on a GPU of that generation, recorded instead of
run. The counts of instructions are kept beside this file; see tables.py for how they are renewed.
"""

from pathlib import Path
from unittest import mock

import gate
import pytest
import tables
import torch

from rwm_fast.ops import _triton
from rwm_fast.ops._memory import Activation, Epilogue
from rwm_fast.ops.modulated_conv2d.layer import Sums
from rwm_fast.ops.modulated_conv2d.triton_kernels import configs, launch
from rwm_fast.ops.modulated_conv2d.triton_kernels.launch import Geometry

pytestmark = pytest.mark.triton_aot

TABLE = Path(__file__).with_name("modulated_conv2d.json")
KINDS = {
    "half": (torch.bfloat16, True),
    "tf32": (torch.float32, True),
    "ieee": (torch.float32, False),
}
SIZE = 64  # pixels a side
# Images and channels that get a row of the table on every generation.
SHAPES = {
    "narrow": (1, 64, 8),
    "small": (1, 64, 64),
    "normal": (5, 128, 128),
    "wide": (5, 256, 256),
}


def _empty(*shape):
    return torch.empty(shape)


def _image(kind, n, channels, size=SIZE):
    order = torch.channels_last
    return torch.empty(n, channels, size, size, dtype=KINDS[kind][0], memory_format=order)


def _epilogue(n, channels, k, size=SIZE):
    """With all that there can be."""
    regions = _empty(n, k, size, size) if k > 1 else None
    noise, strength, bias = _empty(n, 1, size, size), torch.empty(()), _empty(channels)
    activation = Activation("lrelu", 0.2, 1.4, 256.0)
    return Epilogue(_empty(n, k, channels), regions, noise, strength, bias, activation)


def _convolution(kind, shape, *, k=1, up=1, down=1):
    n, inputs, outputs = SHAPES[shape]
    size = 2 * SIZE + 1 if up == 2 else SIZE
    x = _image(kind, n, inputs, 2 * SIZE + 1 if down == 2 else SIZE)
    weight = torch.empty(outputs, 9, inputs, dtype=x.dtype)
    padding = (1, 1) if up == down == 1 else (0, 0)
    geometry = Geometry((3, 3), up, down, padding, (size, size))
    regions = _empty(n, k, *x.shape[2:]) if k > 1 else None
    # After a doubling the filter has the epilogue.
    after = launch.NOTHING if up == 2 else _epilogue(n, outputs, k)
    launch.convolution(x, weight, geometry, _empty(n, k, inputs), regions, after)


def _input_gradient(kind, shape, *, k=1, up=1, down=1):
    n, outputs, inputs = SHAPES[shape][0], *SHAPES[shape][:0:-1]
    size = 2 * SIZE + 1 if up == 2 else SIZE
    g = _image(kind, n, inputs, 2 * SIZE + 1 if down == 2 else SIZE)
    x = _image(kind, n, outputs, size)
    weight = torch.empty(outputs, 9, inputs, dtype=x.dtype)
    padding = (1, 1) if up == down == 1 else (0, 0)
    geometry = Geometry((3, 3), up, down, padding, (size, size))
    regions = _empty(n, k, size, size) if k > 1 else None
    want = Sums(du=True, scale=True, regions=k > 1)
    launch.input_gradient(g, weight, geometry, x, _empty(n, k, outputs), regions, want)


def _weight_gradient(kind, shape, *, k=1, up=1):
    n, inputs, outputs = SHAPES[shape]
    size = 2 * SIZE + 1 if up == 2 else SIZE
    padding = (1, 1) if up == 1 else (0, 0)
    geometry = Geometry((3, 3), up, 1, padding, (size, size))
    regions = _empty(n, k, SIZE, SIZE) if k > 1 else None
    x, g = _image(kind, n, inputs), _image(kind, n, outputs, size)
    launch.weight_gradient(x, g, geometry, _empty(n, k, inputs), regions)


def _resample(kind, shape, *, k=1):
    n, channels, _ = SHAPES[shape]
    x, size = _image(kind, n, channels, SIZE + 1), (SIZE, SIZE)
    launch.resample(x, _empty(4, 4), 1, 1, (1, 1), size, _epilogue(n, channels, k))


def _scale_backward(kind, shape, *, k=1, recover=False):
    n, channels, _ = SHAPES[shape]
    images = [_image(kind, n, channels) for _ in range(3)]
    want = Sums(du=True, scale=True, bias=True, pixels=True, regions=not recover)
    u = None if recover else images[2]
    launch.scale_backward(images[0], _epilogue(n, channels, k), images[1], u, recover, want)


def _sum_rows(kind, shape):
    launch.sum_rows(_empty(2, 64, 4096))


def _rows(table, generation, kind):
    return table.get((generation, kind)) or table["any", kind]


def _calls(generation):
    """(kernel, arithmetic, row of the table, function, its settings) for one generation."""
    for kind in KINDS:
        rows = list(_rows(configs.CONVOLUTION, generation, kind))
        most = rows[-1] if rows[-1] != "wide" else "normal"
        for row in rows:
            yield "forward", kind, row, _convolution, {}
        for row in rows if kind == "half" else rows[-1:]:
            yield "input gradient", kind, row, _input_gradient, {}
        weights = _rows(configs.WEIGHT_GRADIENT, generation, kind)
        for row in weights:
            yield "weight gradient", kind, row, _weight_gradient, {}
        if kind != "half":
            continue
        last = list(weights)[-1]
        yield "forward, regions", kind, most, _convolution, {"k": 2}
        yield "forward, up", kind, rows[-1], _convolution, {"up": 2}
        yield "forward, down", kind, most, _convolution, {"down": 2}
        yield "input gradient, regions", kind, most, _input_gradient, {"k": 2}
        yield "input gradient of up", kind, rows[-1], _input_gradient, {"down": 2}
        yield "weight gradient, regions", kind, last, _weight_gradient, {"k": 2}
        yield "weight gradient of up", kind, last, _weight_gradient, {"up": 2}
        yield "resample", kind, "normal", _resample, {"k": 2}
        yield "scale backward", kind, "normal", _scale_backward, {"k": 2}
        yield "sum", kind, "normal", _sum_rows, {}
    yield "scale backward, recover", "tf32", "normal", _scale_backward, {"recover": True}
    if generation == "hopper":
        yield "forward, 8 regions", "half", "normal", _convolution, {"k": 8}
        yield "input gradient of down", "half", "wide", _input_gradient, {"up": 2}


ALL = [
    pytest.param(target, *call, id=f"{target}, {call[0]}, {call[1]}, {call[2]}")
    for target in gate.TARGETS
    for call in _calls(configs.generation((target // 10, 0)))
]


def _record(target, kind, call, *arguments, **settings):
    """The first launch of a call on a GPU of this target; the others add up its partial sums."""
    capability = (target // 10, target % 10)
    flags = torch.backends.cudnn.flags(allow_tf32=KINDS[kind][1])
    with mock.patch.object(_triton, "capability", lambda device: capability), flags:
        return gate.record(lambda: call(kind, *arguments, **settings))[0]


@pytest.mark.parametrize(("target", "name", "kind", "row", "call", "settings"), ALL)
def test_compiles(request, target, name, kind, row, call, settings):
    recorded = _record(target, kind, call, row, **settings)
    label = request.node.callspec.id
    facts = gate.facts_of_table(TABLE, {label: recorded}, target)[label]
    gate.check(facts)
    if "TMA" in recorded.arguments:
        generation = configs.generation((target // 10, 0))
        table = configs.WEIGHT_GRADIENT if "weight" in name else configs.CONVOLUTION
        tiles = _rows(table, generation, kind)[row]
        assert recorded.arguments["BO"] == tiles.outputs, f"not row {row!r}"
        _check_instructions(facts, recorded.arguments, kind, row)
    drift = tables.check(TABLE, {label: facts.row()})
    if drift is None:
        pytest.skip("the table is of another version of triton")
    assert not drift, "\n".join(drift)


def _check_instructions(facts, arguments, kind, row):
    """The tensor cores at work, and loads that do not wait."""
    tensor = {80: "HMMA", 90: "HGMMA", 100: "UTCMMA"}[facts.target]
    # wgmma and tcgen05 take 64 rows at least; ieee float32 is for the ordinary units.
    small = row == "narrow" and facts.name != "weight_gradient"
    expected = None if kind == "ieee" else "HMMA" if small else tensor
    for opcode in ("HMMA", "HGMMA", "UTCMMA"):
        assert bool(facts.count(opcode)) == (opcode == expected), f"{opcode}: {facts.counts}"
    strided = arguments["DOWN"] == 2 or (arguments["UP"] == 2 and facts.name == "weight_gradient")
    assert arguments["TMA"] == (facts.target >= 90 and not strided)
    if arguments["TMA"]:
        assert facts.count("UTMALDG") >= 2
    else:
        assert facts.count("LDGSTS") >= 8, "pointer loads must be asynchronous copies"


@pytest.mark.parametrize("kernel", ["convolution", "input_gradient", "weight_gradient"])
def test_sizes_of_one_compile(kernel):
    """Triton makes a constant of every argument that is 1: the code must bear it."""
    x = torch.empty(1, 1, 1, 1, dtype=torch.float16)
    geometry, weight = Geometry((1, 1), 1, 1, (0, 0), (1, 1)), torch.empty(1, 1, 1, dtype=x.dtype)
    styles, regions = torch.empty(1, 1, 1), torch.empty(1, 1, 1, 1)
    calls = {
        "convolution": lambda: launch.convolution(x, weight, geometry, styles, regions),
        "input_gradient": lambda: launch.input_gradient(
            x, weight, geometry, x, styles, regions, Sums(du=True, scale=True, regions=True)
        ),
        "weight_gradient": lambda: launch.weight_gradient(x, x, geometry, styles, regions),
    }
    with mock.patch.object(_triton, "capability", lambda device: (9, 0)):
        recorded = gate.record(calls[kernel])[0]
    assert recorded.kernel.__name__ == kernel and not recorded.arguments["TMA"]
    gate.check(gate.facts_of(recorded, 90))
