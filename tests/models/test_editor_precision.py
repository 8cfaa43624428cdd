"""RegionEditor in half precision: finite, near float32, whatever dtype the images have."""

import pytest
import torch
from official_formulas import checkpoint
from tiny_networks import DEMO, encoder, generator, picture

from rwm_fast.config import Config
from rwm_fast.models import RegionEditor, save_weights

HALVES = [torch.bfloat16, torch.float16]
CONTENT, STYLE, OTHER = (picture(2, 40, 36, seed=seed).float() for seed in range(3))


@pytest.fixture(params=["demo", "official"])
def load(request, tmp_path):
    """Opens a model of the demo's kind, or a checkpoint of the official code, for a dtype; their
    pictures stay within [-1, 1], so that clamping hides nothing."""
    path = tmp_path / "weights"
    if request.param == "demo":
        networks = encoder(DEMO).float(), generator(DEMO).float()
        networks[1].to_rgb.weight.mul_(0.02)
        networks[1].to_rgb.bias.zero_()
        save_weights(path, *networks, Config(model=DEMO))
    else:
        state = checkpoint()
        state["G.ToRGB.conv.weight"] *= 0.02
        state["G.ToRGB.bias"].zero_()
        torch.save(state, path)
    return lambda dtype=None: RegionEditor.load(path, dtype=dtype)


def edits(editor, content, style, other):
    """Every way to edit, with masks that are not 0 or 1 alone."""
    mask = torch.linspace(0, 1, 36).expand(1, 1, 40, 36)
    whole = editor.swap(content, style, keep_detail=True)
    small = editor.edit(content, style, mask, work_size=20, feather=4.0)
    several = editor.edit(content, [style, other], [mask, 1 - mask])
    mixed = editor.interpolate(content, style, other, [0.3], mask)[0]
    return torch.stack([whole, small, several, mixed, editor.reconstruct(content)])


@pytest.mark.parametrize("dtype", HALVES)
def test_edits_are_finite_and_near_float32(load, dtype):
    expected, found = (edits(load(of), CONTENT, STYLE, OTHER) for of in (None, dtype))
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert expected.abs().max() < 1
    painting, error = expected[-1].norm(), (found - expected).flatten(1).norm(dim=1)
    # from image to code to image sixteen layers, each rounded to eps / 2
    assert error.max() < 16 * torch.finfo(dtype).eps / 2 * painting


@pytest.mark.parametrize("dtype", [None, *HALVES])
@pytest.mark.parametrize("given", [*HALVES, torch.float64])
def test_images_of_any_dtype_are_taken(load, dtype, given):
    """As if they had been float32 from the start."""
    editor, images = load(dtype), [x.to(given) for x in (CONTENT, STYLE, OTHER)]
    found = edits(editor, *images)
    assert found.dtype == torch.float32
    assert torch.equal(found, edits(editor, *(x.float() for x in images)))
