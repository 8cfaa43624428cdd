"""The function modulated_conv2d inside NVIDIA's networks: `rwm_fast.modulated_conv2d` by name, and
`patch` for the module that calls it. Same numbers to second order in float64."""

import types

import formulas
import pytest
import torch
from formulas import F64, assert_same, leaky, normal
from torch import nn

from rwm_fast import dropin, modulated_conv2d

LOW_PASS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=F64) / 8
FILTERS = {
    "four_taps": LOW_PASS,
    "outer": LOW_PASS.outer(LOW_PASS),
    "three_taps": torch.tensor([1.0, 2.0, 1.0], dtype=F64) / 4,
    "uneven": torch.tensor([[0.5, -0.25, 1.0], [0.125, 0.375, -0.75]], dtype=F64),
    "none": None,
}
AFFINE, BIAS, STRENGTH = normal(7, 5, seed=2), normal(4, seed=3), normal(1, seed=4)


def weight(kernel=3):
    return normal(4, 5, kernel, kernel, seed=5)


IMAGES, LATENTS = normal(3, 5, 6, 8), normal(3, 7, seed=1)


def layer(function, noise=None, **settings):
    """StyleGAN2's layer around the function: styles, noise, bias, leaky ReLU, clamp."""

    def run(x, latent, affine, w, bias, strength):
        y = function(
            x=x,
            weight=w,
            styles=latent @ affine + 1,
            noise=None if noise is None else noise * strength,
            padding=w.shape[-1] // 2,
            **settings,
        )
        return leaky(y, bias).clamp(-256, 256)

    return run


def same_layer(kernel=3, noise=None, **settings):
    ours, theirs = (
        layer(function, noise, **settings)
        for function in (modulated_conv2d, formulas.modulated_conv2d)
    )
    assert_same(ours, theirs, IMAGES, LATENTS, AFFINE, weight(kernel), BIAS, STRENGTH)


@pytest.mark.parametrize("flip_weight", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("up", "down", "f"),
    [(1, 1, "none"), *((u, d, f) for u, d in ((2, 1), (1, 2)) for f in FILTERS)],
)
def test_layer(kernel, up, down, f, flip_weight):
    noise = normal(3, 1, 6 * up // down, 8 * up // down, seed=6)
    settings = {"up": up, "down": down, "resample_filter": FILTERS[f]}
    same_layer(kernel, noise, flip_weight=flip_weight, **settings)


@pytest.mark.parametrize("noise", [None, normal(12, 16), normal(3, 1, 12, 16)])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("fused_modconv", [True, False])
def test_layer_modes(noise, demodulate, fused_modconv):
    flags = {"demodulate": demodulate, "fused_modconv": fused_modconv}
    same_layer(noise=noise, up=2, resample_filter=LOW_PASS, **flags)


def test_up_and_down():
    same_layer(noise=normal(6, 8), up=2, down=2, resample_filter=LOW_PASS)


def test_positional_arguments():
    more = (normal(12, 16), 2, 1, 1, LOW_PASS, False, False, False)
    arguments = (IMAGES, weight(), LATENTS[:, :5], *more)
    found, expected = modulated_conv2d(*arguments), formulas.modulated_conv2d(*arguments)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("noise", [None, normal(12, 16)])
def test_fused_epilogue(noise):
    """Noise strength, bias, activation and clamp given to the operator: the same layer."""
    theirs = layer(formulas.modulated_conv2d, noise, up=2, resample_filter=LOW_PASS)

    def ours(x, latent, affine, w, bias, strength):
        return modulated_conv2d(
            x, w, latent @ affine + 1, noise=noise, up=2, padding=1, resample_filter=LOW_PASS,
            noise_strength=None if noise is None else strength, bias=bias, activation="lrelu",
            gain=2**0.5, clamp=256,
        )  # fmt: skip

    assert_same(ours, theirs, IMAGES, LATENTS, AFFINE, weight(), BIAS, STRENGTH)


# ---- `patch`: the function in the module that the layers come from

NETWORKS = """
import torch
def profiled(fn):
    def decorator(*args, **kwargs):
        return fn(*args, **kwargs)
    return decorator
@profiled
def modulated_conv2d(SIGNATURE):
    return formula(FORWARDED)
class SynthesisLayer(torch.nn.Module):
    def forward(self, *args, **kwargs):
        return modulated_conv2d(*args, **kwargs)
"""
A = (
    "x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None,"
    " demodulate=True, flip_weight=True, fused_modconv=True"
)
B = "x, w, s, demodulate=True, padding=0, input_gain=None"


def stylegan3(x, w, s, demodulate, padding, input_gain):
    ph, pw = padding if isinstance(padding, (list, tuple)) else (padding, padding)
    if demodulate:
        w = w / w.square().mean((1, 2, 3), keepdim=True).sqrt()
        s = s / s.square().mean().sqrt()
    images = []
    for n, image in enumerate(x):
        kernel = w * s[n][:, None, None]
        if demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if input_gain is not None:
            kernel = kernel * input_gain.expand(x.shape[:2])[n][:, None, None]
        images.append(nn.functional.conv2d(image[None], kernel, padding=(ph, pw)))
    return torch.cat(images)


def networks(signature, formula):
    names = ", ".join(part.split("=")[0].strip() for part in signature.split(","))
    module = types.ModuleType("training.networks")
    module.formula = formula
    source = NETWORKS.replace("SIGNATURE", signature).replace("FORWARDED", names)
    exec(source, vars(module))
    return module


X, W, S = normal(2, 3, 6, 7), normal(4, 3, 3, 3, seed=2), normal(2, 3, seed=3)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [1, 2])
def test_stylegan2_networks(up, demodulate):
    module = networks(A, formulas.modulated_conv2d)
    layer, theirs_ = module.SynthesisLayer(), module.modulated_conv2d
    undo = dropin.patch(layer)
    assert module.modulated_conv2d is not theirs_
    about = (up, 1, 1, LOW_PASS, demodulate, up == 1, True)
    bare = normal(2, 1, 6 * up, 7 * up, seed=4)
    assert_same(
        lambda x, w, s, n: layer(x, w, s, n, *about),
        lambda x, w, s, n: formulas.modulated_conv2d(x, w, s, n, *about),
        X, W, S, bare,
    )  # fmt: skip
    undo()
    assert module.modulated_conv2d is theirs_


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("padding", [1, [2, 0]])
@pytest.mark.parametrize(
    "gain", [None, torch.tensor(0.7, dtype=F64), normal(3, seed=5), normal(2, 3)]
)
def test_stylegan3_networks(gain, padding, demodulate):
    layer = networks(B, stylegan3).SynthesisLayer()
    settings = {"demodulate": demodulate, "padding": padding, "input_gain": gain}
    dropin.patch(layer)
    assert_same(
        lambda x, w, s: layer(x=x, w=w, s=s, **settings),
        lambda x, w, s: stylegan3(x, w, s, demodulate, padding, gain),
        X, W, S,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("signature", "formula", "why"),
    [
        ("x, w, s, mask=None", lambda *a: a[0], "its modulated_conv2d is not known"),
        (B, lambda *a: stylegan3(*a) * 2, "its forward gives another result"),
    ],
)
def test_another_function_is_left(signature, formula, why):
    module = networks(signature, formula)
    function = module.modulated_conv2d
    with pytest.raises(ValueError, match="no layer of this model is known"):
        dropin.patch(module.SynthesisLayer())
    assert module.modulated_conv2d is function
    assert why in dropin.report().left["training.networks.modulated_conv2d"]


def test_float16_function_stays_finite():
    layer = networks(A, formulas.modulated_conv2d).SynthesisLayer()
    dropin.patch(layer)
    x, s = (X.clamp(-1, 1) * 256).half(), S.float() * 10_000
    y = layer(x, W.float() * 60, s, padding=1)
    assert y.dtype == torch.float16 and y.isfinite().all()
