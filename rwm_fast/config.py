"""All settings of the package: frozen dataclasses, checked when made, and the table of presets.

The defaults are the 256 px settings. The comment at a field starts with who chose its value:
"paper" (You et al., ACM MM 2021, arXiv 2108.08674), "base" (the Swapping Autoencoder as its code
has it), or "ours" (the paper does not say, or it is an addition).
This file is longer than most because every setting and every preset stands on this one page.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

Ints = tuple[int, ...]
Taps = tuple[float, ...]
Pair = tuple[float, float]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check(
    config: typing.Any, which: tuple[object, ...], test: Callable[[typing.Any], bool], rule: str
) -> None:
    """ValueError unless the test holds for every field of one of these names or types."""
    section = type(config).__name__.removesuffix("Config").lower()
    for f in dataclasses.fields(config):
        if f.name in which or f.type in which:
            value = getattr(config, f.name)
            _require(test(value), f"{section}.{f.name} must {rule}, got {value}")


def _share(value: float) -> bool:
    return 0 <= value <= 1


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the four networks.

    Widths run from the image inwards (encoder, discriminators) or outwards (generator).
    """

    image_size: int = 256  # base: px, side of a training crop; inference: any multiple of stride
    fold: int = 1  # ours: pixels folded into channels at both ends, a side; 1 = none
    input_kernel: int = 1  # base: px, first convolution of encoder and image discriminator
    # encoder
    encoder_channels: Ints = (32, 64, 128, 256, 512)  # base: width per resolution, image to code
    encoder_filter: Taps = (1, 2, 1)  # base: low-pass taps before each halving
    encoder_padding: Literal["reflect", "zeros"] = "reflect"  # base: border of the main path
    content_channels: int = 8  # base: channels of the content code
    content_kernel: int = 1  # base: px, hidden convolution of the content head
    style_dim: int = 2048  # base: numbers in the style code
    style_channels: Ints = (1024, 2048)  # base: width of each halving layer of the style head
    # base: unpadded strided convolutions in the style head; ours: residual blocks
    style_blocks: Literal["valid", "residual"] = "valid"
    normalize_codes: bool = True  # base: codes of unit length, content per pixel, style as a whole
    # generator
    content_fold: int = 1  # ours: first blocks see the code folded by this; it joins again later
    code_modulation: bool = True  # base: the style scales and shifts the content code first
    unit_rms_codes: bool = False  # ours: codes scaled from unit length to unit rms on entry
    head_channels: Ints = (256, 512)  # base: blocks at the resolution of the (folded) content code
    up_channels: Ints = (512, 512, 256, 128)  # base: blocks that double the resolution
    tail_channels: Ints = ()  # ours: blocks at the output resolution
    rgb_kernel: int = 1  # base: px, to-RGB layer
    generator_filter: Taps = (1, 3, 3, 1)  # base: low-pass taps after each doubling
    skip_activation: bool = True  # base: bias and activation in the skips of up_channels
    noise: bool = True  # base: a noise map per styled layer, learned strength
    demodulation: Literal["style", "weight"] = "style"  # StyleGAN2's; weight = base, style-free
    # discriminators
    discriminator_channels: Ints = (128, 256, 512, 512, 512, 512, 512)  # base: width per resolution
    discriminator_hidden: int = 512  # base: width of the hidden linear layer
    discriminator_filter: Taps = (1, 3, 3, 1)  # base: low-pass taps of both discriminators
    patch_size: int = 128  # base: px, side of a crop as the patch discriminator sees it
    patch_channels: Ints = (32, 64, 128, 256, 384, 384)  # base: width per resolution
    patch_wide_channels: int = 768  # base: width of the last residual block; 0 = no such block
    patch_feature_channels: int = 384  # base: channels of a patch's features
    patch_hidden: Ints = (2048, 2048, 1024)  # base: hidden layers that judge a pair of features
    patch_aggregate: bool = True  # base: targets are judged against the mean reference patch

    def __post_init__(self) -> None:
        named = [
            f"{part}_channels" for part in ("encoder", "head", "style", "discriminator", "patch")
        ]
        _check(self, (*named,), lambda widths: len(widths) > 0, "name at least one width")
        whole = [f.name for f in dataclasses.fields(self) if f.type is int]
        whole.remove("patch_wide_channels")
        _check(self, (*whole,), lambda n: n >= 1, "be at least 1")
        _check(self, (Ints,), lambda widths: min(widths, default=1) >= 1, "be at least 1")
        _check(self, ("patch_wide_channels",), lambda n: n >= 0, "be at least 0")
        taps = lambda taps: 1 <= len(taps) <= 8 and sum(taps) > 0
        _check(self, (Taps,), taps, "be 1 to 8 taps with a positive sum")
        kernels = ("input_kernel", "content_kernel", "rgb_kernel")
        _check(self, kernels, (1, 3).__contains__, "be one of (1, 3)")
        _check(self, ("fold", "content_fold"), (1, 2, 4).__contains__, "be one of (1, 2, 4)")
        down, up = 2 ** (len(self.encoder_channels) - 1), 2 ** len(self.up_channels)
        _require(
            down * self.content_fold == up,
            f"model.up_channels doubles {up}-fold, but encoder_channels with content_fold "
            f"halves {down * self.content_fold}-fold",
        )
        for name, size in (
            ("discriminator_channels", self.image_size // self.fold),
            ("patch_channels", self.patch_size),
        ):
            halvings = len(getattr(self, name)) - 1
            _require(
                size % 2**halvings == 0 and size >> halvings >= 3,
                f"model.{name}: {size} px does not halve {halvings} times to a size >= 3",
            )
        multiple = lambda size: size % self.stride == 0
        _check(self, ("image_size",), multiple, f"be a multiple of {self.stride}")

    @property
    def code_stride(self) -> int:
        """Image pixels per pixel of the content code."""
        return self.fold << (len(self.encoder_channels) - 1)

    @property
    def stride(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.code_stride * self.content_fold


@dataclass(frozen=True)
class LossConfig:
    """Weight and timing of every term. Of these the paper gives K only."""

    reconstruction: float = 1.0  # base: weight of mean |I_rec - I_A|
    edge: float = 0.0  # ours: L1 of neighbour differences, weight inside the reconstruction term
    gan_reconstructed: float = 0.5  # base: image discriminator on reconstructions
    gan_swapped: float = 1.0  # base code: image discriminator on swaps (0.5 in its paper)
    gan_hybrid: float = 0.0  # ours: image discriminator on hybrids
    patch: float = 1.0  # base: patch discriminator
    num_patches: int = 8  # base: crops per image
    patch_scale: Pair = (1 / 8, 1 / 4)  # base: side of a crop as a fraction of the image side
    # base: a crop's points run from edge to edge of its box; ours: between its pixels' centres
    patch_grid: Literal["edges", "centres"] = "centres"
    code_consistency: float = 1.0  # ours: weight of L_CC, 0 = off
    style_lambda: float = 16.0  # ours: lambda; sqrt(style_dim / content_channels) balances L_CC
    consistency_interval: int = 16  # paper: K, L_CC on every K-th generator step
    consistency_gain: float = 1.0  # ours: factor on L_CC when due; K would keep its mean weight
    consistency_trains: Literal["generator", "both"] = "generator"  # ours: who gets its gradient
    consistency_start_kimg: float = 0.0  # ours: kimg before the first L_CC (paper: "train E first")
    content_alignment: float = 1.0  # ours: weight of L_CA, 0 = off
    alignment_interval: int = 1  # ours: L_CA on every k-th generator step
    alignment_from_start: bool = False  # ours: L_CA in the reconstruction part of a run too
    detach_swapped: bool = True  # ours: in L_CA I_g, clamped to [-1, 1], is a fixed target
    share_noise: bool = True  # ours: I_g and I_h are painted with the same noise maps
    r1_gamma: float = 10.0  # base: gamma / 2 * |dD/dx|^2
    r1_patch_gamma: float = 1.0  # base: gamma / 4 * (|dP/dreference|^2 + |dP/dtarget|^2)
    r1_interval: int = 16  # base: R1 on every k-th discriminator step, times k
    r1_phase: Literal["first", "last"] = "first"  # base: last, R1 on the last step of every k
    content_jitter: float = 0.0  # ours: colour mixing of what the content branch sees, 0 = off
    content_jitter_keep: float = 0.2  # ours: share of pictures that keep their colours under it
    content_jitter_tone: float = 0.0  # ours: octaves of the exponent that bends brightness under it

    def __post_init__(self) -> None:
        _check(self, (int,), lambda n: n >= 1, "be at least 1")
        _check(self, (float,), lambda x: x >= 0, "not be negative")
        scale = lambda pair: 0 < pair[0] <= pair[1] <= 1
        _check(self, ("patch_scale",), scale, "satisfy 0 < low <= high <= 1")
        _check(self, ("content_jitter_keep",), _share, "be in [0, 1]")


@dataclass(frozen=True)
class MaskConfig:
    """Random binary masks for L_CA. The paper says "random binary masks"; the rest is ours."""

    rectangle: float = 1.0  # ours: relative frequency of 1 to max_shapes rectangles
    ellipse: float = 1.0  # ours: of 1 to max_shapes ellipses
    stroke: float = 1.0  # ours: of free-form brush strokes
    half_plane: float = 1.0  # ours: of half-planes
    blob: float = 1.0  # ours: of thresholded low-frequency noise
    max_shapes: int = 3  # ours: rectangles, ellipses or strokes in one mask
    area: Pair = (0.05, 0.70)  # ours: share of the image that is 1, before inversion
    invert: float = 0.5  # ours: probability of exchanging inside and outside

    def __post_init__(self) -> None:
        weights = (self.rectangle, self.ellipse, self.stroke, self.half_plane, self.blob)
        _require(
            min(weights) >= 0 and sum(weights) > 0,
            f"mask: shape frequencies must be >= 0 and not all 0, got {weights}",
        )
        area = lambda pair: 0 < pair[0] < pair[1] < 1
        _check(self, ("area",), area, "satisfy 0 < low < high < 1")
        _check(self, ("invert",), _share, "be in [0, 1]")
        _check(self, ("max_shapes",), lambda n: n >= 1, "be at least 1")


@dataclass(frozen=True)
class DataConfig:
    """Pictures, and how they become training crops of model.image_size."""

    # ours: folders, zips or tar shards, each a domain; empty = landscapes
    sources: tuple[str, ...] = ()
    resize: int = 256  # base: px, side that a picture is scaled to before the crop
    resize_mode: Literal["short", "square"] = "short"  # base: scenes short side, faces square
    zoom: Pair = (1.0, 1.0)  # ours: range of a random enlargement before the crop
    flip: bool = True  # base: mirror half of the pictures
    max_bad_fraction: float = 0.05  # ours: share of unreadable pictures above which a run stops
    held_out: float = 0.1  # ours: share of pictures kept from training, for scores
    cache_mb: float = 1000.0  # ours: MB of decoded pictures kept in memory; more stays on disk
    pool: int = 6000  # ours: landscapes drawn once and kept
    workers: int = 2  # ours: loader processes for pictures on disk
    shard_groups: int = 1  # ours: parts of a set of shards, each with its own part of every batch
    max_megapixels: float = 250.0  # ours: a picture's size above which it is not read
    max_member_mb: float = 256.0  # ours: MB of a file in a zip, above which it is not read

    def __post_init__(self) -> None:
        limits = ("resize", "pool", "shard_groups", "max_megapixels", "max_member_mb")
        _check(self, limits, lambda n: n > 0, "be positive")
        _check(self, ("workers", "cache_mb"), lambda n: n >= 0, "not be negative")
        _check(self, ("zoom",), lambda z: 1 <= z[0] <= z[1], "satisfy 1 <= low <= high")
        _check(self, ("sources",), all, "name a folder or zip each")
        _check(self, ("max_bad_fraction", "held_out"), _share, "be in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """Steps, optimisers and the clock: images seen, 1 kimg = 1000 images."""

    batch: int = 16  # base: images per iteration of all processes, even (styles swap in pairs)
    accumulate: int = 1  # ours: slices of a batch, in memory one after the other
    checkpoint_activations: bool = False  # ours: blocks keep their inputs only
    kimg: float = 25_000.0  # base: length of a run
    seconds: float = 0.0  # ours: time budget, ends the run and drives its schedules; 0 = none
    quick_seconds: float = 0.0  # ours: time budget under --quick, 0 = the preset has no quick form
    # base: D and G on successive batches; ours: on one batch, painted once and judged twice
    step_order: Literal["alternate", "shared"] = "alternate"
    reconstruction_fraction: float = 0.0  # ours: first share of a run, reconstruction loss alone
    quick_reconstruction_fraction: float = 0.0  # ours: the same under --quick
    learning_rate: float = 2e-3  # base: Adam, encoder and generator
    betas: Pair = (0.0, 0.99)  # base
    second_part_gain: float = 1.0  # ours: factor on learning_rate after the reconstruction part
    discriminator_learning_rate: float = 2e-3  # base: Adam, both discriminators
    discriminator_betas: Pair = (0.0, 0.99)  # base
    lazy_r1_correction: bool = True  # base: D's rate * c, betas ** c, c = r1_interval / (that + 1)
    decay_fraction: float = 0.0  # ours: last share of a run, over which the rates fall linearly
    decay_floor: float = 0.02  # ours: factor on the rates at the end of that fall
    ema_half_life_kimg: float = 10.0  # StyleGAN2: of the averaged weights used for pictures, export
    ema_rampup: float = 0.05  # StyleGAN2-ADA: half-life at most this share of the images so far
    divergence: float = 50.0  # ours: a term beyond so many times its usual ends a run, 0 = none
    skipped_in_a_row: int = 10  # ours: steps that are not finite and end a run, 0 = no number does
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # ours: bf16 on CUDA since Ampere
    device: str = "auto"  # ours: CUDA when there is one
    threads: int = 0  # ours: CPU threads, 0 = by timing under a time budget, else the cores
    seed: int = 0  # ours: of everything random
    log_kimg: float = 1.0  # ours: kimg between log lines
    sample_kimg: float = 100.0  # ours: kimg between picture grids
    sample_seconds: float = 0.0  # ours: a grid at least this often, 0 = sample_kimg alone
    checkpoint_kimg: float = 500.0  # ours: kimg between checkpoints
    keep_checkpoints: int = 2  # ours: older ones are removed, 0 = keep all
    tensorboard: bool = False  # ours: the log as TensorBoard events too

    def __post_init__(self) -> None:
        even = lambda n: n >= 2 and n % 2 == 0
        _check(self, ("batch",), even, "be even (styles swap in pairs)")
        divides = lambda n: n >= 1 and self.batch % (2 * n) == 0
        _check(self, ("accumulate",), divides, f"divide the {self.batch // 2} pairs of a batch")
        names = [f.name for f in dataclasses.fields(self)]
        shares = tuple(name for name in names if name.endswith("_fraction"))
        _check(self, (*shares, "decay_floor"), _share, "be in [0, 1]")
        _check(self, (Pair,), lambda betas: all(0 <= b < 1 for b in betas), "be in [0, 1)")
        positive = tuple(name for name in names if name.endswith(("kimg", "learning_rate")))
        _check(self, positive, lambda x: x > 0, "be positive")
        _check(self, (int, float), lambda x: x >= 0, "not be negative")
        _check(self, (float,), math.isfinite, "be finite")
        _check(self, (int,), lambda n: n < 2**63, "be below 2**63")
        _check(self, ("threads",), lambda n: n <= 1024, "be at most 1024")


@dataclass(frozen=True)
class Config:
    """Everything a run needs; kept in config.json and in the header of exported weights."""

    preset: str = "paper-256"  # the preset this started from
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        size, least = self.model.image_size, lambda resize: not self.data.sources or resize >= size
        _check(self.data, ("resize",), least, f"be at least model.image_size {size}")

    def to_json(self, indent: int | None = 2) -> str:
        """JSON text that `from_json` turns back into an equal Config."""
        return json.dumps(dataclasses.asdict(self), indent=indent)

    @staticmethod
    def from_json(text: str) -> "Config":
        """Config from JSON text.

        Unknown fields and wrong types raise ValueError; absent fields take their defaults.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits; nesting
            raise ValueError(f"config: not valid JSON ({error})") from None
        config: Config = _parse(Config, values, "config")
        return config

    def quick(self) -> "Config":
        """The two-minute form of a preset that has one."""
        train, names = self.train, [n for n, c in PRESETS.items() if c.train.quick_seconds > 0]
        _require(
            train.quick_seconds > 0,
            f"preset {self.preset!r} has no quick form; presets that have one: {', '.join(names)}",
        )
        fraction = train.quick_reconstruction_fraction
        train = replace(train, seconds=train.quick_seconds, reconstruction_fraction=fraction)
        return replace(self, train=train)


def _parse(kind: typing.Any, value: typing.Any, where: str) -> typing.Any:
    """`value`, as read from JSON, as `kind`: a dataclass or one of the field types above."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _require(isinstance(value, dict), f"{where}: expected an object, got {value!r}")
        kinds = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(kinds))
        names = ", ".join(name or repr(name) for name in unknown)
        _require(not unknown, f"{where}: unknown field {names}; known: {', '.join(kinds)}")
        return kind(**{k: _parse(kinds[k], v, f"{where}.{k}") for k, v in value.items()})
    if origin is Literal:
        names = ", ".join(map(repr, arguments))
        _require(value in arguments, f"{where}: expected one of {names}, got {value!r}")
        return value
    if origin is tuple:
        _require(isinstance(value, list), f"{where}: expected a list, got {value!r}")
        each = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        _require(len(value) == len(each), f"{where}: expected {len(each)} values, got {len(value)}")
        return tuple(_parse(k, v, where) for k, v in zip(each, value, strict=True))
    accepted = (int, float) if kind is float else kind
    _require(
        isinstance(value, accepted) and isinstance(value, bool) == (kind is bool),
        f"{where}: expected {kind.__name__}, got {value!r}",
    )
    try:
        return kind(value)
    except OverflowError:
        raise ValueError(f"{where}: expected a number that a float holds") from None


# A table: every preset is read as one block.
# fmt: off
_PAPER_512 = ModelConfig(
    image_size=512, discriminator_channels=(64, 128, 256, 512, 512, 512, 512, 512))
_PAPER_1024 = ModelConfig(  # trains on 768 px crops of 1024 px pictures
    image_size=768,
    encoder_channels=(13, 26, 51, 102, 205, 410), style_channels=(819, 1536), style_dim=1536,
    head_channels=(204, 409), up_channels=(409, 409, 409, 204, 102),
    discriminator_channels=(32, 64, 128, 256, 512, 512, 512, 512, 512),
    patch_size=256, patch_channels=(16, 32, 64, 128, 256, 384, 384))
_SMALL_128 = ModelConfig(
    image_size=128,
    encoder_channels=(32, 64, 128, 256), style_channels=(384, 512), style_dim=512,
    head_channels=(128, 256), up_channels=(256, 128, 64),
    discriminator_channels=(64, 128, 256, 256, 256, 256), discriminator_hidden=256,
    patch_size=64, patch_channels=(32, 64, 128, 192, 192), patch_wide_channels=0,
    patch_feature_channels=192, patch_hidden=(512, 512))
_BASE_LOSS = LossConfig(
    code_consistency=0.0, content_alignment=0.0, patch_grid="edges", r1_phase="last")
_BASE_TRAIN = TrainConfig(precision="fp32", ema_half_life_kimg=1e-6)  # no averages
_DEMO = ModelConfig(
    image_size=64, fold=2, input_kernel=3,
    encoder_channels=(32,), encoder_filter=(1, 1), encoder_padding="zeros",
    content_channels=4, content_kernel=3,
    style_dim=64, style_channels=(64, 128, 128),
    content_fold=2, code_modulation=False, unit_rms_codes=True,
    head_channels=(64, 64), up_channels=(32,), rgb_kernel=3,
    generator_filter=(1, 1), skip_activation=False, noise=False,
    discriminator_channels=(32, 64, 128, 128), discriminator_hidden=128,
    discriminator_filter=(1, 1),
    patch_size=16, patch_channels=(32, 64, 128), patch_wide_channels=0,
    patch_feature_channels=128, patch_hidden=(128, 128))

PRESETS: dict[str, Config] = {
    # base: churches and bedrooms at 256 px
    "paper-256": Config("paper-256"),
    # base: mountains at 512 px; its faces take resize_mode square and r1_patch_gamma 1
    "paper-512": Config("paper-512", _PAPER_512,
        LossConfig(r1_patch_gamma=10.0), DataConfig(resize=512)),
    # base: faces at 1024 px
    "paper-1024": Config("paper-1024", _PAPER_1024,
        LossConfig(style_lambda=14.0), DataConfig(resize=1024, resize_mode="square")),
    # base itself, nothing of the paper: churches and bedrooms, mountains, faces
    "base-256": Config("base-256",
        ModelConfig(demodulation="weight", patch_aggregate=False), _BASE_LOSS, train=_BASE_TRAIN),
    "base-512": Config("base-512", replace(_PAPER_512, demodulation="weight"),
        replace(_BASE_LOSS, r1_patch_gamma=10.0), DataConfig(resize=512), train=_BASE_TRAIN),
    "base-1024": Config("base-1024", replace(_PAPER_1024, demodulation="weight"),
        replace(_BASE_LOSS, style_lambda=14.0), DataConfig(resize=1024, resize_mode="square"),
        train=_BASE_TRAIN),
    # ours: the same method for one small GPU
    "small-128": Config("small-128", _SMALL_128,
        LossConfig(style_lambda=8.0), DataConfig(resize=128),
        train=TrainConfig(kimg=2_000.0, sample_kimg=20.0, checkpoint_kimg=50.0)),
    # ours: minutes on two CPU cores, on landscapes the package draws itself
    "demo": Config("demo", _DEMO,
        LossConfig(reconstruction=10.0, edge=1.0, gan_reconstructed=0.25, gan_swapped=0.5,
                   patch=0.5, num_patches=4, style_lambda=4.0, consistency_interval=4,
                   content_alignment=2.5, alignment_interval=2, alignment_from_start=True,
                   r1_gamma=1.0, content_jitter=1.4),
        DataConfig(resize=64, workers=0),
        train=TrainConfig(batch=8, kimg=1_000.0, seconds=340.0, step_order="shared",
                          reconstruction_fraction=0.8, quick_seconds=100.0,
                          quick_reconstruction_fraction=1.0, learning_rate=1.6e-2,
                          betas=(0.5, 0.99), second_part_gain=0.2, lazy_r1_correction=False,
                          decay_fraction=0.5, ema_half_life_kimg=0.6, ema_rampup=0.08,
                          log_kimg=0.4, sample_kimg=20.0, sample_seconds=20.0,
                          checkpoint_kimg=8.0)),
}
# fmt: on


def preset(name: str) -> Config:
    """The preset of that name; ValueError lists the names there are."""
    _require(name in PRESETS, f"unknown preset {name!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[name]
