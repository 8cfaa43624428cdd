"""Pictures that look the same though their pixels differ: resized, compressed again, brightened."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Look = NDArray[np.float32]  # [SIDE² + 4]

SIDE = 16  # px of the tiny copy that is compared
# Two looks are alike where one's grey values, about their mean, are a multiple of the other's but
# for an rms of _NOISE + _SHARE of the contrast, the multiple is at most _GAIN either way, colours
# differ by at most _SHIFT of 255 in the mean, and logarithms of aspect ratios by _ASPECT.
_NOISE, _SHARE, _GAIN, _SHIFT, _ASPECT = 1.5, 0.08, 1.3, 24.0, 0.03


def look_of(image: Image.Image) -> Look:
    """A perceptual hash: grey values about their mean, mean of R, G and B, log of the aspect."""
    tiny = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    colours = tiny.reshape(-1, 3).astype(np.float32)  # [SIDE², 3]
    grey = colours.mean(1)
    rest = np.array([*colours.mean(0), math.log(image.width / image.height)], np.float32)
    return np.concatenate([grey - grey.mean(), rest])


class Looks:
    """Looks by name, in the order they were added."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows = np.empty((64, SIDE * SIDE + 4), np.float32)

    def add(self, name: str, look: Look) -> None:
        if len(self._names) == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[len(self._names)] = look
        self._names.append(name)

    def find(self, look: Look) -> str | None:
        """The first one that is alike."""
        rows = self._rows[: len(self._names)]
        grey = rows[:, :-4]  # [N, SIDE²]
        power, own = np.square(grey).mean(1), np.square(look[:-4]).mean()
        common = (grey @ look[:-4]).clip(0) / grey.shape[1]
        low, high = np.minimum(power, own), np.maximum(power, own)
        apart = (low - common**2 / np.maximum(high, 1e-6)).clip(0)
        alike = np.sqrt(apart) <= _NOISE + _SHARE * np.sqrt(low)
        alike &= np.sqrt(high) <= _NOISE + _GAIN * np.sqrt(low)
        alike &= np.abs(rows[:, -4:-1] - look[-4:-1]).max(1) <= _SHIFT
        alike &= np.abs(rows[:, -1] - look[-1]) <= _ASPECT
        return self._names[int(alike.argmax())] if alike.any() else None
