"""Parameter counts of the presets, counted without memory."""

import pytest
import torch

from rwm_fast.config import PRESETS
from rwm_fast.models import Encoder, Generator, ImageDiscriminator, PatchDiscriminator

# Millions of parameters: encoder, generator, image discriminator, patch discriminator.
# Source: the Swapping Autoencoder's published code.
PUBLISHED = {
    "paper-256": (30.6, 25.1, 28.9, 24.5),
    "paper-512": (30.6, 25.1, 29.0, 24.5),
    "paper-1024": (18.5, 19.9, 27.2, 24.5),
}
NETWORKS = (Encoder, Generator, ImageDiscriminator, PatchDiscriminator)


def millions(network, config):
    with torch.device("meta"):
        return sum(p.numel() for p in network(config.model).parameters()) / 1e6


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("at", range(4), ids=[n.__name__ for n in NETWORKS])
def test_paper_presets_have_the_published_size(name, at):
    assert millions(NETWORKS[at], PRESETS[name]) == pytest.approx(PUBLISHED[name][at], rel=0.01)


def test_smaller_presets_are_smaller():
    size = lambda name: sum(millions(network, PRESETS[name]) for network in NETWORKS)
    assert size("demo") < 3 < size("small-128") < 20 < size("paper-256")
