"""Stores: rows of compressed gradients on disk, written with commits and read without torch."""

from grass_rs.store.columns import check_same_columns, check_same_fingerprints
from grass_rs.store.reader import Store, open_store, verify_store
from grass_rs.store.writer import StoreWriter, as_ids, create_store

__all__ = [
    "Store",
    "StoreWriter",
    "as_ids",
    "check_same_columns",
    "check_same_fingerprints",
    "create_store",
    "open_store",
    "verify_store",
]
