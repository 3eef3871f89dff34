"""Stores: rows of compressed gradients on disk, written with commits and read without torch."""

from grass_rs.store.arrays import as_ids
from grass_rs.store.chosen import FISHERS, METHODS
from grass_rs.store.columns import check_same_columns, check_same_fingerprints
from grass_rs.store.export import EXPORT_FORMATS, export_store
from grass_rs.store.merge import merge_stores
from grass_rs.store.reader import Store, open_store, verify_store
from grass_rs.store.repair import Repaired, repair_store
from grass_rs.store.sketch_errors import standard_errors
from grass_rs.store.writer import StoreWriter, create_store

__all__ = [
    "EXPORT_FORMATS",
    "FISHERS",
    "METHODS",
    "Repaired",
    "Store",
    "StoreWriter",
    "as_ids",
    "check_same_columns",
    "check_same_fingerprints",
    "create_store",
    "export_store",
    "merge_stores",
    "open_store",
    "repair_store",
    "standard_errors",
    "verify_store",
]
