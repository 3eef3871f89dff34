"""Write store-v1/ beside this file from the format's description: `python tests/golden/make_store.py`.

Its stores are of format 1 as it was published, so they are written once and read for ever: a change of their
bytes is a change of the format.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from plain_store import (  # noqa: E402 - needs the path above
    CODES,
    PlainColumn,
    read_store,
    write_store,
)

COLUMNS = (
    PlainColumn("", 10, {"type": "sjlt", "seed": 2**64 - 1, "kind": "cyclic", "nnz": 1}),
    PlainColumn('encoder.ü/"0"', 14, {"type": "random_mask", "indices": [1, 2], "note": None}),
)
FINGERPRINTS = {"plan": "7f" * 32, "model": "00" * 32}
IDS = (12, 0, 2**64 - 1, 2**40, 3)
SKIPPED_IDS = (7, 9)
SHARDS = (3, 2)
"""Rows of each shard: the store was finished, and then more rows were appended."""


def rows() -> np.ndarray:
    """Return (5, 24) float32: sevenths of whole numbers, and what is special in some dtype."""
    row, place = np.mgrid[:5, :24]
    values = (((row * 31 + place * 17) % 201 - 100) / 7).astype(np.float32)
    values[1, :10] = 0
    values[2, 3] = -0.0
    values[3, :10] = np.float32(2**-140) * np.arange(10, dtype=np.float32)
    values[4, 12:15] = 65504, -6e-8, 2.5
    return values


def build(folder: Path) -> None:
    """Write a store of each dtype, and what they hold."""
    folder.mkdir(exist_ok=True)
    values = rows()
    ends = np.cumsum((0, *SHARDS)).tolist()
    parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
    shards = {number: (values[part], IDS[part]) for number, part in enumerate(parts)}
    stored = {}
    for dtype in CODES:
        write_store(
            folder / dtype,
            COLUMNS,
            dtype,
            shards,
            fingerprints=FINGERPRINTS,
            skipped_ids=SKIPPED_IDS,
        )
        stored[dtype] = read_store(folder / dtype).rows.tolist()
    holds = {
        "columns": [{"name": c.name, "width": c.width, "spec": c.spec} for c in COLUMNS],
        "fingerprints": FINGERPRINTS,
        "ids": IDS,
        "skipped_ids": SKIPPED_IDS,
        "shards": SHARDS,
        "rows": values.tolist(),
        "stored": stored,
    }
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in holds.items())
    (folder / "holds.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    build(HERE / "store-v1")
