"""Batches of a loader with the ids of their examples, checked against each other and a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from tqdm import tqdm

from grass_rs.capture import count_examples
from grass_rs.errors import DataError
from grass_rs.store import as_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray


class Examples:
    """The batches of a loader, each with the ids of its examples.

    Parameters
    ----------
    loader
        Batches whose tensors have the examples on the first axis.
    ids
        batch -> (n,) whole numbers from 0; None numbers the examples in the loader's order.
    progress
        Whether to show a progress bar.
    description
        What the bar says.

    Raises
    ------
    DataError
        If the examples are to be numbered, but the loader shuffles them.

    """

    def __init__(
        self,
        loader: Iterable[Any],
        ids: Callable[[Any], Any] | None,
        *,
        progress: bool,
        description: str,
    ) -> None:
        if ids is None and _shuffles(loader):
            raise DataError(
                "expected a loader with the same order each time, as its examples are numbered in that "
                "order, got one that shuffles: pass shuffle=False, or ids="
            )
        if ids is not None and not callable(ids):
            raise DataError(
                f"ids expects a function of a batch, got {ids!r}: pass lambda batch: its examples' ids"
            )
        self._loader = loader
        self._ids = ids
        self._progress = progress
        self._description = description
        self._seen: set[int] = set()

    def __iter__(self) -> Iterator[tuple[Any, NDArray[np.uint64]]]:
        """Yield batches and the ids (n,) of their examples.

        Raises
        ------
        DataError
            If a batch has no examples, an id is bad or comes twice, or there is no batch.

        """
        self._seen.clear()
        batches = tqdm(
            self._loader, desc=self._description, unit=" batches", disable=not self._progress
        )
        for batch in batches:
            yield batch, self._ids_of(batch)
        if not self._seen:
            raise DataError(
                "expected a loader with examples, got one without a batch: check the data set"
            )

    def check_contains(self, stored: set[int]) -> None:
        """Refuse stored ids that the loader did not yield.

        Raises
        ------
        DataError
            If there is one.

        """
        lost = stored - self._seen
        if lost:
            raise DataError(
                f"expected the loader to yield the {len(stored)} examples already stored, among others, got "
                f"{len(self._seen)} examples without id {min(lost)}: use the loader that began the store, or "
                f"a new path"
            )

    def check_all_stored(self, stored: NDArray[np.uint64], skipped: NDArray[np.uint64]) -> None:
        """Go through the loader without capturing and refuse it unless it yields just the stored ids.

        Raises
        ------
        DataError
            If the ids differ.

        """
        known = {*stored.tolist(), *skipped.tolist()}
        # Beginning a loader draws from the global generator, as capture does, and puts it back.
        with torch.random.fork_rng(devices=[]):
            self._check_known(known)
        self.check_contains(known)

    def _check_known(self, known: set[int]) -> None:
        for _, batch_ids in self:
            new = [example for example in batch_ids.tolist() if example not in known]
            if new:
                raise DataError(
                    f"expected the loader to yield the {len(known)} examples of the finished store, got id "
                    f"{new[0]} besides: use a new path for other data"
                )

    def _ids_of(self, batch: Any) -> NDArray[np.uint64]:
        n = count_examples(batch)
        if self._ids is None:
            batch_ids = np.arange(len(self._seen), len(self._seen) + n, dtype=np.uint64)
        else:
            batch_ids = as_ids(self._ids(batch))
            if len(batch_ids) != n:
                raise DataError(
                    f"ids expects to return one whole number an example, ({n},), got ({len(batch_ids)},)"
                )
        for example in batch_ids.tolist():
            if example in self._seen:
                raise DataError(
                    f"expected every example to have an id of its own, got {example} twice: mend ids="
                )
            self._seen.add(example)
        return batch_ids


def _shuffles(loader: Iterable[Any]) -> bool:
    """Tell whether a loader of PyTorch draws a new order each time."""
    if not isinstance(loader, DataLoader):
        return False
    samplers = loader.sampler, getattr(loader.batch_sampler, "sampler", None)
    shuffling = RandomSampler, SubsetRandomSampler, WeightedRandomSampler
    return any(isinstance(sampler, shuffling) for sampler in samplers)
