"""Checkpoints of the official Swapping Autoencoder: a synthetic one under its names gives the
outputs of plain-torch formulas over those names, and comes back as it was."""

import argparse

import pytest
import torch
from official_formulas import MODEL, Official, checkpoint, kernel
from tiny_networks import DEMO, PAPER, picture

from rwm_fast import convert
from rwm_fast.config import Config
from rwm_fast.errors import UserError
from rwm_fast.models import RegionEditor, WeightsError, official, read_config, save_weights
from rwm_fast.models.official_names import halving_names

STATE = checkpoint()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "latest_checkpoint.pth"
    torch.save(STATE, path)
    return path


def close(found, expected):
    # float64; the epsilons 1e-8 of normalisation and demodulation stand elsewhere
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_shapes_and_blurs_tell_the_settings(saved):
    config, networks = official.load(saved)
    assert config.model == MODEL
    assert set(networks) == {"encoder", "generator", "discriminator", "patch"}


@pytest.mark.parametrize("antialias", [True, False])
def test_outputs_are_those_of_their_formulas(saved, antialias):
    """Without antialiasing every blur is one tap."""
    state = STATE if antialias else checkpoint((1,), (1,))
    torch.save(state, saved)
    theirs = Official({name: value.double() for name, value in state.items()})
    config, networks = official.load(saved)
    assert len(config.model.generator_filter) == (4 if antialias else 1)
    for network in networks.values():
        network.double().requires_grad_(False)
    image = picture(2)
    content, style = networks["encoder"](image)
    for found, expected in zip((content, style), theirs.encode(image), strict=True):
        close(found, expected)
    noise = networks["generator"].make_noise(content, torch.Generator().manual_seed(1))
    found = networks["generator"](content, style, noise=noise)
    close(found, theirs.paint(content, style, noise))
    assert (found - networks["generator"](content, style, noise="none")).abs().max() > 0.1
    close(networks["discriminator"](image), theirs.judge(image))
    patches = torch.stack([picture(3, 16, 16, seed=n) for n in range(2)])
    features = networks["patch"].features(patches)
    close(features, theirs.patch_features(patches))
    judged = networks["patch"](features, features.flip(0))
    close(judged, theirs.compare(features, features.flip(0)))


def test_it_comes_back_as_it_was(saved):
    config, networks = official.load(saved)
    state = official.state_of(config.model, networks)
    assert state.keys() == STATE.keys()
    for name, value in STATE.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-7, msg=name)


def test_blocks_above_256_px_are_named_by_size():
    assert halving_names(8, 8) == ["1024x1024", "512x512", "1", "2", "3", "4", "5", "6"]
    assert halving_names(5, 6) == ["128x128", "1", "2", "3", "4"]


def test_the_command_converts_both_ways(saved, tmp_path, capsys):
    ours, theirs = tmp_path / "weights.safetensors", tmp_path / "back.pth"
    assert convert.main([str(saved), "--out", str(ours)]) == 0
    assert read_config(ours).model == MODEL
    assert convert.main([str(ours), "--out", str(theirs), "--save", "swapae"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("image size 32 px, content code 4 channels, style code 12 numbers")
    assert [line.split(",")[0] for line in said[1:]] == [f"wrote {ours}", f"wrote {theirs}"]
    back = torch.load(theirs, weights_only=True)
    assert {n for n in STATE if n[0] in "EG"} | {"num_discriminator_iters"} == back.keys()
    assert all(torch.allclose(back[name], STATE[name]) for name in back)
    # encoder and generator alone open too; what the file does not tell has its default
    assert official.load(theirs)[0].model.encoder_channels == (6, 8, 10)


def test_the_editor_opens_it(saved, tmp_path):
    editor = RegionEditor.load(saved)
    image, other = picture(1).float(), picture(1, seed=1).float()
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    edited = editor.edit(image, other, mask)
    assert not any(p.requires_grad for p in editor.parameters())
    path = tmp_path / "weights.safetensors"
    save_weights(path, editor.encoder, editor.generator, Config(model=editor.encoder.config))
    assert torch.equal(RegionEditor.load(path).edit(image, other, mask), edited)
    half = RegionEditor.load(saved, dtype=torch.bfloat16)
    assert half.generator.compute_dtype == torch.bfloat16


def refused(path, state, message):
    torch.save(state, path)
    with pytest.raises(WeightsError, match=message) as caught:
        RegionEditor.load(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(saved):
    names = argparse.Namespace(size=256)
    theirs = {"e": {}, "g": {}, "d": {}, "cooccur": {}, "e_ema": {}, "args": names}
    refused(saved, theirs, "rosinality's Swapping Autoencoder is other networks")
    refused(
        saved, {"g_ema": {}, "g": {}}, "not an official Swapping Autoencoder .*, holds g, g_ema"
    )
    refused(saved, [1, 2], "not an official Swapping Autoencoder checkpoint, holds list")
    refused(
        saved, {"E": Config()}, r"not a readable checkpoint of tensors \(Weights only load failed"
    )


def changed(**more):
    return STATE | {name.replace("__", "."): value for name, value in more.items()}


def test_tensors_that_do_not_fit_are_refused(saved):
    without = {name: value for name, value in STATE.items() if name != "G.ToRGB.bias"}
    refused(saved, without, "lacks 1 tensors: G.ToRGB.bias")
    refused(saved, changed(E__more=torch.ones(1)), "has unknown 1 tensors: E.more")
    bias = changed(E__FromRGB__Act__bias=torch.ones(7))
    refused(saved, bias, r"from_image.bias must be \[6\], got \[7\]")
    blur = {"E.DownToSpatialCode.ResBlockDownBy2.skip.Blur.kernel": kernel((1, 1, 1))}
    refused(saved, STATE | blur, "ResBlockDownBy2.skip.Blur.kernel is another blur")
    none = {name: value for name, value in STATE.items() if "ToSpatialCode.1" not in name}
    refused(saved, none, r"its shapes fit no network here \('E.ToSpatialCode.1.Conv.weight'\)")


def test_networks_that_they_do_not_have_are_not_written():
    with pytest.raises(UserError, match="has no networks with fold 2, input_kernel 3, "):
        official.state_of(DEMO, {})
    with pytest.raises(UserError, match="has no networks with demodulation style"):
        official.state_of(PAPER, {})


def test_a_broken_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="latest_checkpoint.pth: not a readable"):
        RegionEditor.load(saved)
