"""That CI runs every benchmark, and that in quick mode none is large. It runs them itself: ``.ci/benchmarks``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = (ROOT / ".ci" / "benchmarks").read_text(encoding="utf-8")
#: Without a command of their own, or run by another: ``ring`` by ``links``.
PARTS = {"cases", "frontier_report", "hosts", "memory", "quick", "ring"}


def test_ci_runs_every_benchmark() -> None:
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    commands = {name for name in files - PARTS if not name.startswith("test_")}
    assert {name for name in commands if re.search(rf"\bbenchmarks[./]{name}\b", SCRIPT)} == commands
    assert "pytest benchmarks/" in SCRIPT and "benchmarks.peers models run report plot" in SCRIPT
    assert ".ci/benchmarks" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = ROOT / ".github" / "workflows" / "tests.yml"
    assert not workflow.exists() or ".ci/benchmarks" in workflow.read_text(encoding="utf-8")  # the sdist has none


SHAPES = """
import json
from benchmarks.cases import BEYOND_CACHES, CASES, D_FF
from benchmarks.peers.checkpoint import gptj_config
from benchmarks.quick import rounds
work = [make() for shapes in CASES.values() for make in shapes.values()] if BEYOND_CACHES < 1 << 24 else []
print(json.dumps({"rounds": rounds(15), "d_ff": D_FF, "params": gptj_config(1).n_params,
                  "most": max((w.n_bytes for w in work), default=0)}))
"""


@pytest.mark.parametrize("mode", ["", "quick"])
def test_quick_mode_is_small_and_only_it(mode) -> None:
    environment = os.environ | {"REFGPT_BENCHMARKS": mode}
    run = subprocess.run([sys.executable, "-c", SHAPES], cwd=ROOT, env=environment, capture_output=True, text=True)
    found = json.loads(run.stdout)
    if mode:
        assert found["rounds"] == 1 and found["params"] < 20e6 and 0 < found["most"] <= 1 << 20
    else:
        assert (found["rounds"], found["d_ff"], found["params"]) == (15, 16384, 614_290_656)
