"""Random numbers as a pure function of integers: no state, no order, the same on every machine."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
Seeds = Sequence[int] | Bits  # in [0, 2^64)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAM = np.uint64(0xD1342543DE82EF95)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _mix(z: Bits) -> Bits:
    z = (z ^ (z >> np.uint64(30))) * _MIX[0]
    z = (z ^ (z >> np.uint64(27))) * _MIX[1]
    mixed: Bits = z ^ (z >> np.uint64(31))
    return mixed


def hash_bits(seeds: Seeds, stream: int, count: int) -> Bits:
    """64 random bits for every (seed, stream, index), index = 0 .. count - 1.

    `seeds` holds N integers in [0, 2^64). Returns uint64 [N, count]. Row k depends on seed k,
    `stream` and nothing else, and the first columns do not depend on `count`.

    Source: the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), applied twice so that
    neighbouring seeds share nothing.
    """
    seeds = np.asarray(seeds, dtype=np.uint64).reshape(-1, 1)  # [N, 1]
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        keys = _mix(seeds * _GOLDEN + np.uint64(stream) * _STREAM + _GOLDEN)  # [N, 1]
        return _mix(keys + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)  # [N, count]


def hash_uniform(seeds: Seeds, stream: int, count: int) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1) for every (seed, stream, index): float32 [N, count]."""
    bits = hash_bits(seeds, stream, count) >> np.uint64(40)  # 24 bits are exact in float32
    return bits.astype(np.float32) / np.float32(1 << 24)
