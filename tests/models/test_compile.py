"""The networks are one graph for torch.compile, hybrid and all."""

import torch
from tiny_networks import PAPER, encoder, generator, image_discriminator, picture


def test_encode_paint_and_judge_compile_without_a_break():
    nets = encoder(PAPER), generator(PAPER), image_discriminator(PAPER)
    encode, paint, discriminator = (net.requires_grad_(True) for net in nets)

    def run(image, regions, noise):
        content, style = encode(image)
        return discriminator(paint(content, torch.stack([style, style.flip(0)], 1), regions, noise))

    image, share = picture(), torch.rand(2, 1, 32, 32, dtype=torch.float64)
    regions = torch.cat([share, 1 - share], 1)
    noise = paint.make_noise(encode.content(image))
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    results = run(image, regions, noise), compiled(image, regions, noise)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(r.sum(), list(paint.parameters())) for r in results]
    for eager, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, fused, rtol=1e-9, atol=1e-9)
