"""The errors of this library: one tree under `GrassError`.

Each message says, in one line, what was expected, what came, where, and what to do. An error about
arguments is also a `ValueError` or `TypeError`; an error about files is also the builtin it maps to.
"""

from __future__ import annotations

import operator
import sys
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

MASKED = "a masked array, whose mask would be lost: pass .filled(0), or only what is not masked"
"""What came and what to do, for messages."""

_LISTED = 12
"""The most known names that a message lists."""


class GrassError(Exception):
    """Base of every error that this library raises on purpose."""


class ShapeError(GrassError, ValueError):
    """An array has the wrong shape."""


class SpecError(GrassError, ValueError):
    """A compressor, plan or method cannot be built from these arguments."""


class UnsupportedArrayError(GrassError, TypeError):
    """An array of a library, device or dtype that no backend takes."""


class DeviceError(GrassError, RuntimeError):
    """A CUDA device, its driver or compiler that cannot do what a call needs."""


class LossError(GrassError, ValueError):
    """A loss that does not return one finite, independent value an example."""


class DataError(GrassError, ValueError):
    """A loader, batch or list of ids that contradicts itself or the store."""


class NonFiniteError(GrassError, ValueError):
    """A gradient with a NaN or an infinity."""


class UnsupportedLayerError(GrassError):
    """A layer whose per-example gradient cannot be captured rightly."""


class StoreError(GrassError, OSError):
    """A store cannot be read or written."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at this path."""


class StoreExistsError(StoreError, FileExistsError):
    """There is already something at this path."""


class StorePermissionError(StoreError, PermissionError):
    """The operating system forbids this access to the store."""


class StoreLockedError(StoreError, BlockingIOError):
    """Another process is writing this store."""


class StoreMismatchError(StoreError, ValueError):
    """The store was made with another plan, seed, dtype or model."""


class CorruptStoreError(StoreError, ValueError):
    """Bytes of the store are damaged or missing."""


class ScoresFileError(GrassError, OSError):
    """A file of scores cannot be written, or another call began it."""


class BenchmarkError(GrassError, OSError):
    """A folder of trained models cannot be read or written, or another run began it."""


def unknown_name(what: str, name: Any, known: Iterable[str]) -> str:
    """Return the message for a name that is not known, with the closest known one."""
    from difflib import get_close_matches  # noqa: PLC0415 - only messages need it

    names = sorted(known)
    listed = ", ".join(map(repr, names)) if len(names) <= _LISTED else f"{len(names)} names"
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f": did you mean {close[0]!r}?" if close else ""
    return f"{what} must be one of {listed}, got {name!r}{hint}"


def is_masked(values: Any) -> bool:
    """Return whether these are a NumPy masked array, or a list with one: NumPy would drop its mask."""
    # NumPy imports this module when it is asked for, in milliseconds; masked arrays exist only after.
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())
    parts = set(map(type, values)) if isinstance(values, (list, tuple)) else ()
    return isinstance(values, masked) or any(issubclass(part, masked) for part in parts)


def path_of(what: str, path: str | PathLike[str]) -> Path:
    """Return a path to write to, if there can be one of this name.

    Raises
    ------
    SpecError
        If it has a NUL byte, which no name has; `what` names the argument.

    """
    text = fspath(path)
    if "\0" in text:
        msg = f"{what} expects a path without NUL bytes, got {text!r}: choose another name"
        raise SpecError(msg)
    return Path(text)


def whole_number(what: str, value: Any, least: int = 0, most: int = 2**64 - 1) -> int:
    """Return `value`, of any type of whole numbers, as an int from `least` to `most`.

    Raises
    ------
    SpecError
        If it is none; `what` names the argument.

    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        msg = f"{what} must be a whole number from {least} to {most}, got {value!r}"
        raise SpecError(msg)
    return number
