"""What the tests of the commands share: one small run, pictures, and how a refusal looks."""

import pytest
import torch
from commands import TINY, run
from PIL import Image

from rwm_fast import train
from rwm_fast.data import landscapes
from rwm_fast.data.decode import save_image
from rwm_fast.models import Encoder, Generator, save_weights


@pytest.fixture
def refused(capsys):
    """Asserts that a command ends with status 2 and one sentence; returns the sentence."""

    def check(command: str, *arguments) -> str:
        assert run(command, *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return check


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of ten steps, by the command."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rwm_fast.training.run.REPORT_PAIRS", 6)
        patch.setattr("rwm_fast.training.run.SAMPLE_PAIRS", 4)
        assert run("train", *TINY, "--kimg", "0.04", "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A run folder with weights that no training has seen."""
    out, config = tmp_path_factory.mktemp("weights") / "tiny", train.parse(TINY).config
    out.mkdir()
    torch.manual_seed(0)
    networks = Encoder(config.model), Generator(config.model)
    save_weights(out / "weights.safetensors", *networks, config)
    return out


@pytest.fixture
def picture(tmp_path):
    """Writes a picture and returns its path."""

    def write(name: str, size=(20, 14), mode="RGB", color=None):
        Image.new(mode, size, color or (40, 90, 160)).save(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def scene(tmp_path):
    """Writes a landscape of 64 px and returns its path."""

    def write(name: str, seed: int):
        image, _ = landscapes.render(landscapes.content([seed]), landscapes.style([seed]), 64)
        save_image(image, tmp_path / name)
        return tmp_path / name

    return write
