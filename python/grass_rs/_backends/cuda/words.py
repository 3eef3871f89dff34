"""The random words of the seeded structures, for tables that are made once and moved to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKET = 2
"""The stream of the iid SJLT's buckets."""

_LOW = np.uint64(0xFFFF_FFFF)
_HIGH = np.uint64(32)
_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_INCREMENTS = 0x9E3779B9, 0xBB67AE85


def words(seed: int, stream: int, count: int) -> NDArray[np.uint32]:
    """Return words 0 to count - 1 of a stream: Philox4x32 with ten rounds (Salmon et al., SC 2011).

    Parameters
    ----------
    seed
        Unsigned 64-bit seed.
    stream
        Number of the stream.
    count
        How many words.

    Returns
    -------
    numpy.ndarray
        (count,) uint32, the same words as grass-core's.

    """
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    c0, c1, c2, c3 = blocks & _LOW, blocks >> _HIGH, np.full_like(blocks, stream), blocks * 0
    for step in range(_ROUNDS):
        k0, k1 = (
            np.uint64(((seed >> (32 * half)) + step * _INCREMENTS[half]) & 0xFFFF_FFFF)
            for half in (0, 1)
        )
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (right >> _HIGH) ^ c1 ^ k0, right & _LOW
        c2, c3 = (left >> _HIGH) ^ c3 ^ k1, left & _LOW
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32).reshape(-1)[:count]
