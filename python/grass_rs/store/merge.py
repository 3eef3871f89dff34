"""Merging finished stores into one."""

from __future__ import annotations

from os import fspath
from typing import TYPE_CHECKING

from grass_rs import _native
from grass_rs.store.reader import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike


def merge_stores(sources: Iterable[str | PathLike[str]], path: str | PathLike[str]) -> Store:
    """Merge finished stores of one plan and model into one, and open it.

    Rows keep their ids and their order, the first source's first; shards are copied whole under new
    numbers, and every checksum is compared. Sources are only read. A store that is at the path
    already is added to and keeps what it has; until all copies are whole, it stays as it is. A merge
    that was interrupted, by `kill -9` too, is continued by the same call.

    Parameters
    ----------
    sources
        Folders of finished stores with equal columns, dtype and fingerprints, and no id in common.
    path
        Folder of the store to merge into; it is made, or is empty, or has a finished store of the
        same kind that is none of the sources.

    Raises
    ------
    StoreNotFoundError
        If there is no store at a source.
    StoreMismatchError
        If columns, dtype or fingerprints differ; the first difference is named.
    DataError
        If two rows have one id.
    CorruptStoreError
        If a source is damaged; with shard, chunk and rows.
    StoreExistsError
        If there is anything but a store at the path.
    StoreLockedError
        If another process is writing the store at the path.
    StoreError
        If there is no source, a store is unfinished, the store at the path is a source, or it cannot
        be written.

    """
    _native.merge_stores([fspath(source) for source in sources], path)
    return open_store(path)
