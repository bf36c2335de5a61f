"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with the number of bytes done and the total number of bytes.
Progress = Callable[[int, int], None]


@contextmanager
def counted(shown: bool, n: int | None, unit: str, what: str, leave: bool = True) -> Iterator[Callable[..., object]]:
    """Show a bar on standard error, and yield a function to call with the number of steps just done (default 1).

    Without ``n`` it only counts. Without ``leave`` the bar disappears at the end.
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
