"""How a tile sketch is launched: patches and parts, as functions of numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from grass_rs._backends.cuda.launch import SCALARS, Kernel
from grass_rs.errors import ShapeError

FEW_TOKENS = 8
"""Up to so many tokens, folding a product costs more than tensor cores save."""

MOST_PARTS = 128
"""Parts that an example's tiles are shared out in, where its tokens alone do not make more."""

TOKENS_A_PART = 4096
"""Tokens of a part at most."""

MOST_BLOCKS = 2**31 - 1
"""Blocks of a launch at most."""


@dataclass(frozen=True)
class Problem:
    """What is to be sketched, whatever the number of examples."""

    height: int
    """Of a tile."""
    width: int
    in_features: int
    """With the bias column."""
    out_features: int
    dtype: str
    """Of the factors."""
    tokens: int
    """Of an example."""
    aligned: bool
    """Whether every token's factors begin at a multiple of 16 bytes."""
    bias: bool
    """Whether the last input is one and not in memory."""

    def tiles(self, down: int, across: int) -> int:
        """Return how many blocks of tiles, so many down and across, a gradient has."""
        rows = _divide_up(self.out_features, self.height * down)
        return rows * _divide_up(self.in_features, self.width * across)


@dataclass(frozen=True)
class TilePlan:
    """How a problem is launched."""

    kernel: Kernel
    threads: int
    shared_bytes: int
    blocks: int
    """Blocks an example."""
    parts: int
    """Partial sums an example."""
    arguments: tuple[np.generic, ...]
    """The kernel's arguments after `examples`."""


def tile_plan(problem: Problem, compute_capability: int) -> TilePlan:
    """Return how a problem is launched on a device of a compute capability, for example 90.

    Raises
    ------
    ShapeError
        If an example has too many tokens.

    """
    if problem.tokens >= 2**31:
        msg = f"tile on CUDA expects less than 2^31 tokens an example, got {problem.tokens}: cut the examples"
        raise ShapeError(msg)
    half_precision = problem.dtype in {"float16", "bfloat16"}
    if half_precision and problem.tokens > FEW_TOKENS and compute_capability >= 80:
        patch = best_patch(problem, most_shared_bytes(compute_capability))
        if patch is not None:
            return tensor_plan(problem, patch)
    plan = portable_plan(problem)
    if plan.blocks > MOST_BLOCKS:
        msg = (
            f"tile on CUDA expects at most {MOST_BLOCKS} blocks an example, got {plan.blocks} for "
            f"{problem.tokens} tokens: cut the examples"
        )
        raise ShapeError(msg)
    return plan


def _divide_up(value: int, step: int) -> int:
    return -(-value // step)


@dataclass(frozen=True)
class Cut:
    """How the work on an example is shared out: a function of the problem alone, so are the sums' bits."""

    units: int
    """Tiles, or patches, of a part."""
    unit_parts: int
    tokens: int
    """Tokens of a part."""
    token_parts: int

    @property
    def parts(self) -> int:
        """Partial sums of an example."""
        return self.unit_parts * self.token_parts


def cut(units: int, tokens: int, least: int, blocks_a_part: int = 1) -> Cut:
    """Share out tiles, or patches, and tokens.

    Parameters
    ----------
    units
        Tiles, or patches, of the gradient.
    tokens
        Of an example.
    least
        Units that make up for writing and adding a partial sum.
    blocks_a_part
        Blocks that share the work on a part.

    """
    token_parts = max(1, _divide_up(tokens, TOKENS_A_PART))
    most = max(1, MOST_PARTS // (token_parts * blocks_a_part))
    units_a_part = max(_divide_up(units, most), min(units, least))
    unit_parts = _divide_up(units, units_a_part)
    return Cut(units_a_part, unit_parts, min(tokens, TOKENS_A_PART), token_parts)


# The kernel of multiply-adds

PORTABLE_THREADS = 128
_PAIRS = 4
"""Pairs of a tile and a token that a group of threads multiplies between two barriers."""
_LEAST_PAIRS = 256
"""Pairs that make up for writing and adding a partial sum."""


def portable_plan(problem: Problem) -> TilePlan:
    """Return the launch of tile.cu."""
    height, width, tokens = problem.height, problem.width, problem.tokens
    window = 64 if height > 32 else 32 if height > 16 else 16
    windows = _divide_up(height, window) * _divide_up(width, window)
    # A tile's tokens are staged in fours where few places stay empty.
    together = 4 if tokens % 4 == 0 or tokens >= 16 else 1
    shared = cut(problem.tiles(1, 1), tokens, _divide_up(_LEAST_PAIRS, max(1, tokens)), windows)
    macros = (f"Scalar={SCALARS[problem.dtype]}", f"WINDOW={window}", f"TOKENS={together}")
    return TilePlan(
        kernel=Kernel("tile.cu", "tile", macros),
        threads=PORTABLE_THREADS,
        shared_bytes=portable_shared_bytes(window),
        blocks=windows * shared.parts,
        parts=shared.parts,
        arguments=(
            *_sizes(problem),
            np.uint32(height),
            np.uint32(width),
            np.uint32(shared.unit_parts),
            np.uint64(shared.units),
            np.uint32(shared.token_parts),
            np.uint32(shared.tokens),
        ),
    )


def portable_shared_bytes(window: int) -> int:
    """Return the shared memory of tile.cu: two stages or the window's sums, and the drawn tiles."""
    held = 8 if window == 64 else 4
    groups = PORTABLE_THREADS // (window // held) ** 2
    stages = 2 * groups * _PAIRS * 2 * window
    words = 2 * _divide_up(window, 32)
    return 4 * (max(stages, window * window) + PORTABLE_THREADS // words * (4 + words))


def _sizes(problem: Problem) -> tuple[np.uint32, ...]:
    sizes = (problem.tokens, problem.in_features, problem.out_features, problem.bias)
    return tuple(np.uint32(size) for size in sizes)


# The kernel on tensor cores

STAGE_TOKENS = 32
_SHAPES = ((2, 4), (2, 2))
"""Warps of a patch, down and across, 64 x 64 of the gradient each; the larger patch reads less a product."""

_MOST_SIDE = 128
_MOST_PATCHES = 2**31 - 1
_LEAST_TOKENS = 1024
"""Tokens of a part's patches, with `_FOLD_TOKENS` each, that make up for writing and adding a partial sum."""

_FOLD_TOKENS = 128
"""Tokens whose products cost as much as folding a patch."""


@dataclass(frozen=True)
class PatchShape:
    """What a block of tile_tensor.cu computes at a time, and how; the kernel's macros."""

    height: int
    """Of a tile."""
    width: int
    warp_rows: int
    warp_columns: int
    tiles_folded: int = 1
    stages: int = 2

    @property
    def tiles_down(self) -> int:
        """Rows of tiles."""
        return 64 * self.warp_rows // self.height

    @property
    def tiles_across(self) -> int:
        """Columns of tiles."""
        return 64 * self.warp_columns // self.width

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warp_rows * self.warp_columns

    @property
    def shares(self) -> int:
        """Threads that own the same output, each with a partial sum of its own."""
        return max(1, self.threads // (self.height * self.width))

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        stage = STAGE_TOKENS * 64 * (self.warp_rows + self.warp_columns) * 2
        product = self.tiles_folded * self.height * (64 * self.warp_columns + 8) * 4
        words = 2 + _divide_up(self.height, 32) + _divide_up(self.width, 32)
        tiles = self.tiles_down * self.tiles_across * words * 4
        return 16 * _divide_up(self.stages * stage + product + tiles, 16)

    def count(self, problem: Problem) -> int:
        """Return how many patches a gradient has."""
        return problem.tiles(self.tiles_down, self.tiles_across)

    def macros(self, problem: Problem) -> tuple[str, ...]:
        """Return the macros of the kernel."""
        # What is copied at once, eight neighbours, must not reach past what is in memory.
        ends = (problem.in_features - problem.bias, problem.out_features)
        aligned = problem.aligned and all(end % 8 == 0 for end in ends)
        return (
            f"Scalar={SCALARS[problem.dtype]}",
            f"ALIGNED={int(aligned)}",
            f"HEIGHT={self.height}",
            f"WIDTH={self.width}",
            f"WARP_ROWS={self.warp_rows}",
            f"WARP_COLUMNS={self.warp_columns}",
            f"TILES_DOWN={self.tiles_down}",
            f"TILES_ACROSS={self.tiles_across}",
            f"TILES_FOLDED={self.tiles_folded}",
            f"STAGES={self.stages}",
        )


def most_shared_bytes(compute_capability: int) -> int:
    """Return the shared memory that a block may have, from compute capability 80 on."""
    if compute_capability in {80, 87}:
        return 163 * 1024
    return (227 if 90 <= compute_capability < 120 else 99) * 1024


def best_patch(problem: Problem, shared_bytes: int) -> PatchShape | None:
    """Return the shape of patches that computes least beside the gradient, None where there is none.

    Parameters
    ----------
    problem
        Its tiles' sides must be multiples of eight, as is what is copied at once, of at most 128.
    shared_bytes
        What a block may have.

    """
    height, width = problem.height, problem.width
    if height % 8 or width % 8 or width > _MOST_SIDE:
        return None
    best: tuple[int, PatchShape] | None = None
    for warp_rows, warp_columns in _SHAPES:
        patch = PatchShape(height, width, warp_rows, warp_columns)
        # A multiprocessor has two blocks of the smaller shape, where they fit: one computes while one folds.
        half = (shared_bytes - 1024) // 2 if warp_columns == 2 else 0
        fitted = _fitted(patch, half) or _fitted(patch, shared_bytes)
        area = patch.count(problem) * patch.threads
        if fitted is not None and (best is None or area < best[0]):
            best = area, fitted
    if best is None or best[1].count(problem) > _MOST_PATCHES:
        return None
    return best[1]


def _fitted(patch: PatchShape, shared_bytes: int) -> PatchShape | None:
    """Return the patch with as much folded at once, then as many stages, as there is room for."""
    for folded in range(patch.tiles_down, 0, -1):
        for stages in (4, 3):
            fitted = replace(patch, tiles_folded=folded, stages=stages)
            if patch.tiles_down % folded == 0 and fitted.shared_bytes <= shared_bytes:
                return fitted
    return None


def tensor_plan(problem: Problem, patch: PatchShape) -> TilePlan:
    """Return the launch of tile_tensor.cu with patches of a shape."""
    least = _divide_up(_LEAST_TOKENS, min(problem.tokens, TOKENS_A_PART) + _FOLD_TOKENS)
    shared = cut(patch.count(problem), problem.tokens, least)
    return TilePlan(
        kernel=Kernel("tile_tensor.cu", "tile_tensor", patch.macros(problem)),
        threads=patch.threads,
        shared_bytes=patch.shared_bytes,
        blocks=shared.parts,
        parts=shared.parts * patch.shares,
        arguments=(
            *_sizes(problem),
            np.uint32(shared.unit_parts),
            np.uint32(shared.units),
            np.uint32(shared.token_parts),
            np.uint32(shared.tokens),
        ),
    )
