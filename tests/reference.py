"""Slow, obvious twins of the seeded structures: the random words, the matrices, the bytes.

Every compressor is described by its spec, a plain dict; `dense` turns a spec into its (k, p) matrix in
float64, one entry at a time. Nothing here shares code with the library, so agreement means something.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Spec = dict[str, Any]
    Dense = NDArray[np.float64]

MASK, BUCKET, SIGN, ROTATION, GAUSSIAN = 1, 2, 3, 4, 5
TILE_SHIFT, TILE_ROW_SIGN, TILE_COLUMN_SIGN, RADEMACHER = 6, 7, 8, 9
"""Streams of random words, one a purpose."""

MAGIC = b"GRASSCMP"
FORMAT_VERSION = 1
LOW_32 = 0xFFFF_FFFF
SIGN_BLOCK = 128
"""Signs of a page (cyclic) or of a draw (iid) begin at a multiple of this many bits."""


# Random words


def philox4x32_10(key: Sequence[int], counter: Sequence[int]) -> list[int]:
    """Return the four 32-bit words of Philox4x32 with ten rounds (Salmon et al., SC 2011)."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        product_0 = 0xD2511F53 * c0
        product_1 = 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product_1 >> 32) ^ c1 ^ k0,
            product_1 & LOW_32,
            (product_0 >> 32) ^ c3 ^ k1,
            product_0 & LOW_32,
        )
        k0 = (k0 + 0x9E3779B9) & LOW_32
        k1 = (k1 + 0xBB67AE85) & LOW_32
    return [c0, c1, c2, c3]


@lru_cache(maxsize=1 << 16)
def _four_words(seed: int, stream: int, m: int) -> list[int]:
    return philox4x32_10((seed & LOW_32, seed >> 32), (m & LOW_32, m >> 32, stream, 0))


def word(seed: int, stream: int, n: int) -> int:
    """Return 32-bit word `n` of a stream."""
    return _four_words(seed, stream, n // 4)[n % 4]


def bit(seed: int, stream: int, n: int) -> int:
    """Return bit `n` of a stream, lowest bit of each word first."""
    return (word(seed, stream, n // 32) >> (n % 32)) & 1


def sign(seed: int, stream: int, n: int) -> float:
    """Return -1 where bit `n` is set, else 1."""
    return -1.0 if bit(seed, stream, n) else 1.0


def draw_wide(seed: int, stream: int, bound: int, n: int) -> int:
    """Return number `n` of [0, bound) from two words."""
    value = word(seed, stream, 2 * n) + (word(seed, stream, 2 * n + 1) << 32)
    return (value * bound) >> 64


def draw(seed: int, stream: int, bound: int, n: int) -> int:
    """Return number `n` of [0, bound): from one word, or two where the bound needs it."""
    if stream == MASK or bound > 1 << 32:
        return draw_wide(seed, stream, bound, n)
    return (word(seed, stream, n) * bound) >> 32


def derive(seed: int, label: str) -> int:
    """Return the seed of the part called `label`."""
    digest = hashlib.blake2b(label.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


# Specs, resolved: every argument of the constructor by its name


def mask(indices: Sequence[int], input_dim: int) -> Spec:
    return {"type": "mask", "indices": [int(i) for i in indices], "input_dim": input_dim}


def random_mask(input_dim: int, output_dim: int, seed: int, block: int = 1) -> Spec:
    return {
        "type": "random_mask",
        "input_dim": input_dim,
        "output_dim": output_dim,
        "seed": seed,
        "block": block,
    }


def sjlt(input_dim: int, output_dim: int, seed: int, nnz: int = 1, kind: str = "cyclic") -> Spec:
    return {
        "type": "sjlt",
        "input_dim": input_dim,
        "output_dim": output_dim,
        "seed": seed,
        "nnz": nnz,
        "kind": kind,
    }


def gaussian(input_dim: int, output_dim: int, seed: int, kind: str = "normal") -> Spec:
    return {
        "type": "gaussian",
        "input_dim": input_dim,
        "output_dim": output_dim,
        "seed": seed,
        "kind": kind,
    }


def grass(
    input_dim: int,
    output_dim: int,
    seed: int,
    *,
    mask_dim: int | None = None,
    mask: Spec | None = None,
    kind: str = "cyclic",
) -> Spec:
    if mask is None:
        mask_dim = min(4 * output_dim, input_dim) if mask_dim is None else mask_dim
        mask = random_mask(input_dim, mask_dim, derive(seed, "mask"))
    return {
        "type": "grass",
        "input_dim": input_dim,
        "output_dim": output_dim,
        "seed": seed,
        "mask_dim": kept(mask),
        "mask": mask,
        "kind": kind,
    }


def logra(in_features: int, out_features: int, rank_in: int, rank_out: int, seed: int) -> Spec:
    return {
        "type": "logra",
        "in_features": in_features,
        "out_features": out_features,
        "rank_in": rank_in,
        "rank_out": rank_out,
        "seed": seed,
    }


def factgrass(
    in_features: int,
    out_features: int,
    output_dim: int,
    seed: int,
    *,
    mask_in: int | Spec | None = None,
    mask_out: int | Spec | None = None,
    kind: str = "cyclic",
) -> Spec:
    return {
        "type": "factgrass",
        "in_features": in_features,
        "out_features": out_features,
        "output_dim": output_dim,
        "seed": seed,
        "mask_in": _factor_mask(mask_in, in_features, output_dim, derive(seed, "in")),
        "mask_out": _factor_mask(mask_out, out_features, output_dim, derive(seed, "out")),
        "kind": kind,
    }


def tile(in_features: int, out_features: int, output_dim: int, seed: int) -> Spec:
    return {
        "type": "tile",
        "in_features": in_features,
        "out_features": out_features,
        "output_dim": output_dim,
        "seed": seed,
    }


def _factor_mask(given: int | Spec | None, width: int, output_dim: int, seed: int) -> Spec:
    if isinstance(given, dict):
        return given
    count = min(ceil_sqrt(4 * output_dim), width) if given is None else given
    return random_mask(width, count, seed)


def ceil_sqrt(value: int) -> int:
    """Return the smallest integer whose square is at least `value`."""
    root = math.isqrt(value)
    return root if root * root == value else root + 1


def kept(mask_spec: Spec) -> int:
    """Return the number of coordinates that a mask keeps."""
    return (
        mask_spec["output_dim"] if mask_spec["type"] == "random_mask" else len(mask_spec["indices"])
    )


# Matrices


def floyd(population: int, count: int, seed: int) -> list[int]:
    """Draw `count` of `population` numbers without replacement (Floyd), sorted."""
    taken: set[int] = set()
    for m in range(count):
        j = population - count + m
        t = draw(seed, MASK, j + 1, m)
        taken.add(j if t in taken else t)
    return sorted(taken)


def mask_indices(spec: Spec) -> list[int]:
    """Return the coordinates that a mask keeps, in order."""
    if spec["type"] == "mask":
        return spec["indices"]
    block = spec["block"]
    runs = floyd(spec["input_dim"] // block, spec["output_dim"] // block, spec["seed"])
    return [run * block + offset for run in runs for offset in range(block)]


def dense(spec: Spec) -> Dense:
    """Return the (k, p) matrix of a compressor."""
    return _DENSE[spec["type"]](spec)


def _dense_mask(spec: Spec) -> Dense:
    indices = mask_indices(spec)
    scale = 1.0
    if spec["type"] == "random_mask":
        scale = math.sqrt(spec["input_dim"] / spec["output_dim"])
    matrix = np.zeros((len(indices), spec["input_dim"]))
    for row, index in enumerate(indices):
        matrix[row, index] = scale
    return matrix


def _dense_sjlt(spec: Spec) -> Dense:
    fill = {"iid": _fill_iid, "cyclic": _fill_cyclic}[spec["kind"]]
    matrix = np.zeros((spec["output_dim"], spec["input_dim"]))
    width = spec["output_dim"] // spec["nnz"]
    for d in range(spec["nnz"]):
        fill(matrix[d * width : (d + 1) * width], spec["seed"], d)
    return matrix / math.sqrt(spec["nnz"])


def _fill_iid(sketch: Dense, seed: int, d: int) -> None:
    w, p = sketch.shape
    padded = math.ceil(p / SIGN_BLOCK) * SIGN_BLOCK
    for i in range(p):
        bucket = draw(seed, BUCKET, w, d * padded + i)
        sketch[bucket, i] = sign(seed, SIGN, d * padded + i)


def _fill_cyclic(sketch: Dense, seed: int, d: int) -> None:
    w, p = sketch.shape
    pages = math.ceil(p / w)
    padded = math.ceil(w / SIGN_BLOCK) * SIGN_BLOCK
    for b in range(pages):
        r = draw(seed, ROTATION, w, d * pages + b)
        for j in range(min(w, p - b * w)):
            sketch[(j + r) % w, b * w + j] = sign(seed, SIGN, (d * pages + b) * padded + j)


def _dense_gaussian(spec: Spec) -> Dense:
    k, p, seed = spec["output_dim"], spec["input_dim"], spec["seed"]
    entry = {"normal": normal, "rademacher": lambda seed, n: sign(seed, RADEMACHER, n)}[
        spec["kind"]
    ]
    matrix = np.array([[entry(seed, i * k + j) for i in range(p)] for j in range(k)])
    return matrix / math.sqrt(k)


def normal(seed: int, n: int) -> float:
    """Return standard normal number `n` (Box-Muller)."""
    q = n // 2
    u = (word(seed, GAUSSIAN, 2 * q) + 1) / 2**32
    v = word(seed, GAUSSIAN, 2 * q + 1) / 2**32
    wave = math.cos if n % 2 == 0 else math.sin
    return math.sqrt(-2 * math.log(u)) * wave(2 * math.pi * v)


def _dense_grass(spec: Spec) -> Dense:
    second = sjlt(
        kept(spec["mask"]), spec["output_dim"], derive(spec["seed"], "sjlt"), kind=spec["kind"]
    )
    return dense(second) @ dense(spec["mask"])


def _dense_logra(spec: Spec) -> Dense:
    seed = spec["seed"]
    inner = gaussian(spec["in_features"], spec["rank_in"], derive(seed, "in"))
    outer = gaussian(spec["out_features"], spec["rank_out"], derive(seed, "out"))
    return np.kron(dense(outer), dense(inner))


def _dense_factgrass(spec: Spec) -> Dense:
    masks = np.kron(dense(spec["mask_out"]), dense(spec["mask_in"]))
    second = sjlt(
        masks.shape[0], spec["output_dim"], derive(spec["seed"], "sjlt"), kind=spec["kind"]
    )
    return dense(second) @ masks


def _dense_tile(spec: Spec) -> Dense:
    d_in, d_out, seed = spec["in_features"], spec["out_features"], spec["seed"]
    h, w = tile_sides(spec["output_dim"])
    tiles_a_row = math.ceil(d_in / w)
    matrix = np.zeros((h * w, d_out * d_in))
    for o in range(d_out):
        for i in range(d_in):
            number = (o // h) * tiles_a_row + i // w
            row = (o % h + draw(seed, TILE_SHIFT, h, 2 * number)) % h
            column = (i % w + draw(seed, TILE_SHIFT, w, 2 * number + 1)) % w
            alpha = sign(seed, TILE_ROW_SIGN, number * h + o % h)
            beta = sign(seed, TILE_COLUMN_SIGN, number * w + i % w)
            matrix[row * w + column, o * d_in + i] = alpha * beta
    return matrix


def tile_sides(output_dim: int) -> tuple[int, int]:
    """Return the most square h * w = output_dim with h <= w."""
    h = max(h for h in range(1, math.isqrt(output_dim) + 1) if output_dim % h == 0)
    return h, output_dim // h


_DENSE = {
    "mask": _dense_mask,
    "random_mask": _dense_mask,
    "sjlt": _dense_sjlt,
    "gaussian": _dense_gaussian,
    "grass": _dense_grass,
    "logra": _dense_logra,
    "factgrass": _dense_factgrass,
    "tile": _dense_tile,
}


# Bytes


def canonical_json(spec: Spec) -> bytes:
    """Return the spec as JSON: sorted keys, no spaces, ASCII."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode(
        "ascii"
    )


def fingerprint(spec: Spec) -> str:
    """Return the name of a spec: the SHA-256 of its canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(spec)).hexdigest()


def to_bytes(spec: Spec) -> bytes:
    """Return the serialised structure."""
    return frame(canonical_json(spec))


def frame(text: bytes, version: int = FORMAT_VERSION) -> bytes:
    """Put magic, version, length and checksum around any text, valid or not."""
    body = MAGIC + struct.pack("<II", version, len(text)) + text
    return body + struct.pack("<I", zlib.crc32(body))
