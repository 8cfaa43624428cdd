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
F32, LAST = 0, True  # dtype code; channels are innermost
EMPTY = 0  # an address that may be absent
ACTIVATION = (0.2, 1.5, math.inf)
PLAN = (N, H, W, C, H, W, O, 0, -1, -1)
BACK = (N, H, W, O, H, W, C, 0, -1, -1)
DIRECT = (N, H, W, C, H, W, O, 3, 3, 1, 1, 1)
STRIDES = (C * 9, 9, 1)
PANELS = 4096  # more numbers than the transformed weights have

# Right calls. A whole number is a size, a list the shape of a buffer that the call needs, a string
# any other number; tuples are plans and strides.
SCALES, REGIONS, IMAGE = [N, K, C], [N, K, H, W], [N, H, W, C]
OUT, EPILOGUE = [N, H, W, O], ([N, K, O], [N, K, H, W], K, [1, 1, H, W], "0", [O], *ACTIVATION)
CALLS = {
    "bias_act_forward": ([N, C, W], [C], [N, C, W], N, C, W, *ACTIVATION),
    "bias_act_backward": ([N, C, W], [N, C, W], [N, C, W], [C], N, C, W, *ACTIVATION),
    "upfirdn2d": (IMAGE, [4, 2], IMAGE, N, C, H, W, H - 1, W - 1, LAST, 2, 2, True, 1, 1, 1, 1)
    + ("0", "0", False, 1.0),
    "masked_l1_forward": (*[[N, C, W]] * 3, [N, W], EMPTY, [1], N, C, W, False, "0"),
    "masked_l1_backward": ([1], [N, C, W], [N, W], [N, C, W], EMPTY, EMPTY, N, C, W, False, "0"),
    "masked_l1_mask_backward": ([1], *[[N, C, W]] * 3, [N, W], [N, W], N, C, W, False, "0"),
    "crop_patches_forward": (IMAGE, [N, K, 4], [N, K, S, S, C], N, K, C, H, W, S, LAST, "0"),
    "crop_patches_adjoint": ([N, K, S, S, C], [N, K, 4], IMAGE, N, K, C, H, W, S, LAST, "0"),
    "modulated_conv2d_scale": (IMAGE, IMAGE, SCALES, REGIONS, K, N, H * W, C),
    "modulated_conv2d_scale_backward": (IMAGE, IMAGE, IMAGE, SCALES, SCALES, REGIONS)
    + (K, N, H * W, C),
    "modulated_conv2d_epilogue": (OUT, OUT, *EPILOGUE, N, H * W, O),
    "modulated_conv2d_epilogue_backward": (OUT, OUT, EMPTY, OUT, [O], [N, K, O], [N, H, W])
    + (*EPILOGUE, N, H * W, O),
    "modulated_conv2d_squares": ([O, C, 9], [O, C], O, C, 9, STRIDES),
    "modulated_conv2d_demodulation": ([O, C], [N, C], [N, O], 1e-8, N, O, C),
    "modulated_conv2d_demodulation_backward": ([O, C], [N, C], [N, O], [N, O], [N, C], [O, C])
    + (N, O, C),
    "modulated_conv2d_direct_weights_size": (DIRECT, False),
    "modulated_conv2d_direct_weights": (DIRECT, [O, C, 9], [PANELS], STRIDES, False, False),
    "modulated_conv2d_direct": (DIRECT, IMAGE, [PANELS], OUT, [N, C]),
    "modulated_conv2d_direct_input_gradient": (DIRECT, OUT, [PANELS], IMAGE, [N, C]),
    "modulated_conv2d_direct_weight_gradient": (DIRECT, IMAGE, [N, C], OUT, False, STRIDES)
    + ([O, C, 9], [O, C], [O, C, 9]),
    "modulated_conv2d_winograd_weights_size": (C, O),
    "modulated_conv2d_winograd_weights": ([O, C, 9], [PANELS], STRIDES, False)
    + (C, O, False, False),
    "modulated_conv2d_winograd": (PLAN, IMAGE, [PANELS], OUT, SCALES, REGIONS, *EPILOGUE),
    "modulated_conv2d_winograd_input_gradient": (BACK, OUT, [PANELS], IMAGE, IMAGE, SCALES)
    + (SCALES, REGIONS, K),
    "modulated_conv2d_winograd_weight_gradient": (PLAN, IMAGE, SCALES, REGIONS, K, OUT, False)
    + (STRIDES, [O, C, 9], [O, C], [O, C, 9]),
}
# Buffers that each call can do without, by place.
OPTIONAL = {
    "bias_act_forward": {1},
    "bias_act_backward": {1, 2, 3},
    "modulated_conv2d_scale_backward": {2, 3},
    "modulated_conv2d_epilogue": {5, 7},
    "modulated_conv2d_epilogue_backward": {3, 5, 6, 10, 12},
    "modulated_conv2d_demodulation_backward": {4, 5},
    "masked_l1_backward": {3},
    "modulated_conv2d_direct": {4},
    "modulated_conv2d_direct_input_gradient": {4},
    "modulated_conv2d_direct_weight_gradient": {2, 7},
    "modulated_conv2d_winograd": {9, 11},
    "modulated_conv2d_winograd_input_gradient": {3, 5},
    "modulated_conv2d_winograd_weight_gradient": {9},
}


def right_call(name):
    """Arguments of a call that works, and the tensors that the addresses belong to."""
    tensors = [torch.rand(v) if isinstance(v, list) else None for v in CALLS[name]]
    if name == "masked_l1_backward":
        tensors[1] = torch.zeros(CALLS[name][1], dtype=torch.uint8)
    values = [
        t.data_ptr() if t is not None else int(v) if isinstance(v, str) else v
        for t, v in zip(tensors, CALLS[name], strict=True)
    ]
    return [*values, F32], tensors


def refused(name, values):
    with pytest.raises((TypeError, ValueError)):
        getattr(_extension.cpu(), name)(*values)


def test_every_function_is_listed():
    operators = ("bias_act", "upfirdn2d", "masked_l1", "crop_patches", "modulated_conv2d")
    found = {n for n in dir(_extension.cpu()) if n.startswith(operators)}
    assert found == {*CALLS, "modulated_conv2d_fingerprint"}


@pytest.mark.parametrize("name", CALLS)
def test_a_right_call_works(name):
    values, tensors = right_call(name)
    getattr(_extension.cpu(), name)(*values)
    assert all(t is None or t.dtype == torch.uint8 or t.isfinite().all() for t in tensors)


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_buffer_is_refused(name):
    for place, value in enumerate(CALLS[name]):
        if isinstance(value, list) and place not in OPTIONAL.get(name, ()):
            values, tensors = right_call(name)
            values[place] = 0
            refused(name, values)


@pytest.mark.parametrize("sizes", [(1 << 30, S, False), (W, 1 << 30, False), (1 << 28, S, LAST)])
@pytest.mark.parametrize("name", ["crop_patches_forward", "crop_patches_adjoint"])
def test_rows_that_plans_cannot_count_are_refused(name, sizes):
    values, tensors = right_call(name)
    width, size, last = sizes
    values[5:10] = 4, 1, width, size, last  # channels, height; no buffer is touched
    with pytest.raises(ValueError, match="rows must have fewer than 1073741824 numbers, got 10737"):
        getattr(_extension.cpu(), name)(*values)


@pytest.mark.parametrize("name", CALLS)
def test_what_may_be_missing_is_not_read(name):
    for place in OPTIONAL.get(name, ()):
        values, tensors = right_call(name)
        values[place] = 0
        getattr(_extension.cpu(), name)(*values)


@pytest.mark.parametrize("wrong", [-1, -(1 << 40), 1 << 62, 1 << 80, "1", None, 1.5])
@pytest.mark.parametrize("name", CALLS)
def test_a_size_that_no_buffer_has_is_refused(name, wrong):
    for place, value in enumerate(CALLS[name]):
        values, tensors = right_call(name)
        if isinstance(value, int) and not isinstance(value, bool) and value != EMPTY:
            values[place] = wrong
            refused(name, values)
        if isinstance(value, tuple):
            for i in range(len(value)):
                values[place] = (*value[:i], wrong, *value[i + 1 :])
                if i < 8 or not (isinstance(wrong, int) and abs(wrong) < 1 << 48):  # offsets
                    refused(name, values)


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_dtype_is_refused(name):
    half = [2] if name.startswith("modulated_conv2d") else []  # the others take float16
    for wrong in [-1, 4, 99, 1 << 40, "0", None, *half]:
        values, tensors = right_call(name)
        values[-1] = wrong
        refused(name, values)


@pytest.mark.parametrize("name", CALLS)
def test_a_size_of_0_divides_nothing(name):
    """Either there is nothing to do, or it is refused (no style, a crop of no pixels)."""
    for place in [i for i, v in enumerate(CALLS[name]) if type(v) is int and v != EMPTY]:
        values, tensors = right_call(name)
        values[place] = 0
        try:
            getattr(_extension.cpu(), name)(*values)
        except ValueError:
            continue


def test_a_plan_has_ten_numbers_and_sides_that_go_together():
    name = "modulated_conv2d_winograd"
    up, down = (*PLAN[:7], 1, -1, -1), (*PLAN[:7], 2, -1, -1)  # sides of one size
    for plan in (PLAN[:-1], (*PLAN, 0), (*PLAN[:7], 3, -1, -1), up, down, ()):
        values, tensors = right_call(name)
        values[0] = plan
        refused(name, values)


def test_a_direct_plan_has_twelve_numbers():
    name = "modulated_conv2d_direct"
    for plan in (DIRECT[:-1], (*DIRECT, 0), (*DIRECT[:7], 0, 3, 1, 1, 1), (*DIRECT[:9], 0, 1, 1)):
        values, tensors = right_call(name)
        values[0] = plan
        refused(name, values)


def test_only_the_adjoint_of_a_doubling_halves():
    half = (N, 2 * H + 1, 2 * W + 1, C, H, W, O, 2, 0, 0)
    for name in ("modulated_conv2d_winograd", "modulated_conv2d_winograd_weight_gradient"):
        values, tensors = right_call(name)
        values[0] = half
        refused(name, values)


def test_kernels_of_other_strides_are_refused():
    name, place = "modulated_conv2d_squares", 5
    values, tensors = right_call(name)
    values[place] = (C * 9, 1, C)  # channels_last
    getattr(_extension.cpu(), name)(*values)
    for strides in ((9, 9, 1), (C * 9, 9, 2), (C * 9, 1, 9), (C * 9, 9), ()):
        values[place] = strides
        refused(name, values)


def test_noise_of_another_size_and_styles_without_regions_are_refused():
    name = "modulated_conv2d_epilogue"
    for place, wrong in ((6, 1), (6, H * W + 1), (3, 0)):
        values, tensors = right_call(name)
        values[place] = wrong
        refused(name, values)


def test_the_fingerprint_of_nothing():
    fingerprint = _extension.cpu().modulated_conv2d_fingerprint
    assert fingerprint(0, 0) == fingerprint(torch.ones(3).data_ptr(), 0)
    for size in (-1, 8, 1 << 62):
        with pytest.raises(ValueError, match="modulated_conv2d"):
            fingerprint(0, size)
