"""The compiled functions themselves: what is wrong on its face is refused, by every one of them.

They get addresses, so they cannot see how large a buffer is, or of what type. But a missing buffer,
a negative size, one that no memory holds, an unknown dtype, a word for a number: each must become
an exception. A crash of this process is how these tests fail.
"""

import math

import pytest
import torch

from rwm_fast.ops import _extension

pytestmark = pytest.mark.skipif(
    _extension.cpu() is None, reason=f"no C++ module: {_extension.why_not_cpu()}"
)
N, C, O, H, W, K, S = 2, 3, 5, 6, 7, 2, 4  # images, channels in and out, sides, styles, patch
LAST = True  # channels are innermost
EMPTY = 0  # an address that may be absent


class Maybe(list):
    """The shape of a buffer that a call can do without."""


class Code(int):
    """Of a dtype."""


class Record(tuple):
    """The name of a class and the arguments that make one."""

    def __new__(cls, *values):
        return super().__new__(cls, values)


# Right calls. A whole number is a size, a list the shape of a buffer that the call needs, a string
# any other number.
F32 = Code(0)
ACTIVATION = Record("Activation", 0.2, 1.5, None)
SCALES, REGIONS, IMAGE, OUT = [N, K, C], [N, K, H, W], [N, H, W, C], [N, H, W, O]
PANELS = [8192]  # no fewer numbers than transformed weights have, on any instruction set
KERNELS = Record("Kernels", O, C, (3, 3), False, False, F32)
WEIGHT, SQUARES = [O, C, 9], [O, C]
WINOGRAD = Record("WinogradPlan", KERNELS, N, (H, W), (H, W), 1, ("-1", "-1"))
DIRECT = Record("DirectPlan", KERNELS, N, (H, W), (H, W), 1, ("1", "1"))
BEFORE = Record("Blend", SCALES, REGIONS, K)
AFTER = Record(
    *("Epilogue", Record("Blend", [N, K, O], REGIONS, K), Maybe([N, 1, H, W]), True, Maybe([1])),
    *(Maybe([O]), Record("Activation", 0.2, 1.5, None)),
)
ONE_STYLE = Record("Epilogue", Record("Blend", Maybe([N, O]), EMPTY, 1), *AFTER[2:])
PLANES = Record("Planes", N, C, W, F32)
MASKED = Record("MaskedImages", N, C, W, False, F32, F32)
CROPS = Record("Crops", N, K, C, (H, W), S, LAST, F32, F32)
RESAMPLING = Record(
    *("Resampling", N, C, (H, W), (H - 1, W - 1), (1, 1), (1, 1), ("0", "0"), (2, 2), F32)
)
IMAGES, OUTPUTS = Record("Images", N, H * W, C, F32), Record("Images", N, H * W, O, F32)
CALLS = {
    "bias_act_forward": (PLANES, ACTIVATION, [N, C, W], Maybe([C]), [N, C, W]),
    "bias_act_backward": (PLANES, ACTIVATION, [N, C, W], *[Maybe([N, C, W])] * 2, Maybe([C])),
    "upfirdn2d": (RESAMPLING, IMAGE, [4], IMAGE, True, False, 1.0),
    "masked_l1_forward": (MASKED, *[[N, C, W]] * 3, [N, W], EMPTY, [1]),
    "masked_l1_backward": (MASKED, [1], [N, C, W], [N, W], Maybe([N, C, W]), EMPTY, EMPTY),
    "masked_l1_mask_backward": (MASKED, [1], *[[N, C, W]] * 3, [N, W], [N, W]),
    "crop_patches_forward": (CROPS, IMAGE, [N, K, 4], [N, K, S, S, C]),
    "crop_patches_adjoint": (CROPS, [N, K, S, S, C], [N, K, 4], IMAGE),
    "modulated_conv2d_scale": (IMAGES, IMAGE, IMAGE, BEFORE),
    "modulated_conv2d_scale_backward": (IMAGES, IMAGE, IMAGE, Maybe(IMAGE), Maybe(SCALES), BEFORE),
    "modulated_conv2d_epilogue": (OUTPUTS, OUT, OUT, AFTER),
    "modulated_conv2d_epilogue_backward": (OUTPUTS, OUT, OUT, EMPTY, Maybe(OUT), [O])
    + (Maybe([N, K, O]), Maybe([N, H, W]), AFTER),
    "modulated_conv2d_combine": (IMAGES, Maybe(IMAGE), IMAGE, [N, C], [N, C], IMAGE, Maybe(IMAGE)),
    "modulated_conv2d_twice": (OUTPUTS, OUT, OUT, Maybe(OUT), OUT, Maybe([N, O]), Maybe(OUT))
    + ([2 * N, H, W, O], [N, 2, O], ONE_STYLE),
    "modulated_conv2d_unscale": (IMAGES, IMAGE, Maybe(IMAGE), [N, C], Maybe(IMAGE), [N, C]),
    "modulated_conv2d_is_even": (IMAGES, IMAGE, 256.0),
    "modulated_conv2d_squares": (KERNELS, WEIGHT, SQUARES),
    "modulated_conv2d_demodulation": (KERNELS, SQUARES, [N, C], [N, O], N, 1e-8),
    "modulated_conv2d_demodulation_backward": (KERNELS, SQUARES, [N, C], [N, O], [N, O])
    + (Maybe([N, C]), Maybe(SQUARES), N),
    "modulated_conv2d_direct_weights_size": (KERNELS, False),
    "modulated_conv2d_direct_weights": (KERNELS, WEIGHT, PANELS, False),
    "modulated_conv2d_direct": (DIRECT, IMAGE, PANELS, OUT, Maybe([N, C])),
    "modulated_conv2d_direct_input_gradient": (DIRECT, OUT, PANELS, IMAGE, Maybe([N, C])),
    "modulated_conv2d_direct_weight_gradient": (DIRECT, IMAGE, Maybe([N, C]), OUT, WEIGHT)
    + (Maybe(SQUARES), WEIGHT),
    "modulated_conv2d_winograd_weights_size": (KERNELS, False),
    "modulated_conv2d_winograd_weights": (KERNELS, WEIGHT, PANELS, 1, False),
    "modulated_conv2d_winograd": (WINOGRAD, IMAGE, PANELS, OUT, BEFORE, AFTER),
    "modulated_conv2d_winograd_input_gradient": (WINOGRAD, OUT, PANELS, Maybe(IMAGE), IMAGE)
    + (Maybe(SCALES), BEFORE),
    "modulated_conv2d_winograd_weight_gradient": (WINOGRAD, IMAGE, OUT, BEFORE, WEIGHT)
    + (Maybe(SQUARES), WEIGHT),
}


def leaves(value, path=()):
    """(path, leaf) of all that a call is made from, inside its records too."""
    if not isinstance(value, tuple):
        yield path, value
    for i, part in enumerate(value if isinstance(value, tuple) else ()):
        if not (i == 0 and isinstance(value, Record)):
            yield from leaves(part, (*path, i))


def build(value, tensors, wrong, path=()):
    """A call's arguments, those at the paths of `wrong` replaced; `tensors` keeps its buffers."""
    if path in wrong:
        return wrong[path]
    if isinstance(value, list):
        tensors.append(torch.rand(value))
        return tensors[-1].data_ptr()
    if isinstance(value, str):
        return int(value)
    if not isinstance(value, tuple):
        return value
    name = value[0] if isinstance(value, Record) else None
    parts = [build(v, tensors, wrong, (*path, i)) for i, v in enumerate(value) if v is not name]
    return getattr(_extension.cpu(), name)(*parts) if name else tuple(parts)


def run(name, wrong=None):
    """Make the records of a right call, or of one that is wrong in places, and call."""
    tensors = []
    values = build(CALLS[name], tensors, wrong or {})
    if name == "masked_l1_backward":
        tensors[1].zero_()
    getattr(_extension.cpu(), name)(*values)
    return tensors


def refused(name, wrong):
    with pytest.raises((TypeError, ValueError)):
        run(name, wrong)


def sizes(name):
    return [p for p, v in leaves(CALLS[name]) if type(v) is int and v != EMPTY]


def test_every_function_is_listed():
    operators = ("bias_act", "upfirdn2d", "masked_l1", "crop_patches", "modulated_conv2d")
    found = {n for n in dir(_extension.cpu()) if n.startswith(operators)}
    assert found == {*CALLS, "modulated_conv2d_fingerprint"}


def test_buffers_hold_the_transformed_weights():
    module = _extension.cpu()
    kernels = build(KERNELS, [], {})
    for engine in ("winograd", "direct"):
        size = getattr(module, f"modulated_conv2d_{engine}_weights_size")
        assert max(size(kernels, adjoint) for adjoint in (False, True)) <= PANELS[0]


@pytest.mark.parametrize("name", CALLS)
def test_a_right_call_works(name):
    assert all(t.isfinite().all() for t in run(name))


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_buffer_is_refused(name):
    for path, value in leaves(CALLS[name]):
        if type(value) is list:
            refused(name, {path: 0})


@pytest.mark.parametrize("name", CALLS)
def test_what_may_be_missing_is_not_read(name):
    for path, value in leaves(CALLS[name]):
        if isinstance(value, Maybe):
            run(name, {path: 0})


@pytest.mark.parametrize("wrong", [-1, -(1 << 40), 1 << 62, 1 << 80, "1", None, 1.5])
@pytest.mark.parametrize("name", CALLS)
def test_a_size_that_no_buffer_has_is_refused(name, wrong):
    for path in sizes(name):
        refused(name, {path: wrong})


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_dtype_is_refused(name):
    half = [2] if name.startswith("modulated_conv2d") else []  # the others take float16
    codes = [path for path, value in leaves(CALLS[name]) if isinstance(value, Code)]
    assert codes
    for path in codes:
        for wrong in [-1, 4, 99, 1 << 40, "0", None, *half]:
            refused(name, {path: wrong})


@pytest.mark.parametrize("name", CALLS)
def test_a_size_of_0_divides_nothing(name):
    """Either there is nothing to do, or it is refused (no style, a crop of no pixels)."""
    for path in sizes(name):
        try:
            run(name, {path: 0})
        except ValueError:
            continue


RECORDS = {  # what makes a record, what is wrong there and what is said about it
    "out_channels must be at least 0, got -1": (KERNELS, {(1,): -1}),
    "size must be at least 1, got 3, 0": (KERNELS, {(3, 1): 0}),
    "Kernels: dtype must be float32 or float64, got code 1": (KERNELS, {(6,): 1}),
    "pixels must be at least 0, got -2": (IMAGES, {(2,): -2}),
    "Images: dtype must be a code of DTYPE_CODES, got 4": (IMAGES, {(4,): 4}),
    "Planes: all numbers: a size must fit memory, got -1": (PLANES, {(1,): -1}),
    "images must be 1 in pixel order, got 2": (MASKED, {(4,): True}),
    "mask_dtype must be dtype, or float32 beside 16 bits, got code 1": (MASKED, {(6,): 1}),
    "Crops: image_size must be at least 1, got 6, 0": (CROPS, {(4, 1): 0}),
    "Crops: boxes_dtype must be float32 or float64, got code 2": (CROPS, {(8,): 2}),
    "fewer than 1073741824 numbers, got 1073741824": (CROPS, {(4, 1): 1 << 30, (6,): False}),
    "fewer than 1073741824 numbers, got 1073741825": (CROPS, {(5,): (1 << 30) + 1, (6,): False}),
    "fewer than 1073741824 numbers, got 1073741826": (CROPS, {(4, 1): (1 << 30) // 3 + 1}),
    "Resampling: up must be at least 1, got 1, 0": (RESAMPLING, {(5, 1): 0}),
    "Resampling: taps must be at least 1, got 0, 2": (RESAMPLING, {(8, 0): 0}),
    "pad must fit memory, got 0, 4611686018427387904": (RESAMPLING, {(7, 1): 1 << 62}),
    "styles must be at least 1, got 0": (BEFORE, {(3,): 0}),
    "Blend: regions must come with a scale, got none": (BEFORE, {(1,): 0}),
    "Blend: styles must be 1 without regions, got 2": (BEFORE, {(2,): 0}),
    "clamp must be None or at least 0, got -1": (AFTER[6], {(3,): -1.0}),
    "clamp must be None or at least 0, got nan": (AFTER[6], {(3,): math.nan}),
    "WinogradPlan: kernels must have size 3, 3, got 3, 1": (WINOGRAD, {(1, 3, 1): 1}),
    "up must be 1 or 2, got 3": (WINOGRAD, {(5,): 3}),
    "out_size must be 2·in_size [+] 1 or [+] 2 with up 2, got 6 from 6": (WINOGRAD, {(5,): 2}),
    "offset must fit memory, got -1, 4611686018427387904": (WINOGRAD, {(6, 1): 1 << 62}),
    "offset must be at least -281474976710655, got ": (WINOGRAD, {(6, 0): -(1 << 62)}),
    "stride must be at least 1, got 0": (DIRECT, {(5,): 0}),
    "padding must fit memory, got 1, 4611686018427387904": (DIRECT, {(6, 1): 1 << 62}),
}


@pytest.mark.parametrize("message", RECORDS)
def test_a_record_says_what_is_wrong_with_a_field(message):
    record, wrong = RECORDS[message]
    build(record, [], {})
    with pytest.raises(ValueError, match=message):
        build(record, [], wrong)


def test_records_have_names_and_are_not_written():
    blend = _extension.cpu().Blend(scale=8, regions=16, styles=2)
    activation = _extension.cpu().Activation(slope=0.5, clamp=2)
    epilogue = _extension.cpu().Epilogue(blend, bias=8, activation=activation)
    assert (epilogue.blend.styles, epilogue.bias, epilogue.noise, epilogue.strength) == (2, 8, 0, 0)
    assert (activation.slope, activation.gain, activation.clamp) == (0.5, 1, 2)
    assert _extension.cpu().Activation().clamp is None
    assert _extension.cpu().Activation(clamp=math.inf).clamp is None
    with pytest.raises(AttributeError):
        blend.styles = 3


def test_the_fingerprint_of_nothing():
    fingerprint = _extension.cpu().modulated_conv2d_fingerprint
    assert fingerprint(0, 0) == fingerprint(torch.ones(3).data_ptr(), 0)
    for size in (-1, 8, 1 << 62):
        with pytest.raises(ValueError, match="modulated_conv2d"):
            fingerprint(0, size)
