"""R1's double backward: exact, and without a call whose gradient is all zeros."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rwm_fast import use_backend
from rwm_fast.config import preset
from rwm_fast.losses import r1_penalty
from rwm_fast.models import ImageDiscriminator, PatchDiscriminator
from rwm_fast.ops.bias_act import autograd as bias_act
from rwm_fast.ops.modulated_conv2d import autograd as modulated_conv2d
from rwm_fast.ops.modulated_conv2d import torch_convolution
from rwm_fast.training.trainer import biases

# The place of the weights or the bias in the last argument, which says what is needed.
BACKWARD = {"convolution_backward": 1, "modulated_conv2d_backward": 1, "bias_act_backward": 1}


class Calls(TorchDispatchMode):
    """Counts backward calls, those with gradients of zeros, and those that ask for weights'."""

    def __init__(self):
        super().__init__()
        self.all, self.zeros, self.weights = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        if name in BACKWARD:
            self.all[name] += 1
            self.zeros[name] += not args[0].any()
            self.weights[name] += bool(args[-1][BACKWARD[name]])
        return function(*args, **(kwargs or {}))


def discriminators(dtype=torch.float32):
    config = preset("demo").model
    torch.manual_seed(0)
    pair = ImageDiscriminator(config), PatchDiscriminator(config)
    return [net.to(dtype, memory_format=torch.channels_last) for net in pair]


def pictures(dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 64, 64, generator=draw)
    patches = torch.randn(2, 2, 3, 3, 16, 16, generator=draw)
    return [t.to(dtype).requires_grad_() for t in (image, *patches)]


def penalty(pair, image, reference, target):
    discriminator, patches = pair
    logits = patches(patches.features(reference), patches.features(target))
    return r1_penalty(discriminator(image), image) + r1_penalty(logits, reference, target)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_no_bias_has_a_part_in_it(backend):
    """In training no sum over processes waits for one."""
    pair = discriminators()
    with use_backend(backend):
        penalty(pair, *pictures()).backward()
    without = biases(pair)
    assert len(without) > 10
    for p in (p for net in pair for p in net.parameters()):
        assert (p.grad is None or not p.grad.any()) == (p in without)


def convolutions(calls):
    """On the CPU all of them are modulated layers, where that has a native backend."""
    return calls.all["convolution_backward"] + calls.all["modulated_conv2d_backward"]


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_no_call_gets_a_gradient_of_zeros(backend):
    pair, inputs = discriminators(), pictures()
    with Calls() as calls, use_backend(backend):
        penalty(pair, *inputs).backward()
    assert convolutions(calls) and calls.all["bias_act_backward"]
    assert not +calls.zeros


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_the_first_pass_asks_for_no_gradients_of_weights(backend):
    pair, inputs = discriminators(), pictures()
    with Calls() as calls, use_backend(backend):
        penalty(pair, *inputs)
    assert convolutions(calls) and calls.all["bias_act_backward"]
    assert calls.weights == Counter()
    with Calls() as calls, use_backend(backend):
        pair[0](inputs[0]).sum().backward()
    assert calls.weights["bias_act_backward"] and sum(calls.weights.values()) > 4


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_gradients_are_those_of_torch_s_own_double_backward(backend, monkeypatch):
    """In float64, where nothing hides; the other side has none of our derivatives."""

    def gradients():
        pair = discriminators(torch.float64)
        penalty(pair, *pictures(torch.float64)).backward()
        return [p.grad for net in pair for p in net.parameters()]

    with use_backend(backend):
        ours = gradients()
    monkeypatch.setattr(torch_convolution, "_plain", lambda: True)
    for module in (bias_act, modulated_conv2d):
        monkeypatch.setattr(module, "needed", lambda ctx, n, **_: list(ctx.needs_input_grad[:n]))
    with use_backend("eager"):
        torchs = gradients()
    assert sum(g is not None and bool(g.any()) for g in ours) > len(ours) / 3
    for mine, theirs in zip(ours, torchs, strict=True):
        if mine is None or theirs is None:  # absent is zero
            assert all(g is None or not g.any() for g in (mine, theirs))
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
