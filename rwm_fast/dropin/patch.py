"""`patch(model)`: other projects' layers, in place, on rwm_fast."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rwm_fast.dropin import _calls, _finder, layers, networks
from rwm_fast.dropin.layers import Patched
from rwm_fast.ops._dispatch import use_backend


class Kind(NamedTuple):
    """A class of layers by name: what it must be, its forward, its arguments, one trial's input."""

    check: Callable[[Any], str | None]
    run: Callable[..., Any]
    arguments: tuple[str, ...]  # beside the image
    trial: Callable[[Any, Callable[..., Tensor]], tuple[Tensor, ...]]


def _image(channels: int, draw: Callable[..., Tensor]) -> Tensor:
    return draw(2, channels, 9, 10)


def _styled_trial(layer: Any, draw: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    conv = layers._conv(layer)
    x, style = _modulated_trial(conv, draw)
    return x, style, draw(2, 1, *layers._size(conv, x))


def _modulated_trial(layer: Any, draw: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    affine = layers.first(layer, "modulation", "style_modulation")
    weight = next(p for p in affine.parameters() if p.ndim == 2)
    return _image(layer.weight.shape[2], draw), draw(2, weight.shape[1])


def _activation_trial(layer: Any, draw: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    bias = getattr(layer, "bias", None)
    return (_image(3 if bias is None else len(bias), draw),)


_resampler = lambda run: Kind(
    layers.check_resample, run, (), lambda layer, draw: (_image(3, draw),)
)
_MODULATED = Kind(layers.check_modulated, layers.run_modulated, ("style",), _modulated_trial)
_STYLED = Kind(layers.check_styled, layers.run_styled, ("style", "noise"), _styled_trial)
_ACTIVATION = Kind(layers.check_activation, layers.run_activation, (), _activation_trial)
KINDS = {
    "ModulatedConv2d": _MODULATED,
    "StyledConv": _STYLED,
    "StyleConv": _STYLED,
    "ModulatedStyleConv": _STYLED,
    "FusedLeakyReLU": _ACTIVATION,
    "FusedBiasLeakyReLU": _ACTIVATION,
    "_FusedBiasLeakyReLU": _ACTIVATION,
    "Blur": _resampler(layers.run_blur),
    "UpFirDnSmooth": _resampler(layers.run_blur),
    "Upsample": _resampler(layers.run_upsample),
    "UpFirDnUpsample": _resampler(layers.run_upsample),
    "UpsampleUpFIRDn": _resampler(layers.run_upsample),
    "Downsample": _resampler(layers.run_downsample),
    "UpFirDnDownsample": _resampler(layers.run_downsample),
    "DownsampleUpFIRDn": _resampler(layers.run_downsample),
    "ConvLayer": Kind(
        layers.check_conv_layer,
        layers.run_conv_layer,
        (),
        lambda layer, draw: (_image(layers._parts(layer)[1].weight.shape[1], draw),),
    ),
    "Conv2dLayer": Kind(
        layers.check_conv2d_layer,
        layers.run_conv2d_layer,
        (),
        lambda layer, draw: (_image(layer.weight.shape[1], draw),),
    ),
}
IMAGES = ("input", "x", "image")
# attributes that change a layer's size and not what it does
SIZES = {"in_channel", "out_channel", "in_channels", "out_channels", "scale", "training"}


def patch(model: nn.Module) -> Callable[[], None]:
    """Lets the layers that are known run on rwm_fast; returns a function that takes it back.

    Known are the classes of `KINDS`, and the function modulated_conv2d in the modules of NVIDIA's
    networks. A layer counts as known by its attributes and shapes, and because a copy of it with
    random parameters gives the same result in float64 both ways; another is left as it is and
    named, with the reason. Parameters, buffers, hooks, names and state dicts stay; copies of a
    model stay patched; a whole model is pickled after it was taken back.

    Raises ValueError if no layer is known.
    """
    trials: dict[Any, str | None] = {}
    done: list[tuple[nn.Module, type]] = []
    for layer in model.modules():
        kind = KINDS.get(type(layer).__name__)
        own = type(layer).__module__.split(".")[0] in ("rwm_fast", "torch")
        if kind is None or own or isinstance(layer, Patched):
            continue
        refusal = kind.check(layer) or _other_arguments(layer, kind)
        if refusal is None:
            key = (type(layer), *_settings(layer))
            if key not in trials:
                trials[key] = _trial(layer, kind)
            refusal = trials[key]
        if refusal is None:
            done.append((layer, type(layer)))
            layer.__class__ = _patched(type(layer), kind)
        else:
            _finder.leave(_name(type(layer)), refusal)
    functions = _functions(model)
    if not done and not functions:
        kinds = ", ".join(sorted({type(layer).__name__ for layer in model.modules()}))
        raise ValueError(f"patch: no layer of this model is known; it is made of {kinds}")
    _report(done, functions)

    def undo() -> None:
        for layer, theirs in done:
            layer.__class__ = theirs
        for scope, function in functions:
            scope["modulated_conv2d"] = function

    return undo


_classes: dict[tuple[type, Kind], type] = {}


def _patched(theirs: Any, kind: Kind) -> Any:
    """A class like theirs with our forward."""
    if (theirs, kind) not in _classes:
        signature = inspect.signature(theirs.forward)

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs:
                bound = signature.bind(self, *args, **kwargs)
                if len(bound.args) != len(bound.arguments):  # something between them was left out
                    return theirs.forward(self, *args, **kwargs)
                args = bound.args[1:]
            return kind.run(self, theirs, *args)

        about = {"forward": forward, "__module__": theirs.__module__, "__doc__": theirs.__doc__}
        _classes[theirs, kind] = type(theirs.__name__, (Patched, theirs), about)
    return _classes[theirs, kind]


def _other_arguments(layer: nn.Module, kind: Kind) -> str | None:
    """Why its forward does not take the arguments that are known, or None."""
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    known = names[:1] and names[0] in IMAGES and tuple(names[1:])[: len(kind.arguments)]
    more = {"input_gain", "add_noise", "return_noise", "gain"}
    if known == kind.arguments and set(names[1 + len(kind.arguments) :]) <= more:
        return None
    return f"its forward takes ({', '.join(names)})"


def _settings(layer: nn.Module) -> tuple[Any, ...]:
    """What tells one trial from another: plain attributes, of the parts too."""
    found = []
    for name, part in layer.named_modules():
        for key, value in sorted(vars(part).items()):
            if isinstance(value, (int, float, str, tuple, type(None))) and key not in SIZES:
                found.append((name, type(part), key, value))
    return tuple(found)


def _trial(layer: nn.Module, kind: Kind) -> str | None:
    """Why a copy with random parameters gives another result with our forward, or None."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    values = [value for part in layer.modules() for value in vars(part).values()]
    # a weight that a hook made in the last forward cannot be copied; the hook makes it again
    made = {id(v): v.detach() for v in values if isinstance(v, Tensor) and not v.is_leaf}
    try:
        tried = copy.deepcopy(layer, made).cpu().double()
    except RuntimeError as error:
        return f"it cannot be copied for a trial ({error})"
    with torch.no_grad(), use_backend("auto"), _calls.uncounted():
        for parameter in tried.parameters():
            parameter.copy_(draw(*parameter.shape))
        inputs = kind.trial(tried, draw)
        for part in tried.modules():
            if isinstance(part, Patched):
                part.__class__ = type(part).__mro__[2]  # theirs
        try:
            expected = tried(*inputs)
        except Exception as error:  # whatever their code raises is the reason
            return f"its own forward fails on {list(inputs[0].shape)} ({error})"
        tried.__class__ = _patched(type(tried), kind)
        if kind is _STYLED:
            conv = layers._conv(tried)
            conv.__class__ = _patched(type(conv), _MODULATED)
        try:
            found = tried(*inputs)
        except Exception as error:  # attributes that are not what they are elsewhere
            return f"our forward fails on it ({error})"
    return _difference(found, expected)


def _difference(found: Tensor, expected: Tensor) -> str | None:
    if found.shape != expected.shape:
        return f"its forward gives {list(expected.shape)}, ours {list(found.shape)}"
    error = float((found - expected).norm() / expected.norm())
    # float32 buffers, and ε that stands elsewhere, differ by 1e-7
    return None if error < 1e-6 else f"its forward gives another result (by {error:.0e})"


# ---- the function of NVIDIA's networks


def _functions(model: nn.Module) -> list[tuple[dict[str, Any], Any]]:
    """Puts ours in the place of modulated_conv2d in the modules that the layers come from."""
    done: list[tuple[dict[str, Any], Any]] = []
    ours = set(networks.FORMS.values())
    for theirs in {type(layer) for layer in model.modules()}:
        scope = getattr(theirs.forward, "__globals__", {})
        function = scope.get("modulated_conv2d")
        foreign = not str(scope.get("__name__", "rwm_fast")).startswith("rwm_fast")
        if not callable(function) or function in ours or not foreign:
            continue
        form = networks.FORMS.get(_text(function))
        refusal = (
            "its modulated_conv2d is not known" if form is None else _function_trial(function, form)
        )
        if refusal is None:
            done.append((scope, function))
            scope["modulated_conv2d"] = form
        else:
            _finder.leave(f"{scope['__name__']}.modulated_conv2d", refusal)
    return done


def _text(function: Any) -> str:
    """Its arguments and defaults, of the function inside a decorator that hides them."""
    inner = inspect.getclosurevars(function).nonlocals.get("fn", function)
    parameters = inspect.signature(inner).parameters.values()
    return ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)


def _function_trial(theirs: Any, ours: Any) -> str | None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    arguments: tuple[Any, ...] = (draw(2, 3, 6, 7), draw(4, 3, 3, 3), draw(2, 3))
    keywords: dict[str, Any] = {"padding": 1}
    if ours is networks.modulated_conv2d:
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        keywords |= {"up": 2, "noise": draw(2, 1, 12, 14), "resample_filter": taps}
        keywords["flip_weight"] = False
    else:
        keywords["input_gain"] = draw(3)
    with torch.no_grad(), use_backend("auto"), _calls.uncounted():
        return _difference(ours(*arguments, **keywords), theirs(*arguments, **keywords))


# ---- words


def _name(theirs: type) -> str:
    return f"{theirs.__module__}.{theirs.__name__}"


def _report(
    done: list[tuple[nn.Module, type]], functions: list[tuple[dict[str, Any], Any]]
) -> None:
    counts = Counter(_name(theirs) for _, theirs in done)
    found = {name: f"{n} layers" for name, n in counts.items()}
    found |= {f"{scope['__name__']}.modulated_conv2d": "NVIDIA" for scope, _ in functions}
    _finder.replaced.update(found)
    said = ", ".join(f"{name} ({what})" for name, what in found.items())
    _finder.log.warning("patch: %s on rwm_fast", said)
