"""The layers of a procedural landscape, painted from far to near.

Each layer takes the scene and the picture so far, [N, 3, H, S] in [0, 1], paints over it in place
and returns how much of each pixel it covers, [N, 1, H, S]. Coverage comes from the signed distance
to the outline, so edges are smooth at any size. What is drawn on surfaces is faint and broad (a few
waves across the picture): fine strong patterns are what a small model cannot learn in minutes.

Nearly all the time goes into maps of H x S numbers, so sines are built from rows and columns (see
`Scene.wave`) and soft steps are clamped lines: a map of `tanh` costs as much as twenty products.
"""

import functools
import math

import torch
from torch import Tensor

from rwm_fast.data.hashing import hash_uniform


class Scene:
    """Parameters of N scenes and the pixel grid they are painted on: rows `first` to `size`.

    Below, H is the number of these rows and S is `size`.
    """

    def __init__(
        self, content: dict[str, Tensor], style: dict[str, Tensor], size: int, first: int = 0
    ):
        self.content, self.style, self.size, self.first = content, style, size, first
        self.device = content["horizon"].device
        line = (torch.arange(size, device=self.device) + 0.5) / size
        self.y, self.x = line[first:].view(1, 1, -1, 1), line.view(1, 1, 1, -1)
        self.horizon = self.place("horizon")
        self.from_sun = self.x - self.place("sun_x")  # [N, 1, 1, S]

    def place(self, name: str) -> Tensor:
        """A number of the content, [N, 1, 1, 1]."""
        return self.content[name].view(-1, 1, 1, 1)

    def amount(self, name: str) -> Tensor:
        """A number of the style, [N, 1, 1, 1]."""
        return self.style[name].view(-1, 1, 1, 1)

    def colour(self, name: str) -> Tensor:
        """A colour of the style, [N, 3, 1, 1]."""
        return self.style[name].view(-1, 3, 1, 1)

    def cover(self, distance: Tensor) -> Tensor:
        """Share of a pixel inside an outline, from the signed distance (inside > 0)."""
        return (distance * self.size).add_(0.5).clamp_(0, 1)

    @staticmethod
    def wave(row: Tensor, column: Tensor) -> Tensor:
        """sin(row + column) for angles [N, 1, H, 1] and [N, 1, 1, S]: [N, 1, H, S]."""
        return (row.sin() * column.cos()).add_(row.cos() * column.sin())

    @functools.cached_property
    def texture(self) -> Tensor:
        """Two crossing waves of the style's angle, width and strength, [N, 1, H, S]."""
        angle, waves = self.amount("angle"), self.amount("waves") * 2 * math.pi
        cos, sin = angle.cos() * waves, angle.sin() * waves
        along = self.wave(self.y * sin, self.x * cos)
        across = self.wave(self.y * cos * 0.7, self.x * sin * -0.7 + 1)
        return along.mul_(0.7).add_(across.mul_(0.5)).mul_(self.amount("texture"))


def sky(scene: Scene) -> Tensor:
    """A new picture [N, 3, H, S]: gradient, stars, sun or moon with its glow, clouds."""
    size, low, sun = scene.size, scene.colour("low"), scene.colour("sun")
    height = (scene.y / scene.horizon).clamp(0, 1)  # [N, 1, H, 1], 0 at the top, 1 at the horizon
    above = torch.lerp(scene.colour("sky"), low, 0.9 * (scene.amount("haze") - 0.35).clamp(min=0))
    gradient = torch.lerp(above, low, height * (0.75 + 0.25 * height))  # [N, 3, H, 1]
    stars, density, lit = fixed_sky(size, scene.device)
    image = gradient + stars * (scene.amount("stars") * (1 - height))
    across, down = scene.from_sun, scene.y - scene.place("sun_y")
    square = across**2 + down**2  # [N, 1, H, S]
    radius, night, seen = scene.place("sun_r"), scene.amount("night"), scene.amount("visible")
    disc = scene.cover(radius - square.sqrt())
    dark = ((across + 0.45 * radius) ** 2 + (down + 0.25 * radius) ** 2).sqrt_()
    disc *= 1 - night * scene.cover(0.9 * radius - dark)  # the moon is a crescent
    glow = (square * 70 + 1).reciprocal_() * ((0.55 - 0.25 * night) * (0.3 + 0.7 * seen))
    image.lerp_(sun, glow).lerp_(sun, disc * seen)
    cloudy = ((density + (scene.amount("clouds") * 1.5 - 1.2)) * 2.5).clamp_(0, 1)
    white = torch.lerp(scene.colour("cloud"), low, height * 0.5)  # [N, 3, H, 1]
    return image.lerp_(white * (0.80 + 0.20 * lit), cloudy * (0.85 - 0.5 * height))


@functools.lru_cache(maxsize=8)
def fixed_sky(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Stars, cloud density and cloud light, [1, 1, S, S]: the same layout in every picture.

    The layout is fixed because it is neither content nor style: a style says how many clouds there
    are, so a swap can be judged pixel by pixel.
    """
    line = (torch.arange(size) + 0.5) / size
    y, x = line.view(-1, 1), line.view(1, -1)

    def noise(dy: float) -> Tensor:
        total = torch.zeros(1)
        for k in range(4):
            total = total + 0.5**k * _value_noise(x * 2.4 * 2**k, (y + dy) * 6.5 * 2**k, k)
        return total / 1.875

    density, above = noise(0), noise(-0.03)
    lit = ((density - above) * 4 + 0.5).clamp(0, 1)  # bright where the cloud thins out upwards
    spread = max(0.0035, 0.45 / size)  # a star is never narrower than a pixel
    stars = torch.zeros(size, size)
    for sx, sy, bright in hash_uniform(range(48), 3, 3).tolist():
        spot = torch.exp(-((x - sx) ** 2 + (y - 0.6 * sy) ** 2) / spread**2)
        stars += spot * (0.25 + 0.75 * bright**2) * min(1.0, 0.0035 / spread + 0.35)
    stars, density, lit = (t[None, None].to(device) for t in (stars.clamp(0, 1), density, lit))
    return stars, density, lit


def _value_noise(x: Tensor, y: Tensor, octave: int) -> Tensor:
    """Smooth noise in [0, 1] with one random value per unit square."""
    lattice = torch.from_numpy(hash_uniform(range(64), 4 + octave, 64))  # [64, 64]
    ix, iy = x.floor().long(), y.floor().long()
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    at = lambda dy, dx: lattice[(iy + dy) % 64, (ix + dx) % 64]
    return torch.lerp(torch.lerp(at(0, 0), at(0, 1), fx), torch.lerp(at(1, 0), at(1, 1), fx), fy)


def crests(scene: Scene) -> tuple[Tensor, Tensor]:
    """Height of the three ridge lines and their slope dy/dx along x, both [N, 3, S]."""
    c = scene.content
    octave = scene.x.new_tensor([1.0, 2.1, 4.3, 8.7]).view(1, 1, 4, 1)
    weight = scene.x.new_tensor([1.0, 0.45, 0.2, 0.08]).view(1, 1, 4, 1) / 1.73
    rate = math.pi * octave * c["ridge_frequency"][..., None]  # [N, 3, 4, 1]
    turn = rate * scene.x + c["ridge_phase"][..., None]  # [N, 3, 4, S]
    fold = turn.sin()
    height = ((1 - 1.2 * fold.abs()) * weight).sum(2)  # [N, 3, S], sharp crests at the folds
    rise = (-1.2 * fold.sign() * turn.cos() * rate * weight).sum(2) * (height > -0.4)
    size = c["ridge_height"][..., None]
    y = c["horizon"].view(-1, 1, 1) - c["ridge_base"][..., None] - size * height.clamp(min=-0.4)
    return y, -size * rise


def facets(scene: Scene, ridge: int, below: Tensor) -> Tensor:
    """Which way a mountain's face looks, [N, 1, H, S] in [-1, 1]: > 0 falls towards the right.

    The two broadest folds of the ridge line, continued downwards at a slant and fading; the finer
    ones would hang from the crest like a curtain.
    """
    c, slant = scene.content, 0.5 - ridge
    at = scene.x + slant * below  # [N, 1, H, S]
    face = torch.zeros_like(at)
    for k, (octave, steep) in enumerate(((1.0, 4.0), (2.1, 2.4))):
        turn = c["ridge_phase"][:, ridge, k].view(-1, 1, 1, 1) / math.pi + 0.75
        saw = (at * (octave * c["ridge_frequency"][:, ridge, k].view(-1, 1, 1, 1)) + turn).frac_()
        face = face + saw.sub_(0.5).abs_().sub_(0.25).mul_(4 * steep).clamp_(-steep / 4, steep / 4)
    fade = (1 - 3 * below).clamp_(0, 1)
    return face.clamp_(-1, 1).mul_(fade).mul_(fade)


def ridges(scene: Scene, image: Tensor) -> Tensor:
    """Far mountains, near mountains, foothills, each paler at its foot; snow above a line."""
    crest, slope = crests(scene)
    low, light, haze = scene.colour("low"), scene.colour("light"), scene.amount("haze")
    snow = scene.amount("snow")
    sunward = torch.tanh(scene.from_sun * 6) * 0.30  # [N, 1, 1, S]
    land = torch.zeros_like(image[:, :1])
    for k, strength in enumerate((0.4, 0.8, 1.2)):
        line, rate = crest[:, k, None, None], slope[:, k, None, None]  # [N, 1, 1, S]
        below = scene.y - line  # [N, 1, H, S]
        covered = scene.cover(below * (1 + rate**2).rsqrt())
        shade = 1 + strength * scene.texture
        rock = scene.colour("rock") * light
        if k == 2:
            rock = torch.lerp(scene.colour("grass") * light, rock, 0.35)
            surface = rock * shade
        else:
            facet = facets(scene, k, below)
            shade.sub_(facet * sunward)
            top = scene.horizon - 0.14 - 0.09 * k + 0.16 * (snow - 0.8) - scene.y  # [N, 1, H, 1]
            white = (facet * -0.7).add_(top * 14).clamp_(0, 1).mul_(snow > 0.01)
            surface = (white * (light * 0.97 - rock)).add_(rock).mul_(shade)
        foot = (below / (scene.horizon - line).clamp(min=0.02)).clamp_(0, 1)  # 0 at the crest
        far = (0.55 - 0.22 * k) * (0.35 + haze).clamp(max=1) + 0.35 * (haze - 0.35).clamp(min=0)
        surface.lerp_(low, foot.square_().mul_(0.40 - 0.08 * k).add_(far).clamp_(max=0.9))
        image.lerp_(surface, covered)
        land = torch.maximum(land, covered)
    return land


def ground(scene: Scene, image: Tensor) -> Tensor:
    """Meadow, snow field or sand, hazy in the distance, with the soft shadows of the trees."""
    c = scene.content
    covered = scene.cover(scene.y - scene.horizon).expand_as(image[:, :1])
    near = ((scene.y - scene.horizon) / (1 - scene.horizon)).clamp(0, 1)  # [N, 1, H, 1]
    bright = (1 + scene.texture * (1 + near)) * (1.05 - 0.25 * near)  # [N, 1, H, S]
    tx, ty, tw, th = (c[f"tree_{name}"][..., None] for name in "xywh")  # [N, T, 1]
    across = torch.exp(-(((scene.x[:, 0] - tx) / (tw * 1.3)) ** 2)) * (th > 0) * -0.30  # [N, T, S]
    down = torch.exp(-(((scene.y[:, 0, :, 0] - ty) / (th * 0.07 + 1e-3)) ** 2))  # [N, T, H]
    for k in range(tx.shape[1]):
        bright *= (down[:, None, k, :, None] * across[:, None, k, None, :]).add_(1)
    surface = bright * (scene.colour("grass") * scene.colour("light"))
    surface.lerp_(scene.colour("low"), (0.12 + 0.55 * scene.amount("haze")) * (1 - near))
    image.lerp_(surface, covered)
    return covered


def lake(scene: Scene, image: Tensor, ground: Tensor) -> Tensor:
    """A lake that mirrors sky and mountains, with the sun's path on it; ice in winter."""
    low, light, rock = (scene.colour(name) for name in ("low", "light", "rock"))
    inside, down = _shore(scene)
    covered = torch.minimum(scene.cover(inside), ground)
    ripple = scene.wave(scene.y * 60, 1.2 * torch.sin(scene.x * 15)) * scene.amount("ripple")
    depth = (down * 0.5 + 0.5).clamp(0, 1)  # [N, 1, H, 1]
    top = crests(scene)[0].amin(1)[:, None, None]  # [N, 1, 1, S], the skyline
    mirrored = scene.cover((2 * scene.horizon - scene.y - top).add(ripple * 0.08).mul_(0.25))
    hills = torch.lerp(rock * light, low, 0.4) * 0.75
    water = torch.lerp(low, scene.colour("sky"), depth * 0.8) * 0.88  # [N, 3, H, 1]
    water = (mirrored * 0.55 * (hills - water)).add_(water).mul_(1 + ripple)  # [N, 3, H, S]
    water.lerp_(torch.lerp(low, light, 0.6) * 0.92, scene.amount("ice"))
    path = torch.exp(-((scene.from_sun / 0.05) ** 2)) * scene.amount("visible")  # [N, 1, 1, S]
    water.lerp_(scene.colour("sun"), (ripple * 2.5).add_(0.40).mul_(path).clamp_(0, 1))
    water *= 1 - 0.25 * (1 - inside * 35).clamp_(0, 1)  # darker along the shore
    image.lerp_(water, covered)
    return covered


def _shore(scene: Scene) -> tuple[Tensor, Tensor]:
    """Signed distance to the lake's outline [N, 1, H, S], and the row inside it [N, 1, H, 1].

    The outline is a wavy ellipse, radius 1 + .10 sin(2 t + p) + .07 sin(3 t + q) at angle t; the
    sines of 2 t and 3 t are polynomials of those of t.
    """
    width, height = scene.place("lake_w"), scene.place("lake_h")
    across = (scene.x - scene.place("lake_x")) / width  # [N, 1, 1, S]
    down = (scene.y - scene.place("lake_y")) / height  # [N, 1, H, 1]
    radius = (across**2 + down**2).sqrt_().add_(1e-6)
    cos, sin = across / radius, down / radius
    p, q = scene.content["lake_phase"].view(-1, 2, 1, 1, 1).unbind(1)
    twice = (cos * sin).mul_(0.20 * p.cos()).add_((1 - 2 * sin**2).mul_(0.10 * p.sin()))
    thrice = (sin * (3 - 4 * sin**2)).mul_(0.07 * q.cos())
    thrice.add_((cos * (4 * cos**2 - 3)).mul_(0.07 * q.sin()))
    steep = ((across / width) ** 2 + (down / height) ** 2).sqrt_() / radius  # radius per length
    return (1 - radius + twice + thrice) / steep, down


def crowns(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Half-width, share of leaves and share of snow of every tree in every row, [N, T, H].

    A tree is its half-width per row: tiers for a conifer, an ellipse for a round crown, the trunk
    below. Four samples per row smooth the outline's steps. Half-width is negative outside.
    """
    c, size, samples = scene.content, scene.size, 4
    line = torch.arange(scene.first * samples, size * samples, device=scene.device)
    line = (line + 0.5) / (size * samples)
    foot, height, width = (c[f"tree_{name}"][..., None] for name in "yhw")  # [N, T, 1]
    q = (foot - line) / height.clamp(min=1e-3)  # 0 at the foot, 1 at the tip
    tier = torch.remainder(q * -3, 1)  # 0 at the top of a tier, 1 at its rim
    cone = (1 - q) * (0.72 + 0.28 * tier) * 1.1
    ball = (1 - ((q - 0.62) / 0.38) ** 2).clamp(min=0).sqrt()
    pointed = c["tree_pointed"][..., None] > 0.5
    leafy = (q > torch.where(pointed, 0.10, 0.26)) & (q < 1)
    trunk = (q >= 0) & ~leafy & (q < 1)
    half = torch.where(leafy, torch.where(pointed, cone, ball), 0.13) * width
    half = torch.where((leafy | trunk) & (height > 0), half, -0.5 / size)
    snow = torch.where(pointed, 1 - tier, (q - 0.5) * 2).clamp(0, 1) * leafy
    rows = lambda t: t.view(*t.shape[:2], size - scene.first, samples).float().mean(3)
    return rows(half), rows(leafy), rows(snow)


def trees(scene: Scene, image: Tensor) -> Tensor:
    """Conifers and round trees, lit from the sun's side, with snow where the season has it."""
    c, light = scene.content, scene.colour("light")
    half, leafy, snow = crowns(scene)
    bark = scene.x.new_tensor([0.30, 0.20, 0.14]).view(1, 3, 1, 1) * light
    warm = scene.x.new_tensor([1.0, 0.25, -0.6]).view(1, 3, 1, 1) * scene.amount("variety")
    white = (scene.amount("snow") - 0.95).clamp(0, 0.5) * 1.5
    total = torch.zeros_like(image[:, :1])
    for k in range(half.shape[1]):
        width, leaves, snowy = (t[:, None, k, :, None] for t in (half, leafy, snow))  # [N, 1, H, 1]
        across = scene.from_sun + (scene.place("sun_x") - c["tree_x"][:, k].view(-1, 1, 1, 1))
        covered = scene.cover(width - across.abs())
        side = 0.28 * torch.tanh((scene.place("sun_x") - c["tree_x"][:, k].view(-1, 1, 1, 1)) * 6)
        lit = (across / width.clamp(min=0.01)).clamp_(-1, 1).mul_(side).add_(1)  # [N, 1, H, S]
        leaf = (scene.colour("leaf") + warm * c["tree_hue"][:, k].view(-1, 1, 1, 1)).clamp(0, 1)
        surface = torch.lerp(leaf * light, light * 0.97, white * snowy)  # [N, 3, H, 1]
        image.lerp_(lit * torch.lerp(bark, surface, leaves), covered)
        total = torch.maximum(total, covered)
    return total
