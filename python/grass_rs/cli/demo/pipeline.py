"""The demo's whole way: train, cache, score, retrain, judge."""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from grass_rs.cli.demo.digits import Digits, build_network, split_digits
from grass_rs.engine import Attributor, Plan
from grass_rs.evaluate import Ensemble, Recipe, lds, random_subsets, train_together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from grass_rs.store import Store
    from grass_rs.types import Scores

_BATCH_SIZE = 256  # of capture; the rows do not depend on it


@dataclass(frozen=True)
class DemoSettings:
    """Everything that the demo's numbers depend on, besides the machine."""

    seed: int = 0
    """Seed of the split, the initialisations, the orders, the subsets and the compressors."""
    train_size: int = 1200
    """Training digits."""
    query_size: int = 200
    """Held-out digits whose losses are explained."""
    dim: int = 1024
    """Coordinates that FactGraSS keeps a layer."""
    models: int = 50
    """Networks retrained on random halves."""
    recipe: Recipe = field(default_factory=Recipe)
    """Training of every network."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    settings: DemoSettings
    """What it was asked to do."""
    digits: Digits
    """Training set and queries."""
    parameters: int
    """Parameters of the network."""
    train_accuracy: float
    """Share of the training digits that the scored network gets right."""
    query_losses: NDArray[np.float32]
    """(n_query,) losses of the scored network on the held-out digits."""
    predicted: NDArray[np.int64]
    """(n_query,) what the scored network says the held-out digits are."""
    store: Store
    """FactGraSS rows of the training digits."""
    scores: Scores
    """FactGraSS scores, (n_query, n_train)."""
    lds: dict[str, NDArray[np.float64]]
    """Way to score -> (n_query,) LDS."""
    slope: float
    """Measured over predicted change of the held-out losses, over all retrained networks."""


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Give torch one thread: more bring nothing to networks this small, and would change the bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_torch_thread()
def run_demo(settings: DemoSettings, store_path: Path) -> DemoResult:
    """Explain held-out digits by training digits, and judge it by retraining.

    Parameters
    ----------
    settings
        Sizes, seed and recipe.
    store_path
        Where the FactGraSS rows go, and stay.

    Raises
    ------
    StoreMismatchError
        If `store_path` holds the rows of another run.

    """
    # Independent streams for the parts that draw numbers.
    drawn = np.random.SeedSequence(settings.seed).generate_state(5, np.uint64)
    split_seed, train_seed, retrain_seed, half_seed, noise_seed = map(int, drawn)
    digits = split_digits(settings.train_size, settings.query_size, seed=split_seed)
    train = digits.train_inputs, digits.train_labels
    query = digits.query_inputs, digits.query_labels

    everything = np.ones((1, settings.train_size), dtype=bool)
    trained = train_together(
        build_network, "cross_entropy", train, everything, settings.recipe, seed=train_seed
    )
    network = trained.member(0)
    parameters = sum(p.numel() for p in network.parameters())
    store, scores = _attribute(network, digits, settings.dim, settings.seed, store_path)
    with tempfile.TemporaryDirectory(prefix="uncompressed-", dir=store_path.parent) as folder:
        # A block of at most `dim` parameters is kept whole: nothing is compressed.
        whole = Path(folder) / "whole.grass"
        _, uncompressed = _attribute(network, digits, parameters, settings.seed, whole)
    noise = np.random.default_rng(noise_seed).standard_normal(scores.values.shape)

    halves = random_subsets(settings.models, settings.train_size, 0.5, seed=half_seed)
    retrained = train_together(
        build_network, "cross_entropy", train, halves, settings.recipe, seed=retrain_seed
    )
    outcomes = -retrained.losses(query).numpy()
    return DemoResult(
        settings=settings,
        digits=digits,
        parameters=parameters,
        train_accuracy=_accuracy(trained, *train),
        query_losses=trained.losses(query)[0].numpy(),
        predicted=trained.outputs(query[0])[0].argmax(dim=1).numpy(),
        store=store,
        scores=scores,
        lds={
            "FactGraSS": lds(scores, halves, outcomes),
            "uncompressed": lds(uncompressed, halves, outcomes),
            "random": lds(noise, halves, outcomes),
        },
        slope=_slope(scores, halves, outcomes),
    )


def _attribute(
    network: nn.Module, digits: Digits, dim: int, seed: int, path: Path
) -> tuple[Store, Scores]:
    """Cache the training digits' rows and score the held-out digits with the default damping."""
    plan = Plan.for_model(network, "factgrass", dim=dim, seed=seed)
    attributor = Attributor(network, "cross_entropy", plan)
    train = TensorDataset(digits.train_inputs, digits.train_labels)
    query = TensorDataset(digits.query_inputs, digits.query_labels)
    progress = sys.stderr.isatty()  # as the bars of training
    store = attributor.cache(DataLoader(train, _BATCH_SIZE), path, progress=progress)
    return store, attributor.score(DataLoader(query, _BATCH_SIZE), store, progress=progress)


def _accuracy(ensemble: Ensemble, inputs: Tensor, labels: Tensor) -> float:
    right: float = (ensemble.outputs(inputs)[0].argmax(dim=1) == labels).double().mean().item()
    return right


def _slope(scores: Scores, halves: NDArray[np.bool_], outcomes: NDArray[np.float32]) -> float:
    """Return the least-squares slope of the measured on the predicted changes of the losses.

    To first order, a network without some training examples has a query loss that is higher by
    the sum of their scores over n. Both sides are taken about their mean for each query.
    """
    predicted = halves @ scores.values.T.astype(np.float64) / halves.shape[1]
    predicted -= predicted.mean(axis=0)
    return float((predicted * outcomes).sum() / (predicted**2).sum())
