"""The figures to reach on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe import MEMORY_CASES
from verdicts import Goals

if TYPE_CHECKING:
    from rows import Row

GUARD = ("import grass_rs, beyond NumPy", "at most 50 ms")
"""The one goal that fails a run: it guards against a regression."""

_FACTGRASS = "FactGraSS, call, 8 x 512 x 2048"
_CYCLIC = "cyclic, call, 2^24 to 4096"

_READING = "reading as many bytes, fresh map"
_SCORED = ("1 query, f32 rows", "64 queries, f32 rows", "64 queries, int8 rows")

_BERGSON = [
    (f"{count} of {case}, store opened", "bergson, index opened")
    for case in ("float32, graddot", "bfloat16, graddot", "float32, gradcos")
    for count in (1, 64)
]

_MOST: dict[tuple[str, str], float] = {
    ("cyclic n=1 2^24 to 4096, avx512", "reading x"): 1.20,
    ("cyclic n=1 2^24 to 512, avx512", "reading x"): 1.20,
    ("cyclic n=1 2^24 to 4096, avx2", "reading x"): 1.45,
    ("cyclic n=1 2^24 to 512, avx2", "reading x"): 1.45,
    ("cyclic n=32 2^20 to 4096", "reading x"): 1.15,
    ("cyclic bf16 n=32 2^20 to 4096", "reading x"): 1.25,
    ("cyclic f16 n=32 2^20 to 4096", "reading x"): 1.25,
    ("cyclic n=32 2^20, rows 2^20 apart", "rows 2^20 + 1040 apart"): 1.1,
    ("iid n=32 2^20, rows 2^20 apart", "rows 2^20 + 1040 apart"): 1.1,
    ("cyclic n=1 2^24, denormal x", "normal x"): 1.1,
    ("FactGraSS, denormal inputs", "normal inputs"): 1.1,
    ("iid n=16 2^20 to 512", "reading x"): 1.3,
    ("iid n=32 2^20 to 512", "reading x"): 1.3,
    ("iid n=16 2^20 to 4096", "reading x"): 1.3,
    ("iid n=32 2^20 to 4096", "reading x"): 1.3,
    ("iid n=1 2^20 to 4096", "reading x"): 3,
    ("iid n=1 2^24 to 4096", "reading x"): 3,
    ("GraSS n=1 2^24 to 16384 to 4096", "reading x"): 0.05,
    (_FACTGRASS, "torch index_select, bmm, index_add_"): 0.45,
    ("tile, call, 4 x 512 x 1024", "torch.bmm, full gradient"): 1.15,
    ("tile, call, 2 x 128 x 2048", "torch.bmm, full gradient"): 0.9,
    ("GraSS, growth to p=2^30", "p=2^20"): 2,
    ("FactGraSS, growth to p=2^30", "p=2^20"): 2,
    ("smallest call that 2 threads speed up", "threshold of serial calls"): 1,
    GUARD: 1,
    ("SJLT 64 to 16, a call", "goal of 5 us"): 1,
    ("mask 64 to 16, a call", "goal of 5 us"): 1,
    ("FactGraSS 64 x 64 to 16, a call", "goal of 5 us"): 1,
    ("SJLT 64 to 16, first call", "goal of 5 us"): 1,
    ("idle after a call, processor time", "the time waited"): 0.001,
    **{(f"memory, {case}", "8 MiB a thread"): 1 for case in MEMORY_CASES},
    ("1 query, f32 rows", _READING): 1.15,
    ("1 query, f16 rows", _READING): 1.3,
    ("1 query, bf16 rows", _READING): 1.3,
    ("1 query, int8 rows", _READING): 1.3,
    ("64 queries, f32 rows", "torch.mm in memory, f32"): 0.8,
    ("64 queries, int8 rows", "torch.mm in memory, f32"): 0.25,
    **{(what, "all scores, kept in memory"): 1.05 for what in _SCORED},
    **{(what, "less what CRC-32 takes"): 1.05 for what in _SCORED},
    ("Fisher of 4096 columns, 8192 rows", "torch.addmm"): 1,
    ("opening a store of 256 KiB", "at most 20 ms"): 1,
    ("opening a store of 10 GiB", "at most 20 ms"): 1,
    ("memory, graddot of 64 queries, store of 10 GiB", "256 MiB"): 1,
    (
        "memory, influence of 64 queries, store of 10 GiB",
        "256 MiB and 3 Fisher blocks",
    ): 1,
}

_LEAST: dict[tuple[str, str], float] = {
    (_CYCLIC, "torch index_add_"): 10,
    (_CYCLIC, "torch.sparse.mm"): 20,
    (_CYCLIC, "scikit-learn SparseRandomProjection"): 10,
    (_FACTGRASS, "torch LoGra 64 x 64"): 2.65,
    ("FactGraSS 8 x 512 x 2048, 2 threads", "1 thread"): 1.8,
    ("tile 2 x 512 x 2048, 2 threads", "1 thread"): 1.8,
    ("FactGraSS 8 x 512 x 2048, 2 Python threads", "1 Python thread"): 1.8,
    ("tile 2 x 512 x 2048, 2 Python threads", "1 Python thread"): 1.8,
    **{(what, "NumPy memmap loop"): 5 for what in _SCORED},
    **dict.fromkeys(_BERGSON, 5),
    ("1 of float32, graddot, a process of its own", "bergson, a process of its own"): 5,
    **{
        (f"writing and committing {short} rows", "plain writes, 3 fdatasync a commit"): 0.8
        for short in ("f32", "bf16", "int8")
    },
}

CPU = Goals(_MOST, _LEAST)


def broken_guard(rows: list[Row]) -> str | None:
    """Say which guard against a regression a row breaks, if one does."""
    for row in rows:
        if (row.what, row.against) == GUARD and not CPU.judge(row).met:
            return f"{row.what}: expected {row.against}, got {1e3 * row.value:.0f} ms"
    return None
