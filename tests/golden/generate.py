"""Write the known answers beside this file from the plain twins: `python tests/golden/generate.py`.

They are read by the Rust, Python and GPU tests alike, and change only with the meaning of a store.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import reference  # noqa: E402 - needs the path above

SEEDS = (0, 1, 0x9E3779B97F4A7C15, 2**64 - 1)

# Random123 1.14, tests/kat_vectors, `philox4x32 10`: published, not computed here.
PHILOX = (
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def philox() -> list[dict[str, Any]]:
    """Return the published known answers of the generator."""
    return [{"key": k, "counter": c, "output": o} for k, c, o in PHILOX]


def words() -> list[dict[str, Any]]:
    """Return words on both sides of every carry of the counter."""
    numbers = (0, 1, 2, 3, 4, 5, 1000, 2**32 - 1, 2**32, 2**34 - 1, 2**34, 2**63 + 5, 2**64 - 1)
    return [
        {"seed": seed, "stream": stream, "n": n, "word": reference.word(seed, stream, n)}
        for seed, stream, n in itertools.product(SEEDS, (1, 3, 6, 9), numbers)
    ]


def bits() -> list[dict[str, Any]]:
    """Return bits of the sign streams, around the ends of words and counters."""
    around = (range(end - 5, end + 5) for end in (32, 64, 96, 128, 256))
    numbers = (*range(8), *itertools.chain(*around), 2**32 - 1, 2**39 - 1, 2**39, 2**64 - 1)
    return [
        {"seed": seed, "stream": stream, "n": n, "bit": reference.bit(seed, stream, n)}
        for seed, stream, n in itertools.product(SEEDS[1:3], (3, 7, 8, 9), numbers)
    ]


def draws() -> list[dict[str, Any]]:
    """Return draws from one word, from two for the mask, and from two for a wide range."""
    bounds = (1, 2, 3, 1000, 2**32 - 1, 2**32, 2**32 + 1, 10**12, 2**63, 2**64 - 1)
    return [
        {
            "seed": seed,
            "stream": stream,
            "range": bound,
            "n": n,
            "draw": reference.draw(seed, stream, bound, n),
        }
        for seed, stream, bound, n in itertools.product(
            SEEDS[1:3], (1, 2, 4, 6), bounds, (0, 1, 7, 2**40)
        )
    ]


def derived() -> list[dict[str, Any]]:
    """Return seeds derived from labels: the parts of composites, layer names, none, not ASCII."""
    labels = (
        "mask",
        "sjlt",
        "in",
        "out",
        "",
        "layers.0.attention",
        "gewicht-\u00e4\u03b2\U0001f331",
        "x" * 300,
    )
    return [
        {"seed": seed, "label": label, "derived": reference.derive(seed, label)}
        for seed, label in itertools.product(SEEDS, labels)
    ]


def masks() -> list[dict[str, Any]]:
    """Return the coordinates kept by random masks, of few and of billions."""
    specs = [
        reference.random_mask(1, 1, 0),
        reference.random_mask(10, 10, 3),
        reference.random_mask(100, 1, 5),
        reference.random_mask(100, 60, 2**64 - 1),
        reference.random_mask(96, 32, 7, block=16),
        reference.random_mask(30, 9, 8, block=3),
        reference.random_mask(2**32 + 1, 20, 9),
        reference.random_mask(7_000_000_000, 50, 10),
        reference.random_mask(16 * 10**9, 64, 11, block=16),
        reference.random_mask(2**58, 12, 12),
    ]
    return [{"spec": spec, "indices": reference.mask_indices(spec)} for spec in specs]


def small_specs() -> list[dict[str, Any]]:
    """Return small compressors: every type, option and ragged edge."""
    r = reference
    return [
        r.mask([0, 3, 7], 8),
        r.mask([0], 1),
        r.mask(list(range(12)), 12),
        r.random_mask(20, 6, 1),
        r.random_mask(20, 20, 2),
        r.random_mask(32, 8, 3, block=4),
        r.random_mask(1, 1, 0),
        r.sjlt(40, 8, 0),
        r.sjlt(37, 8, 2**64 - 1),
        r.sjlt(33, 12, 5, nnz=3),
        r.sjlt(29, 5, 6, nnz=5),
        r.sjlt(7, 16, 7),
        r.sjlt(16, 16, 8),
        r.sjlt(3, 1, 9),
        r.sjlt(40, 8, 0, kind="iid"),
        r.sjlt(37, 16, 2**63, nnz=4, kind="iid"),
        r.sjlt(7, 12, 12, nnz=2, kind="iid"),
        r.gaussian(20, 7, 1),
        r.gaussian(9, 16, 2**40 + 3),
        r.gaussian(20, 7, 1, kind="rademacher"),
        r.gaussian(40, 16, 3, kind="rademacher"),
        r.grass(40, 4, 1),
        r.grass(10, 8, 2),
        r.grass(40, 6, 3, mask_dim=30, kind="iid"),
        r.grass(40, 6, 4, mask=r.mask([1, 2, 3, 5, 8, 13, 21, 34], 40)),
        r.grass(40, 6, 5, mask=r.random_mask(40, 24, 99, block=8)),
        r.logra(6, 5, 3, 2, 1),
        r.logra(1, 8, 1, 4, 2),
        r.factgrass(8, 5, 6, 1),
        r.factgrass(6, 6, 16, 2, kind="iid"),
        r.factgrass(8, 5, 4, 3, mask_in=3, mask_out=2),
        r.factgrass(
            8, 4, 5, 4, mask_in=r.mask([0, 2, 7], 8), mask_out=r.random_mask(4, 2, 77, block=2)
        ),
        r.factgrass(3, 13, 10, 5, mask_in=r.mask([0, 1, 2], 3)),
        r.tile(8, 6, 4, 1),
        r.tile(7, 5, 6, 2**64 - 1),
        r.tile(9, 4, 5, 3),
        r.tile(5, 7, 1, 4),
        r.tile(3, 4, 24, 5),
    ]


def compressors() -> list[dict[str, Any]]:
    """Return each small compressor's spec, fingerprint, bytes and matrix."""
    return [
        {
            "spec": spec,
            "fingerprint": reference.fingerprint(spec),
            "bytes": reference.to_bytes(spec).hex(),
            "dense": reference.dense(spec).tolist(),
        }
        for spec in small_specs()
    ]


GOLDEN = {
    "philox": philox,
    "words": words,
    "bits": bits,
    "draws": draws,
    "derive": derived,
    "masks": masks,
    "compressors": compressors,
}


def text(name: str) -> str:
    """Return one golden file: a JSON list, one entry a line."""
    lines = ",\n".join(json.dumps(entry) for entry in GOLDEN[name]())
    return f"[\n{lines}\n]\n"


if __name__ == "__main__":
    for name in GOLDEN:
        (HERE / f"{name}.json").write_text(text(name), encoding="ascii")
