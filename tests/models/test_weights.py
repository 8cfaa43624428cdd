"""Weights on disk: what is written comes back, and what does not fit is refused by name."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_networks import DEMO, PAPER, encoder, generator, picture

from rwm_fast.config import Config
from rwm_fast.errors import UserError
from rwm_fast.models import (
    Encoder,
    Generator,
    RegionEditor,
    WeightsError,
    load_weights,
    read_config,
    save_weights,
)
from rwm_fast.models.weights import read_kimg

CONFIG = Config("mine", model=PAPER)


def networks():
    return encoder(PAPER).float(), generator(PAPER).float()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, *networks(), CONFIG)
    return path


def test_round_trip(saved):
    written, read = networks(), (Encoder(PAPER), Generator(PAPER))
    assert load_weights(saved, *read) == CONFIG == read_config(saved)
    for ours, theirs in zip(written, read, strict=True):
        for (name, a), b in zip(
            ours.state_dict().items(), theirs.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name


def test_layout_of_the_file(saved):
    """Others can read it: names are those of the modules, the header holds the config."""
    tensors = load_file(saved)
    assert {name.split(".")[0] for name in tensors} == {"encoder", "generator"}
    assert torch.equal(tensors["encoder.style_linear.bias"], networks()[0].style_linear.bias)
    length = int.from_bytes(saved.read_bytes()[:8], "little")
    header = json.loads(saved.read_bytes()[8 : 8 + length])["__metadata__"]
    assert Config.from_json(header["config"]) == CONFIG


def test_channels_last_parameters_are_written_alike(saved, tmp_path):
    other = tmp_path / "other.safetensors"
    nets = [net.to(memory_format=torch.channels_last) for net in networks()]
    save_weights(other, *nets, CONFIG)
    ours, theirs = load_file(saved), load_file(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.safetensors", saved.name]


def test_a_folder_stands_for_the_file_in_it(saved):
    assert read_config(saved.parent) == CONFIG


def test_from_checkpoint_paints_the_same(saved):
    editor = RegionEditor.from_checkpoint(saved)
    image = picture().float()
    expected = RegionEditor(*networks()).reconstruct(image)
    torch.testing.assert_close(editor.reconstruct(image), expected, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in editor.parameters())
    half = RegionEditor.from_checkpoint(saved, dtype=torch.bfloat16)
    assert half.encoder.compute_dtype == half.generator.compute_dtype == torch.bfloat16


def test_config_of_other_networks_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="config.model must be what both networks are made from"):
        save_weights(tmp_path / "w", *networks(), Config(model=DEMO))
    assert not any(tmp_path.iterdir())


def refused(path, message, nets=None):
    nets = nets or (Encoder(PAPER), Generator(PAPER))
    before = [p.clone() for net in nets for p in net.parameters()]
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(path, *nets)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    after = [p for net in nets for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def rewritten(path, change, metadata=None):
    tensors = load_file(path)
    change(tensors)
    metadata = {"config": CONFIG.to_json()} if metadata is None else metadata  # and no digest
    save_file(tensors, path, metadata=metadata)
    return path


def test_absent_file_and_empty_folder(tmp_path):
    for path in (tmp_path / "no.safetensors", tmp_path):
        refused(path, "no weights at .*safetensors: expected a weights.safetensors file or a run")


def test_unreadable_file(saved):
    saved.write_bytes(b"not safetensors")
    refused(saved, "weights.safetensors: not a readable safetensors file")


def test_truncated_file(saved):
    saved.write_bytes(saved.read_bytes()[:-1000])
    refused(saved, "weights.safetensors: not a readable safetensors file")


def test_foreign_file(saved):
    refused(rewritten(saved, lambda t: None, metadata={}), "no config in the header")
    refused(
        rewritten(saved, lambda t: None, metadata={"config": '{"a": 1}'}),
        "config: unknown field a",
    )


def test_missing_tensor(saved):
    path = rewritten(saved, lambda t: t.pop("generator.to_rgb.bias"))
    refused(path, "lacks 1 tensors: generator.to_rgb.bias")


def test_extra_tensor(saved):
    path = rewritten(saved, lambda t: t.update(more=torch.zeros(1)))
    refused(path, "has unknown 1 tensors: more")


def test_wrong_shape(saved):
    path = rewritten(saved, lambda t: t.update({"encoder.style_linear.bias": torch.zeros(5)}))
    refused(path, r"encoder.style_linear.bias must be \[12\], got \[5\]")


def test_another_model_is_told_by_its_fields(saved):
    other = dataclasses.replace(PAPER, style_dim=16, noise=False)
    message = "another encoder: style_dim 12 in the file, 16 here; noise True in the file, False"
    refused(saved, message, (Encoder(other), Generator(other)))


def test_damage_is_seen_wherever_it_matters(saved):
    """Any bit, one at a time: refused, or nothing of what is used differs."""
    content, expected, nets = (
        saved.read_bytes(),
        load_file(saved),
        (Encoder(PAPER), Generator(PAPER)),
    )
    length = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, length, length // 30), *range(length, len(content), len(content) // 30)]
    refusals = 0
    for k, place in enumerate(places):
        flipped = bytearray(content)
        flipped[place] ^= 1 << k % 8
        saved.write_bytes(flipped)
        try:
            assert load_weights(saved, *nets) == CONFIG
        except WeightsError:
            refusals += 1
            continue
        assert all(torch.equal(expected[name], t) for name, t in load_file(saved).items())
    assert refusals > 0.9 * len(places)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(saved, value):
    path = rewritten(saved, lambda t: t["generator.to_rgb.bias"].fill_(value))
    refused(path, "generator.to_rgb.bias must be finite, got NaN or infinity")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_what_are_no_floats(saved, dtype):
    change = lambda t: t.update({"generator.to_rgb.bias": t["generator.to_rgb.bias"].to(dtype)})
    refused(
        rewritten(saved, change), "generator.to_rgb.bias must be one of F64, F32, F16, BF16, got"
    )


def test_a_header_takes_no_memory(saved):
    """A width that the tensors do not have is refused from the shapes alone."""
    values = json.loads(CONFIG.to_json())
    for style_dim in (10**9, 10**30):
        values["model"]["style_dim"] = style_dim
        path = rewritten(saved, lambda t: None, metadata={"config": json.dumps(values)})
        with pytest.raises(WeightsError, match="must be|Overflow|overflow|invalid|int"):
            read_config(path)
    for text, message in (("[" * 8000, "recursion|JSON"), (" " * 20_000, "at most 16384 char")):
        path = rewritten(saved, lambda t: None, metadata={"config": text})
        with pytest.raises(WeightsError, match=message):
            read_config(path)


def test_a_file_is_as_readable_as_others_here(saved, tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert saved.stat().st_mode == ordinary.stat().st_mode


def test_a_file_says_what_its_training_saw(saved, tmp_path):
    assert read_kimg(saved) is None
    save_weights(tmp_path / "w", *networks(), CONFIG, kimg=12.5)
    assert read_kimg(tmp_path / "w") == 12.5 and read_config(tmp_path / "w") == CONFIG
