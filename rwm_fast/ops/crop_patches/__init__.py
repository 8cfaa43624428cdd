"""crop_patches: many boxes of each image, resampled to one size, without copying the images."""

from __future__ import annotations

import torch
from torch import Tensor

from rwm_fast.ops import _check
from rwm_fast.ops._torch_private import any_autocast
from rwm_fast.ops.crop_patches import autograd as _autograd


def crop_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    r"""P bilinear crops of each image, each resampled to size × size.

    .. math:: y_{npcij} = \mathrm{bilinear}\bigl(x_{nc};\; c_x + h_x u_j,\; c_y + h_y u_i\bigr),
        \quad u_k = (2k + 1)/S - 1

    with S = size, (c_x, c_y, h_x, h_y) = boxes[n, p], in coordinates where the image spans [−1, 1]
    from the outer edge of its first pixel to that of its last (align_corners=False). What lies
    outside is 0. Equal to `affine_grid` and `grid_sample` on P-fold expanded images.

    Parameters
    ----------
    image
        [N, C, H, W], float16, bfloat16, float32 or float64; any strides; H, W ≥ 1.
    boxes
        [N, P, 4], float32 or float64: centre x, centre y, half-width, half-height. A negative
        half-width or half-height flips the patch. A box may lie partly or wholly outside the image;
        a sampling point that is not finite counts as outside.
    size
        side of the patches, ≥ 1.

    Returns
    -------
    Tensor
        patches [N, P, C, S, S] in the image's dtype; each patch has the image's memory format.

    Linear in the image: gradients of every order to it; none to the boxes. Sums are kept in float32
    or better. Repeated calls agree bit for bit (on a GPU, the eager backend's gradient uses
    atomics and does not).

    Raises
    ------
    TypeError, ValueError
        if an argument is not a tensor, a shape, dtype or device does not fit, or the boxes need a
        gradient.

    Source: crops of the patch co-occurrence discriminator, Park et al., NeurIPS 2020
    (arXiv 2007.00653).
    """
    if any_autocast() and isinstance(boxes, Tensor):
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    _validate("crop_patches", image, boxes)
    return _autograd.crop_patches(image, boxes, _check.whole("crop_patches", "size", size))


def _validate(op: str, image: Tensor, boxes: Tensor) -> None:
    _check.floating(op, "image", image)
    shape, device = image.shape, image.device
    if len(shape) != 4 or shape[2] < 1 or shape[3] < 1:
        _check.require(False, op, "image must be [N, C, H, W] with at least one pixel", image)
    _check.tensor(op, "boxes", boxes)
    of = boxes.shape
    if len(of) != 3 or of[0] != shape[0] or of[2] != 4:
        _check.require(False, op, f"boxes must be [N, P, 4] for image {list(shape)}", boxes)
    if boxes.dtype not in (torch.float32, torch.float64):
        _check.require(False, op, "boxes must be float32 or float64", boxes)
    if boxes.device != device:
        _check.require(False, op, f"boxes must be on image's device {device}", boxes)
    if boxes.requires_grad:
        rule = "boxes have no gradient: detach them"
        _check.require(False, op, rule, "boxes that require one")


def sample_boxes(
    batch: int,
    num_patches: int,
    scale: tuple[float, float] = (1 / 8, 1 / 4),
    *,
    flip: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Random boxes for `crop_patches`: every image its own, every patch its own.

    Width and height are drawn independently, uniform in `scale`; the position is uniform over the
    places where the box lies inside the image; with `flip`, half of the boxes are mirrored left to
    right.

    Parameters
    ----------
    batch, num_patches
        N and P.
    scale
        least and largest side of a box as a fraction of the image's side, 0 < least ≤ largest ≤ 1.
    generator
        source of randomness; the numbers are drawn on its device.
    device
        where the boxes go; the generator's device by default, else torch's default device.

    Returns
    -------
    Tensor
        [N, P, 4] float32: centre x, centre y, half-width (negative = mirrored), half-height.

    Source: sizes, places and flips are drawn as in the Swapping Autoencoder's published code (Park
    et al., NeurIPS 2020). Its S × S points of a box lie edge to edge, those of `crop_patches`
    between the centres of S × S pixels: half-width and half-height times S / (S − 1) give its own.
    """
    op = "sample_boxes"
    batch = _check.whole(op, "batch", batch, 0)
    num_patches = _check.whole(op, "num_patches", num_patches, 0)
    pair = isinstance(scale, (tuple, list)) and len(scale) == 2
    pair = pair and all(isinstance(s, (int, float)) for s in scale)
    rule = "scale must be two numbers with 0 < least <= largest <= 1"
    _check.require(pair and 0 < scale[0] <= scale[1] <= 1, op, rule, repr(scale))
    place = generator.device if generator is not None else device
    draws = torch.rand(batch, num_patches, 5, generator=generator, device=place)  # [N, P, 5]
    half = scale[0] + (scale[1] - scale[0]) * draws[..., :2]  # [N, P, 2] half-width, half-height
    centre = (2 * draws[..., 2:4] - 1) * (1 - half)  # [N, P, 2]
    if flip:
        half[..., 0] *= torch.where(draws[..., 4] < 0.5, -1.0, 1.0)
    boxes = torch.cat((centre, half), -1)  # [N, P, 4]
    return boxes if device is None else boxes.to(device)
