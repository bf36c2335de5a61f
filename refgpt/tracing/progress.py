"""A progress bar for what takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(shown: bool, n: int | None, unit: str, what: str) -> Iterator[Callable[[int], object]]:
    """A bar on standard error, and what to call with the number of steps done since the last call.

    Without ``n`` it only counts.
    """
    if not shown:
        yield lambda n_new: None
        return
    from tqdm import tqdm

    with tqdm(total=n, unit=unit, desc=what, unit_scale=unit == "B") as bar:
        yield bar.update
