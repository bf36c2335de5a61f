"""The pool of threads: whom a call wakes. (That every item is worked on once: ``csrc/testing/pool_driver.c``.)"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.work import HANGS

#: Calls with 2 threads after one with 8, each when all workers sleep. Prints which workers have slept again since.
SCRIPT = """
import re, time
from pathlib import Path
import numpy as np
from refgpt import kernels

def tasks():
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}

def naps():  # of each worker: whether it sleeps now, and how often it has gone to sleep
    texts = {worker: Path(f"/proc/self/task/{worker}/status").read_text() for worker in workers}
    find = lambda pattern, text: re.search(pattern, text, re.MULTILINE)[1]
    return {worker: (find(r"^State:\\s+(\\w)", text), int(find(r"^voluntary_ctxt_switches:\\s+(\\d+)", text)))
            for worker, text in texts.items()}

def all_asleep():
    before = None
    while (now := naps()) != before or any(state != "S" for state, _ in now.values()):
        before = now
        time.sleep(0.002)
    return now

x = np.ones((64, 1 << 12), np.float32)
others = tasks()
kernels.row_sum(x, threads=8)
workers = sorted(tasks() - others)
before = all_asleep()
for _ in range(10):
    kernels.row_sum(x, threads=2)
    after = all_asleep()
print(*(int(before[worker] != after[worker]) for worker in workers))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell how often threads slept")
def test_a_call_wakes_only_the_workers_that_it_wants():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=HANGS, check=True)
    assert sorted(run.stdout.split()) == [*"000000", "1"]
