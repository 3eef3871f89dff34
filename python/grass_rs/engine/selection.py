"""Selective masks: coordinates chosen by a sample of gradients instead of at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from grass_rs import _native
from grass_rs.capture import Capture, Factors, find_blocks, resolve_loss
from grass_rs.compress import Mask
from grass_rs.engine.examples import Examples
from grass_rs.engine.ranking import ridge_leverage, second_moment, train_logits
from grass_rs.errors import (
    MASKED,
    DataError,
    NonFiniteError,
    ShapeError,
    SpecError,
    UnsupportedArrayError,
    is_masked,
    unknown_name,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from grass_rs.capture import Block, Loss

__all__ = ["Selection", "select", "select_factor_masks", "select_mask"]

_FLOATS = (np.float16, np.float32, np.float64)
_WAYS = ("correlation", "second_moment", "leverage")
_HELD_OUT = 4
"""Where no queries are given, one in so many examples is a query."""
_LEAST = 2 * _HELD_OUT
_QUERIES, _OTHERS = 16, 64
"""Most gradients that logits are trained on."""
_SAMPLE_BYTES = 2**30
"""Most bytes of gradients that a selection keeps, or takes for the whole gradients of one layer."""


def select_mask(
    gradients: Any,
    output_dim: int,
    *,
    seed: int,
    by: str = "correlation",
    queries: Any = None,
) -> Mask:
    """Choose which coordinates of gradients to keep, from a sample of them.

    The same arguments give the same mask on the same machine and number of threads.

    Parameters
    ----------
    gradients
        (n, p) gradients of a sample of the training examples, a torch tensor on any device or a
        NumPy array.
    output_dim
        Coordinates kept, k', at most p.
    seed
        Unsigned 64-bit seed.
    by
        "correlation": logits are trained to maximise the mean over queries of Pearson's correlation
        between the inner products of a query with the gradients and the same of both times a soft
        mask, and the k' largest are kept (the selective mask of arXiv 2505.18976, trained as
        docs/selection.md says). "second_moment": the coordinates with the largest sum of squares.
        "leverage": those with the largest diag(F (F + lambda I)^-1), F = (1/n) sum g g^T, lambda =
        0.4 tr(F) / n.
    queries
        (q, p) held-out gradients for "correlation"; None takes every fourth of `gradients` for
        them. Of more than 16 queries and 64 others so many are drawn.

    Raises
    ------
    SpecError
        If a number is out of range, or `by` is unknown or takes no queries.
    ShapeError, UnsupportedArrayError, NonFiniteError
        If gradients or queries have not two axes of finite real numbers, or differ in p.
    DataError
        If there are too few gradients: less than 8, or less than 3 besides `queries`.

    """
    _check_way(by)
    rows = _tensor("select_mask", "gradients", "(n, p)", gradients)
    p = rows.shape[1]
    output_dim = whole_number("select_mask: output_dim", output_dim, 1, p)
    seed = whole_number("select_mask: seed", seed)
    if queries is not None:
        if by != "correlation":
            raise SpecError(
                f"select_mask expects queries= with by='correlation' alone, got it with {by!r}: leave it out"
            )
        queries = _tensor("select_mask", "queries", "(q, p)", queries).to(rows.device)
        if queries.shape[1] != p or not len(queries):
            raise ShapeError(
                f"select_mask expects queries (q, {p}) like the gradients, at least one, got "
                f"{tuple(queries.shape)}: compute them of the same parameters"
            )
    _check_enough(
        "select_mask", len(rows), 1 if by != "correlation" else 3 if queries is not None else _LEAST
    )
    return _select_rows(rows, output_dim, seed, by, queries)


def select_factor_masks(
    inputs: Any,
    grad_outputs: Any,
    mask_in: int,
    mask_out: int,
    *,
    seed: int,
    by: str = "correlation",
) -> tuple[Mask, Mask]:
    """Choose which features of a linear layer's two factors to keep, each on its own.

    As `select_mask`, with the gradients g a^T of single tokens, and one of the factors masked:
    inner products are (a . a')(g . g'), of which the first or the second part is masked.
    "correlation" is trained on 16 tokens of every fourth example against 64 of the others, drawn;
    "second_moment" sums |g|^2 a_i^2, or |a|^2 g_i^2, over all tokens; "leverage" is that of the
    matrix whose diagonal these are. Tokens without a gradient do not count.

    Parameters
    ----------
    inputs, grad_outputs
        (n, t, d_in) and (n, t, d_out): what the layer was given, with the bias's column of ones if
        it has one, and the gradient of the loss by what it returned.
    mask_in, mask_out
        How many features of each to keep.
    seed
        Unsigned 64-bit seed.
    by
        "correlation", "second_moment" or "leverage".

    Raises
    ------
    SpecError
        If a number is out of range, or `by` is unknown.
    ShapeError, UnsupportedArrayError, NonFiniteError
        If the factors have not three axes of finite real numbers, or do not fit each other.
    DataError
        If there are too few examples: less than 8 for "correlation", or none.

    """
    _check_way(by)
    what = "select_factor_masks"
    a = _tensor(what, "inputs", "(n, t, d_in)", inputs)
    g = _tensor(what, "grad_outputs", "(n, t, d_out)", grad_outputs).to(a.device)
    if a.shape[:2] != g.shape[:2]:
        raise ShapeError(
            f"{what} expects inputs (n, t, d_in) and grad_outputs (n, t, d_out) of the same n and t, got "
            f"{tuple(a.shape)} and {tuple(g.shape)}: give both of the same tokens"
        )
    counts = (
        whole_number(f"{what}: mask_in", mask_in, 1, a.shape[2]),
        whole_number(f"{what}: mask_out", mask_out, 1, g.shape[2]),
    )
    seed = whole_number(f"{what}: seed", seed)
    _check_enough(what, len(a), _LEAST if by == "correlation" else 1)
    tokens = _Tokens.of(Factors(a, g, bias=False), 0)
    return _select_sides(tokens, counts, seed, by)


@dataclass(frozen=True)
class Selection:
    """A sample of gradients that selective masks are made from: what `select` gathers."""

    by: str
    """How coordinates are chosen: "correlation", "second_moment" or "leverage"."""
    seed: int
    """Seed of the choice."""
    examples: int
    """How many examples the sample has."""
    _gradients: dict[str, list[_Batch]] = field(repr=False)

    def mask(self, block: Block, output_dim: int) -> Mask:
        """Choose coordinates of a block's gradient; see `select_mask`.

        Raises
        ------
        SpecError
            If the sample has no such block, or one of another size.
        DataError
            If the gradients of a linear layer would take more than 1 GiB.

        """
        batches = self._of(block)
        if output_dim == block.size:
            return Mask(range(block.size), block.size)
        _check_bytes(
            f"the whole gradients of block {block.name!r}",
            4 * block.size * self.examples,
            self.examples,
        )
        parts = [batch.whole() for batch in batches]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return _select_rows(rows, output_dim, _native.derive(self.seed, block.name), self.by, None)

    def factor_masks(self, block: Block, mask_in: int, mask_out: int) -> tuple[Mask, Mask]:
        """Choose features of a linear layer's factors; see `select_factor_masks`.

        Raises
        ------
        SpecError
            If the sample has no such block, or one of another size.

        """
        tokens = _Tokens.joined([batch.tokens() for batch in self._of(block)])
        seed = _native.derive(self.seed, block.name)
        return _select_sides(tokens, (mask_in, mask_out), seed, self.by)

    def _of(self, block: Block) -> list[_Batch]:
        if block.name not in self._gradients:
            raise SpecError(unknown_name("block of the selection", block.name, self._gradients))
        batches = self._gradients[block.name]
        if batches[0].block != block:
            raise SpecError(
                f"Plan: block {block.name!r} expects a selection of {block.size} parameters "
                f"{block.parameters}, got one of {batches[0].block.size} parameters "
                f"{batches[0].block.parameters}: select on this model"
            )
        return batches


def select(
    model: torch.nn.Module,
    loss: str | Loss,
    loader: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    by: str = "correlation",
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """Gather a sample of gradients for the selective masks of `Plan.for_model(selection=)`.

    One forward and one backward pass. All gradients of the sample are kept in float32 on the layers'
    devices until the plan is made: those of linear layers by their factors, n t (d_in + d_out)
    numbers, others whole, n p numbers; 1 GiB at most. 256 examples are enough.

    Parameters
    ----------
    model
        The trained model. It is left exactly as it was found.
    loss
        As for `Attributor`.
    loader
        Batches of a sample of the training data, whose tensors have the examples on the first axis.
    layers
        Names of blocks or shell patterns; None takes all.
    by
        "correlation", "second_moment" or "leverage", as for `select_mask`.
    seed
        Unsigned 64-bit seed; that of a block is derived from it and the block's name alone.
    progress
        Whether to show a progress bar.

    Raises
    ------
    SpecError
        If `by` is unknown, or a name fits no block.
    DataError
        If the loader yields too few examples (8 for "correlation"), or their gradients would take
        more than 1 GiB.
    NonFiniteError
        If a loss or a gradient is not finite.
    LossError, UnsupportedLayerError
        If per-example gradients cannot be captured rightly.

    """
    _check_way(by)
    seed = whole_number("select: seed", seed)
    blocks = find_blocks(model, layers)
    gradients: dict[str, list[_Batch]] = {block.name: [] for block in blocks}
    seen, size = 0, 0

    def keep(block: Block, part: slice, gradient: Factors | Tensor) -> None:
        nonlocal size
        batches = gradients[block.name]
        if not batches or batches[-1].start != seen:
            batches.append(_Batch(block, seen, count, []))
        size += batches[-1].add(part, gradient)
        _check_bytes("a sample's gradients", size, seen + count)

    examples = Examples(loader, None, progress=progress, description="select")
    with Capture(model, resolve_loss(loss), blocks) as capture:
        for batch, ids in examples:
            count = len(ids)
            captured = capture.run(batch, keep)
            if not captured.finite.all():
                raise NonFiniteError(
                    f"select expects finite losses and gradients, got a NaN or an infinity in the batch of "
                    f"example {ids[0]}: leave the example out"
                )
            seen += count
    _check_enough("select", seen, _LEAST if by == "correlation" else 1)
    return Selection(by, seed, seen, {name: found for name, found in gradients.items() if found})


@dataclass
class _Batch:
    """The gradients of a block of one batch."""

    block: Block
    start: int
    """Place of the batch's first example in the sample."""
    count: int
    """Number of examples."""
    parts: list[tuple[slice, Factors | Tensor]]
    """Which of the examples, and gradients that add up, in float32."""

    def add(self, examples: slice, gradient: Factors | Tensor) -> int:
        """Keep a copy and return its bytes."""
        if isinstance(gradient, Factors):
            kept = Factors(_copy(gradient.inputs), _copy(gradient.grad_outputs), gradient.bias)
            self.parts.append((examples, kept))
            return 4 * (kept.inputs.numel() + kept.grad_outputs.numel())
        self.parts.append((examples, _copy(gradient)))
        return 4 * gradient.numel()

    def whole(self) -> Tensor:
        """Return the gradients (n, p) themselves."""
        if len(self.parts) == 1 and isinstance(self.parts[0][1], Factors):
            return self.parts[0][1].gradients(slice(None), torch.float32)
        total = torch.zeros(self.count, self.block.size, device=self.device)
        for examples, part in self.parts:
            whole = (
                part.gradients(slice(None), torch.float32) if isinstance(part, Factors) else part
            )
            total[examples] += whole
        return total

    def tokens(self) -> _Tokens:
        """Return the factors of all tokens of a linear layer that have a gradient."""
        return _Tokens.joined(
            [_Tokens.of(part, self.start) for _, part in self.parts if isinstance(part, Factors)]
        )

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        part = self.parts[0][1]
        return part.inputs.device if isinstance(part, Factors) else part.device


@dataclass(frozen=True)
class _Tokens:
    """Factors of single tokens, and which example each is of."""

    inputs: Tensor
    """(m, d_in), with the bias's ones."""
    grad_outputs: Tensor
    """(m, d_out)."""
    owners: Tensor
    """(m,) place of the example in the sample."""

    @classmethod
    def of(cls, factors: Factors, start: int) -> _Tokens:
        used = factors.grad_outputs.any(dim=2)
        inputs = factors.inputs[used]
        if factors.bias:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        return cls(inputs, factors.grad_outputs[used], start + used.nonzero()[:, 0])

    @classmethod
    def joined(cls, parts: Sequence[_Tokens]) -> _Tokens:
        return cls(
            torch.cat([part.inputs for part in parts]),
            torch.cat([part.grad_outputs for part in parts]),
            torch.cat([part.owners for part in parts]),
        )

    def __getitem__(self, chosen: Tensor) -> _Tokens:
        return _Tokens(self.inputs[chosen], self.grad_outputs[chosen], self.owners[chosen])


def _select_rows(rows: Tensor, output_dim: int, seed: int, by: str, queries: Tensor | None) -> Mask:
    if output_dim == rows.shape[1]:
        return Mask(range(output_dim), output_dim)
    if by == "second_moment":
        return _largest(second_moment(rows), output_dim)
    if by == "leverage":
        return _largest(ridge_leverage(rows, len(rows)), output_dim)
    places = torch.arange(len(rows), device=rows.device)
    if queries is None:
        held_out = places % _HELD_OUT == 0
        others, asked = _drawn(places[~held_out], places[held_out], seed)
        queries = rows[asked]
    else:
        others, asked = _drawn(places, torch.arange(len(queries), device=rows.device), seed)
        queries = queries[asked]
    return _largest(train_logits(queries, rows[others], output_dim, seed=seed), output_dim)


def _select_sides(
    tokens: _Tokens, counts: tuple[int, int], seed: int, by: str
) -> tuple[Mask, Mask]:
    sides = (tokens.inputs, tokens.grad_outputs), (tokens.grad_outputs, tokens.inputs)
    masks = [
        _select_side(pair, tokens.owners, count, _native.derive(seed, side), by)
        for pair, count, side in zip(sides, counts, ("in", "out"), strict=True)
    ]
    return masks[0], masks[1]


def _select_side(
    sides: tuple[Tensor, Tensor], owners: Tensor, count: int, seed: int, by: str
) -> Mask:
    """Choose features of the first of the factors."""
    masked, other = sides
    width = masked.shape[1]
    if count == width or not len(owners):
        return Mask(range(count), width)
    owning = owners.bincount() > 0
    if by != "correlation":
        rows = masked * other.norm(dim=1, keepdim=True)
        if by == "second_moment":
            return _largest(second_moment(rows), count)
        return _largest(ridge_leverage(rows, int(owning.sum())), count)
    # Counted among the examples that have a gradient, so that some are on either side.
    held_out = (owning.cumsum(0) - 1)[owners] % _HELD_OUT == 0
    chosen, queries = _drawn((~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0], seed)
    weights = other[queries] @ other[chosen].T
    logits = train_logits(masked[queries], masked[chosen], count, seed=seed, weights=weights)
    return _largest(logits, count)


def _drawn(rows: Tensor, queries: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return at most 64 of the rows and 16 of the queries, in their order."""
    generator = torch.Generator().manual_seed(_native.derive(seed, "drawn"))

    def some(given: Tensor, most: int) -> Tensor:
        if len(given) <= most:
            return given
        places = torch.randperm(len(given), generator=generator)[:most].sort().values
        return given[places.to(given.device)]

    return some(rows, _OTHERS), some(queries, _QUERIES)


def _largest(scores: Tensor, count: int) -> Mask:
    """Return the mask of the coordinates with the largest scores, equal ones by smaller index."""
    order = scores.argsort(descending=True, stable=True)[:count]
    return Mask(order.sort().values.cpu().numpy(), len(scores))


def _check_way(by: object) -> None:
    if not isinstance(by, str) or by not in _WAYS:
        raise SpecError(unknown_name("by", by, _WAYS))


def _check_enough(what: str, found: int, least: int) -> None:
    if found < least:
        raise DataError(
            f"{what} expects at least {least} examples, got {found}: give a larger sample"
        )


def _check_bytes(what: str, size: int, examples: int) -> None:
    if size > _SAMPLE_BYTES:
        raise DataError(
            f"select expects {what} to take at most {_SAMPLE_BYTES} bytes, got {size} with {examples} "
            f"examples: give about {max(1, examples * _SAMPLE_BYTES // size)}, or fewer layers"
        )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True)


def _tensor(what: str, name: str, axes: str, given: Any) -> Tensor:
    """Return gradients in float32, if they are finite and have these axes."""
    tensor = given
    if is_masked(given):
        raise UnsupportedArrayError(f"{what} expects {name} {axes}, got {MASKED}")
    if isinstance(given, np.ndarray) and given.dtype in _FLOATS:
        tensor = torch.from_numpy(given.copy())
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = f" of {given.dtype}" if hasattr(given, "dtype") else ""
        raise UnsupportedArrayError(
            f"{what} expects {name} to be a torch tensor or NumPy array of floats, got "
            f"{type(given).__name__}{kind}: convert it to float32"
        )
    wanted = len(axes.split(","))
    if tensor.ndim != wanted or not tensor.shape[-1]:
        raise ShapeError(
            f"{what} expects {name} {axes}, got {tuple(tensor.shape)}: give {wanted} axes"
        )
    tensor = tensor.detach().float()
    if not tensor.isfinite().all():
        raise NonFiniteError(
            f"{what} expects finite {name} in float32, got a NaN or an infinity: leave that example out"
        )
    return tensor
