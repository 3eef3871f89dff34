"""KfacGraSS: a linear layer's gradient in the whitened eigenbases of its factors, sketched by an SJLT."""

from __future__ import annotations

import json
import math
import struct
import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends import shapes
from grass_rs._backends.dispatch import backend_of_both, is_traced
from grass_rs.compress.compressor import FactorCompressor, register_reader
from grass_rs.compress.factgrass import FactGraSS
from grass_rs.compress.mask import Mask
from grass_rs.errors import NonFiniteError, ShapeError, SpecError, UnsupportedArrayError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_MAGIC = b"GRASSKFC"
_VERSION = 1
_HEAD = struct.Struct("<8sII")
"""Magic, format version, length of the spec."""
_CRC = struct.Struct("<I")


class KfacGraSS(FactorCompressor):
    """Project both factors on given directions, sum their product over tokens, then SJLT.

    With the directions of `SecondMoments.whitened`, the eigenvectors of the factors' second moments
    over the roots of their eigenvalues, gradients are compressed in the metric of K-FAC (Martens and
    Grosse 2015, arXiv 1503.05671), of which the empirical Fisher over the rows has only the rest to
    learn. Where rank_out * rank_in <= k the SJLT loses nothing. The cost is LoGra's. The spec names
    the bases by their SHA-256; the serialised bytes hold them.

    Parameters
    ----------
    in_features, out_features
        Widths of the layer; `in_features` counts the bias column.
    output_dim
        Coordinates of the output, k.
    basis_in, basis_out
        Directions of each factor, scaled: (rank_in, in_features) and (rank_out, out_features) real
        numbers, kept in float32.
    seed
        Unsigned 64-bit seed; the SJLT's is `derive(seed, "sjlt")`.

    Raises
    ------
    SpecError
        If a dimension is zero.
    ShapeError
        If a basis has another width.
    UnsupportedArrayError, NonFiniteError
        If a basis is not of real, finite numbers.

    """

    type_name = "kfac_grass"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        output_dim: int,
        *,
        basis_in: Any,
        basis_out: Any,
        seed: int,
    ) -> None:
        self._basis_in = _basis("basis_in", basis_in, in_features)
        self._basis_out = _basis("basis_out", basis_out, out_features)
        ranks = len(self._basis_in), len(self._basis_out)
        masks = [Mask(range(rank), rank) for rank in ranks]
        # Of the product of all directions: what is left of FactGraSS is the sum over tokens and the SJLT.
        self._products = FactGraSS(
            *ranks, output_dim, seed=seed, mask_in=masks[0], mask_out=masks[1]
        )
        spec = {
            "basis": _sha256(self._basis_bytes()),
            "in_features": int(in_features),
            "out_features": int(out_features),
            "output_dim": self._products.output_dim,
            "rank_in": ranks[0],
            "rank_out": ranks[1],
            "seed": self._products.spec["seed"],
            "type": self.type_name,
        }
        self._spec_json = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        self._on_device: dict[Any, tuple[Any, Any]] = {}

    @property
    def basis_in(self) -> NDArray[np.float32]:
        """Directions of the input, (rank_in, in_features); not to be written to."""
        return self._basis_in

    @property
    def basis_out(self) -> NDArray[np.float32]:
        """Directions of the output gradient, (rank_out, out_features); not to be written to."""
        return self._basis_out

    @property
    def input_dim(self) -> int:
        """Coordinates of the gradient, out_features * in_features."""
        return math.prod(self._features)

    @property
    def output_dim(self) -> int:
        """Coordinates of the output, k."""
        return self._products.output_dim

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the spec in canonical JSON, in hexadecimal."""
        return _sha256(self._spec_json.encode("ascii"))

    @property
    def _features(self) -> tuple[int, int]:
        (_, features_in), (_, features_out) = self._basis_in.shape, self._basis_out.shape
        return features_in, features_out

    def to_bytes(self) -> bytes:
        """Serialise: magic, format version, spec, bases in float32, CRC-32, little endian."""
        spec = self._spec_json.encode("ascii")
        body = _HEAD.pack(_MAGIC, _VERSION, len(spec)) + spec + self._basis_bytes()
        return body + _CRC.pack(zlib.crc32(body))

    def to_dense(self, *, max_bytes: int = 2**30) -> NDArray[np.float32]:
        """Return the map as a dense matrix (k, p), see `Compressor.to_dense`."""
        self._check_dense_size(max_bytes)
        ranks = len(self._basis_out), len(self._basis_in)
        products = self._products.to_dense(max_bytes=max_bytes).reshape(-1, *ranks)
        dense = np.einsum(
            "kab,ao,bi->koi", products, self._basis_out, self._basis_in, optimize=True
        )
        return np.ascontiguousarray(dense.reshape(self.output_dim, self.input_dim), np.float32)

    def __call__(
        self, inputs: Any, grad_outputs: Any, *, bias: bool = False, out: Any = None
    ) -> Any:
        """Compress the gradients of factors, see `FactorCompressor`.

        The projections are matrix products of the arrays' own library, in float32: results agree
        between machines to rounding, not bit for bit.
        """
        name = type(self).__name__
        self._check_bias(bias)
        if not is_traced(inputs) and not is_traced(grad_outputs):
            backend_of_both(name, inputs, grad_outputs)
        for factor in (inputs, grad_outputs):
            if not hasattr(factor, "shape"):
                raise UnsupportedArrayError(
                    f"{name} expects arrays, got {type(factor).__name__}: pass numpy.asarray of it"
                )
        shapes.factor_output_shape(
            name, inputs.shape, grad_outputs.shape, self._features, bias, self.output_dim
        )
        basis_in, basis_out = self._bases_like(inputs)
        projected = _float32(inputs) @ basis_in[:, : inputs.shape[-1]].T
        if bias:
            projected = projected + basis_in[:, -1]
        return self._products(projected, _float32(grad_outputs) @ basis_out.T, out=out)

    def _bases_like(self, array: Any) -> tuple[Any, Any]:
        """Return the bases as arrays of the library and on the device of `array`, copied there once."""
        torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
        bases = self._basis_in, self._basis_out
        if torch is not None and isinstance(array, torch.Tensor):
            key: Any = array.device
            if key not in self._on_device:
                first, second = (torch.tensor(basis, device=key) for basis in bases)
                self._on_device[key] = first, second
            return self._on_device[key]
        if cupy is not None and isinstance(array, cupy.ndarray):
            key = "cupy", array.device.id
            if key not in self._on_device:
                self._on_device[key] = cupy.asarray(bases[0]), cupy.asarray(bases[1])
            return self._on_device[key]
        return bases

    def _basis_bytes(self) -> bytes:
        return b"".join(
            basis.astype("<f4").tobytes() for basis in (self._basis_in, self._basis_out)
        )

    @classmethod
    def _from_spec(cls, spec: Mapping[str, Any]) -> KfacGraSS:
        raise SpecError(
            f"compressor_from_spec expects a spec that determines the map, got one of {spec['type']!r}, "
            f"which names its bases by their SHA-256: read it with compressor_from_bytes"
        )


def _sha256(data: bytes) -> str:
    from hashlib import sha256  # noqa: PLC0415 - loads OpenSSL, which takes milliseconds

    return sha256(data).hexdigest()


def _basis(name: str, basis: Any, features: int) -> NDArray[np.float32]:
    """Return a basis as a read-only C-contiguous float32 array of its own."""
    given = np.asarray(basis)
    if given.dtype.kind not in "fiu":
        raise UnsupportedArrayError(
            f"KfacGraSS: {name} expects real numbers, got {given.dtype}: convert it to float32"
        )
    if given.ndim != 2 or not len(given) or given.shape[1] != features:
        raise ShapeError(
            f"KfacGraSS: {name} expects (rank, {features}) with at least one direction, got "
            f"{given.shape}: one row a direction of the layer"
        )
    with np.errstate(over="ignore"):
        kept = given.astype(np.float32, order="C")
    if not np.isfinite(kept).all():
        raise NonFiniteError(
            f"KfacGraSS: {name} expects finite numbers in float32, got a NaN or an infinity: raise rho"
        )
    kept.flags.writeable = False
    return kept


def _float32(array: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return array.detach().to(torch.float32)
    return array.astype(np.float32, copy=False)


def _from_bytes(data: bytes) -> KfacGraSS:
    """Read what `KfacGraSS.to_bytes` wrote.

    Raises
    ------
    SpecError
        If the bytes are damaged or of another format version.

    """

    def expect(holds: bool, what: str, got: object) -> None:
        if not holds:
            raise SpecError(
                f"compressor_from_bytes expects {what}, got {got}: the bytes are damaged or of another version"
            )

    expect(len(data) >= _HEAD.size + _CRC.size, "a whole head", f"{len(data)} bytes")
    _, version, length = _HEAD.unpack_from(data)
    expect(version == _VERSION, f"format version {_VERSION} of a KfacGraSS", version)
    (crc,) = _CRC.unpack(data[-_CRC.size :])
    body = data[: -_CRC.size]
    expect(zlib.crc32(body) == crc, f"CRC-32 {crc:08x}", f"{zlib.crc32(body):08x}")
    try:
        spec = json.loads(body[_HEAD.size : _HEAD.size + length].decode("ascii"))
        rank_in, rank_out = spec["rank_in"], spec["rank_out"]
        features = spec["in_features"], spec["out_features"]
        numbers = np.frombuffer(body, "<f4", offset=_HEAD.size + length)
        split = rank_in * features[0]
        read = KfacGraSS(
            *features,
            spec["output_dim"],
            basis_in=numbers[:split].reshape(rank_in, features[0]),
            basis_out=numbers[split:].reshape(rank_out, features[1]),
            seed=spec["seed"],
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SpecError(
            f"compressor_from_bytes expects a KfacGraSS and its bases, got bytes that hold none ({error})"
        ) from error
    expect(read.spec == spec, f"the spec {read.spec}", spec)
    return read


register_reader(_MAGIC, _from_bytes)
