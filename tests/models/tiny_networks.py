"""Small networks of every kind of the presets, in float64, for the tests of this folder."""

import dataclasses

import torch

from rwm_fast.config import ModelConfig
from rwm_fast.models import Encoder, Generator, ImageDiscriminator, PatchDiscriminator

F64 = torch.float64

# the layout of the paper presets at a few channels
PAPER = ModelConfig(
    image_size=32,
    encoder_channels=(6, 8, 10),
    content_channels=4,
    style_dim=12,
    style_channels=(14,),
    head_channels=(8, 12),
    up_channels=(12, 8),
    discriminator_channels=(6, 8, 10, 10),
    discriminator_hidden=12,
    patch_size=16,
    patch_channels=(6, 8, 10),
    patch_wide_channels=14,
    patch_feature_channels=9,
    patch_hidden=(12, 10),
)
BASE = dataclasses.replace(PAPER, demodulation="weight")
RAW = dataclasses.replace(PAPER, normalize_codes=False)
# the layout of the demo preset at a few channels
DEMO = ModelConfig(
    image_size=32,
    fold=2,
    input_kernel=3,
    encoder_channels=(8,),
    encoder_filter=(1, 1),
    encoder_padding="zeros",
    content_channels=3,
    content_kernel=3,
    style_dim=12,
    style_channels=(10, 12),
    style_blocks="residual",
    content_fold=2,
    code_modulation=False,
    unit_rms_codes=True,
    head_channels=(12, 12),
    up_channels=(8,),
    tail_channels=(8,),
    rgb_kernel=3,
    generator_filter=(1, 1),
    skip_activation=False,
    noise=False,
    discriminator_channels=(6, 8, 10),
    discriminator_hidden=12,
    discriminator_filter=(1, 1),
    patch_size=16,
    patch_channels=(6, 8, 10),
    patch_wide_channels=0,
    patch_feature_channels=9,
    patch_hidden=(12,),
)
KINDS = {"paper": PAPER, "base": BASE, "raw": RAW, "demo": DEMO}


def network(kind, config, seed=0):
    """The network in float64 with every parameter drawn, those that start at 0 too."""
    torch.manual_seed(seed)
    made = kind(config).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.requires_grad_(False)


def encoder(config):
    return network(Encoder, config)


def generator(config):
    return network(Generator, config, seed=1)


def image_discriminator(config):
    return network(ImageDiscriminator, config, seed=2)


def patch_discriminator(config):
    return network(PatchDiscriminator, config, seed=3)


def picture(n=2, height=32, width=32, seed=0):
    """Random pictures [N, 3, H, W] in [-1, 1], float64."""
    source = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, height, width, generator=source, dtype=F64) * 2 - 1
