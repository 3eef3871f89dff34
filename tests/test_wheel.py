"""The built wheel in a clean environment that holds only what the wheel requires.

`GRASS_WHEEL` names the wheel; without it, one is built from this checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("GRASS_WHEEL"):
        return Path(named)
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of the clean environment."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", str(wheel)], check=True)
    return interpreter


def run(python: Path, *arguments: str, cwd: Path) -> str:
    """Run the clean environment's interpreter, warnings being errors; return what it printed."""
    done = subprocess.run(
        [str(python), "-W", "error", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        # Neither the checkout nor the packages that run this test are seen.
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_holds_one_abi3_module_and_the_license(wheel: Path) -> None:
    assert "-cp310-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [n for n in names if n.endswith((".so", ".pyd", ".dylib"))] == [
        n for n in names if n.startswith("grass_rs/_native.") and not n.endswith(".pyi")
    ]
    kernels = {path.name for path in ROOT.glob("python/grass_rs/_backends/kernels/*.cu*")}
    assert {"common.cuh", "platform.cuh", "sum.cu"} <= kernels
    assert {f"grass_rs/_backends/kernels/{name}" for name in kernels} <= set(names)
    assert {"grass_rs/py.typed", "grass_rs/_native.pyi", "grass_rs/cli/main.py"} <= set(names)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not any(n.startswith(("tests/", "benches/")) for n in names)


INSTALLED = """
from importlib.metadata import distributions
print(*{found.metadata["Name"].lower().replace("-", "_") for found in distributions()})
"""


def test_requires_numpy_and_tqdm_only(python: Path, tmp_path: Path) -> None:
    names = set(run(python, "-c", INSTALLED, cwd=tmp_path).split())
    assert names - {"pip", "setuptools", "wheel"} == {"grass_rs", "numpy", "tqdm"}


IMPORT = """
import sys
import numpy
before = set(sys.modules)
import grass_rs
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not loaded & {"tqdm", "argparse", "torch", "scipy", "cupy"}, loaded
assert "grass_rs" in loaded
"""


def test_import_is_light(python: Path, tmp_path: Path) -> None:
    run(python, "-c", IMPORT, cwd=tmp_path)


COMPRESS = """
import numpy as np
import grass_rs as grass

rng = np.random.default_rng(0)
rows = [
    grass.RandomMask(96, 16, seed=1, block=4),
    grass.Mask([0, 5, 9], 96),
    grass.SJLT(96, 16, seed=1, nnz=2),
    grass.SJLT(96, 16, seed=1, kind="iid"),
    grass.Gaussian(96, 16, seed=1),
    grass.Gaussian(96, 16, seed=1, kind="rademacher"),
    grass.GraSS(96, 8, seed=1),
]
pairs = [
    grass.LoGra(12, 8, 4, 2, seed=1),
    grass.FactGraSS(12, 8, 16, seed=1),
    grass.TileSketch(12, 8, 16, seed=1),
]
x = rng.standard_normal((5, 96)).astype(np.float32)
a = rng.standard_normal((5, 3, 12)).astype(np.float32)
b = rng.standard_normal((5, 3, 8)).astype(np.float32)
gradients = np.einsum("nto,nti->noi", b, a).reshape(5, 96)
for compressor, arguments, full in (
    *((c, (x,), x) for c in rows),
    *((c, (a, b), gradients) for c in pairs),
):
    expected = full @ compressor.to_dense().T
    np.testing.assert_allclose(compressor(*arguments), expected, rtol=1e-4, atol=1e-4)
    assert grass.compressor_from_bytes(compressor.to_bytes()) == compressor
print(len(rows) + len(pairs))
"""


def test_compressors_on_numpy(python: Path, tmp_path: Path) -> None:
    assert run(python, "-c", COMPRESS, cwd=tmp_path) == "10\n"


STORE = """
import sys
import numpy as np
import grass_rs as grass

rng = np.random.default_rng(0)
rows, queries = rng.standard_normal((40, 16)), rng.standard_normal((3, 16))
sketch = grass.SJLT(96, 16, seed=1)
columns = [grass.Column("layer", 0, 16, sketch.spec)]
for path, part in (("train.grass", rows), ("queries.grass", queries)):
    with grass.create_store(path, columns) as writer:
        writer.append(part.astype(np.float32), np.arange(len(part)))
        writer.finish()
store = grass.open_store("train.grass")
store.verify()
fisher = rows.T @ rows / 40
ridge = fisher + 0.4 * np.trace(fisher) / 40 * np.eye(16)
expected = queries @ np.linalg.solve(ridge, rows.T)
scores = store.score(grass.open_store("queries.grass"))
np.testing.assert_allclose(scores.values, expected, rtol=1e-3, atol=1e-3)
subsets = rng.random((8, 40)) < 0.5
perfect = grass.lds(scores, subsets, subsets @ scores.values.T.astype(float))
np.testing.assert_allclose(perfect, 1.0)
assert not {"torch", "cupy", "scipy"} & set(sys.modules)
print("scored")
"""


def test_store_and_command_line(python: Path, tmp_path: Path) -> None:
    assert run(python, "-c", STORE, cwd=tmp_path) == "scored\n"
    assert "inspect" in run(python, "-m", "grass_rs", "--help", cwd=tmp_path)
    facts = run(python, "-m", "grass_rs", "inspect", "train.grass", "--json", cwd=tmp_path)
    assert json.loads(facts)["rows"] == 40
    assert "40 rows" in run(python, "-m", "grass_rs", "verify", "train.grass", cwd=tmp_path)
    scored = run(python, "-m", "grass_rs", "score", "train.grass", "queries.grass", cwd=tmp_path)
    assert len(scored.splitlines()) == 1 + 3 * 10
    script = python.with_name("grass-rs")
    done = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: grass-rs")


def test_torch_parts_say_what_to_install(python: Path, tmp_path: Path) -> None:
    for arguments in (["-c", "import grass_rs; grass_rs.Attributor"], ["-m", "grass_rs", "demo"]):
        done = subprocess.run(
            [str(python), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "pip install 'grass_rs[torch" in done.stderr.splitlines()[-1]
