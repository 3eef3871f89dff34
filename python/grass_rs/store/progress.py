"""A progress bar for long calls of the native module."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def byte_bar(description: str, *, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar of bytes on stderr, and yield what tells it how many are done, and of how many.

    Yields None where no bar is shown: then nothing is to be told.
    """
    if not shown:
        yield None
        return
    from tqdm import tqdm  # noqa: PLC0415 - `import grass_rs` loads nothing that only a bar needs

    with tqdm(desc=description, unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell
