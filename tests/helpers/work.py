"""How much work something is, told in a way that does not depend on how busy the machine is.

The only place in the tests that reads a clock. A limit in seconds fails where other programs take the caches, the clock
rate and half of a core; a limit in yardsticks, which are measured beside the work, does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds after which a process that a test waits for is taken to hang: no test relies on less.
HANGS = 600
#: Work that takes less processor time than this is little, and is not measured again.
LITTLE = 0.2
#: What stands for much work: so many yardsticks, each of which takes some hundredths of a second on an idle machine.
MUCH = 50


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of this process while something is done."""
    start = time.process_time()
    work()
    return time.process_time() - start


def yardstick() -> None:
    """Fixed work of the kind that files ask for: text read as JSON, and looked at item by item in Python."""
    for _ in range(3):
        found = json.loads(json.dumps([{"name": str(i), "sizes": [i, -i]} for i in range(8000)]))
        assert len({item["name"]: sum(item["sizes"]) for item in found}) == 8000


@contextmanager
def little_work(measure: Callable[[], object] = yardstick, times: float = MUCH) -> Iterator[None]:
    """A guard: what runs inside takes no more processor time than ``times`` that of ``measure``, which comes after it.

    ``measure`` is called only if there is a doubt.
    """
    start = time.process_time()
    yield
    spent = time.process_time() - start
    if spent > LITTLE:
        assert spent <= times * max(processor_seconds(measure) for _ in range(3))
