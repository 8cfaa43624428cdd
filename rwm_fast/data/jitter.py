"""Content jitter (ours, not the paper's): the content branch sees wrong colours.

Colour leaks into the content code when only reconstruction is trained. If the content branch sees
each picture under a random linear map of its colours, while style and target stay clean, colours in
the content code are of no use.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def color_jitter(
    images: Tensor,
    strength: float,
    keep: float = 0.2,
    generator: torch.Generator | None = None,
    among: tuple[int, Sequence[int]] | None = None,
    tone: float = 0.0,
) -> Tensor:
    """Each picture under a random 3 x 3 colour matrix and offset; geometry is untouched.

    y = clamp((1 + .45 s A) x + .25 s b, -1, 1) per pixel, with s = `strength`, A [3, 3] and b [3]
    standard normal, one draw per picture; a share `keep` of the pictures stays as it is. With a
    `tone` x is bent before, to 2 ((x + 1) / 2)^(2^(tone t)) - 1, t standard normal: a night can be
    as bright and rich in contrast as a day, and a day as dark and flat as a night.

    `images`: [N, 3, H, W] in [-1, 1], any floating dtype. Returns the same shape, dtype and memory
    format. `generator` may live on another device than the images; strength 0 returns `images`.
    `among` = (size, rows): the images are these rows of a batch, and get the draws that they would
    get with all of it.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"color_jitter: images must be [N, 3, H, W], got {list(images.shape)}")
    if strength == 0:
        return images
    source = generator.device if generator is not None else "cpu"
    n, rows = (len(images), slice(None)) if among is None else (among[0], list(among[1]))
    normal = torch.randn(n, 3, 4, generator=generator, device=source) * strength
    mixed = (torch.rand(n, 1, 1, generator=generator, device=source) >= keep).float()
    matrix = torch.eye(3, device=source) + 0.45 * normal[..., :3] * mixed  # [N, 3, 3]
    offset = 0.25 * normal[..., 3] * mixed[..., 0]  # [N, 3]
    matrix, offset = (t[rows].to(images.device, images.dtype) for t in (matrix, offset))
    if tone:
        exponent = 2 ** (tone * torch.randn(n, 1, 1, 1, generator=generator, device=source))
        exponent, bends = (t[rows].to(images.device) for t in (exponent, mixed[..., None] > 0))
        bent = ((images + 1) / 2).clamp(min=0) ** exponent.to(images.dtype) * 2 - 1
        images = torch.where(bends, bent, images)
    result = torch.einsum("nij,njhw->nihw", matrix, images) + offset[..., None, None]
    layout = (
        torch.channels_last
        if images.is_contiguous(memory_format=torch.channels_last)
        else (torch.contiguous_format)
    )
    return result.clamp_(-1, 1).contiguous(memory_format=layout)
