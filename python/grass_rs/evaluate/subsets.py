"""Which training examples models are retrained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grass_rs.errors import SpecError, whole_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["random_subsets"]


def random_subsets(models: int, size: int, fraction: float, *, seed: int) -> NDArray[np.bool_]:
    """Draw a random subset of the training examples for each model, all of one size.

    Parameters
    ----------
    models
        Number of subsets, m.
    size
        Number of training examples, n.
    fraction
        Share of the examples that a subset holds: round(fraction * n) of them.
    seed
        Seed of the subsets.

    Returns
    -------
    NDArray[np.bool_]
        (m, n), True = in the subset.

    Raises
    ------
    SpecError
        If a number is out of range, or subsets would hold no example or all of them: such models
        differ by chance alone.

    """
    models, size = whole_number("models", models, least=1), whole_number("size", size, least=2)
    count = round(fraction * size) if 0 < fraction < 1 else 0
    if not 0 < count < size:
        msg = (
            f"fraction expects subsets of some of the {size} training examples, not none and not "
            f"all, got {fraction}: choose it between 0 and 1, such as 0.5"
        )
        raise SpecError(msg)
    rng = np.random.default_rng(whole_number("seed", seed))
    return rng.permuted(np.tile(np.arange(size) < count, (models, 1)), axis=1)
