"""tensor_core.cuh: fragments as the PTX ISA lays them out, products equal to plain ones, copies that arrive."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda_on_cpu.emulator import guarded, guarded_empty, launch
from grass_rs._backends.cuda.launch import Kernel, Launch
from nvrtc import resources

DTYPES = {"Half": np.dtype(np.float16), "BFloat16": np.dtype(ml_dtypes.bfloat16)}
LANES = np.arange(32)[:, None]
GROUP, PLACE = LANES // 4, LANES % 4
"""groupID and threadID_in_group of the PTX ISA."""


def pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return registers that hold `first` in their low halves."""
    return first.view(np.uint16).astype(np.uint32) | second.view(np.uint16).astype(np.uint32) << 16


def row_of_a(i: np.ndarray) -> np.ndarray:
    return GROUP + 8 * ((i % 4) // 2)


def column_of_a(i: np.ndarray) -> np.ndarray:
    return PLACE * 2 + i % 2 + 8 * (i // 4)


@pytest.mark.parametrize("scalar", DTYPES)
def test_fragments_are_those_of_the_ptx_isa(scalar: str) -> None:
    dtype, rng = DTYPES[scalar], np.random.default_rng(0)
    matrices = rng.integers(0, 2**16, (4, 8, 8), dtype=np.uint16)
    a, b = (rng.integers(-8, 9, shape).astype(dtype) for shape in ((16, 16), (16, 8)))
    c = rng.integers(-99, 99, (16, 8)).astype(np.float32)

    # mma.m16n8k16: a0 to a7 of A, b0 to b3 of B, c0 to c3 of C, each with its row and column.
    i = np.arange(8)
    of_a = a[row_of_a(i), column_of_a(i)]
    i = np.arange(4)
    of_b = b[PLACE * 2 + i % 2 + 8 * (i // 2), GROUP + 0 * i]
    of_c = GROUP + 8 * (i // 2), PLACE * 2 + i % 2
    registers_of_a = guarded(pair(of_a[:, ::2].copy(), of_a[:, 1::2].copy()))
    registers_of_b = guarded(pair(of_b[:, ::2].copy(), of_b[:, 1::2].copy()))
    sums, loaded = guarded(c[of_c]), guarded_empty((4, 32, 4), np.uint32)
    args = [guarded(matrices), loaded, registers_of_a, registers_of_b, sums]
    kernel = Kernel("fragments.cu", "fragments", (f"Scalar={scalar}",))
    launch(Launch(kernel, (1, 1, 1), (32, 1, 1), 512), args)

    product = c + a.astype(np.float32) @ b.astype(np.float32)
    assert np.array_equal(sums, product[of_c])
    # ldmatrix: a lane gets two neighbours of a row of every matrix; with .trans, of a column.
    rows = pair(matrices[:, :, ::2].copy(), matrices[:, :, 1::2].copy()).reshape(4, 32).T
    turned = matrices.transpose(0, 2, 1)
    columns = pair(turned[:, :, ::2].copy(), turned[:, :, 1::2].copy()).reshape(4, 32).T
    for got, expected in zip(loaded[:2], (rows, columns), strict=True):
        assert np.array_equal(got, expected)
    for got, expected in zip(loaded[2:], (rows, columns), strict=True):
        assert np.array_equal(got[:, :2], expected[:, :2])


PRODUCTS = [
    {"Scalar": "Half", "SIZE": 16, "TRANSPOSED_A": 0, "TRANSPOSED_B": 0, "PAIRS": 0},
    {"Scalar": "BFloat16", "SIZE": 16, "TRANSPOSED_A": 1, "TRANSPOSED_B": 0, "PAIRS": 1},
    {"Scalar": "Half", "SIZE": 4, "TRANSPOSED_A": 0, "TRANSPOSED_B": 1, "PAIRS": 1},
    {"Scalar": "BFloat16", "SIZE": 8, "TRANSPOSED_A": 1, "TRANSPOSED_B": 1, "PAIRS": 0},
]


def macros_of(how: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in how.items())


@pytest.mark.parametrize("how", PRODUCTS)
def test_product_equals_plain(how: dict[str, Any]) -> None:
    steps, rng, dtype = 3, np.random.default_rng(1), DTYPES[how["Scalar"]]
    kernel = Kernel("product.cu", "product", macros_of(how))
    a, whole = (rng.integers(-8, 9, (steps, 16, 16)).astype(dtype) for _ in range(2))
    for count in (steps * 256, steps * 256 - 101, 1):
        # Zeros follow what is there; nothing behind it is read.
        b = whole.copy()
        b.reshape(-1)[count:] = 0
        left, right = (m.astype(np.float32) for m in (a, b))
        left = left.transpose(0, 2, 1) if how["TRANSPOSED_A"] else left
        right = right.transpose(0, 2, 1) if how["TRANSPOSED_B"] else right
        for schedule in range(4):
            out = guarded_empty((16, 16), np.float32)
            there = guarded(whole.reshape(-1)[:count])
            args: list[Any] = [guarded(a), there, np.uint32(steps), np.uint32(count), out]
            launch(Launch(kernel, (1, 1, 1), (32, 1, 1), 2048), args, schedule)
            assert np.array_equal(out, np.sum(left @ right, axis=0))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_function_compiles(arch: str) -> None:
    for scalar in DTYPES:
        assert resources("fragments.cu", (f"Scalar={scalar}",), arch).spilled_bytes == 0
    for how in PRODUCTS:
        assert resources("product.cu", macros_of(how), arch).spilled_bytes == 0
