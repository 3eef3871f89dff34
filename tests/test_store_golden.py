"""Stores of format 1 as it was published are read for ever, and today's writers make the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grass_rs as grass
import plain_store
from golden import make_store
from stores import DTYPES, files

FOLDER = Path(__file__).parent / "golden" / "store-v1"
HOLDS: dict[str, Any] = json.loads((FOLDER / "holds.json").read_text(encoding="utf-8"))


def columns() -> list[grass.Column]:
    found, offset = [], 0
    for block in HOLDS["columns"]:
        found.append(grass.Column(block["name"], offset, block["width"], block["spec"]))
        offset += block["width"]
    return found


def bits(rows: Any) -> list[Any]:
    """Return float32 rows as bits, so that a negative zero is no zero."""
    return np.asarray(rows, np.float32).view(np.uint32).tolist()


def test_there_is_one_store_a_dtype() -> None:
    assert sorted(p.name for p in FOLDER.iterdir()) == sorted((*DTYPES, "holds.json"))
    assert len(HOLDS["rows"]) == len(HOLDS["ids"]) == sum(HOLDS["shards"]) == 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_holds_what_was_put_into_it(dtype: str) -> None:
    store = grass.open_store(FOLDER / dtype)
    store.verify()
    assert (store.dtype, store.complete, len(store)) == (dtype, True, 5)
    assert list(store.columns) == columns()
    assert store.fingerprints == HOLDS["fingerprints"]
    assert store.ids.tolist() == HOLDS["ids"]
    assert store.skipped_ids.tolist() == HOLDS["skipped_ids"]
    assert bits(store[:]) == bits(HOLDS["stored"][dtype])
    assert bits(plain_store.read_store(FOLDER / dtype).rows) == bits(HOLDS["stored"][dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_scores(dtype: str) -> None:
    store = grass.open_store(FOLDER / dtype)
    stored = np.array(HOLDS["stored"][dtype])
    query = np.eye(24, dtype=np.float32)[[14]]
    np.testing.assert_allclose(store.score(query, "graddot").values[0], stored[:, 14], rtol=1e-6)


def test_the_stored_rows_are_near_those_put_in() -> None:
    rows = np.array(HOLDS["rows"])
    largest = np.maximum(abs(rows[:, :10]).max(axis=1), abs(rows[:, 10:]).max(axis=1))
    for dtype, share in (("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8), ("int8", 0.004)):
        stored = np.array(HOLDS["stored"][dtype])
        assert (abs(stored - rows) <= share * largest[:, None]).all(), dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_todays_writer_makes_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    rows, ids = np.array(HOLDS["rows"], np.float32), np.array(HOLDS["ids"], np.uint64)
    done = 0
    for count in HOLDS["shards"]:
        with grass.create_store(
            tmp_path / "s", columns(), dtype, fingerprints=HOLDS["fingerprints"], resume=True
        ) as writer:
            writer.append(rows[done : done + count], ids[done : done + count])
            writer.finish(HOLDS["skipped_ids"])
        done += count
    assert files(tmp_path / "s") == files(FOLDER / dtype)


def test_the_generator_makes_the_same_files(tmp_path: Path) -> None:
    make_store.build(tmp_path / "v1")
    for dtype in DTYPES:
        assert files(tmp_path / "v1" / dtype) == files(FOLDER / dtype)
    made = (tmp_path / "v1" / "holds.json").read_text(encoding="utf-8")
    assert json.loads(made) == HOLDS
