"""Queries by bergson beside ours, see `bergson_query.py`: in an environment of its own, where one can be installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import grass_rs as grass
from cargo import ROOT
from rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIREMENT = "bergson==2.5.1"
ENVIRONMENT = ROOT / "target" / "bergson"
QUERY = Path(__file__).with_name("bergson_query.py")


def measure() -> Iterator[Row]:
    """Measure queries of both, or say that they were not measured."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            _install(python)
        command = [str(python), str(QUERY)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603
    except subprocess.CalledProcessError as error:
        print(f"bergson was not run: {error}", file=sys.stderr)
        return
    for row in json.loads(printed.splitlines()[-1]):
        yield Row(**row)


def _install(python: Path) -> None:
    """Make an environment that sees the packages of this one and has bergson, with what else it needs, or make none."""
    print(f"installing {REQUIREMENT} in {ENVIRONMENT}", file=sys.stderr)
    try:
        venv.create(ENVIRONMENT)
        (packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
        seen = [str(Path(grass.__file__).parents[1])]
        seen += [path for path in sys.path if path.endswith("-packages")]
        (packages / "outer.pth").write_text("\n".join(seen))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
        for command in (
            [*pip, "install", "--quiet", "--retries", "1", "--timeout", "15", REQUIREMENT],
            # No query needs it, and a build for another CUDA than torch's cannot be imported.
            [*pip, "uninstall", "--quiet", "--yes", "torchaudio"],
            [str(python), "-c", "import bergson.query.attributor"],
        ):
            subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603
    except BaseException:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        raise
