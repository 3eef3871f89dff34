"""The text of the CUDA sources, headers written out: what NVRTC is given needs no include path."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "kernels"
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)


@cache
def source(file: str, folders: tuple[Path, ...] = (KERNELS,)) -> str:
    """Return a source with each header it includes in place of the first include.

    Parameters
    ----------
    file
        Name of a source, for example "cyclic.cu".
    folders
        Where it and its headers are looked for, in this order.

    """
    included: set[str] = set()

    def expand(name: str) -> str:
        paths = [folder / name for folder in folders]
        path = next((path for path in paths if path.exists()), paths[-1])
        text = path.read_text(encoding="utf-8").replace("#pragma once\n", "\n")

        def include(match: re.Match[str]) -> str:
            header = match[1]
            if header in included:
                return "\n"
            included.add(header)
            following = text[: match.start()].count("\n") + 2
            return f'{expand(header)}\n#line {following} "{name}"\n'

        return f'#line 1 "{name}"\n' + _INCLUDE.sub(include, text)

    return expand(file)
