"""FactGraSS on a device: one kernel from both factors to the outputs, and one that adds the parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from grass_rs._backends.cuda.launch import SCALARS, Kernel, Launch
from grass_rs._backends.cuda.mask import MaskIndices
from grass_rs._backends.cuda.sums import add_parts
from grass_rs._backends.cuda.words import BUCKET, words
from grass_rs._native import derive
from grass_rs.errors import ShapeError, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from grass_rs._backends.cuda.launch import Device, DeviceArray

_THREADS = 256
"""Of a block, as in the source."""
_TOKENS = 64
"""Staged at a time, and the fewest that a part is worth: 16 parts of 1024 tokens."""
WORKSPACE = 2**26
"""The most values of parts at a time, unless one example has more."""
_WIDEST = 128
"""Rows and columns of the largest slab."""
_FRAGMENT = 16
"""Tokens that tensor cores take at a time."""
_LARGEST = 2**31 - 1
_MOST_BLOCKS = 2**16 - 1
"""On the second and third axis of a grid."""
_NO_COLUMN = 2**32 - 1


@dataclass(frozen=True)
class Slabs:
    """How the masked product (k_out, k_in) is cut into what a block computes at a time."""

    k_in: int
    k_out: int
    rows: int
    columns: int
    """Of a slab; those of the last row and column of slabs may be smaller."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of slabs."""
        return -(-self.k_out // self.rows), -(-self.k_in // self.columns)

    @property
    def count(self) -> int:
        """How many there are."""
        return math.prod(self.grid)

    @property
    def reciprocal(self) -> int:
        """What the kernel multiplies by to divide by k_in."""
        return (2**32 - 1) // self.k_in


def cut(k_in: int, k_out: int, compute_capability: int) -> Slabs:
    """Return the slabs of a masked product: even ones, as large as a block holds.

    That is 128 x 128, or 64 x 128 where a block has 64 KiB of shared memory (compute capability 7.5). Wide
    products have lower slabs: the kernel's division by k_in is exact while rows * k_in^2 <= 2^32.
    """
    tallest = 64 if compute_capability == 75 else _WIDEST
    return Slabs(
        k_in,
        k_out,
        rows=_even(k_out, max(1, min(tallest, 2**32 // k_in**2))),
        columns=_even(k_in, _WIDEST),
    )


def _even(length: int, most: int) -> int:
    """Return the length of the fewest equal pieces of at most `most`."""
    return -(-length // -(-length // most))


@dataclass(frozen=True)
class Parts:
    """How the work of an example is shared by blocks, each of which has outputs of its own."""

    tokens: int
    """Of a part."""
    slabs: int
    """Of a part."""
    grid: tuple[int, int]
    """Pieces of the tokens, and of the slabs."""

    @property
    def count(self) -> int:
        """How many there are."""
        return math.prod(self.grid)


def share(tokens: int, slabs: int, k: int) -> Parts:
    """Return the parts of an example: one for each slab and 64 tokens, as far as the workspace goes.

    The batch and the device have no say, so that they change no sum.
    """
    most = max(1, WORKSPACE // k)
    slabs_a_part = -(-slabs // min(most, _MOST_BLOCKS))
    slab_parts = -(-slabs // slabs_a_part)
    steps = max(1, -(-tokens // _TOKENS))
    steps_a_part = -(-steps // min(max(1, most // slab_parts), _MOST_BLOCKS))
    return Parts(steps_a_part * _TOKENS, slabs_a_part, (-(-steps // steps_a_part), slab_parts))


def factgrass_launch(
    slabs: Slabs,
    parts: Parts,
    n: int,
    tokens: int,
    *,
    kind: str,
    dtype: str,
    compute_capability: int,
) -> Launch:
    """Return the launch for `n` examples.

    Tensor cores multiply 16-bit inputs from compute capability 8.0 on, where there are as many tokens as
    they take at a time.
    """
    tensor_cores = (
        dtype in {"float16", "bfloat16"} and compute_capability >= 80 and tokens >= _FRAGMENT
    )
    rows, columns = (64 if side <= 64 else 128 for side in (slabs.rows, slabs.columns))
    macros = (
        f"Scalar={SCALARS[dtype]}",
        f"TENSOR_CORES={int(tensor_cores)}",
        f"IID={int(kind == 'iid')}",
        f"SLAB_OUT={rows}",
        f"SLAB_IN={columns}",
        f"TOKENS={_TOKENS}",
    )
    # The source's Shared: a workspace, sign bits, pages.
    staged = 2 * (rows + columns + 16) if tensor_cores else 4 * (rows + columns)
    workspace = max(_TOKENS * staged, 4 * rows * (columns + 8))
    return Launch(
        Kernel("factgrass.cu", "factgrass", macros),
        grid=(n, *parts.grid),
        block=(_THREADS, 1, 1),
        shared_bytes=workspace + rows * columns // 8 + 8 * _THREADS,
    )


def iid_places(slabs: Slabs, k: int, seed: int) -> NDArray[np.uint32]:
    """Return the coordinates that each output takes from each slab under the iid SJLT.

    Parameters
    ----------
    slabs
        How the product is cut.
    k
        Outputs.
    seed
        The SJLT's.

    Returns
    -------
    numpy.ndarray
        uint32: `slabs.count * k + 1` indices into this array, then as row * 256 + column of their slab the
        coordinates, by slab, then output, then coordinate.

    """
    size, lists = slabs.k_in * slabs.k_out, slabs.count * k
    if size + lists >= 2**32:
        raise SpecError(
            f"FactGraSS on CUDA: an iid SJLT of {size} coordinates in {slabs.count} slabs to {k} outputs has a table of "
            f"more than 2^32 entries: use kind='cyclic'"
        )
    buckets = words(seed, BUCKET, size).astype(np.uint64) * np.uint64(k) >> np.uint64(32)
    row, column = np.divmod(np.arange(size), slabs.k_in)
    owner = (row // slabs.rows * slabs.grid[1] + column // slabs.columns) * k + buckets.astype(
        np.int64
    )
    ends = np.cumsum(np.bincount(owner, minlength=lists))
    places = row % slabs.rows * 256 + column % slabs.columns
    return np.concatenate(
        [[lists + 1], ends + (lists + 1), places[np.argsort(owner, kind="stable")]],
        dtype=np.uint32,
        casting="unsafe",
    )


class _Sizes(NamedTuple):
    """What a compressor brings to the arithmetic of its launches."""

    k_in: int
    k_out: int
    k: int
    kind: str


@dataclass(frozen=True)
class _Prepared:
    """What follows from the sizes of a call."""

    slabs: Slabs
    launch: Launch
    numbers: tuple[np.uint32, ...]
    """The kernel's arguments from the number of tokens on, up to those of the SJLT."""
    parts: int
    most_examples: int
    """Whose parts the workspace holds."""


@lru_cache(maxsize=4096)
def _prepare(sizes: _Sizes, n: int, tokens: int, dtype: str, compute_capability: int) -> _Prepared:
    if tokens > _LARGEST:
        raise ShapeError(
            f"FactGraSS on CUDA expects at most {_LARGEST} tokens, got {tokens}: split them and add the results"
        )
    slabs = cut(sizes.k_in, sizes.k_out, compute_capability)
    parts = share(tokens, slabs.count, sizes.k)
    launch = factgrass_launch(
        slabs,
        parts,
        n,
        tokens,
        kind=sizes.kind,
        dtype=dtype,
        compute_capability=compute_capability,
    )
    numbers = (
        tokens,
        parts.tokens,
        slabs.k_in,
        slabs.k_out,
        slabs.reciprocal,
        slabs.rows,
        slabs.columns,
        slabs.grid[1],
        slabs.count,
        parts.slabs,
    )
    most = _LARGEST if parts.count == 1 else max(1, WORKSPACE // (parts.count * sizes.k))
    return _Prepared(slabs, launch, tuple(map(np.uint32, numbers)), parts.count, most)


class FactGraSSProgram:
    """Runs `grass.FactGraSS`: masks on both factors, their product summed over tokens, an SJLT (arXiv 2505.18976).

    Neither the masked factors nor the product is written to the device's memory.

    Parameters
    ----------
    spec
        The compressor's.

    Raises
    ------
    SpecError
        If the layer or the masked product has more coordinates than 31 bits count.

    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._kept_in, self._kept_out = MaskIndices(spec["mask_in"]), MaskIndices(spec["mask_out"])
        self._scale = self._kept_in.scale * self._kept_out.scale
        self._seed = derive(spec["seed"], "sjlt")
        self._bias_column: int = spec["in_features"] - 1
        self._sizes = _Sizes(
            self._kept_in.count, self._kept_out.count, spec["output_dim"], spec["kind"]
        )
        for what, size in {
            "in_features": spec["in_features"],
            "out_features": spec["out_features"],
            "mask_in times mask_out": self._sizes.k_in * self._sizes.k_out,
        }.items():
            if size > _LARGEST:
                raise SpecError(
                    f"FactGraSS on CUDA: {what} must be at most {_LARGEST}, got {size}: compress on the CPU"
                )

    def run(
        self,
        device: Device,
        inputs: DeviceArray,
        grad_outputs: DeviceArray,
        out: DeviceArray,
        *,
        bias: bool,
    ) -> None:
        """Write the compressed gradients to `out`.

        Parameters
        ----------
        device
            Where the arrays are.
        inputs, grad_outputs
            (n, t, in_features), or one less with `bias`, and (n, t, out_features), of one dtype and any
            strides but 1 on the last axis.
        out
            (n, k) float32, C-contiguous.
        bias
            Whether the last input is a column of ones that `inputs` does not hold.

        Raises
        ------
        ShapeError
            If there are more tokens than 31 bits count.

        """
        n, tokens, _ = inputs.shape
        if n == 0:
            return
        capability = device.compute_capability
        prepared = _prepare(self._sizes, n, tokens, inputs.dtype, capability)
        most = prepared.most_examples
        if n > most:
            for first in range(0, n, most):
                some = [array.rows(first, most) for array in (inputs, grad_outputs, out)]
                self.run(device, *some, bias=bias)
            return
        parts = device.empty((prepared.parts, n, self._sizes.k)) if prepared.parts > 1 else out
        device.launch(
            prepared.launch,
            (
                np.uint64(inputs.pointer),
                np.int64(inputs.strides[0]),
                np.int64(inputs.strides[1]),
                np.uint64(grad_outputs.pointer),
                np.int64(grad_outputs.strides[0]),
                np.int64(grad_outputs.strides[1]),
                np.uint64(self._kept_in.on(device).pointer),
                np.uint64(self._kept_out.on(device).pointer),
                np.uint32(self._bias_column if bias else _NO_COLUMN),
                *prepared.numbers,
                np.uint64(self._seed),
                self._places(device, prepared.slabs),
                np.uint32(self._sizes.k),
                np.float32(self._scale if parts is out else 1.0),
                np.uint64(parts.pointer),
            ),
        )
        if parts is not out:
            add_parts(device, parts, out, self._scale)

    def _places(self, device: Device, slabs: Slabs) -> np.uint64:
        """Return the address of the iid kind's table on a device."""
        if self._sizes.kind == "cyclic":
            return np.uint64(0)
        key = ("iid places", str(self._seed), str(self._sizes.k), str(slabs))
        table = device.constant(key, lambda: iid_places(slabs, self._sizes.k, self._seed))
        return np.uint64(table.pointer)
