"""Repairing a store: what is damaged is dropped, and everything else kept."""

from __future__ import annotations

from dataclasses import dataclass
from os import fspath
from typing import TYPE_CHECKING

from grass_rs import _native

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Repaired:
    """What `repair_store` kept and dropped."""

    kept_rows: int
    """Rows that the store has now."""
    dropped_rows: int
    """Rows that it had besides, as far as its manifest and logs tell."""
    lost_ids: NDArray[np.uint64]
    """Ids of dropped rows, which are to be cached again: (m,) uint64, ascending, read-only."""
    unknown_ids: int
    """How many of the dropped rows had ids that are lost too."""


def repair_store(path: str | PathLike[str]) -> Repaired:
    """Drop every row of a store that its checksums do not prove, and keep all others in their order.

    Headers, logs and manifests are written again where they are known from the rest. If rows were
    dropped the store is unfinished, and caching to the same path again computes just the missing
    ones, those of unknown ids too. A store without damage stays as it is. A repair that is
    interrupted leaves the store as it was, or is ended by the next one. The new files of damaged
    shards take room on the disk beside the old ones.

    Raises
    ------
    StoreNotFoundError
        If there is no store at the path.
    StoreLockedError
        If another process is writing the store.
    CorruptStoreError
        If neither the manifest nor its copy can be read.
    StoreError
        If the store has a later format, or cannot be read or written.

    """
    kept_rows, dropped_rows, lost_ids, unknown_ids = _native.repair_store(fspath(path))
    lost_ids.flags.writeable = False
    return Repaired(kept_rows, dropped_rows, lost_ids, unknown_ids)
