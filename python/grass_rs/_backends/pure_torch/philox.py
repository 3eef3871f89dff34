"""The random words of the structures (Philox4x32-10, Salmon et al., SC 2011), drawn on a tensor's device.

Words are 32 bits wide and held in int64: torch has no unsigned arithmetic on every device, and the low 64 bits of a
product are the same with a sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

BUCKET, SIGN, ROTATION, GAUSSIAN = 2, 3, 4, 5
TILE_SHIFT, TILE_ROW_SIGN, TILE_COLUMN_SIGN, RADEMACHER = 6, 7, 8, 9
"""Streams of words, one a purpose."""

_LOW = 0xFFFF_FFFF


@dataclass(frozen=True)
class Stream:
    """A stream of words of a seed, on a device."""

    seed: int
    number: int
    device: torch.device

    def words(self, start: int, stop: int) -> Tensor:
        """Return words start..stop."""
        first = start // 4
        m = torch.arange(first, -(-stop // 4), dtype=torch.int64, device=self.device)
        c0, c1, c2, c3 = m & _LOW, m >> 32, torch.full_like(m, self.number), torch.zeros_like(m)
        k0, k1 = self.seed & _LOW, self.seed >> 32
        for _ in range(10):
            product_0, product_1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
            c0, c1 = (product_1 >> 32 & _LOW) ^ c1 ^ k0, product_1 & _LOW
            c2, c3 = (product_0 >> 32 & _LOW) ^ c3 ^ k1, product_0 & _LOW
            k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
        return torch.stack([c0, c1, c2, c3], dim=1).view(-1)[start - 4 * first : stop - 4 * first]

    def signs(self, start: int, stop: int) -> Tensor:
        """Return signs start..stop, float32: -1 where the bit is set, lowest bit of a word first."""
        first = start // 32
        words = self.words(first, -(-stop // 32))
        bits = words[:, None] >> torch.arange(32, device=self.device) & 1
        return 1 - 2 * bits.view(-1)[start - 32 * first : stop - 32 * first].to(torch.float32)

    def draws(self, bound: int, start: int, stop: int) -> Tensor:
        """Return numbers start..stop of [0, bound), bound at most 2^32, int64."""
        return self.words(start, stop) * bound >> 32 & _LOW
