"""A benchmark of scores: data, models, subsets and outcomes fixed in one folder."""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from grass_rs.capture import count_examples, resolve_loss
from grass_rs.errors import DataError, NonFiniteError, SpecError, whole_number
from grass_rs.evaluate.estimate import Estimate, estimate
from grass_rs.evaluate.folder import RunFolder
from grass_rs.evaluate.lds import lds
from grass_rs.evaluate.subsets import random_subsets
from grass_rs.evaluate.training import (
    AT_ONCE,
    Recipe,
    digest_of,
    run_settings,
    to_bytes,
    train_together,
)
from grass_rs.types import Scores

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor, nn

    from grass_rs.capture import Loss
    from grass_rs.evaluate.ensemble import Ensemble

__all__ = ["Benchmark"]

_LOADER_BATCH = 256


class Benchmark:
    """What scores are judged by: models of all the data, and outcomes of models of subsets.

    Everything is trained once, when it is first asked for, and kept in `folder`: `checkpoints/`,
    `subsets.npy`, `outcomes.npy`, and the retrained models. A process that was stopped goes on
    where it was. A folder belongs to its arguments; another benchmark is refused it.

    Parameters
    ----------
    folder
        Where everything is kept.
    build
        Returns an untrained model; see `train_together`.
    loss
        (model, batch) -> losses (n,), for batches of the tensors of `train`, or a name as for
        `Attributor`.
    train
        Training tensors, each (n_train, ...).
    queries
        Query tensors, each (n_query, ...).
    recipe
        How every model is trained.
    subsets
        Number of models retrained on random subsets, at least 2.
    fraction
        Share of the training examples in a subset.
    models
        Number of independently trained models of all the data.
    seed
        Seed of the subsets, the initialisations and the orders.
    at_once, device, progress
        As for `train_together`. Of these, only `at_once` is part of what the folder belongs to.

    Raises
    ------
    SpecError
        If a number is out of range, or subsets would hold none of the examples or all.
    DataError
        If the tensors of `train`, or those of `queries`, are not of one length.
    BenchmarkError
        If the folder cannot be read, is damaged, or was begun with other arguments; the message
        names the first that changed.

    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        build: Callable[[], nn.Module],
        loss: str | Loss,
        train: tuple[Tensor, ...],
        queries: tuple[Tensor, ...],
        recipe: Recipe,
        subsets: int = 50,
        fraction: float = 0.5,
        models: int = 5,
        seed: int = 0,
        at_once: int = AT_ONCE,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> None:
        self.folder = Path(folder)
        """Where everything is kept."""
        self.build = build
        """Returns an untrained model."""
        self.loss = resolve_loss(loss)
        """(model, batch) -> losses (n,)."""
        self.train = train
        """Training tensors."""
        self.queries = queries
        """Query tensors."""
        self.recipe = recipe
        """How every model is trained."""
        count_examples(queries)
        self._models = whole_number("models", models, least=1)
        self._named_loss = loss
        self._progress = progress
        self._at_once = whole_number("at_once", at_once, least=1)
        self._device = device
        seed = whole_number("seed", seed)
        drawn = np.random.SeedSequence(seed).generate_state(4, np.uint64)
        subset_seed, self._retrain_seed, self._model_seed, self._removal_seed = map(int, drawn)
        self.subsets: NDArray[np.bool_] = random_subsets(
            whole_number("subsets", subsets, least=2),
            count_examples(train),
            fraction,
            seed=subset_seed,
        )
        """(m, n_train) bool: what each retrained model was trained on."""
        run = run_settings(build, loss, train, recipe, seed=seed)
        settings: dict[str, Any] = {
            "subsets": subsets,
            "fraction": fraction,
            "models": models,
            "at_once": at_once,
            "train": run.pop("data"),
            "queries": digest_of(queries),
        }
        settings |= run
        self._kept = RunFolder(self.folder, settings)
        if self._kept.read("subsets.npy") is None:
            self._kept.write("subsets.npy", _npy(self.subsets))

    @cached_property
    def outcomes(self) -> NDArray[np.float32]:
        """(m, n_query): minus the loss of each retrained model on each query.

        Raises
        ------
        NonFiniteError
            If a loss is NaN or infinite.

        """
        stored = self._kept.read("outcomes.npy")
        if stored is not None:
            return _from_npy(stored)
        retrained = self._train(self.subsets, self._retrain_seed, "retrained")
        outcomes = -self.query_losses(retrained)
        self._kept.write("outcomes.npy", _npy(outcomes))
        return outcomes

    @cached_property
    def trained(self) -> Ensemble:
        """The models trained on all the data."""
        everything = np.ones((self._models, self.subsets.shape[1]), dtype=bool)
        return self._train(everything, self._model_seed, "trained")

    @cached_property
    def checkpoints(self) -> list[Path]:
        """State dicts of the models trained on all the data, one file of `torch.save` each."""
        paths = [f"checkpoint-{index}.pt" for index in range(self._models)]
        if any(self._kept.read(path) is None for path in paths):
            for index, path in enumerate(paths):
                state = self.trained.state_dict(index)
                state = {key: value.cpu() for key, value in state.items()}
                self._kept.write(path, to_bytes(state))
        return [self.folder / path for path in paths]

    def model(self, index: int = 0) -> nn.Module:
        """Return a model trained on all the data, in evaluation mode, on the device of the data.

        Raises
        ------
        SpecError
            If there is no such model.

        """
        if not 0 <= index < self._models:
            msg = f"model expects an index from 0 to {self._models - 1}, got {index}"
            raise SpecError(msg)
        path = self.checkpoints[index]
        with torch.random.fork_rng(devices=[]):
            model = self.build()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return model.to(self.train[0].device).eval()

    def train_loader(self, batch_size: int = _LOADER_BATCH) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader of the training examples in their order, as `Attributor.cache` takes it."""
        return DataLoader(TensorDataset(*self.train), batch_size)

    def query_loader(self, batch_size: int = _LOADER_BATCH) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader of the queries in their order, as `Attributor.score` takes it."""
        return DataLoader(TensorDataset(*self.queries), batch_size)

    def lds(self, scores: Scores | ArrayLike) -> Estimate:
        """Return the mean LDS of scores over the queries; see `grass_rs.lds`.

        Parameters
        ----------
        scores
            (n_query, n_train), in the order of `queries` and `train`, or a `Scores` with ids 0, 1,
            ... in that order.

        Raises
        ------
        DataError
            If the ids of `scores` are others, or the LDS is undefined for all queries but one, as
            their outcomes, or sums of scores, do not differ between the models.
        ShapeError
            If the scores are not (n_query, n_train).

        """
        self.check_ids(scores)
        return estimate(lds(scores, self.subsets, self.outcomes))

    def check_ids(self, scores: Scores | ArrayLike) -> None:
        """Check that the columns of scores are the training examples in their order.

        Raises
        ------
        DataError
            If they are not.

        """
        n = self.subsets.shape[1]
        if not isinstance(scores, Scores) or scores.ids.ndim != 1:
            return
        if not np.array_equal(scores.ids, np.arange(n)):
            msg = (
                f"a benchmark expects scores of the ids 0 to {n - 1} in this order, got other ids: "
                f"cache train_loader() without ids"
            )
            raise DataError(msg)

    def retrain_without(self, kept: NDArray[np.bool_]) -> Ensemble:
        """Train a model by the recipe on each row of `kept` (m, n_train) bool; kept in the folder.

        Raises
        ------
        DataError
            If a row keeps nothing.
        ShapeError
            If `kept` has another shape.

        """
        name = f"removed-{digest_of((torch.from_numpy(kept),))[:16]}"
        return self._train(kept, self._removal_seed, name)

    def query_losses(self, ensemble: Ensemble) -> NDArray[np.float32]:
        """Return the losses (m, n_query) float32 of an ensemble, batch by batch of the recipe.

        Raises
        ------
        NonFiniteError
            If one is NaN or infinite.

        """
        parts = [
            ensemble.losses(batch).cpu()
            for batch in zip(
                *(torch.split(t, self.recipe.batch_size) for t in self.queries), strict=True
            )
        ]
        losses: NDArray[np.float32] = torch.cat(parts, dim=1).float().numpy()
        if not np.isfinite(losses).all():
            model, query = np.argwhere(~np.isfinite(losses))[0]
            msg = (
                f"a benchmark expects finite losses, got {losses[model, query]} of model {model} on "
                f"query {query}: lower the learning rate, or drop the query"
            )
            raise NonFiniteError(msg)
        return losses

    def _train(self, subsets: NDArray[np.bool_], seed: int, name: str) -> Ensemble:
        return train_together(
            self.build,
            self._named_loss,
            self.train,
            subsets,
            self.recipe,
            seed=seed,
            folder=self.folder / name,
            at_once=self._at_once,
            device=self._device,
            progress=self._progress,
        )


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _from_npy(data: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array
