"""Columns of a store between Python and the native module, and what makes two stores alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

from grass_rs import _native
from grass_rs.errors import SpecError
from grass_rs.types import Column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

NativeColumn: TypeAlias = "tuple[str, int, str]"
"""Name, width, and spec as JSON."""


def to_native(columns: Sequence[Column]) -> list[NativeColumn]:
    """Return columns as the native module takes them.

    Raises
    ------
    SpecError
        If there is a gap or an overlap between columns, or a spec is not made of JSON values.

    """
    native = []
    offset = 0
    for column in columns:
        if column.offset != offset:
            raise SpecError(
                f"store columns: column {column.name!r} has offset {column.offset}, expected {offset}, the "
                f"widths of the columns before: leave no gap between columns"
            )
        offset += column.width
        try:
            spec = json.dumps(column.spec, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"store columns: column {column.name!r} has a spec that is not made of JSON values "
                f"({error}): give the spec of its compressor"
            ) from error
        native.append((column.name, column.width, spec))
    return native


def from_native(native: Sequence[NativeColumn]) -> tuple[Column, ...]:
    """Return the columns that the native module describes."""
    columns = []
    offset = 0
    for name, width, spec in native:
        columns.append(Column(name=name, offset=offset, width=width, spec=json.loads(spec)))
        offset += width
    return tuple(columns)


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
