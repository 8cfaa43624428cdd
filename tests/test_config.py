"""Settings: presets as published, strict JSON, refusals that name the field."""

import dataclasses
import inspect
import json
import math
import re

import pytest

from rwm_fast import config as module
from rwm_fast.config import (
    PRESETS,
    Config,
    DataConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    TrainConfig,
    preset,
)

PARTS = (ModelConfig, LossConfig, MaskConfig, DataConfig, TrainConfig)
PAPER = ("paper-256", "paper-512", "paper-1024")
BASE = ("base-256", "base-512", "base-1024")


def test_each_preset_knows_its_name():
    assert list(PRESETS) == [*PAPER, *BASE, "small-128", "demo"]
    for name in PRESETS:
        assert preset(name).preset == name


def test_unknown_preset_is_refused_with_the_list():
    with pytest.raises(ValueError, match="unknown preset 'papr'; presets: paper-256, paper-512"):
        preset("papr")


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = preset(name)
    assert Config.from_json(config.to_json()) == config
    assert Config.from_json(config.to_json(indent=None)) == config
    assert json.loads(config.to_json())["preset"] == name


def test_absent_fields_take_their_defaults():
    config = Config.from_json('{"preset": "x", "model": {"style_dim": 7}}')
    assert config == Config("x", model=dataclasses.replace(ModelConfig(), style_dim=7))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not valid JSON"),
        ("[]", r"config: expected an object, got \[\]"),
        ('{"modle": {}}', "config: unknown field modle; known: preset, model"),
        ('{"model": {"widht": 3}}', "config.model: unknown field widht"),
        ('{"model": {"fold": "2"}}', "config.model.fold: expected int, got '2'"),
        ('{"model": {"fold": true}}', "config.model.fold: expected int, got True"),
        ('{"model": {"fold": 2.0}}', "config.model.fold: expected int, got 2.0"),
        ('{"model": {"noise": 1}}', "config.model.noise: expected bool, got 1"),
        ('{"model": {"up_channels": 8}}', "config.model.up_channels: expected a list, got 8"),
        ('{"model": {"up_channels": [8, "a"]}}', "config.model.up_channels: expected int, got 'a'"),
        ('{"train": {"betas": [0.0]}}', "config.train.betas: expected 2 values, got 1"),
        ('{"loss": {"edge": null}}', "config.loss.edge: expected float, got None"),
        ('{"model": {"demodulation": "x"}}', "expected one of 'style', 'weight', got 'x'"),
    ],
)
def test_from_json_is_strict(text, message):
    with pytest.raises(ValueError, match=message):
        Config.from_json(text)


@pytest.mark.parametrize(
    "part, values, message",
    [
        (ModelConfig, dict(encoder_channels=()), "encoder_channels must name at least one width"),
        (ModelConfig, dict(head_channels=(0,)), "head_channels must be at least 1, got"),
        (ModelConfig, dict(patch_wide_channels=-1), "patch_wide_channels must be at least 0"),
        (ModelConfig, dict(input_kernel=2), r"input_kernel must be one of \(1, 3\), got 2"),
        (ModelConfig, dict(generator_filter=()), "generator_filter must be 1 to 8 taps"),
        (ModelConfig, dict(fold=3), "fold must be one of"),
        (ModelConfig, dict(content_fold=2), "doubles 16-fold, but .* halves 32-fold"),
        (ModelConfig, dict(image_size=264), "discriminator_channels: 264 px does not halve 6"),
        (ModelConfig, dict(patch_size=64), "patch_channels: 64 px does not halve 5 times"),
        (LossConfig, dict(edge=-1.0), "loss.edge must not be negative"),
        (LossConfig, dict(consistency_interval=0), "consistency_interval must be at least 1"),
        (LossConfig, dict(patch_scale=(0.5, 0.25)), "patch_scale must satisfy 0 < low <= high"),
        (LossConfig, dict(content_jitter_keep=1.5), "content_jitter_keep must be in"),
        (MaskConfig, dict(area=(0.5, 0.5)), "mask.area must satisfy"),
        (MaskConfig, dict(rectangle=0, ellipse=0, stroke=0, half_plane=0, blob=0), "not all 0"),
        (MaskConfig, dict(invert=2.0), "mask.invert must be in"),
        (MaskConfig, dict(max_shapes=0), "mask.max_shapes must be at least 1"),
        (DataConfig, dict(zoom=(0.5, 1.0)), "data.zoom must satisfy"),
        (DataConfig, dict(max_bad_fraction=2.0), "max_bad_fraction must be in"),
        (DataConfig, dict(workers=-1), "workers must not be negative"),
        (TrainConfig, dict(batch=3), "train.batch must be even"),
        (TrainConfig, dict(betas=(0.0, 1.0)), "train.betas must be in"),
        (TrainConfig, dict(learning_rate=0.0), "train.learning_rate must be positive"),
        (TrainConfig, dict(kimg=0.0), "train.kimg must be positive"),
        (TrainConfig, dict(seconds=-1.0), "train.seconds must not be negative"),
        (TrainConfig, dict(kimg=math.inf), "train.kimg must be finite"),
        (TrainConfig, dict(seed=2**63), "train.seed must be below"),
        (TrainConfig, dict(threads=2000), "train.threads must be at most 1024"),
        (DataConfig, dict(sources=("a", "")), "data.sources must name a folder or zip each"),
        (TrainConfig, dict(decay_fraction=1.1), "train.decay_fraction must be in"),
    ],
)
def test_impossible_settings_are_refused_by_name(part, values, message):
    with pytest.raises(ValueError, match=message):
        part(**values)


def test_settings_cannot_be_changed_in_place():
    for part in (*PARTS, Config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part(), dataclasses.fields(part)[0].name, None)


@pytest.mark.parametrize("part", PARTS)
def test_every_field_says_who_chose_it(part):
    """A comment on the field's line or the one above starts with paper, base, ours or StyleGAN2."""
    lines = inspect.getsource(part).splitlines()
    source = re.compile(r"# (paper|base|ours|StyleGAN2)")
    for name in (f.name for f in dataclasses.fields(part)):
        at = next(i for i, line in enumerate(lines) if re.match(rf"    {name}: ", line))
        assert source.search(lines[at]) or source.search(lines[at - 1]), name


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_hold_no_addition_of_ours(name):
    model, loss, train = preset(name).model, preset(name).loss, preset(name).train
    assert (loss.content_jitter, loss.edge, loss.gan_hybrid) == (0, 0, 0)
    assert (model.fold, model.content_fold, model.tail_channels) == (1, 1, ())
    assert not model.unit_rms_codes and model.style_blocks == "valid"
    assert (train.reconstruction_fraction, train.decay_fraction, train.seconds) == (0, 0, 0)
    assert train.step_order == "alternate" and train.second_part_gain == 1


def test_paper_presets_have_the_published_numbers():
    loss, train = LossConfig(), TrainConfig()
    assert loss.consistency_interval == 16  # K
    assert (loss.reconstruction, loss.gan_reconstructed, loss.gan_swapped, loss.patch) == (
        1.0,
        0.5,
        1.0,
        1.0,
    )
    assert (loss.r1_gamma, loss.r1_patch_gamma, loss.r1_interval) == (10, 1, 16)
    assert (loss.num_patches, loss.patch_scale) == (8, (0.125, 0.25))
    assert (train.learning_rate, train.betas) == (2e-3, (0.0, 0.99))
    assert (train.batch, train.kimg, train.lazy_r1_correction) == (16, 25_000, True)
    assert preset("paper-512").loss.r1_patch_gamma == 10
    assert [preset(name).data.resize for name in PAPER] == [256, 512, 1024]
    assert [preset(name).model.image_size for name in PAPER] == [256, 512, 768]
    assert [preset(name).model.code_stride for name in PAPER] == [16, 16, 32]


@pytest.mark.parametrize(("name", "paper"), [*zip(BASE, PAPER, strict=True)])
def test_base_presets_differ_from_the_papers_in_what_the_papers_change(name, paper):
    base, other = preset(name), preset(paper)
    model = {"demodulation": "weight", "patch_aggregate": name != "base-256"}
    loss = {"code_consistency": 0.0, "content_alignment": 0.0}
    loss |= {"patch_grid": "edges", "r1_phase": "last"}
    train = {"precision": "fp32", "ema_half_life_kimg": 1e-6}
    assert base.model == dataclasses.replace(other.model, **model)
    assert base.loss == dataclasses.replace(other.loss, **loss)
    assert base.data == other.data
    assert base.train == dataclasses.replace(other.train, **train)


@pytest.mark.parametrize("name", PRESETS)
def test_lambda_balances_unit_codes(name):
    model, loss = preset(name).model, preset(name).loss
    balance = (model.style_dim / model.content_channels) ** 0.5
    assert loss.style_lambda == pytest.approx(balance, rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_crops_of_training_size_can_be_cut(name):
    config = preset(name)
    assert config.data.resize >= config.model.image_size


def test_crops_larger_than_the_pictures_are_refused():
    pictures = DataConfig(sources=("photos",), resize=128)
    with pytest.raises(ValueError, match="data.resize must be at least model.image_size 256, got"):
        Config(data=pictures)
    Config(data=dataclasses.replace(pictures, resize=256))
    Config(data=DataConfig(resize=128))  # landscapes are drawn at the size asked for


def test_quick_form_is_the_demo_within_two_minutes():
    quick, demo = preset("demo").quick(), preset("demo")
    assert 0 < quick.train.seconds <= 120 < demo.train.seconds <= 360
    assert quick.train.reconstruction_fraction == demo.train.quick_reconstruction_fraction
    assert quick.model == demo.model
    with pytest.raises(ValueError, match="'paper-256' has no quick form; .* demo"):
        preset("paper-256").quick()


def test_module_imports_nothing_of_ours():
    assert not re.search(r"^\s*(from|import) (rwm_fast|\.)", inspect.getsource(module), re.M)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('{"": 1}', "config: unknown field ''; known: preset"),
        ("[" * 100_000, "config: not valid JSON"),
        ('{"loss": {"edge": 1' + "0" * 400 + "}}", "loss.edge: expected a number that a float"),
        ('{"loss": {"edge": 1' + "0" * 5000 + "}}", "config: not valid JSON"),
    ],
)
def test_odd_json_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Config.from_json(text)
