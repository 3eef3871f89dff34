"""Batches: nested tuples, lists and mappings whose tensors have the examples on the first axis."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from grass_rs.errors import DataError

__all__ = ["count_examples", "replace_tensors", "select_examples", "tensors_of"]


def count_examples(batch: Any) -> int:
    """Return the number of examples in a batch: the length of the first axis of its tensors.

    Parameters
    ----------
    batch
        A tensor, or tuples, lists and mappings of tensors, nested at will. Values of other types
        are handed to the loss as they are.

    Raises
    ------
    DataError
        If there is no tensor, a tensor has no axis, tensors disagree, or there is no example.

    """
    first: tuple[str, int] | None = None
    for path, tensor in _walk(batch, "batch"):
        if tensor.ndim == 0:
            msg = (
                f"every tensor of a batch expects the examples on its first axis, but {path} is a "
                f"scalar: repeat it for each example, or close over it in the loss"
            )
            raise DataError(msg)
        length = tensor.shape[0]
        if first is None:
            first = path, length
        elif first[1] != length:
            msg = (
                f"every tensor of a batch expects the same number of examples on its first axis, "
                f"but {first[0]} has {first[1]} and {path} has {length}: make the collate function "
                f"put the examples first"
            )
            raise DataError(msg)
    if first is None:
        msg = (
            f"a batch expects tensors in nested tuples, lists or mappings, got "
            f"{type(batch).__name__} without any: convert it in the loader's collate function"
        )
        raise DataError(msg)
    if first[1] == 0:
        msg = f"a batch expects at least one example, but {first[0]} has none: leave it out"
        raise DataError(msg)
    return first[1]


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch, in the order in which `replace_tensors` takes them."""
    return [tensor for _, tensor in _walk(batch, "batch")]


def replace_tensors(batch: Any, tensors: Iterable[Tensor]) -> Any:
    """Return the batch with other tensors in place of its own; containers keep their types."""
    return _rebuild(batch, iter(tensors))


def select_examples(batch: Any, index: slice | Sequence[int]) -> Any:
    """Return some examples of a batch as a batch of fresh tensors, which a loss may change."""
    chosen = index if isinstance(index, slice) else list(index)
    return replace_tensors(batch, (tensor[chosen].clone() for tensor in tensors_of(batch)))


def _walk(batch: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _walk(value, f"{path}[{key!r}]")
    elif isinstance(batch, (tuple, list)):
        for position, value in enumerate(batch):
            yield from _walk(value, f"{path}[{position}]")


def _rebuild(batch: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return next(tensors)
    if isinstance(batch, Mapping):
        values = {key: _rebuild(value, tensors) for key, value in batch.items()}
        if not isinstance(batch, (dict, UserDict)):
            # A copy of another mapping might share what it holds with the caller's.
            return values
        rebuilt = copy.copy(batch)
        for key, value in values.items():
            rebuilt[key] = value
        return rebuilt
    if isinstance(batch, (tuple, list)):
        items = [_rebuild(value, tensors) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch
