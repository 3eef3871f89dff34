"""Rankings of coordinates: what a selective mask keeps is what ranks highest."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mean_correlation", "ridge_leverage", "second_moment", "train_logits"]

_DAMPING = 0.4
"""Ridge of the leverage, in units of tr(F) / n: the default damping of influence."""

_STEPS = 10
_STEP = 0.005
"""Root mean square of a step of the logits."""
_MOMENTUM = 0.9
_WARMEST, _COLDEST = 0.03, 0.002
"""Temperature of the soft mask at the first and the last step; it falls by the same factor each step."""
_SPREAD = 0.01
"""Standard deviation of the initial logits."""
_CHUNK = 2**22
"""Most numbers of which a copy is made at a time."""


def second_moment(rows: Tensor) -> Tensor:
    """Return the sum of squares (p,) of each coordinate of rows (n, p)."""
    return rows.square().sum(dim=0)


def ridge_leverage(rows: Tensor, examples: int) -> Tensor:
    """Return the leverage of each coordinate of gradients in their Fisher matrix.

    diag(F (F + lambda I)^-1) with F = (1/n) R^T R of the rows R and lambda = 0.4 tr(F) / n: how
    much of a coordinate the damped Fisher takes for signal. A coordinate that others repeat shares
    its leverage with them, so it counts less than by its second moment (ridge leverage scores:
    Alaoui and Mahoney 2015, arXiv 1411.0306).

    Parameters
    ----------
    rows
        (m, p) gradients, or parts whose outer products add up to F.
    examples
        How many examples they are of, n.

    Returns
    -------
    Tensor
        (p,) from 0 to 1.

    """
    m, p = rows.shape
    rows = rows / _size(rows)
    # The rows' mean square is 1 now, or 0 where all are zeros: any ridge gives zeros then.
    ridge = _DAMPING * m * p / examples
    by_rows = m <= p
    gram = rows @ rows.T if by_rows else rows.T @ rows
    damped = gram.double().diagonal_scatter(gram.diagonal().double() + ridge)
    factor = torch.linalg.cholesky(damped)
    if not by_rows:
        return 1 - ridge * torch.cholesky_inverse(factor).diagonal()
    inverse = torch.linalg.solve_triangular(
        factor, torch.eye(m, dtype=factor.dtype, device=factor.device), upper=False
    ).to(rows.dtype)
    step = max(1, _CHUNK // m)
    return torch.cat(
        [(inverse @ part).square().sum(dim=0) for part in torch.split(rows, step, dim=1)]
    )


def train_logits(
    queries: Tensor, examples: Tensor, output_dim: int, *, seed: int, weights: Tensor | None = None
) -> Tensor:
    """Train the logits S (p,) of a selective mask (after arXiv 2505.18976).

    The mean over queries of Pearson's correlation between the inner products with all examples,
    whole and with both sides times a soft mask, is maximised. The paper's mask sigmoid(S) leaves
    the correlation at 1 where all logits are equal, and only an L1 penalty and thousands of steps
    part them; so here the mask is sigmoid((S - s) / T), s the k'-th largest logit and T falling,
    which needs no penalty to become the hard mask of k' coordinates. Steps follow the gradient with
    momentum and have a fixed length: Adam would move coordinates that hardly matter as far as others.

    Parameters
    ----------
    queries, examples
        (q, p) and (n, p) gradients.
    output_dim
        Coordinates that will be kept, k'.
    seed
        Seed of the initial logits.
    weights
        (q, n) factors of the inner products; None = ones.

    """
    generator = torch.Generator().manual_seed(seed)
    logits = _SPREAD * torch.randn(queries.shape[1], generator=generator)
    logits = logits.to(queries.device)
    if not len(queries) or len(examples) < 2:
        return logits  # nothing that could be correlated: any coordinates are as good
    queries, examples = queries / _size(queries), examples / _size(examples)
    whole = queries @ examples.T
    if weights is not None:
        weights = weights / _size(weights)
        whole = whole * weights
    velocity = torch.zeros_like(logits)
    cooling = (_COLDEST / _WARMEST) ** (1 / (_STEPS - 1))
    for step in range(_STEPS):
        least_kept = logits.topk(output_dim).values[-1]
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            soft = ((leaf - least_kept) / (_WARMEST * cooling**step)).sigmoid()
            masked = (queries * soft.square()) @ examples.T
            if weights is not None:
                masked = masked * weights
            (gradient,) = torch.autograd.grad(mean_correlation(masked, whole), leaf)
        velocity = _MOMENTUM * velocity + gradient
        logits = logits + _STEP * velocity / _size(velocity)
    return logits


def mean_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return the mean over rows of Pearson's correlation of (q, n) and (q, n).

    A row that is constant on either side counts as 0.
    """
    tiny = torch.finfo(left.dtype).tiny
    left, right = (side - side.mean(dim=1, keepdim=True) for side in (left, right))
    lengths = left.norm(dim=1) * right.norm(dim=1)
    correlations: Tensor = (left * right).sum(dim=1) / lengths.clamp_min(tiny)
    return correlations.mean()


def _size(values: Tensor) -> Tensor:
    """Return the root of the mean square, at least the smallest normal number."""
    return values.square().mean().sqrt().clamp_min(torch.finfo(values.dtype).tiny)
