"""A contact sheet of landscapes: a scene per row, a style per column, regions last.

`python -m rwm_fast.data.sheet FILE.png` draws the one in the README.
"""

import sys

import torch
from torch import Tensor

from rwm_fast.data import landscapes
from rwm_fast.data.saving import write_picture

STYLES = (  # time, season, weather
    ("day", "summer", "fair"),
    ("dawn", "spring", "clear"),
    ("dusk", "desert", "clear"),
    ("sunset", "autumn", "fair"),
    ("day", "autumn", "mist"),
    ("day", "winter", "overcast"),
    ("night", "winter", "clear"),
)
_REGION_COLOURS = (
    (0.62, 0.76, 0.90),
    (0.52, 0.46, 0.44),
    (0.22, 0.42, 0.66),
    (0.52, 0.66, 0.36),
)  # RGB
_GAP = 2  # px, white


def contact_sheet(rows: int = 4, size: int = 112, seed: int = 100) -> Tensor:
    """uint8 [3, rows * (size + 2) - 2, (len(STYLES) + 1) * (size + 2) - 2], RGB."""
    columns = len(STYLES)
    scenes = landscapes.content([seed + r for r in range(rows) for _ in range(columns)])
    styles = [
        landscapes.style([seed + k], time=t, season=s, weather=w)
        for k, (t, s, w) in enumerate(STYLES)
    ]
    looks = {name: torch.cat([style[name] for style in styles] * rows) for name in styles[0]}
    images, regions = landscapes.render(scenes, looks, size)
    images = (images.unflatten(0, (rows, columns)) + 1) / 2  # [R, columns, 3, S, S]
    labels = regions.unflatten(0, (rows, columns))[:, 0]  # [R, 4, S, S]
    legend = torch.einsum("rkyx,kc->rcyx", labels, torch.tensor(_REGION_COLOURS))
    tiles = torch.cat([images, legend[:, None]], 1)
    tiles = torch.nn.functional.pad(tiles, (0, _GAP, 0, _GAP), value=1.0)
    sheet = tiles.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)[:, :-_GAP, :-_GAP]
    return (sheet * 255 + 0.5).to(torch.uint8)


if __name__ == "__main__":
    write_picture(contact_sheet().permute(1, 2, 0).numpy(), sys.argv[1])
