from dataclasses import replace

import pytest
import torch

from rwm_fast.config import PRESETS, Config
from rwm_fast.training.trainer import Trainer


@pytest.fixture
def tiny():
    """Makes the demo preset at 16 px and 8 channels: a step takes milliseconds."""

    def make(loss: dict | None = None, **train) -> Config:
        demo = PRESETS["demo"]
        model = replace(
            demo.model,
            image_size=16,
            encoder_channels=(8,),
            style_channels=(8,),
            style_dim=8,
            head_channels=(8,),
            up_channels=(8,),
            tail_channels=(8,),
            noise=True,
            discriminator_channels=(8, 8),
            discriminator_hidden=8,
            patch_size=8,
            patch_channels=(8, 8),
            patch_feature_channels=8,
            patch_hidden=(8,),
        )
        settings = dict(
            batch=4,
            seconds=0.0,
            kimg=0.04,
            reconstruction_fraction=0.0,
            log_kimg=0.004,
            sample_kimg=0.02,
            sample_seconds=0.0,
            checkpoint_kimg=0.02,
            precision="fp32",
            device="cpu",
        )
        return replace(
            demo,
            model=model,
            data=replace(demo.data, resize=16, pool=12),
            loss=replace(
                demo.loss,
                **(
                    dict(
                        num_patches=2,
                        content_jitter=0.0,
                        alignment_interval=1,
                        alignment_from_start=False,
                    )
                    | (loss or {})
                ),
            ),
            train=replace(demo.train, **(settings | train)),
        )

    return make


@pytest.fixture
def make_trainer():
    def make(config: Config) -> Trainer:
        trainer = Trainer(config, torch.device("cpu"), torch.float32)
        with torch.no_grad():  # noise strengths start at 0; tests of noise want to see it
            for name, parameter in trainer.nets.generator.named_parameters():
                if "noise" in name:
                    parameter.fill_(0.5)
        return trainer

    return make


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def random():
    """Makes the random numbers of a step."""
    return lambda seed=0: torch.Generator().manual_seed(seed)
