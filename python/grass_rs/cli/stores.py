"""The subcommands about stores: `inspect`, `verify` and `score`. None of them needs torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from grass_rs.store import open_store, verify_store

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from grass_rs.store import Store
    from grass_rs.types import Scores


def inspect(arguments: Namespace) -> str:
    """Return what a store holds, as text or as one JSON object."""
    facts = _facts(open_store(arguments.store))
    return json.dumps(facts, indent=2) if arguments.json else "\n".join(_text(facts))


def verify(arguments: Namespace) -> str:
    """Check every byte of a store; `CorruptStoreError` lists all damage found."""
    store = verify_store(arguments.store)
    return f"{arguments.store}: {len(store):,} rows are as they were written"


def score(arguments: Namespace) -> str:
    """Score the rows of one store for the rows of another, to a table or a file."""
    train, queries = open_store(arguments.train), open_store(arguments.queries)
    keep_all = arguments.out is not None and arguments.top is None
    scores = train.score(
        queries,
        method=arguments.method,
        damping=arguments.damping,
        top_k=None if keep_all else min(arguments.top or 10, len(train)),
    )
    if arguments.out is None:
        return "\n".join(_table(scores, queries))
    scores.save(arguments.out)
    return f"{arguments.out}: scores {scores.values.shape}, a row a query of {arguments.queries}"


def _facts(store: Store) -> dict[str, Any]:
    # The lock file is no part of the store.
    files = [file for file in sorted(store.path.iterdir()) if file.name != ".lock"]
    return {
        "path": str(store.path),
        "complete": store.complete,
        "rows": len(store),
        "skipped": len(store.skipped_ids),
        "dtype": store.dtype,
        "width": store.width,
        "bytes": sum(file.stat().st_size for file in files),
        "files": {file.name: file.stat().st_size for file in files},
        "fingerprints": store.fingerprints,
        "columns": [
            {"name": c.name, "offset": c.offset, "width": c.width, "spec": c.spec}
            for c in store.columns
        ],
    }


def _text(facts: dict[str, Any]) -> Iterator[str]:
    state = "complete" if facts["complete"] else "unfinished"
    yield f"{facts['path']}: {state}, {facts['rows']:,} rows of {facts['width']:,} {facts['dtype']}"
    if facts["skipped"]:
        yield f"skipped examples: {facts['skipped']:,} (their gradients were not finite)"
    yield f"size on disk: {facts['bytes']:,} bytes"
    for name, size in facts["files"].items():
        yield f"  {name:<24} {size:>16,}"
    yield "fingerprints:"
    for name, value in facts["fingerprints"].items():
        yield f"  {name:<24} {value}"
    yield "columns:"
    for column in facts["columns"]:
        span = f"{column['offset']}..{column['offset'] + column['width']}"
        yield f"  {column['name'] or '(root)':<24} {span:<16} {_summary(column['spec'])}"


def _summary(spec: dict[str, Any]) -> str:
    """Return a spec in one line: its type and options; a list by its length, a mask by its type."""
    options = (f"{name}={_short(value)}" for name, value in spec.items() if name != "type")
    return " ".join([str(spec.get("type", "(no type)")), *options])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["type"])
    return f"[{len(value)}]" if isinstance(value, list) else str(value)


def _table(scores: Scores, queries: Store) -> Iterator[str]:
    """Yield tab-separated lines: query id, rank from 1, training id, score."""
    yield "query\trank\ttrain\tscore"
    for query, ids, values in zip(queries.ids, scores.ids, scores.values, strict=True):
        for rank, (train, value) in enumerate(zip(ids, values, strict=True), start=1):
            yield f"{query}\t{rank}\t{train}\t{value:.9g}"
