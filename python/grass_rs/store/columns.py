"""Columns of a store between Python and the native module, and what makes two stores alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from grass_rs import _native
from grass_rs.errors import SpecError, whole_number
from grass_rs.types import Column

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

NativeColumn: TypeAlias = "tuple[str, int, str]"
"""Name, width, and spec as JSON."""


def _is_text(value: Any) -> bool:
    """Whether a value is a str that UTF-8 has bytes for, as it has none for half a surrogate pair."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def to_native(columns: Iterable[Column]) -> list[NativeColumn]:
    """Return columns as the native module takes them.

    Raises
    ------
    SpecError
        If they are no columns with a name and a width, there is a gap or an overlap between them,
        or a spec is not made of JSON values.

    """
    if not isinstance(columns, Iterable):
        raise SpecError(
            f"store columns: expected a sequence of Column, got {columns!r}: give one a block"
        )
    native = []
    offset = 0
    for index, column in enumerate(columns):
        if not isinstance(column, Column) or not _is_text(column.name):
            raise SpecError(
                f"store columns: expected a Column whose name is text, got {column!r} at {index}: give one "
                f"a block"
            )
        width = whole_number(f"store columns: width of column {column.name!r}", column.width)
        if column.offset != offset:
            raise SpecError(
                f"store columns: column {column.name!r} has offset {column.offset!r}, expected {offset}, the "
                f"widths of the columns before: leave no gap between columns"
            )
        offset += width
        try:
            spec = json.dumps(column.spec, allow_nan=False)
        except (RecursionError, TypeError, ValueError) as error:
            raise SpecError(
                f"store columns: column {column.name!r} has a spec that is not made of JSON values "
                f"({error}): give the spec of its compressor"
            ) from error
        native.append((column.name, width, spec))
    return native


def from_native(native: Sequence[NativeColumn]) -> tuple[Column, ...]:
    """Return the columns that the native module describes."""
    columns = []
    offset = 0
    for name, width, spec in native:
        columns.append(Column(name=name, offset=offset, width=width, spec=json.loads(spec)))
        offset += width
    return tuple(columns)


def fingerprints_to_native(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return fingerprints as the native module takes them.

    Raises
    ------
    SpecError
        If they are no mapping of text to text.

    """
    if not isinstance(fingerprints, Mapping):
        raise SpecError(
            f"fingerprints must be a mapping of str to str, got {fingerprints!r}: give a dict"
        )
    for name, value in fingerprints.items():
        if not _is_text(name) or not _is_text(value):
            raise SpecError(
                f"fingerprints must be a mapping of str to str, got {name!r}: {value!r}: give text"
            )
    return dict(fingerprints)


def check_same_columns(
    path: str | PathLike[str], stored: Sequence[Column], given: Sequence[Column]
) -> None:
    """Refuse columns other than those of the store at `path`.

    Raises
    ------
    StoreMismatchError
        With the first difference, e.g. `column "fc1": seed 0 in the store, 1 given`.

    """
    _native.check_same_columns(path, to_native(stored), to_native(given))


def check_same_fingerprints(
    path: str | PathLike[str], stored: Mapping[str, str], given: Mapping[str, str]
) -> None:
    """Refuse fingerprints other than those of the store at `path`.

    Raises
    ------
    StoreMismatchError
        With the first difference, e.g. `fingerprint "model": 1f.. in the store, 9c.. given`.

    """
    _native.check_same_fingerprints(path, dict(stored), dict(given))
