"""What the tests of the page share: an editor that no training has seen, and pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from rwm_fast.config import ModelConfig
from rwm_fast.models import Encoder, Generator, RegionEditor


@pytest.fixture(scope="session")
def editor():
    config = ModelConfig(
        image_size=32,
        fold=2,
        encoder_channels=(8,),
        style_dim=8,
        style_channels=(8, 8),
        content_fold=2,
        head_channels=(8,),
        up_channels=(8,),
        tail_channels=(8,),
        noise=False,
        discriminator_channels=(8, 8, 8),
        patch_size=16,
        patch_channels=(8, 8, 8),
    )
    torch.manual_seed(0)
    return RegionEditor(Encoder(config), Generator(config)).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """a.png, 96 x 64: a light half beside a dark one; b.png, noise; and text.jpg."""
    folder = tmp_path_factory.mktemp("pictures")
    values = np.full((64, 96, 3), 40, np.uint8)
    values[:, :48] = 210
    Image.fromarray(values).save(folder / "a.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(folder / "b.png")
    (folder / "text.jpg").write_text("no picture")
    return folder
