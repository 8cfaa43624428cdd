"""Random region masks for the content alignment loss.

Every mask is the set where a smooth field exceeds a level, and the level is chosen so that the mask
has the area that was drawn for it. Centres, angles and sizes are continuous, so outlines fall
anywhere on the grid of the content code.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rwm_fast.config import MaskConfig

KINDS = ("rectangle", "ellipse", "stroke", "half_plane", "blob")  # as named in MaskConfig
_STROKE_POINTS = 5
_BLOB_WAVES = 8
_BISECTIONS = 20  # a millionth of the range of the field


def sample_masks(
    batch: int,
    size: tuple[int, int],
    config: MaskConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Random binary masks, float32 [batch, 1, H, W]; 1 = the region to repaint.

    A mask is of one kind, drawn by its frequency in `config`: 1 to `max_shapes` rectangles,
    ellipses or brush strokes (their union), a half-plane, or thresholded low-frequency noise. Its
    area is uniform in `config.area`, exactly kept up to the whole pixels that the size allows; then
    inside and outside are exchanged with probability `config.invert`.

    Arguments: `size` = (H, W), both at least 1; `generator` is the only source of randomness, and
    the draws do not depend on H, W or `device`, so a CPU generator gives the same shapes
    everywhere. Without `device`, masks lie on the generator's device. With `rows` only these masks
    of the batch are made, as they would be with all of it.
    """
    config = config or MaskConfig()
    height, width = size
    if batch < 0 or height < 1 or width < 1:
        raise ValueError(f"sample_masks: batch and size must be positive, got {batch}, {size}")
    source = generator.device if generator is not None else "cpu"
    device = torch.device(device if device is not None else source)
    frequency = torch.tensor([getattr(config, kind) for kind in KINDS], dtype=torch.float64)
    columns = 4 + config.max_shapes * (2 * _STROKE_POINTS + 4) + 4 * _BLOB_WAVES
    u = torch.rand(batch, columns, generator=generator, device=source).cpu()  # [N, columns]
    u = u if rows is None else u[list(rows)]
    kind = torch.bucketize(u[:, 0].double() * frequency.sum(), frequency.cumsum(0)[:-1], right=True)
    y = ((torch.arange(height, device=device) + 0.5) / height).view(1, -1, 1)  # [1, H, 1]
    x = ((torch.arange(width, device=device) + 0.5) / width).view(1, 1, -1)  # [1, 1, W]
    field = torch.empty(len(u), height, width, device=device)
    for k, draw in enumerate((_rectangles, _ellipses, _strokes, _half_planes, _blobs)):
        those = (kind == k).nonzero()[:, 0]  # on the CPU: no device waits for it
        if len(those):
            values = draw(u[those, 4:].to(device), x, y, _shares(u[those, 1], config, device))
            field[those.to(device)] = values
    low, high = config.area
    mask = _level_set(field, (low + (high - low) * u[:, 2]).to(device), low, high)
    invert = (u[:, 3] < config.invert).to(device).view(-1, 1, 1)
    return (mask ^ invert)[:, None].float()


def _shares(u: Tensor, config: MaskConfig, device: torch.device) -> Tensor:
    """Which of the shapes exist, bool [N, max_shapes, 1, 1]; the first always does."""
    count = 1 + (u * config.max_shapes).long()  # [N]
    return (torch.arange(config.max_shapes) < count[:, None])[..., None, None].to(device)


def _shapes(u: Tensor, exists: Tensor) -> Tensor:
    """Numbers for every shape, [N, max_shapes, 14, 1, 1]."""
    return u[:, : exists.shape[1] * 14].view(len(u), -1, 14)[..., None, None]


def _union(fields: Iterable[Tensor], exists: Tensor) -> Tensor:
    """The largest field of the shapes that exist, [N, H, W]; one shape in memory at a time."""
    # -4: below any field of a shape that exists
    shown = (torch.where(exists[:, k], field, -4.0) for k, field in enumerate(fields))
    return functools.reduce(torch.maximum, shown)


def _frames(
    u: Tensor, x: Tensor, y: Tensor, exists: Tensor, turn: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """For every shape its own axes, in units of its half-sides: pairs of [N, H, W]."""
    for s in _shapes(u, exists).unbind(1):
        angle = (s[:, 0] - 0.5) * turn
        right, down = x - (0.1 + 0.8 * s[:, 1]), y - (0.1 + 0.8 * s[:, 2])
        along = (right * angle.cos() + down * angle.sin()) / (0.08 + 0.34 * s[:, 3])
        across = (down * angle.cos() - right * angle.sin()) / (0.08 + 0.34 * s[:, 4])
        yield along, across


def _rectangles(u: Tensor, x: Tensor, y: Tensor, exists: Tensor) -> Tensor:
    # tilted by up to 8 degrees: an upright side would add a whole row of pixels at one level
    frames = _frames(u, x, y, exists, turn=math.radians(16))
    return _union((1 - torch.maximum(a.abs(), b.abs()) for a, b in frames), exists)


def _ellipses(u: Tensor, x: Tensor, y: Tensor, exists: Tensor) -> Tensor:
    frames = _frames(u, x, y, exists, turn=math.pi)
    return _union((1 - (a * a + b * b).sqrt() for a, b in frames), exists)


def _strokes(u: Tensor, x: Tensor, y: Tensor, exists: Tensor) -> Tensor:
    """Minus the distance to a wandering line of straight pieces."""
    return _union((_stroke(s, x, y) for s in _shapes(u, exists).unbind(1)), exists)


def _stroke(s: Tensor, x: Tensor, y: Tensor) -> Tensor:
    heading = (s[:, 2:3] + (s[:, 3 : 3 + _STROKE_POINTS] - 0.5).cumsum(1)) * 2 * math.pi
    step = 0.10 + 0.18 * s[:, 8:9]
    px = s[:, :1] + (heading.cos() * step).cumsum(1)  # [N, points, 1, 1]
    py = s[:, 1:2] + (heading.sin() * step).cumsum(1)
    px, py = (
        p - p.mean(1, keepdim=True) + 0.15 + 0.7 * middle
        for p, middle in ((px, s[:, :1]), (py, s[:, 1:2]))
    )

    def square(k: int) -> Tensor:  # of the distance to the k-th piece
        dx, dy = px[:, k + 1] - px[:, k], py[:, k + 1] - py[:, k]  # [N, 1, 1]
        rx, ry = x - px[:, k], y - py[:, k]
        t = ((rx * dx + ry * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        return (rx - t * dx) ** 2 + (ry - t * dy) ** 2  # [N, H, W]

    return -functools.reduce(torch.minimum, map(square, range(_STROKE_POINTS - 1))).sqrt()


def _half_planes(u: Tensor, x: Tensor, y: Tensor, exists: Tensor) -> Tensor:
    angle = u[:, :1, None] * 2 * math.pi
    return x * angle.cos() + y * angle.sin()


def _blobs(u: Tensor, x: Tensor, y: Tensor, exists: Tensor) -> Tensor:
    """A sum of plane waves, at most two and a half periods across the image."""
    a, b, phase, weight = u[:, -4 * _BLOB_WAVES :].view(len(u), 4, _BLOB_WAVES, 1).unbind(1)
    reach, turn = 0.6 + 1.9 * a, b * 2 * math.pi  # [N, waves, 1]
    right = (reach * turn.cos() * x + phase) * 2 * math.pi  # [N, waves, W]
    down = reach * turn.sin() * y.transpose(1, 2) * 2 * math.pi  # [N, waves, H]
    weight = (0.5 + weight) / reach
    terms = torch.cat([weight * right.cos(), -weight * right.sin()], 1)  # [N, 2 waves, W]
    return torch.cat([down.cos(), down.sin()], 1).transpose(1, 2) @ terms  # [N, H, W]


def _level_set(field: Tensor, area: Tensor, low: float, high: float) -> Tensor:
    """field > level, bool [N, H, W], with the level that comes closest to the wanted area [N].

    Bisection keeps one level with too much and one with too little; the nearer of the two that lies
    within [low, high] is taken. On images so small that no whole number of pixels does, the nearer.
    """
    flat = field.flatten(1)  # [N, HW]
    inner = flat.amax(1, keepdim=True)
    outer = 2 * flat.amin(1, keepdim=True) - inner - 1
    wanted = area[:, None]
    share = lambda level: (flat > level).float().mean(1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = (inner + outer) / 2
        enough = share(middle) >= wanted
        outer, inner = torch.where(enough, middle, outer), torch.where(enough, inner, middle)
    large, small = share(outer), share(inner)
    outside = lambda s: ((s < low) | (s > high)).float()
    prefer = outside(large) + (large - wanted).abs() <= outside(small) + (small - wanted).abs()
    return field > torch.where(prefer, outer, inner)[..., None]
