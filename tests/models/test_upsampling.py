"""Painted pictures at full size: what is exact, and what it is for: edges."""

import pytest
import torch
from tiny_networks import picture

from rwm_fast.data import landscapes
from rwm_fast.models.compositing import averaging
from rwm_fast.models.upsampling import enlarged

F64 = torch.float64


def reduced(x, to):
    down, across = (averaging(n, m) for n, m in zip(to, x.shape[2:], strict=True))
    return down.to(x) @ x @ across.T.to(x)


@pytest.mark.parametrize("adds", [False, True])
def test_at_small_size_nothing_of_a_painting_is_lost(adds):
    """Full size = small size: any painting comes back."""
    image, painted, planes = picture(2), picture(2, seed=1), picture(1, seed=2)[:, :2].abs() / 2
    model = enlarged(image, planes, painted, (32, 32), adds)
    torch.testing.assert_close(model.rows(image, planes, 0), painted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        model.rows(image[:, :, 5:9], planes[:, :, 5:9], 5), painted[:, :, 5:9]
    )


def test_a_change_that_colours_tell_is_known_at_full_size():
    """A painting that is an affine function of the colours, of a smooth picture: what the ridge
    keeps of the slopes is all that is missing."""
    coarse = 0.5 * picture(1, 8, 8)
    image = torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic")
    turn = torch.tensor([[0.5, 0.2, 0], [0, -0.6, 0.1], [0.3, 0.3, 0.3]], dtype=F64)
    paint = lambda x: torch.einsum("oc,nchw->nohw", turn, x) + 0.1
    small = reduced(image, (24, 32))
    bicubic = torch.nn.functional.interpolate(paint(small), (96, 128), mode="bicubic")
    error = lambda y: (y - paint(image)).abs().mean()
    model = enlarged(small, None, paint(small), (96, 128), True)
    assert error(model.rows(image, None, 0)) < 0.5 * error(bicubic)


def test_edges_of_a_region_follow_the_picture():
    """A landscape whose sky takes the style of another, which the package draws at any size: beside
    the sky's edge the enlarged edit errs by less than half of what bicubic enlargement does."""
    content, size, to = landscapes.content([4, 9]), 256, (64, 64)
    image, regions = landscapes.render(content, landscapes.style([1, 2]), size)
    other, _ = landscapes.render(content, landscapes.style([7, 5]), size)
    sky = regions[:, :1]
    truth = image + sky * (other - image)
    small, painted, plane = (reduced(x, to) for x in (image, truth, sky))
    bicubic = torch.nn.functional.interpolate(painted - small, (size, size), mode="bicubic")
    edge = torch.nn.functional.max_pool2d(sky, 9, 1, 4) != -torch.nn.functional.max_pool2d(
        -sky, 9, 1, 4
    )
    error = lambda y: ((y - truth).abs() * edge).sum() / edge.sum()
    model = enlarged(small, plane, painted, (size, size), True)
    assert error(model.rows(image, sky, 0)) < 0.5 * error((image + bicubic).clamp(-1, 1))
