"""The official Swapping Autoencoder in plain torch: what it saves, and its networks' formulas."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from tiny_networks import PAPER

MODEL = dataclasses.replace(PAPER, demodulation="weight", patch_hidden=(12, 10, 9))


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


def leaky(x, bias):
    return F.leaky_relu(x + bias.reshape(1, -1, *[1] * (x.ndim - 2)), 0.2) * math.sqrt(2)


def blurred(x, f, before, after, mode="constant"):
    x = F.pad(x, (before, after, before, after), mode=mode)
    return F.conv2d(x, f.flip(0, 1).repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])


class Official:
    """Their networks as functions of a state dict under their names; with `our_eps` the ε of unit
    codes and of demodulation stand where ours do, and nothing is left to differ but rounding."""

    def __init__(self, state, our_eps=False):
        self.state, self.our_eps = state, our_eps

    def unit(self, x):
        if self.our_eps:
            return F.normalize(x, dim=1)
        return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-8)

    def conv(self, name, x, reflect=False, pad=None):
        w, f = self.state[f"{name}.Conv.weight"], self.state.get(f"{name}.Blur.kernel")
        k, mode = w.shape[-1], "reflect" if reflect else "constant"
        w = w / math.sqrt(w[0].numel())
        if f is not None:
            p = len(f) - 2 + k - 1 if pad is None else pad
            y = F.conv2d(blurred(x, f, (p + 1) // 2, p // 2, mode), w, stride=2)
        else:
            p = k // 2 if pad is None else pad
            y = F.conv2d(F.pad(x, (p,) * 4, mode=mode), w)
        if f"{name}.Act.bias" in self.state:
            return leaky(y, self.state[f"{name}.Act.bias"])
        bias = self.state.get(f"{name}.Conv.bias")
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    def block(self, name, x, reflect=False):
        y = self.conv(f"{name}.conv2", self.conv(f"{name}.conv1", x, reflect), reflect)
        return (y + self.conv(f"{name}.skip", x)) / math.sqrt(2)

    def linear(self, name, x):
        w = self.state[f"{name}.weight"]
        return x @ w.T / math.sqrt(w.shape[1]) + self.state[f"{name}.bias"]

    def hidden(self, name, x):
        w = self.state[f"{name}.weight"]
        return leaky(x @ w.T / math.sqrt(w.shape[1]), self.state[f"{name}.bias"])

    def encode(self, image):
        x = self.conv("E.FromRGB", image)
        for by in (1, 2):
            x = self.block(f"E.DownToSpatialCode.ResBlockDownBy{by}", x, reflect=True)
        content = self.conv("E.ToSpatialCode.1", self.conv("E.ToSpatialCode.0", x))
        style = self.conv("E.DownToGlobalCode.ConvLayerDownBy4", x, pad=0).mean((2, 3))
        return self.unit(content), self.unit(self.linear("E.ToGlobalCode.0", style))

    def modulated(self, name, x, style):
        """The style scales the image, and the weights are divided by their own norm."""
        w, s = self.state[f"{name}.conv.weight"][0], self.linear(f"{name}.conv.modulation", style)
        w = w / math.sqrt(w[0].numel())
        if "ToRGB" not in name:
            s = s * torch.rsqrt(s.square().mean(1, keepdim=True) + 1e-8)
            eps = 1e-8 / w[0].numel() if self.our_eps else 1e-8
            w = w * torch.rsqrt(w.square().sum((1, 2, 3), keepdim=True) + eps)
        x, f = x * s[:, :, None, None], self.state.get(f"{name}.conv.blur.kernel")
        if f is None:
            return F.conv2d(x, w, padding=w.shape[-1] // 2)
        p = len(f) - 4
        y = F.conv_transpose2d(x, w.transpose(0, 1), stride=2)
        return blurred(y, f, (p + 1) // 2 + 1, p // 2 + 1)

    def styled(self, name, x, style, noise):
        y = self.modulated(name, x, style) + self.state[f"{name}.noise.weight"] * noise
        return leaky(y, self.state[f"{name}.activate.bias"])

    def paint(self, content, style, noise):
        content, style = self.unit(content), self.unit(style)
        scale = self.linear("G.SpatialCodeModulation.scale", style)
        x = content * scale[:, :, None, None]
        x = x + self.linear("G.SpatialCodeModulation.bias", style)[:, :, None, None]
        maps = iter(noise)
        for name in ("Head.0", "Head.1", "Upsampling.16", "Upsampling.32"):
            name = "G." + name.replace(".", "ResnetBlock" if "Head" in name else "ResBlock")
            skip = self.conv(f"{name}.skip", x) if f"{name}.skip.Conv.weight" in self.state else x
            if "Up" in name:
                skip = F.interpolate(skip, scale_factor=2, mode="bilinear", align_corners=False)
            y = self.styled(f"{name}.conv1", x, style, next(maps))
            x = (skip + self.styled(f"{name}.conv2", y, style, next(maps))) / math.sqrt(2)
        return self.modulated("G.ToRGB", x, style) + self.state["G.ToRGB.bias"]

    def judge(self, image):
        x = self.conv("D.stylegan2_D.convs.0", image)
        for name in "456":
            x = self.block(f"D.stylegan2_D.convs.{name}", x)
        x = self.conv("D.stylegan2_D.final_conv", x).flatten(1)
        x = self.hidden("D.stylegan2_D.final_linear.0", x)
        return self.linear("D.stylegan2_D.final_linear.1", x).squeeze(1)

    def patch_features(self, patches):
        x = self.conv("Dpatch.convs.0", patches.flatten(0, 1))
        for name in "345":
            x = self.block(f"Dpatch.convs.{name}", x)
        return self.conv("Dpatch.convs.6", x, pad=0).reshape(*patches.shape[:2], -1)

    def compare(self, reference, target, aggregate=True):
        if aggregate:
            reference = reference.mean(1, keepdim=True).expand_as(target)
        x = torch.cat([reference, target], 2).flatten(0, 1)
        for n in range(3):
            x = self.hidden(f"Dpatch.pairlinear.{n}", x)
        return self.linear("Dpatch.pairlinear.3", x).reshape(target.shape[:2])
