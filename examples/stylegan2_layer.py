"""A synthesis layer as StyleGAN2-type code has it, on our operator: one import changes.

`field_layer` below is the form that is published: weights made for every image, a grouped
convolution, then noise, bias and activation in passes of their own. `SynthesisLayer` hands all of
that to one call. Both are run, forward and backward, and compared.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from rwm_fast import modulated_conv2d


class SynthesisLayer(nn.Module):
    """x [N, I, H, W], w [N, D] → [N, O, H·up, W·up]."""

    def __init__(self, in_channels, out_channels, w_dim, up=1):
        super().__init__()
        self.up = up
        self.affine = nn.Linear(w_dim, in_channels)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.full((), 0.1))
        self.register_buffer("resample_filter", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)

    def forward(self, x, w, noise):
        return modulated_conv2d(
            x,
            self.weight,
            self.affine(w) + 1,
            noise,
            up=self.up,
            padding=1,
            resample_filter=self.resample_filter if self.up > 1 else None,
            noise_strength=self.noise_strength,
            bias=self.bias,
            activation="lrelu",
            gain=math.sqrt(2),
        )


def field_layer(layer, x, w, noise):
    """The same in plain torch, without resampling."""
    n, channels, height, width = x.shape
    styles = layer.affine(w) + 1
    weight = layer.weight[None] * styles[:, None, :, None, None]  # [N, O, I, 3, 3]
    weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * channels, height, width)
    y = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n).view(n, -1, height, width)
    y = y + noise * layer.noise_strength + layer.bias[:, None, None]
    return F.leaky_relu(y, 0.2) * math.sqrt(2)


def largest_difference(a, b):
    return max((p - q).abs().max().item() / q.abs().max().item() for p, q in zip(a, b, strict=True))


if __name__ == "__main__":
    torch.manual_seed(0)
    layer = SynthesisLayer(64, 32, w_dim=128)
    x, w = torch.randn(4, 64, 32, 32, requires_grad=True), torch.randn(4, 128)
    noise, dy = torch.randn(4, 1, 32, 32), torch.randn(4, 32, 32, 32)
    inputs = (x, *layer.parameters())
    ours, field = layer(x, w, noise), field_layer(layer, x, w, noise)
    gradients = [torch.autograd.grad(y, inputs, dy) for y in (ours, field)]
    difference = largest_difference((ours, *gradients[0]), (field, *gradients[1]))
    print(f"output and gradients differ by {difference:.1e} of their largest value")
    assert difference < 1e-4
    doubled = SynthesisLayer(64, 32, w_dim=128, up=2)(x, w, torch.randn(4, 1, 64, 64))
    print(f"doubled: {list(doubled.shape)}")
