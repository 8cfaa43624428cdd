"""What is particular to crop_patches and sample_boxes: the code they replace, and laws."""

import math

import pytest
import torch
import torch.nn.functional as F
from grid import cpu_backends

from rwm_fast import crop_patches, sample_boxes, use_backend
from rwm_fast.ops import _extension
from rwm_fast.testing import compare
from rwm_fast.testing.cases import case


@pytest.fixture(params=cpu_backends("crop_patches"))
def backend(request):
    if request.param == "native" and _extension.cpu() is None:
        pytest.skip(_extension.why_not_cpu())
    with use_backend(request.param):
        yield request.param


def as_published(image, boxes, size):
    """Every image repeated for each of its patches, a dense grid for each, one grid_sample."""
    n, p = boxes.shape[:2]
    repeated = image.unsqueeze(1).expand(-1, p, -1, -1, -1).flatten(0, 1)  # [N·P, C, H, W]
    cx, cy, half_width, half_height = boxes.flatten(0, 1).unbind(1)  # [N·P]
    theta = boxes.new_zeros(n * p, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = half_width, cx
    theta[:, 1, 1], theta[:, 1, 2] = half_height, cy
    grid = F.affine_grid(theta, [n * p, image.shape[1], size, size], align_corners=False)
    return F.grid_sample(repeated, grid, align_corners=False).unflatten(0, (n, p))


@pytest.mark.parametrize("size", [1, 5, 16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drop_in_for_expand_affine_grid_and_grid_sample(backend, dtype, size):
    generator = torch.Generator().manual_seed(size)
    image = torch.randn(3, 3, 40, 36, generator=generator, dtype=dtype, requires_grad=True)
    boxes = sample_boxes(3, 8, generator=generator).to(dtype)
    row = case("crop_patches", "official")
    wide = image.detach().double().requires_grad_()
    versions = [
        crop_patches(image, boxes, size),
        as_published(image, boxes, size),
        as_published(wide, boxes.double(), size),
    ]
    compare.check("patches", *versions, row, dtype)
    dy = torch.randn(versions[0].shape, generator=generator, dtype=dtype)
    grads = [
        torch.autograd.grad(versions[0], image, dy)[0],
        torch.autograd.grad(versions[1], image, dy)[0],
        torch.autograd.grad(versions[2], wide, dy.double())[0],
    ]
    compare.check("gradient", *grads, row, dtype)


def test_the_whole_image_at_its_own_size_is_the_image(backend):
    image = torch.randn(2, 3, 8, 8)
    boxes = torch.tensor([0.0, 0, 1, 1]).expand(2, 1, 4)
    torch.testing.assert_close(crop_patches(image, boxes, 8)[:, 0], image)


def test_negative_sizes_flip(backend):
    image = torch.randn(1, 3, 8, 8)
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.5], [0.1, 0.2, -0.5, 0.5], [0.1, 0.2, 0.5, -0.5]]])
    plain, mirrored, upside_down = crop_patches(image, boxes, 6)[0]
    torch.testing.assert_close(mirrored, plain.flip(2))
    torch.testing.assert_close(upside_down, plain.flip(1))


def test_outside_is_zero(backend):
    """What is far outside is not read: not even a NaN in the image shows."""
    image = torch.full((1, 2, 6, 6), float("nan"))
    boxes = torch.tensor(
        [[[3.0, 0, 0.5, 0.5], [0, -4, 1, 1], [math.nan, 0, 1, 1], [0, 0, math.inf, 1]]]
    )
    assert not crop_patches(image, boxes, 5).any()


def test_no_pixel_beyond_the_window_is_read(backend):
    """Whole vectors are read where they are cheap, but never change the result."""
    image = torch.full((1, 1, 40, 40), float("nan"))
    image[:, :, 10:20, 10:20] = 1
    centre, half = 15 / 20 - 1, 4 / 20  # pixels 11 to 18, at half weights
    patches = crop_patches(image, torch.tensor([[[centre, centre, half, half]]]), 7)
    torch.testing.assert_close(patches, torch.ones_like(patches))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 7, 8, 9])
def test_the_adjoint_is_the_adjoint(backend, channels, layout):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩"""
    x = torch.randn(2, channels, 21, 23, dtype=torch.float64).to(memory_format=layout)
    boxes = sample_boxes(2, 3, (0.2, 0.9)).double()
    ax = torch.ops.rwm_fast.crop_patches(x, boxes, 11)
    y = torch.randn_like(ax)
    aty = torch.ops.rwm_fast.crop_patches_adjoint(y, boxes, 21, 23)
    assert math.isclose((ax * y).sum().item(), (x * aty).sum().item(), rel_tol=1e-12)
    assert aty.is_contiguous(memory_format=layout)


def test_linear_in_the_image(backend):
    x, y = torch.randn(2, 1, 3, 12, 12, dtype=torch.float64).unbind()
    boxes = sample_boxes(1, 4).double()
    both = crop_patches(2 * x - 3 * y, boxes, 8)
    torch.testing.assert_close(both, 2 * crop_patches(x, boxes, 8) - 3 * crop_patches(y, boxes, 8))


def test_float32_boxes_beside_float64_images(backend):
    image, boxes = torch.randn(1, 1, 8, 8, dtype=torch.float64), sample_boxes(1, 2)
    assert torch.equal(crop_patches(image, boxes, 4), crop_patches(image, boxes.double(), 4))


def test_images_of_more_than_two_billion_pixels():
    """Addresses are 64 bits wide. Memory that nobody touches costs nothing."""
    if _extension.cpu() is None:
        pytest.skip(_extension.why_not_cpu())
    torch.utils.deterministic.fill_uninitialized_memory = False
    image = torch.empty(1, 2, 1 << 16, (1 << 14) + 8, dtype=torch.bfloat16)
    image[0, 1, -16:, -16:] = 3
    half_height, half_width = 4 / (1 << 16), 4 / ((1 << 14) + 8)
    boxes = torch.tensor([1 - 2 * half_width, 1 - 2 * half_height, half_width, half_height])
    assert image.numel() > 1 << 31
    with use_backend("native"):
        patches = crop_patches(image, boxes.double().view(1, 1, 4), 4)
    assert torch.equal(patches[0, 0, 1], torch.full((4, 4), 3, dtype=torch.bfloat16))


# ---- sample_boxes


def test_the_law_of_boxes():
    """Sides uniform and independent, positions uniform over where the box fits, half mirrored."""
    low, high = 1 / 8, 1 / 4
    boxes = sample_boxes(40, 500, generator=torch.Generator().manual_seed(0)).flatten(0, 1)
    half = boxes[:, 2:].abs()
    uniform = [
        (half[:, 0] - low) / (high - low),
        (half[:, 1] - low) / (high - low),
        (boxes[:, 0] / (1 - half[:, 0]) + 1) / 2,
        (boxes[:, 1] / (1 - half[:, 1]) + 1) / 2,
        (boxes[:, 2] > 0) * 0.5 + 0.25,  # ±1 with equal chance, as numbers with mean 1/2
    ]
    count = len(boxes)
    for i, a in enumerate(uniform):
        assert 0 <= a.min() and a.max() <= 1
        # Six standard deviations of a mean, and of a correlation of independent draws.
        assert abs(a.mean() - 0.5) < 6 * a.std() / math.sqrt(count)
        for b in uniform[:i]:
            assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 6 / math.sqrt(count)
    for a in uniform[:4]:
        # Kolmogorov–Smirnov: √n times the distance exceeds 2.2 once in 8000 times.
        expected = (torch.arange(count) + 0.5) / count
        assert (a.sort().values - expected).abs().max() * math.sqrt(count) < 2.2


def test_boxes_lie_inside_the_image():
    boxes = sample_boxes(50, 8, (0.1, 1.0))
    edges = boxes[..., :2].abs() + boxes[..., 2:].abs()
    assert edges.max() <= 1 + 1e-6


def test_boxes_are_drawn_by_the_generator_alone():
    draw = [sample_boxes(2, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    state = torch.get_rng_state()
    sample_boxes(2, 3, generator=torch.Generator())
    assert torch.equal(*draw) and torch.equal(torch.get_rng_state(), state)
    assert draw[0].shape == (2, 3, 4) and draw[0].dtype == torch.float32


def test_boxes_without_flip_and_of_fixed_size():
    boxes = sample_boxes(4, 4, (0.25, 0.25), flip=False)
    assert torch.equal(boxes[..., 2:], torch.full((4, 4, 2), 0.25))
    assert sample_boxes(0, 4).shape == (0, 4, 4) and sample_boxes(4, 0).shape == (4, 0, 4)


def test_flip_changes_nothing_else():
    flipped, plain = (
        sample_boxes(3, 5, flip=flip, generator=torch.Generator().manual_seed(1))
        for flip in (True, False)
    )
    assert torch.equal(flipped.abs(), plain.abs()) and torch.equal(flipped[..., :2], plain[..., :2])


@pytest.mark.parametrize(
    "scale",
    [(0, 0.5), (0.5, 0.25), (0.5, 1.5), (0.5,), 0.5, ("a", "b"), (-0.5, 0.5), (math.nan, 1)],
)
def test_scales_are_checked(scale):
    with pytest.raises(ValueError, match="sample_boxes: scale must be two numbers with 0 < least"):
        sample_boxes(1, 1, scale)


def test_counts_are_checked():
    with pytest.raises(
        ValueError, match="sample_boxes: batch must be a whole number of at least 0, got -1"
    ):
        sample_boxes(-1, 1)
    with pytest.raises(ValueError, match="sample_boxes: num_patches must be a whole number"):
        sample_boxes(1, 2.5)
