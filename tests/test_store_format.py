"""docs/store.md is the whole format: a plain reader and writer made from it agree with grass_rs, and its code runs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass
import plain_store
from stores import DTYPES, columns, files, numbers, write

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = (Path(__file__).parents[1] / "docs" / "store.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
FINGERPRINTS = {"plan": 'é "1f"\n', "model": "\x7f\u2028\U0001f600"}

WIDTHS = (5, 40_000)
"""Every chunk holds a few rows: 4 of float32, 8 of 16 bits, 16 of int8."""


def plain(*widths: int) -> list[plain_store.PlainColumn]:
    """Return the columns of `stores.columns` for the plain writer."""
    return [plain_store.PlainColumn(c.name, c.width, c.spec) for c in columns(*widths)]


def same_numbers(left: np.ndarray, right: np.ndarray) -> bool:
    """Return whether two float32 arrays are equal, signs of zeros included."""
    return left.dtype == right.dtype == np.float32 and left.tobytes() == right.tobytes()


def test_the_code_of_the_page_reads_every_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(BLOCKS) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "store"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"store.md, block {number}", "exec"), names)  # noqa: S102 - our own page
    read = zip(("single", "half", "brain", "eight"), DTYPES, strict=True)
    for name, dtype in read:
        store = grass.open_store(f"{dtype}.grass")
        np.testing.assert_array_equal(names[name], store[:], err_msg=dtype)
        np.testing.assert_array_equal(names["ids"], store.ids)


def test_the_page_tells_the_error_of_every_dtype() -> None:
    _, _, rest = PAGE.partition("<!-- row types: written by benches/python/row_types.py -->")
    table, end, _ = rest.partition("<!-- end of row types -->")
    assert end
    assert re.findall(r"^\| (\w+) \|", table, flags=re.MULTILINE) == ["dtype", *DTYPES]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_reader_reads_what_grass_rs_wrote(tmp_path: Path, dtype: str) -> None:
    path, rows = tmp_path / "s", numbers(21, sum(WIDTHS))
    options: dict[str, Any] = {"fingerprints": FINGERPRINTS}
    write(path, rows[:18], WIDTHS, dtype, ids=range(50, 32, -1), **options)
    with grass.create_store(path, columns(*WIDTHS), dtype, resume=True, **options) as writer:
        writer.append(rows[18:], np.array([2**64 - 1, 0, 7], np.uint64))
        store = writer.finish(skipped_ids=[9, 4])
    read = plain_store.read_store(path)
    assert [shard["rows"] for shard in read.manifest["shards"]] == [18, 3]
    assert same_numbers(read.rows, store[:])
    assert read.ids == store.ids.tolist()
    assert read.manifest["skipped_ids"] == [4, 9]
    assert read.manifest["fingerprints"] == FINGERPRINTS


def test_the_plain_reader_sees_what_an_unfinished_store_shows(tmp_path: Path) -> None:
    path, rows = tmp_path / "s", numbers(14, sum(WIDTHS))
    with grass.create_store(path, columns(*WIDTHS), "float16") as writer:
        done = 0
        for end in (3, 4, 9, 14):
            writer.append(rows[done:end], range(done, end))
            writer.commit()
            done = end
    # Rows 0:3, 3:4, 4:8, 8:9, 9:14: a record a commit, cut at the ends of chunks.
    log = (path / "shard-00000.log").read_bytes()
    assert len(log) == 5 * plain_store.RECORD
    for tails in ((b"", b"", b""), (b"rows", b"id", b"a record that is torn")):
        for kind, tail in zip(("rows", "ids", "log"), tails, strict=True):
            with (path / f"shard-00000.{kind}").open("ab") as file:
                file.write(tail)
        store, read = grass.open_store(path), plain_store.read_store(path)
        assert len(store) == 14
        assert same_numbers(read.rows, store[:])
        assert read.ids == store.ids.tolist()
    (path / "shard-00000.log").write_bytes(log[: 3 * plain_store.RECORD + 7])
    assert plain_store.read_store(path).ids == grass.open_store(path).ids.tolist() == list(range(8))
    (path / "shard-00000.log").write_bytes(b"?" + log[1:])
    with pytest.raises(grass.CorruptStoreError, match="checksum of record 0"):
        grass.open_store(path)
    with pytest.raises(plain_store.DamagedError, match="valid record after"):
        plain_store.read_store(path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_writer_writes_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    rows, ids = numbers(37, sum(WIDTHS)), [7 * i % 41 for i in range(37)]
    with grass.create_store(
        tmp_path / "s", columns(*WIDTHS), dtype, fingerprints=FINGERPRINTS
    ) as writer:
        for part in (slice(0, 10), slice(10, 37)):
            writer.append(rows[part], ids[part])
            writer.commit()
        writer.finish(skipped_ids=[99])
    plain_store.write_store(
        tmp_path / "plain",
        plain(*WIDTHS),
        dtype,
        {0: (rows, ids)},
        fingerprints=FINGERPRINTS,
        skipped_ids=[99],
    )
    expected, got = files(tmp_path / "plain"), files(tmp_path / "s")
    assert list(got) == list(expected)
    for name, data in expected.items():
        assert got[name] == data, name
    assert len(got["shard-00000.log"]) > 2 * plain_store.RECORD


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_plain_writer_wrote_opens_and_scores(tmp_path: Path, dtype: str) -> None:
    rows, queries = numbers(23, 60, seed=1), numbers(3, 60, seed=2)
    shards = {0: (rows[:11], range(11)), 3: (rows[11:12], [70]), 70: (rows[12:], range(30, 41))}
    plain_store.write_store(tmp_path / "s", plain(20, 40), dtype, shards)
    store = grass.open_store(tmp_path / "s")
    store.verify()
    assert store.complete
    assert store.ids.tolist() == [*range(11), 70, *range(30, 41)]
    stored = store[:]
    scores = store.score(queries, "graddot")
    exact = queries.astype(float) @ stored.astype(float).T
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(stored, axis=1)
    # The queries of int8 rows may be rounded too.
    most = 0.01 if dtype == "int8" else 1e-6
    assert (abs(scores.values - exact) <= most * lengths).all()
    assert np.isfinite(store.score(queries, "influence").values).all()


LARGEST = {"float32": 3.4028234e38, "float16": 65519.0, "bfloat16": 3.39e38, "int8": 3.4028234e38}
SPECIAL = (0.0, -0.0, 2.0**-149, -(2.0**-140), 2.0**-126, 2.0**-24, 1e-7, 1.0, -127.0, 63.5)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[int], np.ndarray, list[int], list[int]]:
    """Return a dtype, widths, rows, ids and the ends of commits."""
    dtype = draw(st.sampled_from(DTYPES))
    widths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    limit = LARGEST[dtype]
    most = float(np.float32(limit))
    any_value = st.floats(-most, most, width=32) | st.sampled_from((*SPECIAL, most, -most))
    ids = draw(st.lists(st.integers(0, 2**64 - 1), max_size=6, unique=True))
    count = len(ids) * sum(widths)
    values = draw(st.lists(any_value, min_size=count, max_size=count))
    rows = np.array(values, np.float32).reshape(len(ids), sum(widths))
    commits = draw(st.lists(st.integers(0, len(ids)), max_size=3))
    return dtype, widths, rows, ids, sorted(commits)


@given(case=cases())
def test_both_writers_and_readers_agree_on_any_rows(
    case: tuple[str, list[int], np.ndarray, list[int], list[int]],
) -> None:
    dtype, widths, rows, ids, commits = case
    with tempfile.TemporaryDirectory() as folder:
        path, by_hand = Path(folder) / "s", Path(folder) / "plain"
        numbered = np.array(ids, np.uint64)
        with grass.create_store(path, columns(*widths), dtype) as writer:
            done = 0
            for end in (*commits, len(ids)):
                writer.append(rows[done:end], numbered[done:end])
                writer.commit()
                done = end
            store = writer.finish()
        shards = {0: (rows, ids)} if ids else {}
        plain_store.write_store(by_hand, plain(*widths), dtype, shards)
        assert files(path) == files(by_hand)
        read = plain_store.read_store(path)
        assert same_numbers(read.rows, store[:])
        assert read.ids == store.ids.tolist() == ids


def refused_by_plain(path: Path) -> bool:
    """Return whether the plain reader finds damage; broken JSON may end in any error."""
    try:
        plain_store.read_store(path)
    except (plain_store.DamagedError, AttributeError, KeyError, TypeError, ValueError):
        return True
    return False


def refused_by_grass_rs(path: Path) -> bool:
    """Return whether grass_rs finds damage, or takes the format for a later one."""
    try:
        grass.open_store(path).verify()
    except grass.StoreError:
        return True
    return False


def test_both_readers_find_every_damaged_byte(tmp_path: Path) -> None:
    path = tmp_path / "s"
    plain_store.write_store(path, plain(2, 3), "int8", {0: (numbers(3, 5), [5, 6, 7])})
    assert not refused_by_plain(path)
    assert not refused_by_grass_rs(path)
    found = 0
    # The copy of the manifest is for repairs alone.
    for name in ("manifest.json", "shard-00000.rows", "shard-00000.ids", "shard-00000.log"):
        file = path / name
        data = file.read_bytes()
        places: Sequence[int] = range(len(data))
        if name.endswith("rows"):
            places = [*range(64), *range(64, 4090, 101), *range(4090, len(data))]
        for place in places:
            file.write_bytes(
                data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
            )
            assert refused_by_plain(path), (name, place)
            assert refused_by_grass_rs(path), (name, place)
            found += 1
        for changed in (data[:-1], data + b"\0", b""):
            file.write_bytes(changed)
            assert refused_by_plain(path), name
            assert refused_by_grass_rs(path), name
        file.write_bytes(data)
    assert found > 500
    assert not refused_by_grass_rs(path)


def nested(levels: int) -> Any:
    """Return objects inside one another."""
    return {"a": nested(levels - 1)} if levels else 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"a": 0.5}, "has a spec with 0.5, which is not whole"),
        ({"a": [1, {"b": 1.0}]}, "not whole"),
        ({"a": 2**64}, "more than 64 bits"),
        (nested(65), "more than 64 levels"),
    ],
)
def test_specs_that_have_no_canonical_json_are_refused(
    tmp_path: Path, spec: dict[str, Any], words: str
) -> None:
    with pytest.raises(grass.SpecError, match=words):
        grass.create_store(tmp_path / "s", [grass.Column("fc", 0, 3, spec)])
    assert not (tmp_path / "s").exists()


def test_the_deepest_and_largest_specs_are_the_same_bytes(tmp_path: Path) -> None:
    spec = {"é": nested(63), "a": [2**64 - 1, -(2**63), None, True, "\b\f\x01\\/"], "": {}}
    with grass.create_store(tmp_path / "s", [grass.Column("\n", 0, 2, spec)]) as writer:
        writer.append(np.ones((1, 2), np.float32), [3])
        writer.finish()
    column = plain_store.PlainColumn("\n", 2, spec)
    shards = {0: (np.ones((1, 2), np.float32), [3])}
    plain_store.write_store(tmp_path / "plain", [column], "float32", shards)
    assert files(tmp_path / "s") == files(tmp_path / "plain")
