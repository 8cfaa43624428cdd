"""Layers under the names and attributes that other projects give them, in plain torch.

The arithmetic is the definition: weights made for every image, one image at a time, resampling by
zeros, padding and a filter.
"""

import math

import formulas
import torch
import torch.nn.functional as F
from torch import nn


def kernel_of(taps, gain=1):
    taps = torch.tensor(taps, dtype=torch.float32)
    return taps.outer(taps) / taps.sum() ** 2 * gain


def filtered(x, kernel, pad, up=1, down=1):
    return formulas.upfirdn2d(x, kernel, (up, up), (down, down), (*pad, *pad))


def modulated(x, weight, styles, demodulate, eps, up, down, padding, filter, free=False):
    """weight [1, O, I, k, k] with its factor, styles [N, I]; filter: what blurs, or None."""
    images = []
    for image, style in zip(x, styles, strict=True):
        w = weight[0]
        if free:
            image = image * style[:, None, None]
        else:
            w = w * style[:, None, None]
        if demodulate:
            w = w * torch.rsqrt(w.square().sum((1, 2, 3), keepdim=True) + eps)
        image = image[None]
        if up:
            image = filter(F.conv_transpose2d(image, w.transpose(0, 1), stride=2))
        elif down:
            image = F.conv2d(filter(image), w, stride=2)
        else:
            image = F.conv2d(image, w, padding=padding)
        images.append(image)
    return torch.cat(images)


class EqualLinear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(outputs, inputs)),
            nn.Parameter(torch.ones(outputs)),
        )
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, input):
        return F.linear(input, self.weight * self.scale, self.bias)


class FusedLeakyReLU(nn.Module):
    def __init__(self, channel, bias=True, negative_slope=0.2, scale=2**0.5):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input):
        return formulas.leaky(input, self.bias, self.negative_slope, self.scale)


class Blur(nn.Module):
    def __init__(self, taps, pad, upsample_factor=1, reflection_pad=False):
        super().__init__()
        self.register_buffer("kernel", kernel_of(taps, upsample_factor**2))
        self.pad, self.reflection = pad, reflection_pad
        if reflection_pad:
            self.reflection_pad, self.pad = nn.ReflectionPad2d((*pad, *pad)), (0, 0)

    def forward(self, input):
        return filtered(
            self.reflection_pad(input) if self.reflection else input, self.kernel, self.pad
        )


class Upsample(nn.Module):
    def __init__(self, taps, factor=2):
        super().__init__()
        self.register_buffer("kernel", kernel_of(taps, factor**2))
        self.factor, p = factor, len(taps) - factor
        self.pad = ((p + 1) // 2 + factor - 1, p // 2)

    def forward(self, input):
        return filtered(input, self.kernel, self.pad, up=self.factor)


class Downsample(nn.Module):
    def __init__(self, taps, factor=2):
        super().__init__()
        self.register_buffer("kernel", kernel_of(taps))
        self.factor, p = factor, len(taps) - factor
        self.pad = ((p + 1) // 2, p // 2)

    def forward(self, input):
        return filtered(input, self.kernel, self.pad, down=self.factor)


def pads(taps, k, up):
    """What the port puts around an image that is blurred after doubling, or before halving."""
    p = len(taps) - 2 + (1 - k if up else k - 1)
    return ((p + 1) // 2 + 1, p // 2 + 1) if up else ((p + 1) // 2, p // 2)


class ModulatedConv2d(nn.Module):
    def __init__(
        self, in_channel, out_channel, kernel_size, style_dim, demodulate=True,
        upsample=False, downsample=False, taps=(1, 3, 3, 1), free=None,
    ):  # fmt: skip
        super().__init__()
        self.eps, self.kernel_size, self.demodulate = 1e-8, kernel_size, demodulate
        self.in_channel, self.out_channel = in_channel, out_channel
        self.upsample, self.downsample = upsample, downsample
        if upsample or downsample:
            self.blur = Blur(taps, pads(taps, kernel_size, upsample), 2 if upsample else 1)
        self.scale, self.padding = 1 / math.sqrt(in_channel * kernel_size**2), kernel_size // 2
        self.weight = nn.Parameter(
            torch.randn(1, out_channel, in_channel, kernel_size, kernel_size)
        )
        self.modulation = EqualLinear(style_dim, in_channel)
        if free is not None:
            self.new_demodulation = free

    def forward(self, input, style):
        free = getattr(self, "new_demodulation", False)
        if style.ndim == 4:  # a map of styles: the mean here, whatever it is there
            style = style.mean((2, 3))
        styles = self.modulation(style)
        if free and self.demodulate:
            styles = styles * torch.rsqrt(styles.square().mean(1, keepdim=True) + 1e-8)
        about = (
            self.eps,
            self.upsample,
            self.downsample,
            self.padding,
            getattr(self, "blur", None),
        )
        return modulated(input, self.scale * self.weight, styles, self.demodulate, *about, free)


class NoiseInjection(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.fixed_noise, self.image_size = None, None

    def forward(self, image, noise=None):
        self.image_size = self.image_size or image.shape
        noise = noise if self.fixed_noise is None else self.fixed_noise
        if noise is None:
            noise = image.new_empty(image.shape[0], 1, *image.shape[2:]).normal_()
        elif noise.shape[2:] != image.shape[2:]:
            noise = F.interpolate(noise, image.shape[2:], mode="nearest")
        return image + self.weight * noise


class StyledConv(nn.Module):
    def __init__(self, i, o, k, style_dim, use_noise=None, **more):
        super().__init__()
        self.conv, self.noise = ModulatedConv2d(i, o, k, style_dim, **more), NoiseInjection()
        self.activate = FusedLeakyReLU(o)
        if use_noise is not None:
            self.use_noise = use_noise

    def forward(self, input, style, noise=None):
        out = self.conv(input, style)
        if getattr(self, "use_noise", True):
            out = self.noise(out, noise=noise)
        return self.activate(out)


class EqualConv2d(nn.Module):
    def __init__(self, i, o, k, stride=1, padding=0, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, k, k))
        self.bias = nn.Parameter(torch.zeros(o)) if bias else None
        self.scale, self.stride, self.padding = 1 / math.sqrt(i * k**2), stride, padding

    def forward(self, input):
        return F.conv2d(input, self.weight * self.scale, self.bias, self.stride, self.padding)


class ScaledLeakyReLU(nn.Module):
    negative_slope = 0.2

    def forward(self, input):
        return F.leaky_relu(input, self.negative_slope) * math.sqrt(2)


class ConvLayer(nn.Sequential):
    def __init__(
        self, i, o, k, downsample=False, taps=(1, 3, 3, 1), bias=True, activate=True, reflect=False
    ):
        layers = [Blur(taps, pads(taps, k, False), reflection_pad=reflect)] if downsample else []
        padding = 0 if downsample or reflect else k // 2
        if reflect and not downsample:
            layers.append(nn.ReflectionPad2d(k // 2))
        layers.append(EqualConv2d(i, o, k, 1 + downsample, padding, bias and not activate))
        if activate:
            layers.append(FusedLeakyReLU(o) if bias else ScaledLeakyReLU())
        super().__init__(*layers)


# ---- basicsr's names


class UpFirDnSmooth(nn.Module):
    def __init__(self, taps, k, up):
        super().__init__()
        self.kernel, self.pad = kernel_of(taps, 4 if up else 1), pads(taps, k, up)  # no buffer

    def forward(self, x):
        return filtered(x, self.kernel, self.pad)


def basicsr_modulated(i, o, k, style_dim, mode, demodulate=True):
    layer = BasicsrModulated()
    layer.kernel_size, layer.demodulate, layer.sample_mode, layer.eps = k, demodulate, mode, 1e-8
    layer.scale, layer.padding = 1 / math.sqrt(i * k**2), k // 2
    layer.weight = nn.Parameter(torch.randn(1, o, i, k, k))
    layer.modulation = EqualLinear(style_dim, i)
    if mode is not None:
        layer.smooth = UpFirDnSmooth((1, 3, 3, 1), k, mode == "upsample")
    return layer


class BasicsrModulated(nn.Module):
    def forward(self, x, style):
        mode, blur = self.sample_mode, getattr(self, "smooth", None)
        about = (self.eps, mode == "upsample", mode == "downsample", self.padding, blur)
        return modulated(
            x, self.scale * self.weight, self.modulation(style), self.demodulate, *about
        )


BasicsrModulated.__name__ = "ModulatedConv2d"


class StyleConv(nn.Module):
    def __init__(self, i, o, k, style_dim, mode=None):
        super().__init__()
        self.modulated_conv = basicsr_modulated(i, o, k, style_dim, mode)
        self.weight, self.activate = nn.Parameter(torch.zeros(1)), FusedLeakyReLU(o)

    def forward(self, x, style, noise=None):
        out = self.modulated_conv(x, style)
        if noise is None:
            noise = out.new_empty(out.shape[0], 1, *out.shape[2:]).normal_()
        return self.activate(out + self.weight * noise)


# ---- mmagic's names: the factor of the weight is a hook's


def equalised(layer, inputs):
    layer.weight = layer.weight_orig / math.sqrt(layer.weight_orig[0, 0].numel())


class MmModulated(nn.Module):
    def __init__(self, i, o, k, style_dim, upsample=False, style_bias=0.0):
        super().__init__()
        self.demodulate, self.upsample, self.downsample, self.fp16_enabled = (
            True,
            upsample,
            False,
            False,
        )
        self.eps, self.padding, self.style_bias = 1e-8, k // 2, style_bias
        self.style_modulation = EqualLinear(style_dim, i)
        self.weight_orig = nn.Parameter(torch.randn(1, o, i, k, k))
        self.weight = self.weight_orig.data
        self.register_forward_pre_hook(equalised)
        if upsample:
            self.blur = Blur((1, 3, 3, 1), pads((1, 3, 3, 1), k, True), 2)

    def forward(self, x, style, input_gain=None):
        styles = self.style_modulation(style) + self.style_bias
        about = (self.eps, self.upsample, False, self.padding, getattr(self, "blur", None))
        y = modulated(x, self.weight, styles, self.demodulate, *about)
        return y if input_gain is None else y * input_gain


MmModulated.__name__ = "ModulatedConv2d"


class MmNoise(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.fixed_noise = nn.Parameter(torch.zeros(1)), False  # a flag here

    def forward(self, image, noise=None, return_noise=False):
        if self.fixed_noise:
            noise = torch.ones(image.shape[0], 1, *image.shape[2:], dtype=image.dtype)
        elif noise is None:
            noise = image.new_empty(image.shape[0], 1, *image.shape[2:]).normal_()
        result = image + self.weight * noise
        return (result, noise) if return_noise else result


class ModulatedStyleConv(nn.Module):
    def __init__(self, i, o, k, style_dim, **more):
        super().__init__()
        self.fp16_enabled, self.conv = False, MmModulated(i, o, k, style_dim, **more)
        self.noise_injector, self.activate = MmNoise(), FusedLeakyReLU(o)

    def forward(self, x, style, noise=None, add_noise=True, return_noise=False):
        out = self.conv(x, style)
        if add_noise:
            out = self.noise_injector(out, noise)
        return (self.activate(out), noise) if return_noise else self.activate(out)


class Conv2dLayer(nn.Module):
    """NVIDIA's: convolution, bias and activation."""

    def __init__(self, i, o, k, bias=True, activation="linear", up=1, down=1, conv_clamp=None):
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.register_buffer("resample_filter", kernel_of((1, 3, 3, 1)))
        self.padding, self.weight_gain = k // 2, 1 / math.sqrt(i * k * k)
        self.act_gain = {"linear": 1, "lrelu": math.sqrt(2), "relu": math.sqrt(2)}[activation]
        self.weight = nn.Parameter(torch.randn(o, i, k, k))
        self.bias = nn.Parameter(torch.zeros(o)) if bias else None

    def forward(self, x, gain=1):
        about = (self.resample_filter, self.up, self.down, (self.padding,) * 4)
        y = formulas.conv2d_resample(x, self.weight * self.weight_gain, *about, 1, self.up == 1)
        y = y if self.bias is None else y + self.bias[:, None, None]
        slope = {"linear": 1.0, "lrelu": 0.2, "relu": 0.0}[self.activation]
        y = torch.where(y > 0, y, y * slope) * self.act_gain * gain
        return (
            y
            if self.conv_clamp is None
            else y.clamp(*(s * self.conv_clamp * gain for s in (-1, 1)))
        )
