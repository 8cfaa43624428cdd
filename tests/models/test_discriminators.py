"""Both discriminators: shapes, the pair, second derivatives."""

import dataclasses

import pytest
import torch
from tiny_networks import KINDS, PAPER, image_discriminator, patch_discriminator, picture

from rwm_fast.losses import r1_penalty

F64 = torch.float64


def patches(n=2, p=3, seed=0):
    return picture(n * p, 16, 16, seed).unflatten(0, (n, p))


@pytest.mark.parametrize("kind", KINDS)
def test_one_logit_per_picture(kind):
    net, image = image_discriminator(KINDS[kind]), picture(3)
    logits = net(image)
    assert logits.shape == (3,) and logits.dtype == F64
    alone = torch.cat([net(image[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(logits, alone, rtol=1e-12, atol=1e-12)  # no batch statistics
    assert logits.std() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_one_logit_per_target_patch(kind):
    net = patch_discriminator(KINDS[kind])
    reference, target = net.features(patches(2, 5)), net.features(patches(2, 3, seed=1))
    assert reference.shape == (2, 5, net.feature_size)
    logits = net(reference, target)
    assert logits.shape == (2, 3) and logits.dtype == F64
    alone = net(reference, target[:, 1:2])
    torch.testing.assert_close(alone, logits[:, 1:2], rtol=1e-12, atol=1e-12)


def test_reference_patches_are_averaged():
    net = patch_discriminator(PAPER)
    reference, target = net.features(patches(2, 4)), net.features(patches(2, 3, seed=1))
    logits = net(reference, target)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(reference[:, order], target), logits, rtol=1e-12, atol=1e-12)
    mean = reference.mean(1, keepdim=True)
    torch.testing.assert_close(net(mean, target), logits, rtol=1e-12, atol=1e-12)
    assert (net(reference[:, :1], target) - logits).abs().max() > 1e-6


def test_without_aggregation_patch_p_meets_reference_p():
    net = patch_discriminator(dataclasses.replace(PAPER, patch_aggregate=False))
    reference, target = net.features(patches(2, 3)), net.features(patches(2, 3, seed=1))
    logits = net(reference, target)
    torch.testing.assert_close(
        net(reference[:, 1:2], target[:, 1:2]), logits[:, 1:2], rtol=1e-12, atol=1e-12
    )
    assert (net(reference.flip(1), target) - logits).abs().max() > 1e-6
    with pytest.raises(ValueError, match="reference and target must be"):
        net(reference[:, :2], target)


def test_the_order_of_the_pair_matters():
    net = patch_discriminator(PAPER)
    a, b = net.features(patches(2, 1)), net.features(patches(2, 1, seed=1))
    assert (net(a, b) - net(b, a)).abs().max() > 1e-6


@pytest.mark.parametrize("which", ["image", "patch"])
def test_r1_and_its_gradient(which):
    """d penalty / d weights against central differences along a random direction."""
    if which == "image":
        net, inputs = image_discriminator(PAPER), [picture(1).requires_grad_()]
        logits = lambda: net(*inputs)
    else:
        net = patch_discriminator(PAPER)
        inputs = [patches(1, 2, seed).requires_grad_() for seed in (0, 1)]
        logits = lambda: net(*map(net.features, inputs))
    parameters = list(net.requires_grad_(True).parameters())
    penalty = lambda: r1_penalty(logits(), *inputs)
    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    torch.manual_seed(5)
    directions = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)

    def shifted(step):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=step)
        value = penalty().item()
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=step)
        return value

    step = 1e-6  # error: step² of curvature and 1e-16/step of rounding, both about 1e-10
    measured = (shifted(step) - shifted(-step)) / (2 * step)
    assert measured == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    discriminator = image_discriminator(KINDS[kind]).requires_grad_(True)
    discriminator(picture()).sum().backward()
    pair = patch_discriminator(KINDS[kind]).requires_grad_(True)
    pair(pair.features(patches()), pair.features(patches(seed=1))).sum().backward()
    for net in (discriminator, pair):
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_other_sizes_are_refused():
    with pytest.raises(
        ValueError, match=r"ImageDiscriminator: image must be \[N, 3, 32, 32\], got"
    ):
        image_discriminator(PAPER)(picture(1, 64, 64))
    with pytest.raises(ValueError, match=r"patches must be \[N, P, 3, 16, 16\], got \[2, 3, 32"):
        patch_discriminator(PAPER).features(picture())


def test_compute_dtype():
    discriminator, pair = image_discriminator(PAPER).float(), patch_discriminator(PAPER).float()
    for net in (discriminator, pair):
        net.to_compute(torch.bfloat16)
    assert discriminator(picture().float()).dtype == torch.float32
    features = pair.features(patches().float())
    assert features.dtype == torch.bfloat16
    assert pair(features, features).dtype == torch.float32
