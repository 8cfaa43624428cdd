"""Which picture comes when, and how it is cropped: pure functions of (seed, position).

The position counts images seen since the start of the run. So a resumed run continues the very
stream, and the number of workers changes nothing.
"""

import functools

import numpy as np

from rwm_fast.data.hashing import hash_bits, hash_uniform

_KEY, _ORDER, _DRAWS = 16, 17, 18  # streams of the hash; below 16 belongs to the landscapes


def picture_at(seed: int, position: int, count: int) -> int:
    """Index of the picture at a position; every `count` positions each picture comes once."""
    epoch, place = divmod(position, count)
    return int(_permutation(seed, epoch, count)[place])


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    keys = hash_bits([_key(seed, epoch)], _ORDER, count)[0]  # uint64 [count]
    order: np.ndarray = keys.argsort(kind="stable")
    return order


def draws_at(seed: int, position: int, count: int) -> list[float]:
    """`count` uniform numbers in [0, 1) for the random choices at a position."""
    draws: list[float] = hash_uniform([_key(seed, position)], _DRAWS, count)[0].tolist()
    return draws


def _key(seed: int, number: int) -> int:
    start = int(hash_bits([seed % 2**64], _KEY, 1)[0, 0])
    return (start + number) % 2**64
