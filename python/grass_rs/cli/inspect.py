"""What a store holds, as facts for JSON and as text for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grass_rs.store import Store


def facts(store: Store) -> dict[str, Any]:
    """Return what a store holds, as JSON values."""
    # Locks, and whatever other programs hide, are no part of the store.
    files = [file for file in sorted(store.path.iterdir()) if not file.name.startswith(".")]
    manifest = json.loads((store.path / "manifest.json").read_bytes())
    return {
        "path": str(store.path),
        "complete": store.complete,
        "writers": manifest["writers"],
        "finished_writers": manifest["finished_writers"],
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


def text(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that tell these facts."""
    path = shown(facts["path"])
    state = "complete" if facts["complete"] else "unfinished"
    yield f"{path}: {state}, {facts['rows']:,} rows of {facts['width']:,} {facts['dtype']}"
    if facts["skipped"]:
        yield f"skipped examples: {facts['skipped']:,} (their gradients were not finite)"
    if not facts["complete"]:
        finished = ", ".join(map(str, facts["finished_writers"])) or "none"
        yield f"writers: {facts['writers']}, finished: {finished}"
    yield f"size on disk: {facts['bytes']:,} bytes"
    for name, size in facts["files"].items():
        yield f"  {shown(name):<24} {size:>16,}"
    yield "fingerprints:"
    for name, value in facts["fingerprints"].items():
        yield f"  {shown(name):<24} {shown(value)}"
    yield "columns:"
    for column in facts["columns"]:
        span = f"{column['offset']}..{column['offset'] + column['width']}"
        yield f"  {shown(column['name']) or '(root)':<24} {span:<16} {_summary(column['spec'])}"


def _summary(spec: dict[str, Any]) -> str:
    """Return a spec in one line: its type and options; a list by its length, a mask by its type."""
    options = (f"{name}={_short(value)}" for name, value in spec.items() if name != "type")
    return shown(" ".join([str(spec.get("type", "(no type)")), *options]))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("type", "{..}"))
    return f"[{len(value)}]" if isinstance(value, list) else str(value)


def shown(text: str) -> str:
    """Return text with what a terminal would not print, or obey, escaped as in a Python string."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
