"""Every set of vector instructions gives the bits of the portable one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import grass_rs as grass

HASH = """
import hashlib
import numpy as np
import grass_rs as grass

print(grass.build_info()["simd"])
rng = np.random.default_rng(0)
digest = hashlib.sha256()
for p in (1, 63, 5001):
    rows = rng.standard_normal((3, p))
    for k in (1, 96, 100, 2400):
        for nnz in (1, 2):
            if k % nnz:
                continue
            for kind in ("cyclic", "iid"):
                sjlt = grass.SJLT(p, k, seed=p + k, nnz=nnz, kind=kind)
                for dtype in (np.float64, np.float32, np.float16):
                    digest.update(sjlt(rows.astype(dtype)).tobytes())
        digest.update(grass.GraSS(p, k, seed=k)(rows).tobytes())
    for kind in ("normal", "rademacher"):
        digest.update(grass.Gaussian(p, 33, seed=7, kind=kind)(rows).tobytes())
factors = rng.standard_normal((2, 9, 130)), rng.standard_normal((2, 9, 70))
digest.update(grass.FactGraSS(130, 70, 512, seed=1)(*factors).tobytes())
digest.update(grass.LoGra(130, 70, 12, 9, seed=1)(*factors).tobytes())
print(digest.hexdigest())
"""


def run(path: str) -> list[str]:
    environment = {**os.environ, "GRASS_SIMD": path}
    done = subprocess.run(
        [sys.executable, "-c", HASH], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("path", ["", "avx512", "avx2", "unknown"])
def test_every_path_gives_the_same_bits(path: str) -> None:
    """A path that the machine has not, or nobody knows, leaves the fastest one in use."""
    fastest = grass.build_info()["simd"]
    portable, expected = run("portable")
    name, digest = run(path)
    assert portable in {"portable", "neon"}
    assert name in {path, fastest}
    assert digest == expected
