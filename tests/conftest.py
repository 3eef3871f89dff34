"""Fixtures that every test file shares: the array libraries, fresh interpreters, thread counts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=500)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default")
)

SCRIPT_SECONDS = 120
"""A script that takes longer than this hangs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is no NVRTC and no gcc, skip what compiles CUDA sources."""
    if sys.platform == "linux":
        return
    for item in items:
        if item.path.name.startswith(("test_cuda_", "test_nvrtc")):
            item.add_marker(pytest.mark.skip(reason="NVRTC and gcc's sanitizers are for Linux"))


@dataclass(frozen=True)
class Backend:
    """One array library on one device, seen through NumPy arrays."""

    name: str

    def array(self, values: np.ndarray) -> Any:
        """Return `values` as an array of this library."""
        return torch.from_numpy(values) if self.name == "torch" else values

    def numpy(self, result: Any) -> np.ndarray:
        """Return a result of this library as NumPy, after checking that it is of this library."""
        if self.name == "torch":
            assert isinstance(result, torch.Tensor)
            assert result.device.type == "cpu"
            assert not result.requires_grad
            return result.numpy()
        assert isinstance(result, np.ndarray)
        return result


@pytest.fixture(scope="session", params=["numpy", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Run the test once for every array library."""
    return Backend(request.param)


@pytest.fixture
def num_threads() -> Iterator[Callable[[int], None]]:
    """Return `set_num_threads`, whose effect ends with the test."""
    import grass_rs as grass

    before = grass.num_threads()
    yield grass.set_num_threads
    grass.set_num_threads(before)


@pytest.fixture(params=["cpu", "copied"])
def rows_arrive(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with rows handed over at once, and with rows copied from a device beside the model."""
    if request.param == "copied":
        from slow_copies import SlowCopies

        monkeypatch.setattr("grass_rs.engine.transfer.CudaCopies", SlowCopies)


@pytest.fixture(scope="session")
def run_script() -> Callable[..., str]:
    """Return a function that runs Python code in a fresh interpreter and returns what it printed."""

    def run(code: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=SCRIPT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install the CuPy of `cuda_on_cpu`, whose kernels run in the emulator."""
    from cuda_on_cpu.calls import installed
    from cuda_on_cpu.fake_cupy import FakeCupy

    with installed(monkeypatch, FakeCupy()) as fake:
        yield fake
