"""Models, prompts and pages for the tests of the report, and what JavaScript would write for a number."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from refgpt.generation.sampling import log_softmax
from refgpt.inspect import build_report
from refgpt.tokenizers import Tokenizer

PROMPT = (
    "Once upon a time there was a little girl who lived with her mother in a small house at the edge of the great "
    "forest.\nOne day her mother said to her: \u201cGo and see your grandmother\u201d; and the girl went"
)

#: Tokens that would do harm, or show nothing, if they were printed as they are.
EVIL = [
    b"</script><script>document.title = 'taken'</script>",
    b"<img src=x onerror=\"document.title='taken'\">",
    b"<!--<script>",
    b"]]>",
    b"&lt;b&gt;",
    b"</style><b>",
    b"$data ${title} $$",
    b"'\"`\\u003c",
    "\u2028".encode(),
    "\u2029".encode(),
    "\u202eevil".encode(),
    "\u2066".encode(),
    "\u200b".encode(),
    "\ufeff".encode(),
    b"\x00",
    b"\x1b",
    b"\x7f",
    b"\xe2\x80",
    b"\x9c",
    b"\xff",
    b" ",
    b"  a",
    b"\n",
    b"\r\n",
    b"\t",
    "\u00a0".encode(),
    "\u0301".encode(),
    "\u05e9\u05dc\u05d5\u05dd".encode(),
    b"x" * 4000,
    b"",
]


class EvilTokenizer(Tokenizer):
    """Tokens that no friendly tokenizer has; those after them do not exist."""

    def __init__(self) -> None:
        super().__init__(dict(enumerate(EVIL)), None)

    def _encode(self, text: str, special: bool = True) -> list[int]:
        return [EVIL.index(text.encode())]


def with_tokenizer(model: Any, tokenizer: Tokenizer | None) -> Any:
    return dataclasses.replace(model, tokenizer=tokenizer)


def paged(folder: Path, name: str, model: Any, ids: list[int], prefix_len: int = 0) -> SimpleNamespace:
    """A page on the disk, with the model and the trace that it is about."""
    path = folder / f"{name}.html"
    path.write_text(build_report(model, ids, prefix_len), encoding="utf-8")
    trace = model.trace(ids, prefix_len)
    return SimpleNamespace(
        path=path, model=model, ids=ids, prefix_len=prefix_len, trace=trace, p=np.exp(log_softmax(trace["logits"]))
    )


def data_of(page: str) -> dict[str, Any]:
    """The data as a browser would find them."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)
    data: dict[str, Any] = json.loads(found)
    return data


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["base64"]), f"<{packed['dtype']}").reshape(packed["shape"])


def share(p: float) -> str:
    """A share as the page writes it."""
    if p == 0:
        return "0"
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}".replace("e-0", "e-")


def signed(x: float) -> str:
    return f"{'−' if x < 0 else '+'}{abs(x):.4f}"
