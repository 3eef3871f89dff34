"""What all compressors have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from grass_rs._backends import cpu
from grass_rs._backends.dispatch import backend_of, backend_of_both, is_traced
from grass_rs._native import Compressor as NativeCompressor
from grass_rs.errors import SpecError, unknown_name, whole_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CLASSES: dict[str, type[Compressor]] = {}
_READERS: dict[bytes, Callable[[bytes], Compressor]] = {}
"""Magic -> what reads the bytes of a compressor that holds more than its spec."""
_MAGIC_BYTES = 8


class Compressor:
    """A seeded linear map R^p -> R^k with a spec and a fingerprint.

    Two compressors are equal when their specs are; equal compressors give equal results, bit for
    bit, on every machine (a Gaussian projection to 1e-6).
    """

    type_name: ClassVar[str]
    """The spec's `type`."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Values that the argument `kind` may have."""
    _native: NativeCompressor
    _spec_json: str
    """The spec in canonical JSON; torch.compile reads it, and cannot be relied on to read the native structure's."""

    def __init_subclass__(cls) -> None:
        if "type_name" in vars(cls):
            _CLASSES[cls.type_name] = cls

    def _build(self, **arguments: Any) -> None:
        """Build the native structure from the constructor's arguments."""
        if "kind" in arguments and arguments["kind"] not in self.kinds:
            what = f"{type(self).__name__}: kind"
            raise SpecError(unknown_name(what, arguments["kind"], self.kinds))
        for name, value in arguments.items():
            if isinstance(value, Compressor):
                arguments[name] = value.spec
            elif name not in {"kind", "indices"}:
                arguments[name] = self._whole_number(name, value)
        spec = {"type": self.type_name, **arguments}
        self._adopt(NativeCompressor.from_spec(json.dumps(spec)))

    def _adopt(self, native: NativeCompressor) -> None:
        self._native, self._spec_json = native, native.spec

    def _whole_number(self, name: str, value: Any, least: int = 0, most: int = 2**64 - 1) -> int:
        return whole_number(f"{type(self).__name__}: {name}", value, least, most)

    @property
    def input_dim(self) -> int:
        """Coordinates of the input, p."""
        return self._native.input_dim

    @property
    def output_dim(self) -> int:
        """Coordinates of the output, k."""
        return self._native.output_dim

    @property
    def spec(self) -> dict[str, Any]:
        """The type and the constructor's arguments, defaults resolved; determines the map."""
        spec: dict[str, Any] = json.loads(self._spec_json)
        return spec

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the spec in canonical JSON (sorted keys, no spaces), in hexadecimal."""
        return self._native.fingerprint

    def to_bytes(self) -> bytes:
        """Serialise the structure: magic, format version, spec, CRC-32. `compressor_from_bytes` reads it."""
        return self._native.to_bytes()

    def to_dense(self, *, max_bytes: int = 2**30) -> NDArray[np.float32]:
        """Return the map as a dense matrix.

        Parameters
        ----------
        max_bytes
            The largest matrix to allocate, in bytes.

        Returns
        -------
        numpy.ndarray
            (k, p) float32, such that compressing x gives `to_dense() @ x` up to rounding.

        Raises
        ------
        SpecError
            If the matrix is larger than `max_bytes`.

        """
        self._check_dense_size(max_bytes)
        dense = np.empty((self.output_dim, self.input_dim), dtype=np.float32)
        self._native.write_dense(dense)
        return dense

    def _check_dense_size(self, max_bytes: int) -> None:
        size = 4 * self.output_dim * self.input_dim
        if size > max_bytes:
            msg = (
                f"{type(self).__name__}.to_dense: expected a matrix of at most {max_bytes} bytes, "
                f"({self.output_dim}, {self.input_dim}) takes {size}: raise max_bytes to allow it"
            )
            raise SpecError(msg)

    @classmethod
    def _from_spec(cls, spec: Mapping[str, Any]) -> Compressor:
        return _wrap(NativeCompressor.from_spec(json.dumps(dict(spec))))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Compressor):
            return NotImplemented
        return self._spec_json == other._spec_json

    def __hash__(self) -> int:
        return hash(self._spec_json)

    def __repr__(self) -> str:
        arguments = ", ".join(
            f"{name}={value!r}" for name, value in self.spec.items() if name != "type"
        )
        return f"{type(self).__name__}({arguments})"

    def __reduce__(self) -> tuple[Any, ...]:
        return compressor_from_bytes, (self.to_bytes(),)

    def __deepcopy__(self, memo: object) -> Compressor:
        return self

    def __copy__(self) -> Compressor:
        return self


class RowCompressor(Compressor):
    """A compressor of whole gradients."""

    def __call__(self, x: Any, *, out: Any = None) -> Any:
        """Compress gradients.

        Parameters
        ----------
        x
            (n, p) or (p,), a NumPy array, torch tensor (CPU or CUDA) or CuPy array of float64,
            float32, float16 or bfloat16, with any strides. Values are accumulated in float32.
        out
            Where to write: a C-contiguous float32 array of the result's shape that shares no memory with x.

        Returns
        -------
        array
            (n, k) or (k,) float32, of the same library as x; never part of an autograd graph.

        Raises
        ------
        ShapeError
            If the last axis of x is not `input_dim` long, or `out` has another shape.
        UnsupportedArrayError
            For another library, device or dtype.

        """
        name = type(self).__name__
        if type(x) is np.ndarray:
            return cpu.compress_rows(self._native, name, x, out)
        if is_traced(x):
            from grass_rs._backends import torch_ops  # noqa: PLC0415 - loads torch

            return torch_ops.compress_rows(self._spec_json, name, x, out)
        return backend_of(name, x).compress_rows(self._native, name, x, out)


class FactorCompressor(Compressor):
    """A compressor of a linear layer's gradients, given by their factors."""

    def __call__(
        self, inputs: Any, grad_outputs: Any, *, bias: bool = False, out: Any = None
    ) -> Any:
        """Compress the gradients `sum_t grad_outputs[t] inputs[t]^T`, row-major over (out, in).

        Parameters
        ----------
        inputs
            (n, t, in_features), or (n, in_features) for t = 1: what the layer was given. With
            `bias`, (n, t, in_features - 1) or (n, in_features - 1).
        grad_outputs
            (n, t, out_features), or (n, out_features): gradient of the loss by what it returned.
        bias
            Whether the layer's last input is the bias's column of ones, which `inputs` does not
            hold. The result has the same bits as with a column of ones in `inputs`, and takes no
            copy of it.
        out
            Where to write: a C-contiguous float32 array (n, k) that shares no memory with the factors.

        Returns
        -------
        array
            (n, k) float32, of the same library as `inputs`; never part of an autograd graph.

        Raises
        ------
        ShapeError
            If the shapes do not fit the layer or each other.
        SpecError
            If `bias` is not a bool.
        UnsupportedArrayError
            For another library, device or dtype.

        """
        name = type(self).__name__
        self._check_bias(bias)
        if type(inputs) is type(grad_outputs) is np.ndarray:
            return cpu.compress_factors(self._native, name, inputs, grad_outputs, bias, out)
        if is_traced(inputs) or is_traced(grad_outputs):
            from grass_rs._backends import torch_ops  # noqa: PLC0415 - loads torch

            return torch_ops.compress_factors(
                self._spec_json, name, inputs, grad_outputs, bias, out
            )
        backend = backend_of_both(name, inputs, grad_outputs)
        return backend.compress_factors(self._native, name, inputs, grad_outputs, bias, out)

    def _check_bias(self, bias: object) -> None:
        if not isinstance(bias, bool):
            raise SpecError(
                f"{type(self).__name__}: bias expects True or False, got {type(bias).__name__}: the ones "
                f"are implied, pass no values"
            )

    @property
    def in_features(self) -> int:
        """Width of the layer's input, with the bias column."""
        return self._features[0]

    @property
    def out_features(self) -> int:
        """Width of the layer's output."""
        return self._features[1]

    @property
    def _features(self) -> tuple[int, int]:
        features = self._native.features
        if features is None:
            msg = (
                f"expected the native structure of a factorised compressor, got {self._native.spec}"
            )
            raise SpecError(msg)
        return features


def _wrap(native: NativeCompressor) -> Compressor:
    cls = _CLASSES[json.loads(native.spec)["type"]]
    compressor = cls.__new__(cls)
    compressor._adopt(native)  # noqa: SLF001 - the constructor of every class does just this
    return compressor


def compressor_from_bytes(data: bytes) -> Compressor:
    """Read what `Compressor.to_bytes` wrote.

    Raises
    ------
    SpecError
        If the bytes are damaged, of another format version, or no compressor.

    """
    read = _READERS.get(bytes(data[:_MAGIC_BYTES])) if isinstance(data, bytes) else None
    return _wrap(NativeCompressor.from_bytes(data)) if read is None else read(data)


def register_reader(magic: bytes, read: Callable[[bytes], Compressor]) -> None:
    """Let `compressor_from_bytes` read bytes that begin with a magic of its own."""
    _READERS[magic] = read


def compressor_from_spec(spec: object) -> Compressor:
    """Build the compressor that has this spec.

    Raises
    ------
    SpecError
        If the type or an argument is unknown, missing, or not what it may be.

    """
    if not isinstance(spec, Mapping):
        msg = f"compressor_from_spec expects a dict with a type and its arguments, got {spec!r}"
        raise SpecError(msg)
    type_name = spec.get("type")
    if not isinstance(type_name, str) or type_name not in _CLASSES:
        raise SpecError(unknown_name("compressor type", type_name, _CLASSES))
    return _CLASSES[type_name]._from_spec(spec)  # noqa: SLF001 - a class of this module


def register_torch_ops() -> None:
    """Register the operators of exported programs, `torch.ops.grass_rs`, with torch.

    A process that loads a program, saved by `torch.export.save`, which compresses needs this before. Compressors that
    are called while torch compiles or exports register them on their own.
    """
    import_module("grass_rs._backends.torch_ops")
