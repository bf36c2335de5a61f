"""axe-core in a page: its rules of accessibility."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

#: axe-core's script: its path, from the registry of npm.
AXE = os.environ.get("REFGPT_AXE", "")

needs_axe = pytest.mark.skipif(not AXE, reason="REFGPT_AXE does not name axe-core's script (npm install axe-core)")


def check_rules(browser: Any, only: list[str] | None = None) -> dict[str, list[str]]:
    """The rules that the page violates, with the elements that do; at most three each."""
    if not browser.js("return 'axe' in window"):
        browser.js(Path(AXE).read_text(encoding="utf-8") + "\nwindow.axe = axe;")
    run = "const done = arguments[1]; axe.run(document, arguments[0]).then(done)"
    result = browser.chrome.execute_async_script(run, {"runOnly": only} if only else {})
    assert only or len(result["passes"]) > 20
    return {rule["id"]: [node["html"][:160] for node in rule["nodes"]][:3] for rule in result["violations"]}
