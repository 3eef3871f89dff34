"""How the cyclic SJLT is cut into launches of cyclic.cu: arithmetic of sizes, without a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from grass_rs._backends.cuda.launch import SCALARS, Kernel, Launch

if TYPE_CHECKING:
    from collections.abc import Iterator

_WARP = 32
_SIGN_BLOCK = 128
_THREADS = 256
_AHEAD = 4
"""Pages that a thread reads together, at most."""
_MANY_COLUMNS = 4
"""Columns a thread: a warp has 128, as many as one block of signs."""
_NARROW, _TEAMED = 128, 512
"""Widths below the first have one column a thread; from the second on, threads suffice for one page."""

_MIN_PAGES = 16
"""Pages of a part and team, at least: writing and adding parts moves 2 / 16 of the bytes read, or less."""
_BLOCKS = 512
"""Blocks a row, where there is enough to read: 528 have place on an H200 at once (132 * 4)."""
_ENOUGH_BLOCKS = 264
"""Blocks of a launch below which a thread takes fewer rows and columns: two for each multiprocessor."""
_BATCH_PAGES = 64
_BATCH_BYTES = 24 << 10
"""What is drawn at a time, at most: four blocks on a multiprocessor leave most of its memory to the cache."""
_MAX_BATCH_COORDINATES = (1 << 31) - 1


@dataclass(frozen=True)
class Cut:
    """How the pages are shared out. It follows from p and w alone, and it fixes the order of every sum."""

    p: int
    """Coordinates."""
    width: int
    """Coordinates of a page: w."""
    teams: int
    """Teams of a block, which take pages in turn."""
    group_pages: int
    """Pages of a group."""
    parts: int
    """Groups; each leaves a part of every sum."""


def cut(p: int, width: int) -> Cut:
    """Cut p coordinates in pages of `width` into groups."""
    if width < _NARROW:
        teams = _THREADS // width
    elif width <= _TEAMED:
        teams = _THREADS // _team_threads(width, _MANY_COLUMNS)[1]
    else:
        teams = 1
    pages = _ceil_div(p, width)
    most = max(1, _BLOCKS // _ceil_div(width, _THREADS * _MANY_COLUMNS))
    groups = min(most, _ceil_div(pages, _MIN_PAGES * teams))
    step = _AHEAD * teams
    group_pages = _ceil_div(_ceil_div(pages, groups), step) * step
    return Cut(p, width, teams, group_pages, _ceil_div(pages, group_pages))


def launch(
    cut: Cut, n: int, draws: int, dtype: str, index: str | None
) -> tuple[Launch, tuple[np.generic, ...]]:
    """Return the launch that sketches n rows, and the arguments that say how.

    Parameters
    ----------
    cut
        How the pages are shared out.
    n
        Rows, at least one.
    draws
        Independent sketches: nnz.
    dtype
        Of the rows.
    index
        The sources' name of the mask's type of indices for GraSS, else None.

    """
    for rows, columns in _sums_of_a_thread(cut, n, dtype):
        slices, team_threads = _team_threads(cut.width, columns)
        blocks = _ceil_div(n, rows) * draws * slices
        if blocks * cut.parts >= _ENOUGH_BLOCKS:
            break
    sliced = slices > 1
    sign_blocks = _ceil_div(cut.width, _SIGN_BLOCK)
    if sliced:
        # The slice begins anywhere in its first block, and may go round the page's end and its padding.
        padding = -cut.width % _SIGN_BLOCK
        sign_blocks = (team_threads * columns + padding + _SIGN_BLOCK - 2) // _SIGN_BLOCK + 1
    batch_pages = _batch_pages(cut, sign_blocks)
    shared = (16 * sign_blocks + 4) * batch_pages
    if cut.teams > 1:
        shared = max(shared, 4 * cut.teams * team_threads * rows * columns)
    macros = (
        f"Scalar={SCALARS[dtype]}",
        f"ROWS={rows}",
        f"COLUMNS={columns}",
        f"SLICED={int(sliced)}",
        f"GATHER={int(index is not None)}",
        f"Index={index or 'int'}",
    )
    return (
        Launch(
            Kernel("cyclic.cu", "cyclic", macros),
            (blocks, cut.parts, 1),
            (team_threads, cut.teams, 1),
            shared,
        ),
        tuple(np.uint32(number) for number in (slices, sign_blocks, batch_pages, cut.group_pages)),
    )


def _sums_of_a_thread(cut: Cut, n: int, dtype: str) -> Iterator[tuple[int, int]]:
    """Yield (rows, columns) of a thread, the most sums first; more rows share what a coordinate costs."""
    columns = 1 if cut.width < _NARROW else _MANY_COLUMNS
    for rows in (4, 2, 1):
        if rows < 2 * n and not (dtype == "float64" and rows == 4):
            yield rows, columns
    if cut.width > _TEAMED:
        yield 1, 1


def _team_threads(width: int, columns: int) -> tuple[int, int]:
    """Return the slices of a page and the threads that cover one: whole warps, or a narrow page."""
    if width < _NARROW:
        return 1, width
    slices = _ceil_div(width, _THREADS * columns)
    return slices, _WARP * _ceil_div(_ceil_div(width, slices), _WARP * columns)


def _batch_pages(cut: Cut, sign_blocks: int) -> int:
    """Return the pages drawn at a time, a multiple of what the teams read together where that is possible."""
    step = _AHEAD * cut.teams
    steps = _BATCH_BYTES // (16 * sign_blocks + 4) // step
    most = max(step, _BATCH_PAGES // step * step)
    pages = min(max(1, steps) * step, most, cut.group_pages)
    return min(pages, max(1, _MAX_BATCH_COORDINATES // cut.width))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
