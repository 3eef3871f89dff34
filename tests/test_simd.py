"""Every set of vector instructions gives what the portable one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import grass_rs as grass

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RESULTS = """
import sys
import numpy as np
import grass_rs as grass

rng = np.random.default_rng(0)
exact, products, sizes = [], [], []
for p in (1, 63, 5001):
    rows = rng.standard_normal((3, p))
    for k in (1, 96, 100, 2400):
        for nnz in (1, 2):
            if k % nnz:
                continue
            for kind in ("cyclic", "iid"):
                sjlt = grass.SJLT(p, k, seed=p + k, nnz=nnz, kind=kind)
                exact += [sjlt(rows.astype(d)) for d in (np.float64, np.float32, np.float16)]
        exact.append(grass.GraSS(p, k, seed=k)(rows))
    exact.append(grass.RandomMask(p, (p + 1) // 2, seed=p)(rows))
    for kind in ("normal", "rademacher"):
        for k in (33, 1100):
            projection = grass.Gaussian(p, k, seed=7, kind=kind)
            dense = projection.to_dense()
            exact.append(dense)
            products.append(projection(rows))
            sizes.append(np.abs(rows) @ np.abs(dense.T))
a, g = rng.standard_normal((2, 139, 130)), rng.standard_normal((2, 139, 70))
gradients = np.einsum("nto,nti->noi", np.abs(g), np.abs(a)).reshape(2, -1)
tile = grass.TileSketch(130, 70, 512, seed=1)
exact.append(tile(a[:, 0], g[:, 0]))
for compressor in (
    grass.FactGraSS(130, 70, 512, seed=1),
    grass.LoGra(130, 70, 45, 9, seed=1),
    tile,
):
    products.append(compressor(a, g))
    sizes.append(gradients @ np.abs(compressor.to_dense().T))
joined = [np.concatenate([result.ravel() for result in each]) for each in (exact, products, sizes)]
np.savez(sys.argv[1], *joined, simd=grass.build_info()["simd"])
"""


def run(path: str, folder: Path) -> tuple[str, list[NDArray[np.floating]]]:
    """Return the path in use; then what has the same bits on all, matrix products, their sizes."""
    file = folder / "results.npz"
    subprocess.run(
        [sys.executable, "-c", RESULTS, str(file)],
        env={**os.environ, "GRASS_SIMD": path},
        check=True,
    )
    with np.load(file) as results:
        return str(results["simd"]), [results[f"arr_{i}"] for i in range(3)]


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> list[NDArray[np.floating]]:
    name, results = run("portable", tmp_path_factory.mktemp("portable"))
    assert name in {"portable", "neon"}
    return results


@pytest.mark.parametrize("path", ["", "avx512", "avx2", "unknown"])
def test_every_path_gives_the_same(
    path: str, portable: list[NDArray[np.floating]], tmp_path: Path
) -> None:
    """A path that the machine has not, or nobody knows, leaves the fastest one in use."""
    name, (exact, products, sizes) = run(path, tmp_path)
    assert name in {path, grass.build_info()["simd"]}
    np.testing.assert_array_equal(exact.view(np.uint32), portable[0].view(np.uint32))
    # Some paths multiply and add in one rounding, others in two.
    assert np.all(np.abs(products - portable[1]) <= 1e-6 * sizes)
