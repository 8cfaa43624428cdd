"""The whole model on Triton kernels: every network, every loss, first and second order.

In the interpreter, in float32, at a size where that takes seconds. A request for one backend is
honoured or refused, so that nothing here can have run on another one.
"""

import copy
from types import SimpleNamespace

import pytest
import torch

from rwm_fast.config import ModelConfig
from rwm_fast.losses import (
    content_alignment,
    fake_loss,
    generator_loss,
    r1_penalty,
    real_loss,
    reconstruction,
)
from rwm_fast.models import Encoder, Generator, ImageDiscriminator, PatchDiscriminator
from rwm_fast.ops import _triton
from rwm_fast.ops.crop_patches import crop_patches
from rwm_fast.testing import compare

pytestmark = pytest.mark.triton_interpret

TINY = ModelConfig(
    image_size=16,
    encoder_channels=(4, 8),
    content_channels=4,
    style_dim=8,
    style_channels=(8,),
    style_blocks="residual",
    head_channels=(8,),
    up_channels=(8,),
    discriminator_channels=(4, 8),
    discriminator_hidden=8,
    patch_size=8,
    patch_channels=(4, 8),
    patch_wide_channels=0,
    patch_feature_channels=4,
    patch_hidden=(8,),
)
KINDS = (Encoder, Generator, ImageDiscriminator, PatchDiscriminator)
KERNELS = {
    "convolution", "input_gradient", "weight_gradient", "resample", "scale_backward", "sum_rows",
}  # fmt: skip


def _networks():
    """E, G, D and the patch discriminator in float32, every parameter drawn: some start at 0."""
    torch.manual_seed(3)
    nets = [kind(TINY) for kind in KINDS]
    for net in nets:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter)
    return nets


def _batch():
    """Two pictures, a mask, the noise maps, two boxes a picture."""
    draw = torch.Generator().manual_seed(5)
    image = torch.rand(2, 3, 16, 16, generator=draw) * 2 - 1
    mask = (torch.rand(2, 1, 16, 16, generator=draw) > 0.5).float()
    noise = Generator(TINY).make_noise(torch.zeros(2, 4, 8, 8), draw)
    boxes = torch.tensor([[[0.0, 0.1, 0.5, 0.4], [0.3, -0.2, -0.4, 0.5]]]).repeat(2, 1, 1)
    return image, mask, noise, boxes


def _generator_loss(nets, image, mask, noise, boxes):
    """Reconstruction, swap and hybrid: the terms that train encoder and generator."""
    encoder, generator, discriminator, patches = nets
    content, style = encoder(image)
    swapped = generator(content, style.flip(0), noise=noise)
    regions = torch.cat([1 - mask, mask], 1)
    styles = torch.stack([style, style.flip(0)], 1)
    hybrid = generator(content, styles, regions, noise=noise)
    real = patches.features(crop_patches(image, boxes, 8))
    fake = patches.features(crop_patches(swapped, boxes, 8))
    return (
        reconstruction(generator(content, style, noise=noise), image)
        + content_alignment(hybrid, swapped, image, mask)
        + generator_loss(discriminator(swapped))
        + generator_loss(patches(real, fake))
    )


def _discriminator_loss(nets, image, boxes):
    """Both discriminators on pictures, and R1 of both: its gradient is of second order."""
    _, _, discriminator, patches = nets
    image = image.clone().requires_grad_()
    logits = discriminator(image)
    crops = crop_patches(image.detach(), boxes, 8).requires_grad_()
    features = patches.features(crops)
    judged = patches(features, features.flip(0))
    penalties = r1_penalty(logits, image) + r1_penalty(judged, crops)
    return real_loss(logits) + fake_loss(judged) + penalties


def _results(nets, image, mask, noise, boxes):
    """Both losses, and the gradient of every parameter that they train."""
    painting = [p for net in nets[:2] for p in net.parameters()]
    judging = [p for net in nets[2:] for p in net.parameters()]
    painted = _generator_loss(nets, image, mask, noise, boxes)
    judged = _discriminator_loss(nets, image, boxes)
    return [
        painted.detach(),
        judged.detach(),
        *torch.autograd.grad(painted, painting),
        *torch.autograd.grad(judged, judging),
    ]


def test_forward_backward_and_r1_equal_the_reference(interpreter, monkeypatch):
    """The error rule of the operators, for the whole of them.

    Between a picture and a gradient as many tensors are rounded as kernels ran, at most; the
    longest sum is that of a weight's gradient over the pixels of three passes of two pictures.
    """
    kernels, launch = [], _triton.launch

    def note(kernel, *arguments, **options):
        kernels.append(kernel.__name__)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(_triton, "launch", note)
    nets, (image, mask, noise, boxes) = _networks(), _batch()
    ours = _results(nets, image, mask, noise, boxes)
    assert set(kernels) >= KERNELS, "not every kernel of modulated_conv2d ran"
    wide = [copy.deepcopy(net).double() for net in nets]
    with compare.plain():
        plain = _results(nets, image, mask, noise, boxes)
        maps = [m.double() for m in noise]
        truth = _results(wide, image.double(), mask.double(), maps, boxes.double())
    case = SimpleNamespace(stored=len(kernels), terms=3 * 2 * 16 * 16)
    names = [f"{k.__name__}.{n}" for k, net in zip(KINDS, nets, strict=True)
             for n, _ in net.named_parameters()]  # fmt: skip
    for name, *three in zip(["painted", "judged", *names], ours, plain, truth, strict=True):
        compare.check(name, *three, case, torch.float32)
        assert three[2].abs().max() > 0 or "noise" in name, f"{name}: nothing to compare"
