"""Which picture comes when, and how it is cropped: pure functions of (seed, position).

The position counts images seen since the start of the run. So a resumed run continues the very
stream, and the number of workers changes nothing.
"""

import functools
from collections.abc import Sequence

import numpy as np

from rwm_fast.data.hashing import hash_bits, hash_uniform

# streams of the hash; below 16 belongs to the landscapes
_KEY, _ORDER, _DRAWS, _SHIFT = 16, 17, 18, 19


def picture_at(seed: int, position: int, count: int) -> int:
    """Index of the picture at a position; every `count` positions each picture comes once."""
    epoch, place = divmod(position, count)
    return int(_permutation(seed, epoch, count)[place])


def group_at(position: int, groups: int) -> tuple[int, int]:
    """The group that a position belongs to, and its place among the group's positions: pairs of
    neighbours go round the groups, as they do round processes (training/share.py)."""
    turn, rest = divmod(position, 2 * groups)
    group, within = divmod(rest, 2)
    return group, 2 * turn + within


def picture_in_group(seed: int, group: int, place: int, counts: Sequence[int]) -> int:
    """Index within a group, of `counts` pictures each, at a place: every max(counts) places each
    picture of the group comes, those of a smaller group more than once."""
    epoch, at = divmod(place, max(counts))
    shift = int(hash_bits([_key(seed, epoch)], _SHIFT, group + 1)[0, group]) if group else 0
    index = int(_permutation(seed, epoch, max(counts))[at])  # one for all groups, turned for each
    return (index + shift % max(counts)) % max(counts) % counts[group]


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
    return (_start(seed) + number) % 2**64


@functools.lru_cache(maxsize=4)
def _start(seed: int) -> int:
    return int(hash_bits([seed % 2**64], _KEY, 1)[0, 0])
