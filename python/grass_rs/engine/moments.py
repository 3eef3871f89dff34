"""Second moments of linear layers' factors: the first pass of whitened compressors."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from grass_rs.capture import Capture, Factors, find_blocks, resolve_loss
from grass_rs.engine.examples import Examples
from grass_rs.errors import DataError, NonFiniteError, SpecError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from grass_rs.capture import Block, Loss


@dataclass(frozen=True)
class Eigenbasis:
    """Eigenvalues and eigenvectors of one factor's second moment, largest first."""

    values: NDArray[np.float64]
    """(d,) eigenvalues, at least 0."""
    vectors: NDArray[np.float32]
    """(d, d), an eigenvector a row."""

    def whitened(self, rank: int, rho: float) -> NDArray[np.float32]:
        """Return the first `rank` directions, each over the root of its eigenvalue.

        Parameters
        ----------
        rank
            Directions, from 1 to d.
        rho
            What is added to every eigenvalue, in units of their mean; more than 0.

        Returns
        -------
        numpy.ndarray
            (rank, d) float32.

        """
        ridge = self.values + rho * self.values.mean()
        directions: NDArray[np.float64] = self.vectors[:rank] / np.sqrt(ridge[:rank, None])
        return directions.astype(np.float32)


@dataclass(frozen=True)
class SecondMoments:
    """Of each linear layer, the second moments of what it was given and of its output's gradient.

    A = mean a a^T and S = mean g g^T, sums over tokens whose gradient is not zero and means over
    examples: the factors of K-FAC (Martens and Grosse 2015, arXiv 1503.05671). They are kept by
    their eigenvectors, decomposed once, so that whatever is made from a file has the same bits.
    """

    examples: int
    """How many examples were seen."""
    layers: Mapping[str, tuple[Eigenbasis, Eigenbasis]]
    """Name of the block -> eigenbasis of its input, with the bias's column of ones, and of its
    output's gradient."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the layers' names, eigenvalues and eigenvectors, in hexadecimal."""
        digest = hashlib.sha256()
        for name, sides in self.layers.items():
            digest.update(json.dumps([name, [len(side.values) for side in sides]]).encode())
            for side in sides:
                digest.update(side.values.astype("<f8").tobytes())
                digest.update(side.vectors.astype("<f4").tobytes())
        return digest.hexdigest()

    def __getitem__(self, layer: str) -> tuple[Eigenbasis, Eigenbasis]:
        """Return the eigenbases of a layer's input and of its output's gradient.

        Raises
        ------
        SpecError
            If there is no layer of this name.

        """
        if layer not in self.layers:
            raise SpecError(unknown_name("layer of the second moments", layer, self.layers))
        return self.layers[layer]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the moments to an `.npz` file, complete or not at all; `load` reads it.

        Raises
        ------
        OSError
            If the file cannot be written.

        """
        arrays: dict[str, Any] = {
            "examples": self.examples,
            "layers": json.dumps(list(self.layers)),
            "fingerprint": self.fingerprint,
        }
        for number, (inputs, outputs) in enumerate(self.layers.values()):
            for side, basis in (("in", inputs), ("out", outputs)):
                arrays[f"{number}.{side}.values"] = basis.values
                arrays[f"{number}.{side}.vectors"] = basis.vectors
        target = Path(path)
        partial = target.with_name(f"{target.name}.partial")
        with partial.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SecondMoments:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        DataError
            If it was not written by `save`, or is damaged.

        """
        try:
            with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                layers = {
                    name: (_read_basis(file, f"{number}.in"), _read_basis(file, f"{number}.out"))
                    for number, name in enumerate(json.loads(str(file["layers"])))
                }
                moments = cls(int(file["examples"]), layers)
                written = str(file["fingerprint"])
        except (AttributeError, BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"SecondMoments.load expects a file that SecondMoments.save wrote, got {path} "
                f"({error}): check the path"
            ) from error
        if moments.fingerprint != written:
            raise DataError(
                f"SecondMoments.load expects the fingerprint {written}, got {moments.fingerprint} from "
                f"{path}: the file is damaged, gather the moments again"
            )
        return moments


def second_moments(
    model: torch.nn.Module,
    loss: str | Loss,
    loader: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    progress: bool = True,
) -> SecondMoments:
    """Gather the second moments of linear layers over a sample of the training data.

    One forward and one backward pass, and for a layer of widths d_in and d_out
    2 (d_in^2 + d_out^2) floating-point operations a token. Products are in the factors' dtype, at
    least float32, and batches are added in float64.

    Parameters
    ----------
    model
        The trained model. It is left exactly as it was found.
    loss
        As for `Attributor`.
    loader
        Batches whose tensors have the examples on the first axis; a twentieth of the training data
        is enough.
    layers
        Names of blocks or shell patterns; None takes all. Blocks that are no linear layers have none.
    progress
        Whether to show a progress bar.

    Raises
    ------
    SpecError
        If no chosen block is a linear layer.
    DataError
        If the loader yields nothing.
    NonFiniteError
        If a loss or a gradient is not finite.
    LossError, UnsupportedLayerError
        If per-example gradients cannot be captured rightly.

    """
    blocks = [block for block in find_blocks(model, layers) if block.factors is not None]
    if not blocks:
        raise SpecError(
            "second_moments expects a model with linear layers, got none: check layers="
        )
    sums: dict[str, tuple[_Sum, _Sum]] = {}

    def add(block: Block, _examples: slice, gradient: Factors | Tensor) -> None:
        if not isinstance(gradient, Factors):  # blocks without factors were left out
            return
        inputs, outputs = sums.setdefault(block.name, (_Sum(), _Sum()))
        used = gradient.grad_outputs.any(dim=2)
        inputs.add(gradient.inputs[used], ones=gradient.bias)
        outputs.add(gradient.grad_outputs[used], ones=False)

    examples = Examples(loader, None, progress=progress, description="second moments")
    seen = 0
    with Capture(model, resolve_loss(loss), blocks) as capture:
        for batch, ids in examples:
            captured = capture.run(batch, add)
            if not captured.finite.all():
                raise NonFiniteError(
                    f"second_moments expects finite losses and gradients, got a NaN or an infinity in "
                    f"the batch of example {ids[0]}: leave the example out"
                )
            seen += len(ids)
    return SecondMoments(
        seen,
        {
            block.name: (sums[block.name][0].basis(seen), sums[block.name][1].basis(seen))
            for block in blocks
            if block.name in sums
        },
    )


class _Sum:
    """The sum of x x^T over the rows of some matrices."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, rows: Tensor, *, ones: bool) -> None:
        """Add rows (m, d), with a column of ones after the last if `ones`."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if ones:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        product = (rows.T @ rows).double()
        self._total = product if self._total is None else self._total.add_(product)

    def basis(self, examples: int) -> Eigenbasis:
        """Decompose the sum over this many examples."""
        if self._total is None:
            raise DataError("second_moments expects a gradient of every layer, got none")
        values, vectors = torch.linalg.eigh(self._total / examples)
        # An eigenvector's sign means nothing: the largest entry of each is made positive.
        rows = vectors.T.flip(0)
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        rows *= largest.sign()
        return Eigenbasis(
            values.flip(0).clamp(min=0).cpu().numpy(), rows.float().contiguous().cpu().numpy()
        )


def _read_basis(file: Any, prefix: str) -> Eigenbasis:
    values, vectors = file[f"{prefix}.values"], file[f"{prefix}.vectors"]
    if values.ndim != 1 or vectors.shape != 2 * values.shape:
        raise ValueError(f"{prefix}: eigenvalues {values.shape}, eigenvectors {vectors.shape}")
    return Eigenbasis(values, vectors)
