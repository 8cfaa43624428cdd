"""`patch` on layers as other projects write them: same numbers to second order, and back again."""

import copy
import logging
import re

import formulas
import pytest
import their_layers as theirs
import torch
from formulas import derivatives, normal
from torch import nn

from rwm_fast import dropin
from rwm_fast.dropin import _calls, _finder
from rwm_fast.dropin.patch import Patched
from rwm_fast.nn.layers import ModulatedConv2d as Ours

X, STYLE = normal(2, 3, 6, 7), normal(2, 5, seed=1)


def drawn(layer):
    """In float64 with every parameter drawn."""
    torch.manual_seed(0)
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter)
    return layer


def run(layer, *inputs):
    """The layer as a function of its inputs and its parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def function(*tensors):
        values = dict(zip(names, tensors[len(inputs) :], strict=True))
        return torch.func.functional_call(layer, values, tensors[: len(inputs)])

    return function


def same_when_patched(layer, *inputs, patched=None):
    """First and second order, to inputs and parameters; then undone."""
    layer = drawn(layer)
    tensors = [*inputs, *(p.detach() for p in layer.parameters())]
    plain = copy.deepcopy(layer)
    keys = list(layer.state_dict())
    undo = dropin.patch(layer)
    assert isinstance(layer, patched or Patched) and list(layer.state_dict()) == keys
    expected, found = (
        derivatives(run(plain, *inputs), tensors),
        derivatives(run(layer, *inputs), tensors),
    )
    for a, b in zip(found, expected, strict=True):
        # kernels are float32 buffers, and ε stands elsewhere: 1e-8 of a sum of order 1
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    undo()
    assert not any(isinstance(part, Patched) for part in layer.modules())
    torch.testing.assert_close(layer(*inputs), plain(*inputs))


SAMPLING = [{}, {"upsample": True}, {"downsample": True}]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("free", [None, False, True])
@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_modulated(sampling, free, demodulate, k):
    layer = theirs.ModulatedConv2d(3, 4, k, 5, demodulate, free=free, **sampling)
    same_when_patched(layer, X, STYLE)


@pytest.mark.parametrize("taps", [(1, 1), (1, 2, 1), (1, 2, 4, 2, 1, 1)])
@pytest.mark.parametrize("sampling", SAMPLING[1:], ids=str)
def test_modulated_with_other_taps(sampling, taps):
    same_when_patched(theirs.ModulatedConv2d(3, 4, 3, 5, taps=taps, **sampling), X, STYLE)


@pytest.mark.parametrize("mode", [None, "upsample", "downsample"])
def test_basicsr_modulated(mode):
    same_when_patched(theirs.basicsr_modulated(3, 4, 3, 5, mode), X, STYLE)


@pytest.mark.parametrize("upsample", [False, True])
def test_mmagic_modulated(upsample):
    same_when_patched(theirs.MmModulated(3, 4, 3, 5, upsample, style_bias=0.5), X, STYLE)


def test_a_layer_that_has_run_is_patched_too():
    """Its weight, which a hook makes in every forward, is no leaf any more."""
    layer = drawn(theirs.MmModulated(3, 4, 3, 5))
    expected = layer(X, STYLE)
    dropin.patch(layer)
    assert isinstance(layer, Patched)
    torch.testing.assert_close(layer(X, STYLE), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize(
    "more",
    [{}, {"bias": False}, {"activation": "lrelu"}, {"activation": "lrelu", "conv_clamp": 0.9}],
    ids=str,
)
def test_nvidia_convolution(more, down, k):
    same_when_patched(theirs.Conv2dLayer(3, 4, k, down=down, **more), X)


@pytest.mark.parametrize("gain", [0.5**0.5, 0, -1])
def test_nvidia_convolution_with_a_gain(gain):
    """By name, as its networks give it; one that ours does not take is left to theirs."""
    layer = drawn(theirs.Conv2dLayer(3, 4, 3, activation="lrelu", conv_clamp=0.9))
    expected = layer(X, gain=gain)
    dropin.patch(layer)
    torch.testing.assert_close(layer(X, gain=gain), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(X, gain), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"activation": "relu"}, "its activation is relu"), ({"up": 2}, "it enlarges")],
)
def test_nvidia_convolutions_that_are_not_served(settings, reason):
    layer = theirs.Conv2dLayer(3, 4, 3, **settings)
    with pytest.raises(ValueError, match="no layer of this model is known"):
        dropin.patch(layer)
    assert reason in dropin.report().left[f"{theirs.__name__}.Conv2dLayer"]


def noise(upsample):
    return normal(2, 1, *((12, 14) if upsample else (6, 7)), seed=3)


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("use_noise", [None, False, True])
def test_styled(upsample, use_noise):
    layer = theirs.StyledConv(3, 4, 3, 5, use_noise, upsample=upsample)
    same_when_patched(layer, X, STYLE, noise(upsample))


@pytest.mark.parametrize("upsample", [False, True])
def test_styled_of_basicsr_and_mmagic(upsample):
    mode = "upsample" if upsample else None
    same_when_patched(theirs.StyleConv(3, 4, 3, 5, mode), X, STYLE, noise(upsample))
    layer = theirs.ModulatedStyleConv(3, 4, 3, 5, upsample=upsample)
    same_when_patched(layer, X, STYLE, noise(upsample))


def test_noise_is_drawn_as_before():
    """The same numbers from the same seed; what the layer remembers of its image too."""
    plain = drawn(theirs.StyledConv(3, 4, 3, 5, upsample=True))
    ours = copy.deepcopy(plain)
    dropin.patch(ours)
    assert ours.noise.image_size is None  # the trial used a copy
    torch.manual_seed(7)
    expected, after = plain(X, STYLE), torch.rand(1)
    torch.manual_seed(7)
    torch.testing.assert_close(ours(X, STYLE), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.rand(1), after)
    assert ours.noise.image_size == plain.noise.image_size == expected.shape


@pytest.mark.parametrize(
    "given",
    [
        {"noise": normal(1, 1, 12, 14)},
        {"noise": normal(2, 4, 12, 14)},  # a map a channel
        {"fixed": normal(1, 1, 12, 14)},
        {"fixed": normal(1, 1, 5, 6)},
        {"style": normal(2, 5, 2, 2)},  # a map of styles
    ],
)
def test_uncommon_inputs_of_a_styled_layer(given):
    layer = drawn(theirs.StyledConv(3, 4, 3, 5, upsample=True))
    layer.noise.fixed_noise = given.get("fixed")
    arguments = {"style": given.get("style", STYLE), "noise": given.get("noise", noise(True))}
    expected = layer(X, **arguments)
    dropin.patch(layer)
    torch.testing.assert_close(layer(X, **arguments), expected, rtol=1e-6, atol=1e-6)
    found = layer(input=X, **arguments)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_mmagics_flag_of_fixed_noise():
    layer = drawn(theirs.ModulatedStyleConv(3, 4, 3, 5))
    plain = copy.deepcopy(layer)
    dropin.patch(layer)
    for part in (layer, plain):
        part.noise_injector.fixed_noise = True
    found, expected = layer(X, STYLE), plain(X, STYLE)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_more_arguments_of_mmagic():
    conv = drawn(theirs.MmModulated(3, 4, 3, 5))
    layer = drawn(theirs.ModulatedStyleConv(3, 4, 3, 5))
    expected = conv(X, STYLE, input_gain=2.0), layer(X, STYLE, add_noise=False)
    fresh = [drawn(theirs.MmModulated(3, 4, 3, 5)), drawn(theirs.ModulatedStyleConv(3, 4, 3, 5))]
    for part in fresh:
        dropin.patch(part)
    found = fresh[0](X, STYLE, input_gain=2.0), fresh[1](X, STYLE, add_noise=False)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        theirs.ConvLayer(3, 4, 3),
        theirs.ConvLayer(3, 4, 1, activate=False, bias=False),
        theirs.ConvLayer(3, 4, 3, activate=False),
        theirs.ConvLayer(3, 4, 3, bias=False),
        theirs.ConvLayer(3, 4, 3, downsample=True),
        theirs.ConvLayer(3, 4, 3, downsample=True, taps=(1, 2, 1)),
        theirs.ConvLayer(3, 4, 1, downsample=True, activate=False, bias=False),
        theirs.ConvLayer(3, 4, 3, downsample=True, reflect=True),
        theirs.ConvLayer(3, 4, 3, reflect=True),
        theirs.FusedLeakyReLU(3),
        theirs.FusedLeakyReLU(3, False, 0.1, 1.5),
        theirs.Upsample((1, 3, 3, 1)),
        theirs.Upsample((1, 2, 1), 3),
        theirs.Downsample((1, 3, 3, 1)),
        theirs.Blur((1, 2, 1), (2, 1)),
        theirs.Blur((1, 2, 1), (2, 1), reflection_pad=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers(layer):
    same_when_patched(layer, X)


def whole():
    return nn.Sequential(
        theirs.ConvLayer(3, 4, 3), theirs.ConvLayer(4, 4, 3, downsample=True), nn.Conv2d(4, 4, 1)
    )


def test_copies_of_a_patched_model_are_their_own():
    model = drawn(whole())
    dropin.patch(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert isinstance(copied[0], Patched)
    assert copied(X).abs().max() > 1e-3 and model(X).abs().max() == 0
    undo = dropin.patch(drawn(whole()))
    undo()
    undo()  # twice is once


def test_patching_twice_does_nothing_more():
    model = drawn(nn.Sequential(whole(), theirs.FusedLeakyReLU(4)))
    first = dropin.patch(model)
    classes = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="no layer of this model is known"):
        dropin.patch(model)
    assert [type(m) for m in model.modules()] == classes
    first()
    assert not any(isinstance(m, Patched) for m in model.modules())


class OtherModulated(theirs.ModulatedConv2d):
    def forward(self, input, style):
        return super().forward(input, style) * 1.01


class MoreArguments(theirs.ModulatedConv2d):
    def forward(self, input, style, mask):
        return super().forward(input, style) * mask


class OtherScale(theirs.FusedLeakyReLU):
    """Its scale is a function."""

    def __init__(self, channel):
        super().__init__(channel)
        self.scale = lambda x: x

    def forward(self, input):
        return self.scale(formulas.leaky(input, self.bias))


OtherModulated.__name__ = MoreArguments.__name__ = "ModulatedConv2d"
OtherScale.__name__ = "FusedLeakyReLU"


def without(name):
    layer = theirs.ModulatedConv2d(3, 4, 3, 5)
    delattr(layer, name)
    return layer


def shaped_bias():
    layer = theirs.FusedLeakyReLU(3)
    layer.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
    return layer


def reflecting():
    layer = theirs.Downsample((1, 3, 3, 1))
    layer.reflection = True
    return layer


def half():
    layer = theirs.ModulatedStyleConv(3, 4, 3, 5)
    layer.fp16_enabled = layer.conv.fp16_enabled = True
    return layer


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (OtherModulated(3, 4, 3, 5), r"its forward gives another result \(by 1e-02\)"),
        (MoreArguments(3, 4, 3, 5), r"its forward takes \(input, style, mask\)"),
        (without("weight"), r"its weight is not \[1, O, I, k, k\]"),
        (without("modulation"), "it has no layer modulation"),
        (without("demodulate"), "it does not say whether it demodulates"),
        (OtherScale(3), r"our forward fails on it \("),
        (shaped_bias(), "its bias is not one number a channel"),
        (half(), "it casts to float16 by itself"),
        (reflecting(), "it pads by reflection in its forward"),
    ],
)
def test_what_is_not_known_is_left_with_the_reason(layer, why, caplog):
    _finder.left.clear()
    model = nn.Sequential(layer, theirs.FusedLeakyReLU(2))
    with caplog.at_level(logging.WARNING, "rwm_fast"):
        dropin.patch(model)
    assert isinstance(model[1], Patched) and not isinstance(layer, Patched)
    assert [r for r in caplog.records if "is left as it is" in r.message]
    assert any(re.search(why, reason) for reason in dropin.report().left.values())


def test_a_model_without_known_layers_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Upsample(scale_factor=2), Ours(2, 2, 3, 4))
    message = "patch: no layer of this model is known; it is made of EqualLinear, Linear, Modulated"
    with pytest.raises(ValueError, match=message):
        dropin.patch(model)


def test_report_counts_layers_and_calls():
    _finder.replaced.clear()
    _calls.calls.clear()
    model = drawn(whole())
    dropin.patch(model)
    model(X)
    report = dropin.report()
    assert report.replaced["their_layers.ConvLayer"] == "2 layers"
    calls = {(c.function, c.operator): n for c, n in report.calls.items()}
    assert calls["layers.ConvLayer", "conv2d_bias_act"] == 2


def test_float16_stays_finite():
    """Weights and styles whose products exceed 65504, at the field's clamp of 256."""
    layer = drawn(theirs.ModulatedConv2d(8, 4, 3, 5))
    with torch.no_grad():
        layer.weight.mul_(300)
        layer.modulation.bias.add_(300)
    x = normal(2, 8, 6, 7).clamp(-1, 1) * 256
    expected = layer(x, STYLE).detach()
    dropin.patch(layer)
    found = layer.float()(x.half(), STYLE.float())
    assert found.dtype == torch.float16 and found.isfinite().all()
    # 72 products of half precision each, rounding to 2^-11
    torch.testing.assert_close(
        found.double(), expected, rtol=2e-2, atol=2e-2 * float(expected.std())
    )


def test_a_patched_layer_compiles_in_one_graph():
    layer = drawn(theirs.StyledConv(3, 4, 3, 5, upsample=True))
    dropin.patch(layer)
    expected = layer(X, STYLE, noise(True))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X, STYLE, noise(True)), expected)
