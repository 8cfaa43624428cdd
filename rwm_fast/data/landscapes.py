"""Procedural landscapes whose content (geometry) and style (palette, weather, texture) are
independent: data with a ground truth for every operation of the method.

A picture is `render(content, style, size)`. `content(seeds)` and `style(seeds)` draw their
parameters from a counter hash, so scene k is the same in every batch. `render(content of A, style
of B)` is what a swap of A and B should look like, and the region masks, which depend on content
alone, are exact.
"""

import math

import torch
from torch import Tensor

from rwm_fast.data import painting
from rwm_fast.data.hashing import Seeds, hash_uniform

REGIONS = ("sky", "mountain", "water", "ground")  # trees belong to the ground
TIMES = ("day", "dawn", "sunset", "night", "dusk")
SEASONS = ("summer", "spring", "autumn", "winter", "desert")
WEATHERS = ("clear", "fair", "overcast", "mist")
TREES = 10
RIDGES = 3  # far mountains, near mountains, foothills
_HIGHEST_TREE = 0.46  # of the picture's height: no ground, lake or tree reaches above (`_trees`)

Parameters = dict[str, Tensor]  # every entry has the scenes as its first axis

# RGB in [0, 1]:  sky above        sky below        sun or moon      light            clouds
_TIME_COLOURS = (
    ((0.18, 0.45, 0.90), (0.74, 0.88, 0.98), (1.0, 0.97, 0.82), (1.0, 1.0, 0.97), (1.0, 1.0, 1.0)),
    (
        (0.42, 0.46, 0.82),
        (1.0, 0.76, 0.70),
        (1.0, 0.90, 0.70),
        (0.98, 0.84, 0.86),
        (1.0, 0.88, 0.86),
    ),
    (
        (0.28, 0.17, 0.50),
        (1.0, 0.54, 0.24),
        (1.0, 0.84, 0.40),
        (1.0, 0.70, 0.52),
        (0.96, 0.48, 0.44),
    ),
    (
        (0.02, 0.03, 0.13),
        (0.13, 0.19, 0.42),
        (0.95, 0.95, 0.86),
        (0.20, 0.26, 0.48),
        (0.22, 0.26, 0.42),
    ),
    (
        (0.05, 0.36, 0.48),
        (0.97, 0.84, 0.54),
        (1.0, 0.95, 0.65),
        (0.88, 0.90, 0.74),
        (0.92, 0.82, 0.64),
    ),
)
# RGB in [0, 1]:  grass            leaves           rock
_SEASON_COLOURS = (
    ((0.32, 0.58, 0.16), (0.07, 0.32, 0.13), (0.44, 0.41, 0.42)),
    ((0.56, 0.74, 0.26), (0.94, 0.54, 0.70), (0.46, 0.46, 0.36)),
    ((0.70, 0.50, 0.16), (0.84, 0.28, 0.06), (0.48, 0.38, 0.34)),
    ((0.92, 0.96, 1.0), (0.26, 0.40, 0.42), (0.46, 0.50, 0.60)),
    ((0.88, 0.68, 0.38), (0.36, 0.50, 0.18), (0.78, 0.38, 0.24)),
)
# snow on the mountains, how much leaf colours vary, ice on the lake
_SEASON_AMOUNTS = (
    (0.55, 0.05, 0.0),
    (0.75, 0.10, 0.0),
    (0.60, 0.16, 0.0),
    (1.3, 0.04, 0.7),
    (0.00, 0.05, 0.0),
)
# share of pictures, clouds: least, most, greyness, haze: least, most, sight of the sun, light
_WEATHER_AMOUNTS = (
    (0.40, 0.00, 0.15, 0.00, 0.00, 0.15, 1.0, 1.0),
    (0.30, 0.35, 0.60, 0.00, 0.00, 0.30, 1.0, 1.0),
    (0.15, 0.85, 1.0, 0.70, 0.10, 0.35, 0.10, 0.95),
    (0.15, 0.00, 0.30, 0.25, 0.65, 1.0, 0.55, 1.0),
)


def content(seeds: Seeds) -> Parameters:
    """Geometry of scenes: horizon, three ridge lines, lake, trees, place of the sun.

    `seeds`: N integers in [0, 2^64). Returns float32 tensors with N rows; lengths are in units of
    the picture's side, y points down.
    """
    u = torch.from_numpy(hash_uniform(seeds, 1, 64 + 6 * TREES))  # [N, columns]
    between = lambda column, low, high: low + (high - low) * u[:, column]
    stacked = lambda *ranges: torch.stack([between(*r) for r in ranges], 1)
    c = {
        "horizon": between(0, 0.50, 0.65),
        "sun_x": between(1, 0.12, 0.88),
        "sun_y": between(2, 0.09, 0.28),
        "sun_r": between(3, 0.04, 0.07),
        "lake_x": between(4, 0.15, 0.85),
        "lake_w": between(5, 0.24, 0.50),
        "lake_h": between(6, 0.07, 0.15),
        "lake_phase": u[:, 38:40] * 2 * math.pi,
        "ridge_base": stacked((8, 0.09, 0.19), (9, 0.04, 0.10), (10, 0.0, 0.03)),
        "ridge_height": stacked((11, 0.13, 0.27), (12, 0.08, 0.17), (13, 0.02, 0.05)),
        "ridge_frequency": 1 + 0.7 * u[:, 14:26].view(-1, RIDGES, 4),
        "ridge_phase": u[:, 26:38].view(-1, RIDGES, 4) * 2 * math.pi,
    }
    c["lake_y"] = c["horizon"] + c["lake_h"] * between(7, 0.95, 1.3) + 0.02
    return c | _trees(c, u[:, 64:].view(-1, TREES, 6))


def _trees(c: Parameters, u: Tensor) -> Parameters:
    """Trees from far to near; those that would stand in the lake get height 0."""
    horizon = c["horizon"][:, None]
    depth = u[..., 1].sort(1).values  # [N, T]
    height = (0.07 + 0.24 * depth) * (0.75 + 0.5 * u[..., 2])
    pointed = (u[..., 4] < 0.6).float()  # conifers; the others have round crowns
    x, y = u[..., 0] * 1.1 - 0.05, horizon + 0.06 + depth * (1 - horizon)
    from_lake = [
        (p - c[f"lake_{axis}"][:, None]) / (c[f"lake_{side}"][:, None] * margin)
        for p, axis, side, margin in ((x, "x", "w", 1.1), (y, "y", "h", 1.25))
    ]
    dry = from_lake[0] ** 2 + from_lake[1] ** 2 >= 1
    return {
        "tree_x": x,
        "tree_y": y,
        "tree_h": height * dry * (0.8 + 0.2 * pointed),
        "tree_w": height * (0.20 + 0.12 * u[..., 3]) * (1.45 - 0.45 * pointed),
        "tree_pointed": pointed,
        "tree_hue": u[..., 5] * 2 - 1,
    }


def style(seeds: Seeds, *, time: str = "", season: str = "", weather: str = "") -> Parameters:
    """Looks of scenes: time of day, season and weather, each with its colours jittered.

    `seeds`: N integers in [0, 2^64). A name from TIMES, SEASONS or WEATHERS fixes that factor.
    Returns tensors with N rows: "time", "season" and "weather" are indices (int64), colours are
    [N, 3] in [0, 1], the rest are amounts [N].
    """
    u = torch.from_numpy(hash_uniform(seeds, 2, 48))  # [N, columns]
    s = {
        "time": _factor("time", time, TIMES, (u[:, 0] * len(TIMES)).long()),
        "season": _factor("season", season, SEASONS, (u[:, 1] * len(SEASONS)).long()),
    }
    amounts = torch.tensor(_WEATHER_AMOUNTS)
    drawn = (u[:, 2:3] >= amounts[:, 0].cumsum(0)[:-1]).sum(1)  # [N]
    s["weather"] = _factor("weather", weather, WEATHERS, drawn)
    _, least, most, grey, thin, thick, visible, dim = amounts[s["weather"]].unbind(1)
    snow, variety, ice = torch.tensor(_SEASON_AMOUNTS)[s["season"]].unbind(1)
    jitter = 0.14 * (u[:, 3:27].view(-1, 8, 3) - 0.5)
    air = (torch.tensor(_TIME_COLOURS)[s["time"]] + jitter[:, :5]).clamp(0, 1)  # [N, 5, 3]
    air = torch.lerp(air, _greys(air), grey[:, None, None]) * dim[:, None, None]
    land = (torch.tensor(_SEASON_COLOURS)[s["season"]] + jitter[:, 5:]).clamp(0, 1)  # [N, 3, 3]
    s |= dict(zip(("sky", "low", "sun", "light", "cloud"), air.unbind(1), strict=True))
    s |= dict(zip(("grass", "leaf", "rock"), land.unbind(1), strict=True))
    night = (s["time"] == TIMES.index("night")).float()
    return s | {
        "snow": snow * (0.8 + 0.4 * u[:, 30]),
        "haze": thin + (thick - thin) * u[:, 31] * u[:, 31].sqrt(),
        "clouds": least + (most - least) * u[:, 32],
        "variety": variety,
        "ice": ice,
        "visible": visible,
        "night": night,
        "stars": night * (1 - grey),
        "texture": 0.02 + 0.06 * u[:, 33],
        "angle": u[:, 34] * math.pi,
        "waves": 2.5 + 3.5 * u[:, 35],  # across the picture
        "ripple": 0.03 + 0.09 * u[:, 36],
    }


def _factor(what: str, name: str, names: tuple[str, ...], drawn: Tensor) -> Tensor:
    """The drawn indices, or the index of the name that was asked for."""
    if name and name not in names:
        raise ValueError(f"style: {what} must be one of {', '.join(names)}, got {name!r}")
    return torch.full_like(drawn, names.index(name)) if name else drawn


def _greys(air: Tensor) -> Tensor:
    """Air colours [N, 5, 3] under a closed sky: one grey for all of it, a grey for each other."""
    heaven = air[:, :2].mean((1, 2), keepdim=True).expand(-1, 2, -1)  # [N, 2, 1]
    return torch.cat([heaven, air[:, 2:].mean(2, keepdim=True)], 1).expand(-1, -1, 3)


def take(parameters: Parameters, index: Tensor | list[int] | slice) -> Parameters:
    """The rows `index` (integer tensor, list or slice) of every entry."""
    return {name: value[index] for name, value in parameters.items()}


def render(content: Parameters, style: Parameters, size: int) -> tuple[Tensor, Tensor]:
    """Pictures of scenes, and the region that each pixel belongs to.

    Arguments: parameters of N scenes on one device; `size`, the side in pixels, at least 1.
    Returns images float32 [N, 3, size, size] in [-1, 1] and regions float32 [N, 4, size, size],
    one-hot in the order of REGIONS. Regions depend on content alone: a pixel belongs to what covers
    more than half of it. Edges are blended over one pixel. Row k depends on scene k only, whatever
    the batch; no random numbers are drawn. Pixels agree between machines up to rounding.
    """
    first = int(_HIGHEST_TREE * size)
    scene, lower = (painting.Scene(content, style, size, row) for row in (0, first))
    image = painting.sky(scene)
    land, front = painting.ridges(scene, image), image[:, :, first:]
    ground = painting.ground(lower, front)
    water, trees = painting.lake(lower, front, ground), painting.trees(lower, front)
    label = (land > 0.5).long()  # [N, 1, S, S]
    below = torch.where(water > 0.5, 2, torch.where(ground > 0.5, 3, label[:, :, first:]))
    label[:, :, first:] = torch.where(trees > 0.5, 3, below)
    regions = torch.zeros(len(image), len(REGIONS), size, size, device=image.device)
    return image.clamp_(0, 1).mul_(2).sub_(1), regions.scatter_(1, label, 1.0)
