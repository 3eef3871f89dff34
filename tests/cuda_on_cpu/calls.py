"""Calls on CUDA arrays without a GPU: the real device layer over a CuPy on the CPU.

torch CPU tensors are said to be on a CUDA device; everything else is what runs there.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import grass_rs as grass
import reference
import specs
from cuda_on_cpu.fake_cupy import Array, FakeCupy
from grass_rs._backends import cuda
from grass_rs._backends.cuda import libraries, modules, programs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

P, K = 50, 16
GAUSSIAN = grass.Gaussian(P, K, seed=3)
LOGRA = grass.LoGra(9, 7, 3, 2, seed=7)
TORCH_STREAM = 4096
TORCH_FREE_BYTES = 1234


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, cupy: FakeCupy) -> Iterator[FakeCupy]:
    """Install a CuPy on the CPU, and a torch whose tensors can be said to be on a CUDA device."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(libraries, "_torch_ordinal", lambda tensor: getattr(tensor, "cuda_", None))
    stream = SimpleNamespace(cuda_stream=TORCH_STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (TORCH_FREE_BYTES, 5678))
    _forget()
    yield cupy
    _forget()


def _forget() -> None:
    """Forget what the layer keeps for the process."""
    for kept in (
        libraries._torch_library,
        libraries._cupy_library,
        modules.missing_cupy,
        modules._cupy,
        modules.compute_capability,
        modules.cupy_stream,
        cuda._torch_device,
    ):
        kept.cache_clear()
    modules._modules.clear()
    programs._structures.clear()


def on_torch(values: NDArray[Any], ordinal: int = 0) -> torch.Tensor:
    return said_on_cuda(torch.from_numpy(values), ordinal)


def said_on_cuda(tensor: torch.Tensor, ordinal: int = 0) -> torch.Tensor:
    tensor.cuda_ = ordinal  # type: ignore[attr-defined]
    return tensor


def on_cupy(values: NDArray[Any], ordinal: int = 0) -> Array:
    return Array.of(values, ordinal)


LIBRARIES = {"torch": on_torch, "cupy": on_cupy}
every_library = pytest.mark.parametrize("on", LIBRARIES.values(), ids=LIBRARIES)


def as_numpy(result: Any) -> NDArray[Any]:
    return result.values if isinstance(result, Array) else np.asarray(result)


def rows(n: int = 3, p: int = P, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, p), dtype=np.float32)


def project(x: Any, out: Any = None, compressor: grass.Gaussian = GAUSSIAN) -> Any:
    return cuda.compress_rows(compressor._native, "Gaussian", x, out)


def project_factors(
    inputs: Any,
    grad_outputs: Any,
    *,
    bias: bool = False,
    out: Any = None,
    compressor: grass.LoGra = LOGRA,
) -> Any:
    return cuda.compress_factors(compressor._native, "LoGra", inputs, grad_outputs, bias, out)


def assert_projected(result: Any, *arguments: Any, compressor: Any = GAUSSIAN) -> None:
    specs.assert_compressed(as_numpy(result), reference.dense(compressor.spec), *arguments)
