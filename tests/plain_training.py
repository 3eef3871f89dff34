"""Training as anyone would write it, one model by itself: the twin of `train_together`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from grass_rs.evaluate import Recipe


def train_alone(
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, Any], Tensor],
    data: tuple[Tensor, ...],
    subsets: np.ndarray,
    recipe: Recipe,
    *,
    seed: int,
    index: int,
) -> nn.Module:
    """Return model `index` of the run, trained without the others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = [build() for _ in range(index + 1)][index]
    members = torch.from_numpy(np.flatnonzero(subsets[index]))
    longest = int(subsets.sum(axis=1).max())
    generator = torch.Generator().manual_seed(seed)
    if recipe.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=recipe.learning_rate,
            betas=(recipe.momentum, 0.999),
            weight_decay=recipe.weight_decay,
        )
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (1 + np.cos(np.pi * epoch / recipe.epochs)) / 2
        keys = torch.rand((len(subsets), longest), generator=generator)[index]
        order = members[keys[: len(members)].argsort()]
        for start in range(0, len(order), recipe.batch_size):
            batch = order[start : start + recipe.batch_size]
            optimizer.zero_grad()
            loss(model, tuple(tensor[batch] for tensor in data)).mean().backward()
            optimizer.step()
    return model.eval()
