"""Repair of a damaged store, and caching just what it lost."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
from grass_rs.engine.attributor import Capture
from grass_rs.store import repair_store, verify_store
from networks import mlp_data
from stores import columns, numbers, write
from test_cache_resume import BATCH, EXAMPLES, HEADER, Job, files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

JOB = Job()
"""Rows of 72 bytes, committed 9 at a time."""
COMMIT = 9
ROW = 72


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return the list to which every batch of inputs is added whose gradients are captured."""
    batches: list[torch.Tensor] = []
    run = Capture.run

    def counted(self: Capture, batch: Any, *args: Any) -> Any:
        batches.append(batch[0])
        return run(self, batch, *args)

    monkeypatch.setattr(Capture, "run", counted)
    return batches


def interrupted(path: Path) -> None:
    """Cache six batches, so that 42 rows are there in records of 9 and one of 6."""

    def batches() -> Iterator[Any]:
        for number, batch in enumerate(JOB.loader()):
            if number == 6:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        JOB.cache(path, batches())


def in_id_order(store: grass.Store) -> np.ndarray:
    return store[np.argsort(store.ids)]


def test_a_cache_fills_just_what_a_repair_dropped(
    tmp_path: Path, computed: list[torch.Tensor]
) -> None:
    whole = JOB.cache(tmp_path / "whole")
    path = tmp_path / "damaged"
    interrupted(path)
    flip(path / "shard-00000.rows", HEADER + 20 * ROW)
    with pytest.raises(grass.CorruptStoreError, match="rows 18:27"):
        verify_store(path)

    repaired = repair_store(path)
    assert (repaired.kept_rows, repaired.dropped_rows, repaired.unknown_ids) == (33, COMMIT, 0)
    np.testing.assert_array_equal(repaired.lost_ids, np.arange(18, 27))
    assert repaired.lost_ids.dtype == np.uint64
    assert not repaired.lost_ids.flags.writeable
    begun = verify_store(path)
    assert not begun.complete
    np.testing.assert_array_equal(begun.ids, np.r_[0:18, 27:42])

    computed.clear()
    filled = JOB.cache(path)
    # The batches with an example that is missing, and no other: 18..26 are in two of them.
    batches = [*range(18 // BATCH, 26 // BATCH + 1), *range(42 // BATCH, -(-EXAMPLES // BATCH))]
    inputs, _ = mlp_data(EXAMPLES)
    expected = [inputs[BATCH * batch : BATCH * (batch + 1)] for batch in batches]
    assert [batch.tolist() for batch in computed] == [batch.tolist() for batch in expected]
    assert filled.complete
    assert sorted(filled.ids.tolist()) == list(range(EXAMPLES))
    np.testing.assert_array_equal(in_id_order(filled), whole[:])

    queries = numbers(2, whole.width, seed=5)
    for method, tolerance in (("graddot", 0.0), ("influence", 1e-4)):
        left, right = (store.score(queries, method=method) for store in (filled, whole))
        order = np.argsort(left.ids)
        np.testing.assert_allclose(left.values[:, order], right.values, rtol=tolerance)


def test_a_damaged_store_that_was_finished_is_filled_to_the_same_bytes(tmp_path: Path) -> None:
    whole = JOB.cache(tmp_path / "whole")
    path = JOB.cache(tmp_path / "damaged").path
    flip(path / "shard-00000.ids", 8)
    repaired = repair_store(path)
    # One chunk, whose ids are lost with it.
    assert (repaired.kept_rows, repaired.dropped_rows) == (0, EXAMPLES)
    assert (len(repaired.lost_ids), repaired.unknown_ids) == (0, EXAMPLES)
    assert JOB.cache(path).complete
    assert files(path) == files(whole.path)


def test_a_whole_store_stays_as_it_is(tmp_path: Path) -> None:
    store = write(tmp_path / "ünï code", numbers(50, 7), (3, 4))
    before = files(store.path)
    repaired = repair_store(str(store.path))
    assert (repaired.kept_rows, repaired.dropped_rows, repaired.unknown_ids) == (50, 0, 0)
    assert repaired.lost_ids.shape == (0,)
    assert files(store.path) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        repaired.kept_rows = 3  # type: ignore[misc]


def test_what_is_known_from_the_rest_is_written_again(tmp_path: Path) -> None:
    store = write(tmp_path / "s", numbers(50, 7), (3, 4))
    before = files(store.path)
    flip(store.path / "shard-00000.rows", 20)
    flip(store.path / "shard-00000.log", 3)
    (store.path / "manifest.json").unlink()
    with pytest.raises(grass.CorruptStoreError, match="run grass-rs repair"):
        grass.open_store(store.path)
    assert repair_store(store.path).dropped_rows == 0
    assert files(store.path) == before


def test_a_repair_that_was_interrupted_is_told(tmp_path: Path) -> None:
    store = write(tmp_path / "s", numbers(5, 7), (3, 4))
    (store.path / "repair.json").write_text("{}")
    calls = [
        lambda: grass.open_store(store.path),
        lambda: verify_store(store.path),
        lambda: grass.create_store(store.path, columns(3, 4), resume=True),
    ]
    for call in calls:
        with pytest.raises(
            grass.CorruptStoreError, match=r"interrupted: run grass-rs repair again$"
        ):
            call()
    with pytest.raises(grass.CorruptStoreError, match=r"its journal repair\.json is damaged"):
        repair_store(store.path)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(grass.StoreNotFoundError):
        repair_store(tmp_path / "nowhere")
    with pytest.raises(grass.StoreNotFoundError):
        repair_store(tmp_path)
    assert not list(tmp_path.iterdir())
    with (
        grass.create_store(tmp_path / "s", columns(3)),
        pytest.raises(grass.StoreLockedError, match="process"),
    ):
        repair_store(tmp_path / "s")
    for name in ("manifest.json", "manifest.copy.json"):
        flip(tmp_path / "s" / name, 9)
    with pytest.raises(grass.CorruptStoreError, match="restore one of them"):
        repair_store(tmp_path / "s")


def test_two_repairs_at_once_do_not_meet(tmp_path: Path) -> None:
    store = write(tmp_path / "s", numbers(5000, 64), (64,))
    flip(store.path / "shard-00000.rows", HEADER)
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(repair_store(store.path).kept_rows)
        except grass.StoreLockedError:
            outcomes.append("locked")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [outcome for outcome in outcomes if outcome != "locked"]
    assert kept
    assert len(set(kept)) == 1
    verify_store(store.path)
