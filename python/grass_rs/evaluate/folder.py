"""A folder that keeps the results of one run, so that it can be stopped and go on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs.errors import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RunFolder"]

_JOURNAL = "run.json"
_FORMAT = 1


class RunFolder:
    """Files of one run, each written whole or not at all, and refused to any other run.

    `run.json` holds what the run depends on, and the SHA-256 of every finished file: a file that it
    does not list is not there. Nothing is created before the first file is written.

    Parameters
    ----------
    path
        The folder.
    settings
        What the run depends on, by name: strings, numbers, or lists of numbers, which are compared
        to one part in a thousand. A message names the first that differs.

    Raises
    ------
    BenchmarkError
        If the folder cannot be read, is damaged, or holds another run.

    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._settings = dict(settings)
        if self.path.exists() and not self.path.is_dir():
            msg = f"{self.path} expects a folder, got a file: name another"
            raise BenchmarkError(msg)
        self._files()

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a finished file; None if it is not finished.

        Raises
        ------
        BenchmarkError
            If it cannot be read, or is not what was written.

        """
        digest = self._files().get(name)
        if digest is None:
            return None
        path = self.path / name
        try:
            data = path.read_bytes()
        except OSError as error:
            msg = (
                f"{path} expects a file that {_JOURNAL} lists, but {error.strerror}: {self._remedy}"
            )
            raise BenchmarkError(msg) from error
        if hashlib.sha256(data).hexdigest() != digest:
            msg = f"{path} expects the bytes that were written, got others: {self._remedy}"
            raise BenchmarkError(msg)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a finished file.

        Raises
        ------
        BenchmarkError
            If it cannot be written, or another run has begun in the folder.

        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._replace(name, data)
            # What another process finished meanwhile stays listed.
            files = self._files() | {name: hashlib.sha256(data).hexdigest()}
            journal = {"format": _FORMAT, "settings": self._settings, "files": files}
            # `item` makes plain numbers of NumPy's.
            text = json.dumps(journal, indent=1, default=methodcaller("item"))
            self._replace(_JOURNAL, text.encode())
        except OSError as error:
            if isinstance(error, BenchmarkError):
                raise
            msg = f"{self.path / name} cannot be written: {error.strerror}"
            raise BenchmarkError(msg) from error

    def _replace(self, name: str, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=self.path, prefix=".new-", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self.path / name)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _files(self) -> dict[str, str]:
        """Return name -> SHA-256 of the finished files, of this very run."""
        path = self.path / _JOURNAL
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise BenchmarkError(f"{path} cannot be read ({error}): {self._remedy}") from error
        try:
            journal = json.loads(text)
            version, begun, files = (journal[key] for key in ("format", "settings", "files"))
            readable = version == _FORMAT and isinstance(begun, dict) and isinstance(files, dict)
        except (ValueError, KeyError, TypeError):
            readable = False
        if not readable:
            msg = f"{path} expects the settings of a run in format {_FORMAT}, got others: {self._remedy}"
            raise BenchmarkError(msg)
        for key in [*self._settings, *(begun.keys() - self._settings.keys())]:
            was, now = begun.get(key), self._settings.get(key)
            if not _same(was, now):
                changed = f"{key} was {_shown(was)} and is {_shown(now)}"
                msg = (
                    f"{self.path} expects the run that began it, but {changed}: name another folder"
                )
                raise BenchmarkError(msg)
        listed: dict[str, str] = files
        return listed

    @property
    def _remedy(self) -> str:
        return f"delete {self.path} to start again, or name another folder"


def _same(was: Any, now: Any) -> bool:
    if isinstance(was, list) and isinstance(now, list):
        # Losses, which another number of threads rounds otherwise.
        return len(was) == len(now) and np.allclose(was, now, rtol=1e-3, atol=1e-6)
    return bool(was == now)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f"{number:.6g}" for number in value) + "]"
    return repr(value[:12] + "..." if isinstance(value, str) and len(value) == 64 else value)
