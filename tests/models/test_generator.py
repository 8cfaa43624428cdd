"""The generator: shapes, regions at every styled layer, noise, dtypes."""

import pytest
import torch
from tiny_networks import DEMO, KINDS, PAPER, encoder, generator, picture

from rwm_fast.models import Generator
from rwm_fast.nn.blocks import SpatialCodeModulation
from rwm_fast.nn.layers import ModulatedConv2d

F64 = torch.float64
ROUNDING = 1e-11  # float64: about ten layers, each adding up to 200 products of order 1


def codes(config, n=2, height=32, width=32, k=1):
    """Content codes [N, C, h, w] and K styles [N, K, D]."""
    net = encoder(config)
    content = net.content(picture(n, height, width))
    styles = [net.style(picture(n, height, width, seed=10 + i)) for i in range(k)]
    return content, torch.stack(styles, 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (48, 80), (16, 16)])
def test_shapes(kind, size):
    content, styles = codes(KINDS[kind], 2, *size)
    image = generator(KINDS[kind])(content, styles[:, 0])
    assert image.shape == (2, 3, *size) and image.dtype == F64
    assert image.isfinite().all() and image.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_region_that_covers_everything_is_the_one_style_image(kind, k):
    """M = 1 gives G(C_A, S_B) and M = 0 gives G(C_A, S_A)."""
    net = generator(KINDS[kind])
    content, styles = codes(KINDS[kind], k=k)
    noise = net.make_noise(content)
    singles = [net(content, styles[:, i], noise=noise) for i in range(k)]
    for i in range(k):
        regions = torch.zeros(2, k, 32, 32, dtype=F64)
        regions[:, i] = 1
        close(net(content, styles, regions, noise), singles[i])
        for j in set(range(k)) - {i}:
            assert (singles[i] - singles[j]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_regions_reach_every_styled_layer(kind):
    net = generator(KINDS[kind])
    seen = {}
    for name, module in net.named_modules():
        if isinstance(module, (ModulatedConv2d, SpatialCodeModulation)):
            seen[name] = None
            module.register_forward_hook(
                lambda _, args, out, name=name: seen.__setitem__(name, (args[2], out))
            )
    content, styles = codes(KINDS[kind], k=3)
    net(content, styles, torch.full((2, 3, 32, 32), 1 / 3, dtype=F64))
    blocks = len(net.head) + len(net.up) + len(net.tail)
    assert len(seen) == 2 * blocks + 1 + KINDS[kind].code_modulation
    for name, call in seen.items():
        assert call is not None, name
        regions, out = call
        assert regions.shape == (2, 3, *out.shape[2:]), name


@pytest.mark.parametrize("kind", KINDS)
def test_hybrid_is_the_blend_away_from_the_border_and_not_pasted_at_it(kind):
    """Two halves of a wide picture: far from the border between them each is its own image."""
    net = generator(KINDS[kind])
    content, styles = codes(KINDS[kind], 1, 32, 256, k=2)
    noise = net.make_noise(content)
    mask = torch.zeros(1, 1, 32, 256, dtype=F64)
    mask[..., 128:] = 1
    hybrid = net(content, styles, torch.cat([1 - mask, mask], 1), noise)
    first, second = (net(content, styles[:, i], noise=noise) for i in range(2))
    pasted = (1 - mask) * first + mask * second
    # at most three 3x3 layers' worth of the coarsest pixels (4 px) and two of each finer one
    reach = 64
    close(hybrid[..., : 128 - reach], pasted[..., : 128 - reach])
    close(hybrid[..., 128 + reach :], pasted[..., 128 + reach :])
    assert (hybrid - pasted)[..., 120:136].abs().max() > 1e-3


def test_soft_regions_move_the_image_continuously():
    net = generator(PAPER)
    content, styles = codes(PAPER, k=2)
    noise = net.make_noise(content)
    share = lambda t: torch.stack(
        [torch.full((2, 32, 32), v, dtype=F64) for v in (1 - t, t)], dim=1
    )
    images = [net(content, styles, share(t), noise) for t in (0.5, 0.5 + 1e-7, 0.6)]
    small, large = ((image - images[0]).abs().max().item() for image in images[1:])
    assert 0 < small < 1e-4 < large


def test_gradients_of_both_styles_and_of_the_content():
    """d image/d everything of a hybrid, against finite differences along a random direction."""
    net = generator(PAPER)
    content, styles = codes(PAPER, 1, 16, 16, k=2)
    noise = net.make_noise(content)
    mask = (torch.arange(16) < 7).to(F64).expand(1, 1, 16, 16)
    regions = torch.cat([1 - mask, mask], 1)
    u = torch.randn(1, 3, 16, 16, dtype=F64)
    f = lambda c, s: (net(c, s, regions, noise) * u).sum()
    inputs = [content.clone().requires_grad_(), styles.clone().requires_grad_()]
    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    # a shift in style 0 must not move style 1: the two have gradients of their own
    gradient = torch.autograd.grad(f(*inputs), inputs[1])[0]
    assert gradient[:, 0].abs().max() > 0 and gradient[:, 1].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind):
    net = generator(KINDS[kind]).requires_grad_(True)
    content, styles = codes(KINDS[kind])
    net(content, styles[:, 0]).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_shared_noise_gives_the_same_image_and_fresh_noise_another():
    net = generator(PAPER)
    content, styles = codes(PAPER)
    style = styles[:, 0]
    noise = net.make_noise(content)
    assert torch.equal(net(content, style, noise=noise), net(content, style, noise=noise))
    assert not torch.equal(net(content, style), net(content, style))
    seeded = [net(content, style, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*seeded)
    drawn = net.make_noise(content, torch.Generator().manual_seed(3))
    assert torch.equal(net(content, style, noise=drawn), seeded[0])
    silent = [torch.zeros_like(m) for m in noise]
    close(net(content, style, noise="none"), net(content, style, noise=silent))


def test_noise_maps_are_one_per_styled_layer_at_its_resolution():
    net = generator(PAPER)
    content, _ = codes(PAPER, 2, 16, 24)
    shapes = [(2, 1, 4, 6)] * 4 + [(2, 1, 8, 12)] * 2 + [(2, 1, 16, 24)] * 2
    assert net.noise_shapes(content) == shapes
    assert [tuple(m.shape) for m in net.make_noise(content)] == shapes
    assert generator(DEMO).make_noise(codes(DEMO)[0]) == []


def test_untrained_generator_ignores_noise():
    """The learned strengths start at 0."""
    net = Generator(PAPER).double()
    content, styles = codes(PAPER)
    assert torch.equal(net(content, styles[:, 0]), net(content, styles[:, 0], noise="none"))


def test_mixed_styles_are_scaled_to_unit_length():
    net = generator(PAPER)
    content, styles = codes(PAPER)
    image = net(content, styles[:, 0], noise="none")
    close(net(content, 0.3 * styles[:, 0], noise="none"), image)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(content=(2, 3, 8, 8)), r"content must be \[N, 4, h, w\]"),
        (dict(style=(2, 11)), r"style must be \[2, 12\] without regions, got \[2, 11\]"),
        (dict(style=(2, 1, 12)), r"style must be \[2, 12\] without regions"),
        (dict(style=(2, 12), regions=(2, 1, 32, 32)), r"style must be \[2, K, 12\] with regions"),
        (dict(style=(2, 3, 12), regions=(2, 2, 32, 32)), r"regions must be \[2, 3, 32, 32\]"),
        (dict(style=(2, 2, 12), regions=(2, 2, 16, 16)), r"regions must be \[2, 2, 32, 32\]"),
        (dict(noise="some"), "noise must be random or none, got some"),
        (dict(noise=[]), "noise maps must be of shapes"),
    ],
)
def test_refusals(arguments, message):
    shapes = dict(content=(2, 4, 8, 8), style=(2, 12)) | arguments
    values = {
        name: torch.zeros(shape, dtype=F64) if isinstance(shape, tuple) else shape
        for name, shape in shapes.items()
    }
    with pytest.raises(ValueError, match=f"Generator: {message}"):
        generator(PAPER)(**values)


def test_odd_code_is_refused_where_it_is_folded():
    with pytest.raises(ValueError, match="h and w multiples of 2"):
        generator(DEMO)(torch.zeros(1, 3, 7, 8, dtype=F64), torch.zeros(1, 12, dtype=F64))


@pytest.mark.parametrize("kind", KINDS)
def test_compute_dtype(kind):
    """bfloat16 inside, float32 outside; every rounding is 2^-9 of its number at most."""
    config = KINDS[kind]
    torch.manual_seed(0)
    net = Generator(config)
    content, styles = (code.float() for code in codes(config))
    exact = net(content, styles[:, 0])
    image = net.to_compute(torch.bfloat16)(content, styles[:, 0])
    assert image.dtype == torch.float32 and not torch.equal(image, exact)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    layers = sum(p.ndim == 4 for p in net.parameters())
    # four roundings a layer (input, weight, filter, result), added up without luck
    error = (image - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error.item() < 4 * layers * 2**-9


def test_empty_batch():
    content, styles = codes(PAPER)
    assert generator(PAPER)(content[:0], styles[:0, 0]).shape == (0, 3, 32, 32)
