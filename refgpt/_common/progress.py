"""A progress bar for what is counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with the bytes that are loaded or written, and the bytes in all.
Progress = Callable[[int, int], None]


@contextmanager
def counted(shown: bool, n: int | None, unit: str, what: str, leave: bool = True) -> Iterator[Callable[..., object]]:
    """A bar on standard error, and what to call with the number of steps done since the last call, by default one.

    Without ``n`` it only counts. Without ``leave`` the bar goes when all is done.
    """
    if not shown:
        yield lambda n_new=1: None
        return
    from tqdm import tqdm

    with tqdm(total=n, unit=unit, desc=what, unit_scale=unit == "B", leave=leave) as bar:
        yield bar.update


def print_row(line: str) -> None:
    """Print a line on standard output, above the bar if one is shown."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()
