"""Judge scores: by models retrained on subsets, by examples left out, by what is known of the data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from grass_rs.evaluate.estimate import Estimate, estimate
from grass_rs.evaluate.lds import lds
from grass_rs.evaluate.measures import leave_out_correlation, mislabel_auc, recall_at_k
from grass_rs.evaluate.subsets import random_subsets
from grass_rs.evaluate.tuning import Candidate, Tuning, effective_directions, tune

if TYPE_CHECKING:
    from grass_rs.evaluate.benchmark import Benchmark
    from grass_rs.evaluate.ensemble import Ensemble
    from grass_rs.evaluate.interventions import Brittleness, brittleness, tail_patch
    from grass_rs.evaluate.training import Recipe, train_together

__all__ = [
    "Benchmark",
    "Brittleness",
    "Candidate",
    "Ensemble",
    "Estimate",
    "Recipe",
    "Tuning",
    "brittleness",
    "effective_directions",
    "estimate",
    "lds",
    "leave_out_correlation",
    "mislabel_auc",
    "random_subsets",
    "recall_at_k",
    "tail_patch",
    "train_together",
    "tune",
]

_LAZY = {
    "Benchmark": "benchmark",
    "Brittleness": "interventions",
    "Ensemble": "ensemble",
    "Recipe": "training",
    "brittleness": "interventions",
    "tail_patch": "interventions",
    "train_together": "training",
}
"""Names that need torch, and their modules: imported at first use."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_LAZY[name]}")
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "tqdm"}:
            raise
        msg = f"{__name__}.{name} needs {error.name}, which is not here: pip install 'grass_rs[torch]'"
        raise ModuleNotFoundError(msg, name=error.name) from error
    return getattr(module, name)
