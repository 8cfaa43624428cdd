"""Random calls of every operator: each follows from a seed and a number alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwm_fast.testing import compare
from rwm_fast.testing.cases import Case, Inputs, new
from rwm_fast.testing.cases.case import count_taps, normal, uniform
from rwm_fast.testing.cases.modulated_conv2d import BIASES, CLAMP
from rwm_fast.testing.views import VIEWS

DTYPES = {
    torch.float32: 9,
    torch.bfloat16: 5,
    torch.float16: 3,
    torch.float64: 3,
}  # how often
WITHOUT_GRADIENT = ("filter", "resample_filter", "f", "boxes")
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Drawn:
    """One call: arguments, how exact its results must be, and what was done to it."""

    op: str
    dtype: torch.dtype
    inputs: Inputs
    case: Case  # for the error rule: its terms and stored values
    views: Mapping[str, str] = field(default_factory=dict)  # argument → its order of memory
    dy: str = "contiguous"  # that of the gradient that arrives
    second: bool = False  # derivatives of the gradients are compared too
    spoiled: str = ""  # what was made wrong, if anything


class Source(random.Random):
    """Where a call's numbers come from."""

    def __init__(self, seed: int, number: int) -> None:
        super().__init__(f"{seed}-{number}")
        self.numbers = torch.Generator().manual_seed(self.getrandbits(60))

    def often(self, share: float) -> bool:
        """True in that share of draws."""
        return self.random() < share

    def one(self, *choices: Any) -> Any:
        """One of them."""
        return self.choice(choices)

    def batch(self) -> int:
        """N."""
        return self.choices((0, 1, 2, 3), (2, 15, 20, 10))[0]

    def channels(self) -> int:
        """C: few, but some of them whole vectors."""
        return self.choices((0, 1, 2, 3, 5, 8, 16, 17, 24), (1, 8, 10, 10, 6, 6, 3, 3, 2))[0]

    def side(self) -> int:
        """H or W."""
        return self.choices((0, 1, 2, 3, 4, 5, 6, 7, 9, 13, 18), (1, 6, *[4] * 7, 3, 2))[0]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers in float64."""
        return normal(self.numbers, *shape)

    def image(self) -> Tensor:
        """[N, C, H, W] in float64."""
        return self.normal(self.batch(), self.channels(), self.side(), self.side())

    def with_wild_ones(self, x: Tensor, *wild: float) -> Tensor:
        """At times with a few values of another kind."""
        if x.numel() and self.often(0.06):
            for _ in range(3):
                x.view(-1)[self.randrange(x.numel())] = self.choice(wild)
        return x

    def taps(self) -> Tensor | None:
        """A filter of sum 1, or none."""
        if self.often(0.2):
            return None
        sizes = (1, 2, 3, 4, 4, 5, 6)
        shape = [self.choice(sizes)] if self.often(0.7) else [self.choice(sizes) for _ in range(2)]
        taps = uniform(self.numbers, *shape, low=0.2) * self.one(1, 1, -1) ** len(shape)
        return taps / taps.sum()

    def padding(self, low: int, high: int) -> int | list[int]:
        """One number, or one for each side."""
        number = lambda: self.randint(low, high)
        return self.one(number(), number(), [number() for _ in range(4)], [number()] * 2)


Made = tuple[Inputs, int, int]  # arguments in float64, terms, stored


def _bias_act(s: Source) -> Made:
    space = [s.side() for _ in range(s.one(0, 1, 2, 2, 2, 3))]
    gain = s.one(1.0, 2**0.5, 0.7, 40.0, 1e-3)
    settings = {"gain": gain, "activation": s.one("lrelu", "lrelu", "linear")}
    if settings["activation"] == "lrelu":
        settings["negative_slope"] = s.one(0.2, 0.2, 0.0, 0.01, 1.0, 1.5)
    if s.often(0.4):
        settings["clamp"] = gain * s.one(0.5, 1.5, 4.0)
    shape = (s.batch(), s.channels(), *space)
    case = new("bias_act", f"{s.getrandbits(40)}", shape, bias=s.often(0.7), **settings)
    settings = {"clamp": None, "negative_slope": 0.2, **settings}
    inputs = {**case.inputs(gradients=False), **settings}
    # at a NaN the contract reads a slope from the result, torch's clamp none
    wild = (math.inf, -math.inf) if settings["clamp"] else (math.nan, math.inf, -math.inf)
    s.with_wild_ones(inputs["x"], *wild)
    return inputs, case.terms, case.stored


def _upfirdn2d(s: Source) -> Made:
    factor = lambda: s.one(1, 1, 1, 2, 2, 3, 4, [2, 1], [1, 3])
    taps = s.taps()
    inputs = {
        "x": s.with_wild_ones(s.image(), math.nan, math.inf, -math.inf, 1e4),
        "filter": taps,
        "up": factor(),
        "down": factor(),
        "padding": s.padding(-2, 5),
        "flip_filter": s.often(0.3),
        "gain": s.one(1.0, 1.0, 4.0, 0.3, -1.5, 100.0, 0.0),
    }
    return inputs, count_taps(taps), 1


def _masked_l1(s: Source) -> Made:
    hybrid = s.with_wild_ones(s.image(), math.nan, math.inf, -math.inf, 1e4)
    step = lambda: s.normal(*hybrid.shape).mul(2).round() / 2  # many are 0
    n, c, h, w = hybrid.shape
    mask = uniform(s.numbers, n, s.one(1, c), h, w, low=-0.5, high=1.5)
    kind = s.one("soft", "soft", "binary", "bool")
    if kind != "soft":
        mask = mask.clamp(0, 1).round()
    inputs = {"hybrid": hybrid, "inside": hybrid + step(), "outside": hybrid + step()}
    return {**inputs, "mask": mask.bool() if kind == "bool" else mask}, max(1, hybrid.numel()), 1


def _crop_patches(s: Source) -> Made:
    image, patches = s.image(), s.one(0, 1, 1, 2, 3, 7)
    boxes = s.normal(image.shape[0], patches, 4) * s.one(0.5, 0.5, 0.2, 2)
    if s.often(0.1):
        boxes = boxes.round()
    boxes = s.with_wild_ones(boxes, math.nan, math.inf, -math.inf, 1e30, 0.0)
    size, sides = s.one(1, 2, 3, 4, 5, 8, 13), image.shape[2:]
    # a sampling position is rounded by about W units, as in the operator's cases
    terms = max(4 * size, patches * size**2, *(side**2 for side in sides))
    return {"image": image, "boxes": boxes, "size": size}, terms, 1


def _layer(s: Source) -> tuple[Inputs, int]:
    """What both convolutions take, and how many outputs there are."""
    x, outputs = s.image(), s.one(1, 2, 3, 4, 8, 16, 19)
    kernel = s.one((1, 1), (3, 3), (3, 3), (3, 3), (2, 2), (5, 5), (4, 4), (1, 3), (3, 2))
    inputs = x.shape[1]
    weight = s.normal(outputs, inputs, *kernel) / max(1, inputs * kernel[0] * kernel[1]) ** 0.5
    gain = s.one(1.0, 2**0.5, 0.5)
    clamp = gain * CLAMP if s.often(0.2) else None
    parts = BIASES if clamp else BIASES[:2]
    bias = torch.tensor(parts, dtype=torch.float64).repeat(outputs)[:outputs]
    about = kernel[0] // 2
    return {
        "x": s.with_wild_ones(x, 1e3, -1e3, 0.0),
        "weight": weight,
        "bias": s.one(bias, bias, None),
        "padding": s.one(about, about, about, s.padding(0, 3), s.padding(-1, 3)),
        "down": s.one(1, 1, 1, 2, 2, 3),
        "resample_filter": s.taps(),
        "activation": s.one("linear", "lrelu", "lrelu"),
        "negative_slope": s.one(0.2, 0.2, 0.0, 1.0),
        "gain": gain,
        "clamp": clamp,
    }, outputs


def _terms(inputs: Inputs) -> int:
    """As the cases count them: the gradients of what all pixels share sum most."""
    (n, i, h, w), (o, _, kh, kw) = inputs["x"].shape, inputs["weight"].shape
    pixels = h * w * inputs.get("up", 1) ** 2
    return max(1, pixels * max(o, i, n) * kh * kw * count_taps(inputs["resample_filter"]))


def _conv2d_bias_act(s: Source) -> Made:
    inputs, _ = _layer(s)
    inputs["weight_gain"] = s.one(1.0, 1.0, 0.5, -0.5)
    inputs, _ = _away_from_kinks("conv2d_bias_act", inputs)
    return inputs, _terms(inputs), 6


def _conv2d_resample(s: Source) -> Made:
    layer, outputs = _layer(s)
    channels, groups = layer["x"].shape[1], s.one(1, 1, 1, 2)
    inputs = {
        "x": layer["x"],
        "w": layer["weight"],
        "f": layer["resample_filter"],
        "up": s.one(1, 1, 2, 2, 3),
        "down": layer["down"],
        "padding": layer["padding"],
        "groups": groups if channels % 2 == outputs % 2 == 0 else 1,
        "flip_weight": s.often(0.6),
        "flip_filter": s.often(0.3),
    }
    inputs["w"] = inputs["w"][:, : channels // inputs["groups"]]
    about = {"weight": inputs["w"], "resample_filter": inputs["f"]}
    return inputs, _terms({**inputs, **about}), 7


def _modulated_conv2d(s: Source) -> Made:
    inputs, outputs = _layer(s)
    n, channels, h, w = inputs["x"].shape
    k = s.one(None, None, None, 1, 2, 3)
    inputs |= {
        "styles": 1 + 0.3 * s.normal(*((n, channels) if k is None else (n, k, channels))),
        "up": s.one(1, 1, 1, 2, 2, 3),
        # the style of one channel changes nothing: all of its gradient is rounding
        "demodulate": channels > 1 and s.often(0.7),
        "flip_weight": s.often(0.6),
        "eps": s.one(1e-8, 1e-8, 0.0, 0.1),
    }
    if k is not None:
        size = s.one((h, w), (2 * h, 2 * w), (8, 8), (h + 3, w + 1))
        soft = s.normal(n, k, *size).softmax(1)
        hard = torch.nn.functional.one_hot(soft.argmax(1), k).movedim(-1, 1)
        inputs["regions"] = s.one(soft, hard.double(), hard.bool())
    inputs, ratio = _away_from_kinks("modulated_conv2d", inputs, s)
    # the styles' gradient is read back from the result: it has the roundings of what was added
    return inputs, math.ceil(_terms(inputs) * ratio**2), 6


def _away_from_kinks(op: str, inputs: Inputs, s: Source | None = None) -> tuple[Inputs, float]:
    """The arguments, linear where rounding could move a value over a kink; with a source, at times
    with noise, whose size is the result's. And how many times larger than the convolution is what
    comes before the activation."""
    straight = {"activation": "linear", "clamp": None, "gain": 1.0, "bias": None}
    try:
        with compare.plain(), torch.no_grad():
            u = v = compare.call(op, {**inputs, **straight})
    except ValueError:  # nothing would be left: to be refused
        return inputs, 1.0
    if s is not None and not u.any():  # nothing that styles change
        inputs["demodulate"] = False
    if inputs["bias"] is not None:
        v = v + inputs["bias"].view(1, -1, 1, 1)
    if s is not None and s.often(0.5):
        n, _, *size = v.shape
        noise = s.normal(*s.one((n, 1, *size), (1, 1, *size), size))
        strength = s.one(None, 0.3, -0.2, *[torch.full(((), (1,))[s.often(0.5)], 0.1)] * 2)
        if isinstance(strength, Tensor):
            strength = strength.double()
        inputs |= {"noise": noise, "noise_strength": strength}
        v = v + (1.0 if strength is None else strength) * noise
    slope = inputs["negative_slope"] if inputs["activation"] == "lrelu" else 1.0
    kinks = [0.0] if slope != 1 else []
    if inputs["clamp"] is not None:
        top = inputs["clamp"] / inputs["gain"]
        kinks += [top, -top / slope] if slope else [top]
    near = any(((v - kink).abs() < 0.5).any() for kink in kinks)
    inputs = {**inputs, "activation": "linear", "clamp": None} if near else inputs
    largest = [t.abs().max().item() if t.numel() else 0.0 for t in (u, v)]
    return inputs, max(1.0, largest[1] / largest[0]) if largest[0] else 1.0


MAKERS: dict[str, Callable[[Source], Made]] = {
    "bias_act": _bias_act,
    "upfirdn2d": _upfirdn2d,
    "masked_l1": _masked_l1,
    "crop_patches": _crop_patches,
    "conv2d_bias_act": _conv2d_bias_act,
    "conv2d_resample": _conv2d_resample,
    "modulated_conv2d": _modulated_conv2d,
}


def draw(seed: int, number: int, ops: tuple[str, ...], device: str = "cpu") -> Drawn:
    """The call of that number."""
    s = Source(seed, number)
    op = s.choices(ops, [3 if op == "modulated_conv2d" else 1 for op in ops])[0]
    dtype = s.choices(list(DTYPES), list(DTYPES.values()))[0]
    made, terms, stored = MAKERS[op](s)
    first = next(iter(made))
    mixed = dtype in HALVES and s.often(0.5) and op != "upfirdn2d"
    inputs: Inputs = {}
    views: dict[str, str] = {}
    for name, value in made.items():
        if isinstance(value, Tensor):
            value = value.to(device)
            views[name] = s.choice(list(VIEWS)) if s.often(0.6) else "contiguous"
            value = VIEWS[views[name]](_cast(s, op, name, value, dtype, mixed and name != first))
            if value.is_floating_point() and name not in WITHOUT_GRADIENT and s.often(0.75):
                value = value.detach().requires_grad_()
        inputs[name] = value
    spoiled = _spoil(s, inputs) if s.often(0.15) else ""
    case = Case(op, f"{seed}-{number}", lambda generator: {}, (), terms=terms, stored=stored)
    dy = s.choice(list(VIEWS)) if s.often(0.5) else "contiguous"
    return Drawn(op, dtype, inputs, case, views, dy, s.often(0.12), spoiled)


def _cast(s: Source, op: str, name: str, value: Tensor, dtype: torch.dtype, mixed: bool) -> Tensor:
    """The argument in the call's dtype, or in one that it may have beside it."""
    if value.dtype == torch.bool:
        return value
    if name == "boxes":
        return value.to(s.one(torch.float32, torch.float64))
    if name in ("filter", "resample_filter", "f"):
        return value.to(s.one(dtype, torch.float32, torch.float64))
    may = op != "masked_l1" or name == "mask"
    return value.to(torch.float32 if mixed and may and s.often(0.5) else dtype)


# ---- calls that should be refused, unless the change does no harm

_NUMBERS: tuple[Any, ...] = (
    *(True, False, None, "1", 0, -1, 1.5, math.nan, math.inf, -math.inf, [1, 2, 3], [], {}, 2j),
    *(np.int64(1), np.uint8(2), np.float32(0.5), np.bool_(True), np.array([1, 1])),
    *(torch.tensor(1), torch.tensor(0.5), torch.tensor([1, 1]), [torch.tensor(1)] * 2, [True] * 4),
)
TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "half": lambda x: x.half(),
    "float": lambda x: x.float(),
    "double": lambda x: x.double(),
    "integers": lambda x: x.nan_to_num().long(),
    "complex": lambda x: x.to(torch.complex64),
    "on meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "fewer": lambda x: x[..., :-1] if x.ndim else x,
    "more": lambda x: torch.cat((x, x)) if x.ndim else x,
    "flat": lambda x: x.reshape(-1),
    "one dimension more": lambda x: x[None],
    "empty": lambda x: x[:0] if x.ndim else x,
    "none": lambda x: None,
    "list": lambda x: x.tolist(),
    "number": lambda x: 3,
    "gradient wanted": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
}


def _spoil(s: Source, inputs: Inputs) -> str:
    """Change one argument in place; what was done."""
    name = s.choice(list(inputs))
    value = inputs[name]
    if isinstance(value, Tensor):
        how = s.choice(list(TENSORS))
        inputs[name] = TENSORS[how](value.detach())
        strength = inputs.get("noise_strength")
        if isinstance(strength, Tensor) and inputs["noise"] is None:  # then it has no gradient
            inputs["noise_strength"] = strength.detach()
        return f"{name} {how}"
    inputs[name] = s.choice(_NUMBERS)
    return f"{name} = {inputs[name]!r}"
