"""Checkpoints of the official Swapping Autoencoder: a synthetic one under its names gives the
outputs of plain-torch formulas over those names, and comes back as it was."""

import argparse
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import DEMO, PAPER, picture

from rwm_fast import convert
from rwm_fast.config import Config
from rwm_fast.errors import UserError
from rwm_fast.models import RegionEditor, WeightsError, official, read_config, save_weights
from rwm_fast.models.official_names import halving_names

MODEL = dataclasses.replace(PAPER, demodulation="weight", patch_hidden=(12, 10, 9))


# ---- their networks: a state dict, and functions of it


class Maker:
    """Draws tensors under their names, in the order of their layers."""

    def __init__(self):
        self.state, self.source = {}, torch.Generator().manual_seed(0)

    def put(self, name, *shape):
        self.state[name] = torch.randn(shape, generator=self.source)

    def conv(self, name, i, o, k, taps=None, act=True, bias=False):
        self.put(f"{name}.Conv.weight", o, i, k, k)
        if act:
            self.put(f"{name}.Act.bias", o)
        if bias:
            self.put(f"{name}.Conv.bias", o)
        if taps:
            self.state[f"{name}.Blur.kernel"] = kernel(taps)

    def linear(self, name, i, o):
        self.put(f"{name}.weight", o, i)
        self.put(f"{name}.bias", o)

    def block(self, name, i, o, taps):
        self.conv(f"{name}.conv1", i, i, 3)
        self.conv(f"{name}.conv2", i, o, 3, taps)
        self.conv(f"{name}.skip", i, o, 1, taps, act=False)

    def styled(self, name, i, o, style, k=3):
        self.put(f"{name}.conv.weight", 1, o, i, k, k)
        self.linear(f"{name}.conv.modulation", style, i)
        if k == 3:
            self.put(f"{name}.noise.weight", 1)
            self.put(f"{name}.activate.bias", o)


def kernel(taps, gain=1):
    row = torch.tensor(taps, dtype=torch.float32)
    return row.outer(row) / row.sum() ** 2 * gain


def checkpoint(e=(1, 2, 1), fir=(1, 3, 3, 1)):
    """What BaseModel.save of their code writes, for MODEL."""
    m = Maker()
    m.state["num_discriminator_iters"] = torch.zeros(1, dtype=torch.long)
    m.conv("E.FromRGB", 3, 6, 1)
    m.block("E.DownToSpatialCode.ResBlockDownBy1", 6, 8, e)
    m.block("E.DownToSpatialCode.ResBlockDownBy2", 8, 10, e)
    m.conv("E.ToSpatialCode.0", 10, 10, 1)
    m.conv("E.ToSpatialCode.1", 10, 4, 1, act=False, bias=True)
    m.conv("E.DownToGlobalCode.ConvLayerDownBy4", 10, 14, 3, (1,))
    m.linear("E.ToGlobalCode.0", 14, 12)
    m.linear("G.SpatialCodeModulation.scale", 12, 4)
    m.linear("G.SpatialCodeModulation.bias", 12, 4)
    blocks = [("HeadResnetBlock0", 4, 8), ("HeadResnetBlock1", 8, 12)]
    blocks += [("UpsamplingResBlock16", 12, 12), ("UpsamplingResBlock32", 12, 8)]
    for name, i, o in blocks:
        m.styled(f"G.{name}.conv1", i, o, 12)
        m.styled(f"G.{name}.conv2", o, o, 12)
        if i != o:
            m.conv(f"G.{name}.skip", i, o, 1, act=name.startswith("Up"))
        if name.startswith("Up"):
            m.state[f"G.{name}.conv1.conv.blur.kernel"] = kernel(fir, 4)
    m.styled("G.ToRGB", 8, 3, 12, 1)
    m.put("G.ToRGB.bias", 1, 3, 1, 1)
    m.state["G.ToRGB.upsample.kernel"] = kernel(fir, 4)
    m.conv("D.stylegan2_D.convs.0", 3, 6, 1)
    for name, i, o in (("4", 6, 8), ("5", 8, 10), ("6", 10, 10)):
        m.block(f"D.stylegan2_D.convs.{name}", i, o, fir)
    m.conv("D.stylegan2_D.final_conv", 10, 10, 3)
    m.linear("D.stylegan2_D.final_linear.0", 160, 12)
    m.linear("D.stylegan2_D.final_linear.1", 12, 1)
    m.conv("Dpatch.convs.0", 3, 6, 3)
    for name, i, o in (("3", 6, 8), ("4", 8, 10)):
        m.block(f"Dpatch.convs.{name}", i, o, fir)
    m.block("Dpatch.convs.5", 10, 14, None)
    m.conv("Dpatch.convs.6", 14, 9, 3)
    sizes = (72, 12, 10, 9, 1)
    for n in range(4):
        m.linear(f"Dpatch.pairlinear.{n}", sizes[n], sizes[n + 1])
    return m.state


STATE = checkpoint()
WIDE = {name: value.double() for name, value in STATE.items()}


def leaky(x, bias):
    return F.leaky_relu(x + bias.reshape(1, -1, *[1] * (x.ndim - 2)), 0.2) * math.sqrt(2)


def blurred(x, f, before, after, mode="constant"):
    x = F.pad(x, (before, after, before, after), mode=mode)
    return F.conv2d(x, f.flip(0, 1).repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])


def conv(name, x, reflect=False, pad=None):
    w, f = WIDE[f"{name}.Conv.weight"], WIDE.get(f"{name}.Blur.kernel")
    k, mode = w.shape[-1], "reflect" if reflect else "constant"
    w = w / math.sqrt(w[0].numel())
    if f is not None:
        p = len(f) - 2 + k - 1 if pad is None else pad
        y = F.conv2d(blurred(x, f, (p + 1) // 2, p // 2, mode), w, stride=2)
    else:
        p = k // 2 if pad is None else pad
        y = F.conv2d(F.pad(x, (p,) * 4, mode=mode), w)
    if f"{name}.Act.bias" in WIDE:
        return leaky(y, WIDE[f"{name}.Act.bias"])
    bias = WIDE.get(f"{name}.Conv.bias")
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def block(name, x, reflect=False):
    y = conv(f"{name}.conv2", conv(f"{name}.conv1", x, reflect), reflect)
    return (y + conv(f"{name}.skip", x)) / math.sqrt(2)


def linear(name, x):
    w = WIDE[f"{name}.weight"]
    return x @ w.T / math.sqrt(w.shape[1]) + WIDE[f"{name}.bias"]


def hidden(name, x):
    w = WIDE[f"{name}.weight"]
    return leaky(x @ w.T / math.sqrt(w.shape[1]), WIDE[f"{name}.bias"])


def normalized(x):
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-8)


def encode(image):
    x = conv("E.FromRGB", image)
    for by in (1, 2):
        x = block(f"E.DownToSpatialCode.ResBlockDownBy{by}", x, reflect=True)
    content = conv("E.ToSpatialCode.1", conv("E.ToSpatialCode.0", x))
    style = conv("E.DownToGlobalCode.ConvLayerDownBy4", x, pad=0).mean((2, 3))
    return normalized(content), normalized(linear("E.ToGlobalCode.0", style))


def modulated(name, x, style):
    """The style scales the image, and the weights are divided by their own norm."""
    w, s = WIDE[f"{name}.conv.weight"][0], linear(f"{name}.conv.modulation", style)
    w = w / math.sqrt(w[0].numel())
    if "ToRGB" not in name:
        s = s * torch.rsqrt(s.square().mean(1, keepdim=True) + 1e-8)
        w = w * torch.rsqrt(w.square().sum((1, 2, 3), keepdim=True) + 1e-8)
    x, f = x * s[:, :, None, None], WIDE.get(f"{name}.conv.blur.kernel")
    if f is None:
        return F.conv2d(x, w, padding=w.shape[-1] // 2)
    p = len(f) - 4
    y = F.conv_transpose2d(x, w.transpose(0, 1), stride=2)
    return blurred(y, f, (p + 1) // 2 + 1, p // 2 + 1)


def styled(name, x, style, noise):
    y = modulated(name, x, style) + WIDE[f"{name}.noise.weight"] * noise
    return leaky(y, WIDE[f"{name}.activate.bias"])


def paint(content, style, noise):
    content, style = normalized(content), normalized(style)
    scale = linear("G.SpatialCodeModulation.scale", style)
    x = content * scale[:, :, None, None]
    x = x + linear("G.SpatialCodeModulation.bias", style)[:, :, None, None]
    maps = iter(noise)
    for name in ("Head.0", "Head.1", "Upsampling.16", "Upsampling.32"):
        name = "G." + name.replace(".", "ResnetBlock" if "Head" in name else "ResBlock")
        skip = conv(f"{name}.skip", x) if f"{name}.skip.Conv.weight" in WIDE else x
        if "Up" in name:
            skip = F.interpolate(skip, scale_factor=2, mode="bilinear", align_corners=False)
        y = styled(f"{name}.conv1", x, style, next(maps))
        x = (skip + styled(f"{name}.conv2", y, style, next(maps))) / math.sqrt(2)
    return modulated("G.ToRGB", x, style) + WIDE["G.ToRGB.bias"]


def judge(image):
    x = conv("D.stylegan2_D.convs.0", image)
    for name in "456":
        x = block(f"D.stylegan2_D.convs.{name}", x)
    x = conv("D.stylegan2_D.final_conv", x).flatten(1)
    x = hidden("D.stylegan2_D.final_linear.0", x)
    return linear("D.stylegan2_D.final_linear.1", x).squeeze(1)


def patch_features(patches):
    x = conv("Dpatch.convs.0", patches.flatten(0, 1))
    for name in "345":
        x = block(f"Dpatch.convs.{name}", x)
    return conv("Dpatch.convs.6", x, pad=0).reshape(*patches.shape[:2], -1)


def compare(reference, target):
    reference = reference.mean(1, keepdim=True).expand_as(target)
    x = torch.cat([reference, target], 2).flatten(0, 1)
    for n in range(3):
        x = hidden(f"Dpatch.pairlinear.{n}", x)
    return linear("Dpatch.pairlinear.3", x).reshape(target.shape[:2])


# ---- tests


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
def test_outputs_are_those_of_their_formulas(saved, antialias, monkeypatch):
    """Without antialiasing every blur is one tap."""
    if not antialias:
        state = checkpoint((1,), (1,))
        torch.save(state, saved)
        monkeypatch.setitem(globals(), "WIDE", {n: value.double() for n, value in state.items()})
    config, networks = official.load(saved)
    assert len(config.model.generator_filter) == (4 if antialias else 1)
    for network in networks.values():
        network.double().requires_grad_(False)
    image = picture(2)
    content, style = networks["encoder"](image)
    for found, expected in zip((content, style), encode(image), strict=True):
        close(found, expected)
    noise = networks["generator"].make_noise(content, torch.Generator().manual_seed(1))
    found = networks["generator"](content, style, noise=noise)
    close(found, paint(content, style, noise))
    assert (found - networks["generator"](content, style, noise="none")).abs().max() > 0.1
    close(networks["discriminator"](image), judge(image))
    patches = torch.stack([picture(3, 16, 16, seed=n) for n in range(2)])
    features = networks["patch"].features(patches)
    close(features, patch_features(patches))
    close(networks["patch"](features, features.flip(0)), compare(features, features.flip(0)))


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
