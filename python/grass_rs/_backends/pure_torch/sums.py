"""Sums whose order is a function of their length alone, and the pieces that bound their memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

PIECE = 1 << 18
"""Coordinates, or entries of a matrix, taken at once."""
_ROW_BYTES = 1 << 25
"""The most memory of the rows taken at once, unless one takes more."""


def row_blocks(n: int, bytes_a_row: int) -> Iterator[tuple[int, int]]:
    """Yield first and last of the rows to take at once: results must not depend on how many those are."""
    step = max(1, _ROW_BYTES // max(1, bytes_a_row))
    for first in range(0, n, step):
        yield first, min(n, first + step)


def sum_in_order(parts: Tensor) -> Tensor:
    """Return the sum over axis 1 of (n, m, h), m > 0, by halves; it may overwrite `parts`.

    torch.sum takes an order of its own on every device and for every n.
    """
    m = parts.shape[1]
    while m > 1:
        half = m // 2
        parts[:, :half] += parts[:, half : 2 * half]
        if m % 2:
            parts[:, :1] += parts[:, m - 1 : m]
        m = half
    return parts[:, 0]
