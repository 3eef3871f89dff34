"""Measures that act on what the scores name: leave it out, or take one more step on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.func import functional_call

from grass_rs.capture import count_examples, resolve_loss
from grass_rs.capture.model_state import ModelState
from grass_rs.errors import DataError, LossError, ShapeError, SpecError, whole_number
from grass_rs.evaluate.ensemble import LossOfModel
from grass_rs.evaluate.estimate import Estimate, estimate
from grass_rs.evaluate.inputs import score_matrix
from grass_rs.types import Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor, nn

    from grass_rs.capture import Loss
    from grass_rs.evaluate.benchmark import Benchmark
    from grass_rs.evaluate.ensemble import Ensemble

__all__ = ["Brittleness", "brittleness", "tail_patch"]


@dataclass(frozen=True)
class Brittleness:
    """What leaving out the k highest-scored training examples of each query did."""

    k: int
    """Training examples left out."""
    drop: Estimate
    """Outcome with all training examples minus outcome without the k, over the queries."""
    flipped: float | None
    """Share of the queries that are predicted otherwise without the k; None where the model does
    not predict one of several classes."""


def brittleness(
    benchmark: Benchmark, scores: Scores | ArrayLike, ks: Sequence[int]
) -> list[Brittleness]:
    """Remove each query's top k training examples, retrain, and see what becomes of the query.

    Ilyas et al. 2022, "Datamodels: Predicting Predictions from Training Data", arXiv 2202.00622,
    where they look for brittle predictions; Park et al. 2023, "TRAK", arXiv 2303.14186, compare
    methods by it. One model is trained for each query and k; they are kept in the benchmark's
    folder. Some predictions flip by retraining alone: pass random scores to see how many.

    Parameters
    ----------
    benchmark
        The benchmark. What a query was before is the mean of its models of all the data: the mean
        outcome, and the class of the highest mean output.
    scores
        (n_query, n_train) scores, or a `Scores` that holds all of them.
    ks
        How many training examples to remove, each from 1 to n_train - 1.

    Returns
    -------
    list of Brittleness
        One for each k.

    Raises
    ------
    ShapeError
        If the scores are not (n_query, n_train).
    SpecError
        If a k is out of range.
    DataError
        If the ids of `scores` are not 0, 1, ..., or there is one query only.

    """
    benchmark.check_ids(scores)
    values = score_matrix("brittleness", scores)
    n_train, n_query = benchmark.subsets.shape[1], count_examples(benchmark.queries)
    _check_shape("brittleness", values, n_query, n_train)
    ks = [whole_number("k", k, least=1, most=n_train - 1) for k in ks]
    best = np.argsort(-values, axis=1, kind="stable")
    everything = benchmark.trained
    before = benchmark.query_losses(everything).mean(axis=0)
    predicted = _predictions(benchmark, everything)
    found = []
    for k in ks:
        kept = np.ones(values.shape, dtype=bool)
        np.put_along_axis(kept, best[:, :k], values=False, axis=1)
        without = benchmark.retrain_without(kept)
        own = np.arange(n_query)
        drop = benchmark.query_losses(without)[own, own].astype(np.float64) - before
        flipped = None
        if predicted is not None:
            now = _outputs(benchmark, without)[own, own].argmax(dim=-1)
            flipped = float((now != predicted).double().mean())
        found.append(Brittleness(k, estimate(drop), flipped))
    return found


def tail_patch(
    model: nn.Module,
    loss: str | Loss,
    queries: tuple[Tensor, ...],
    train: tuple[Tensor, ...],
    scores: Scores | ArrayLike,
    *,
    k: int,
    learning_rate: float,
) -> NDArray[np.float64]:
    """Take one more training step on each query's top k examples, and see whether its loss falls.

    After Chang et al. 2024, "Scalable Influence and Fact Tracing for Large Language Model
    Pretraining", arXiv 2410.17413, who measure the probability of the target; here the step is one
    of plain gradient descent on the mean loss of all k, in evaluation mode, from the same model for
    every query, which is left as it was.

    Parameters
    ----------
    model
        The model that was explained.
    loss
        (model, batch) -> losses (n,), or a name as for `Attributor`.
    queries, train
        Tensors, each (n_query, ...) and (n_train, ...), on the model's device.
    scores
        (n_query, n_train) scores, or a `Scores` whose ids are places in `train`; it may hold only
        the top k.
    k
        Examples a step, from 1 to the number of scores a query.
    learning_rate
        Size of the step.

    Returns
    -------
    NDArray[np.float64]
        (n_query,): the loss before minus the loss after the step, higher = better; `estimate` gives
        the mean.

    Raises
    ------
    ShapeError
        If the scores do not fit the data, or k is out of range.
    DataError
        If an id is no place in `train`.
    SpecError
        If the learning rate is not positive, or the loss has no such name.
    LossError
        If the loss does not return one differentiable number an example.

    """
    if not 0 < learning_rate < np.inf:
        raise SpecError(f"learning_rate must be positive and finite, got {learning_rate!r}")
    n_query, n_train = count_examples(queries), count_examples(train)
    best = _best(scores, k, n_query, n_train)
    of_model = LossOfModel(model, resolve_loss(loss))
    parameters = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    change = np.empty(n_query)
    state = ModelState(model)
    state.hold()
    try:
        for query in range(n_query):
            own = tuple(tensor[query : query + 1] for tensor in queries)
            batch = tuple(tensor[best[query].to(tensor.device)] for tensor in train)
            with torch.enable_grad():
                mean = of_model(batch).mean()
                if not mean.requires_grad:
                    msg = "loss expects to depend on the parameters, got losses without gradient"
                    raise LossError(msg)
                gradients = torch.autograd.grad(mean, list(parameters.values()), allow_unused=True)
            with torch.no_grad():
                patched = {
                    name: p if g is None else p - learning_rate * g
                    for (name, p), g in zip(parameters.items(), gradients, strict=True)
                }
                after = functional_call(of_model, patched, (own,)).double()
                change[query] = (of_model(own).double() - after).item()
    finally:
        state.release()
    return change


def _best(scores: Scores | ArrayLike, k: int, n_query: int, n_train: int) -> Tensor:
    """Return the places (n_query, k) in the training tensors of the highest scores."""
    if not isinstance(scores, Scores):
        values = score_matrix("tail_patch", scores)
        _check_shape("tail_patch", values, n_query, n_train)
        k = whole_number("k", k, least=1, most=n_train)
        return torch.from_numpy(np.argsort(-values, axis=1, kind="stable")[:, :k].copy())
    ids = scores.top(k)[0]
    if len(ids) != n_query:
        msg = f"tail_patch expects scores of {n_query} queries, got {len(ids)}"
        raise ShapeError(msg)
    if ids.size and ids.max() >= n_train:
        msg = (
            f"tail_patch expects ids below {n_train}, places in train, got {ids.max()}: cache the "
            f"training examples in this order, without ids"
        )
        raise DataError(msg)
    return torch.from_numpy(ids.astype(np.int64))


def _check_shape(what: str, values: NDArray[np.float64], n_query: int, n_train: int) -> None:
    if values.shape != (n_query, n_train):
        msg = f"{what} expects scores ({n_query}, {n_train}), got {values.shape}"
        raise ShapeError(msg)


def _outputs(benchmark: Benchmark, ensemble: Ensemble) -> Tensor:
    """Return the outputs (m, n_query, ...) for the queries, batch by batch."""
    parts = torch.split(benchmark.queries[0], benchmark.recipe.batch_size)
    return torch.cat([ensemble.outputs(inputs).cpu() for inputs in parts], dim=1)


def _predictions(benchmark: Benchmark, ensemble: Ensemble) -> Tensor | None:
    """Return the class (n_query,) that the models of an ensemble predict on average.

    None unless the queries are (inputs, labels) with one whole number a label, and the outputs one
    number a class.
    """
    if len(benchmark.queries) != 2:
        return None
    labels = benchmark.queries[1]
    if labels.ndim != 1 or labels.is_floating_point():
        return None
    outputs = _outputs(benchmark, ensemble)
    if outputs.ndim != 3 or outputs.shape[2] < 2:
        return None
    return outputs.mean(dim=0).argmax(dim=1)
