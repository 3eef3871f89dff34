"""Rows by their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass
from grass_rs.store import as_ids
from stores import columns, numbers, write

if TYPE_CHECKING:
    from pathlib import Path

any_id = st.integers(0, 2**64 - 1)


@given(ids=st.lists(any_id, min_size=1, max_size=12, unique=True), data=st.data())
def test_rows_are_found_by_their_ids(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], data: st.DataObject
) -> None:
    rows = numbers(len(ids), 3)
    store = write(
        tmp_path_factory.mktemp("find") / "s", rows, (3,), ids=np.array(ids, dtype=np.uint64)
    )
    wanted = data.draw(st.lists(st.sampled_from(ids)))
    found = store.find(np.array(wanted, dtype=np.uint64))
    assert found.dtype == np.int64
    assert found.tolist() == [ids.index(number) for number in wanted]
    np.testing.assert_array_equal(store[found], rows[found])
    np.testing.assert_array_equal(store[np.argsort(store.ids)], rows[np.argsort(ids)])
    unknown = data.draw(any_id.filter(lambda number: number not in ids))
    with pytest.raises(grass.DataError, match=f"got {unknown}, which has none"):
        store.find(np.array([*wanted, unknown], dtype=np.uint64))


def test_a_skipped_example_is_said_to_be(tmp_path: Path) -> None:
    with grass.create_store(tmp_path / "s", columns(3)) as writer:
        writer.append(numbers(2, 3), [4, 9])
        store = writer.finish(skipped_ids=[5])
    with pytest.raises(grass.DataError, match=r"got 5, which has none \(it was skipped\): Store"):
        store.find([4, 5, 6])


@pytest.mark.parametrize("ids", [3, [-1], [0.5], ["3"], [[3]], np.array([True])])
def test_what_is_no_list_of_ids_is_refused(tmp_path: Path, ids: Any) -> None:
    store = write(tmp_path / "s", numbers(2, 3), (3,), ids=[3, 4])
    with pytest.raises(grass.DataError, match="ids expects whole numbers"):
        store.find(ids)


def test_an_empty_store_has_no_ids(tmp_path: Path) -> None:
    store = grass.create_store(tmp_path / "s", columns(3)).finish()
    assert store.find([]).tolist() == []
    with pytest.raises(grass.DataError, match="got 0"):
        store.find([0])


@pytest.mark.parametrize(
    "ids",
    [
        [5, 2**63 + 7],
        (2**64 - 1, 0, 2**63, 2**53 + 1),
        [np.uint64(2**63 + 1), np.int64(3), 2**53 + 1],
    ],
)
def test_ids_on_both_sides_of_2_to_the_63_keep_every_digit(tmp_path: Path, ids: Any) -> None:
    # NumPy makes floats of them.
    assert np.asarray(ids).dtype == np.float64
    numbers_ = [int(number) for number in ids]
    taken = as_ids(ids)
    assert taken.dtype == np.uint64
    assert taken.tolist() == numbers_
    store = write(tmp_path / "s", numbers(len(ids), 3), (3,), ids=ids)
    assert store.ids.tolist() == numbers_
    assert store.find(ids).tolist() == list(range(len(ids)))


@pytest.mark.parametrize("ids", [[2**63, -1], [2**63, 1.0], [2.0**63, 1], [2**64, 1]])
def test_other_numbers_on_both_sides_are_refused(ids: list[Any]) -> None:
    with pytest.raises(grass.DataError, match="ids expects whole numbers"):
        as_ids(ids)
