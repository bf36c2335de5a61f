"""Builds the page as one file from a template, styles, scripts and the data. Nothing else is allowed to run."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

#: Modules of the views, each after those it imports.
VIEWS = ("draw", "chooser", "pass", "attention", "lens", "attribution")


def page(data: Mapping[str, Any]) -> str:
    """The HTML that shows ``gather``'s data.

    Its content security policy allows exactly this style and this script, by their hashes, and nothing else: no other
    script, no image, no connection.
    """
    policy = (
        f"default-src 'none'; script-src {_hash(program())}; style-src {_hash(style())}; "
        "base-uri 'none'; form-action 'none'"
    )
    # One pass over the template: inserted text is not searched again.
    return Template(_read("report.html")).substitute(
        policy=policy, title=escape(str(data["model"])), style=style(), program=program(), data=inert(data)
    )


def style() -> str:
    """The styles of the page and of the views."""
    return _read("report.css") + "\n" + _read("views/views.css")


def program() -> str:
    """The modules of the views and of the page as one script: they share one scope, so imports and exports go."""
    modules = [*(f"views/{name}.js" for name in VIEWS), "report.js"]
    text = "\n".join(_read(name) for name in modules)
    without_imports = re.sub(r"^import \{[^}]*\} from \"[^\"]*\";\n", "", text, flags=re.MULTILINE)
    return '"use strict";\n\n' + re.sub(r"^export ", "", without_imports, flags=re.MULTILINE)


def inert(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside ``<script>``: in ASCII, so that no character means anything to HTML or to a reader's
    eye, and without ``<``, so that neither ``</script>`` nor ``<!--`` can occur."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _read(name: str) -> str:
    return files("refgpt.inspect").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
