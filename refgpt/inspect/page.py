"""Builds the page as one file from a template, a style, a script and the data. Nothing else is allowed to run."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any


def page(data: Mapping[str, Any]) -> str:
    """The HTML that shows ``gather``'s data.

    Its content security policy allows exactly this style and this script, by their hashes, and nothing else: no other
    script, no image, no connection.
    """
    template, style, program = (_read(f"report.{kind}") for kind in ("html", "css", "js"))
    policy = (
        f"default-src 'none'; script-src {_hash(program)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # One pass over the template: inserted text is not searched again.
    return Template(template).substitute(
        policy=policy, title=escape(str(data["model"])), style=style, program=program, data=inert(data)
    )


def inert(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside ``<script>``: in ASCII, so that no character means anything to HTML or to a reader's
    eye, and without ``<``, so that neither ``</script>`` nor ``<!--`` can occur."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _read(name: str) -> str:
    return files("refgpt.inspect").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
