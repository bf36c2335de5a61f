"""Finds the mask that a checkpoint was trained with: GPT-J's causal mask, or GPT-JT's, where all prompt tokens see each
other.

The checkpoints differ only in the buffers ``attn.bias``: lower triangular in GPT-J, all ones in GPT-JT
(https://huggingface.co/togethercomputer/GPT-JT-6B-v1/discussions/1). Runtimes that build the mask themselves
lose it silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.wording import listed, shown
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.mapped import release

ROWS = 256  # rows of a mask that are compared at a time
MASKS = ("auto", "causal", "prefix")
FIX = "say which mask is right with mask='causal' or mask='prefix' (--mask causal or --mask prefix)"
GPT_JT = re.compile(r"gpt[-_]?jt", re.IGNORECASE)

#: The source of a mask that was asked for, and of a mask that the files do not mention.
ASKED_FOR = "it was asked for"
NOTHING_SAID = "no attn.bias is stored; causal is the usual mask"


def find_mask(
    asked: str,
    buffers: Mapping[str, np.ndarray],
    n_ctx: int,
    names: tuple[str, ...],
    path: Path,
    key: str = "",
    stated: object = None,
    window: int | None = None,
) -> tuple[str, str]:
    """The mask that was asked for, otherwise the one that buffers, a key, or the model's name indicate, in this order.

    Parameters
    ----------
    asked : {"auto", "causal", "prefix"}
        With "auto" the other arguments decide.
    buffers : mapping
        Tensors named "h.<layer>.attn.bias", [..., n, n], of any dtype; other names and shapes are ignored.
    n_ctx : int
        Later positions cannot occur and are ignored.
    names : tuple of str
        Names of the model; used only if nothing else indicates a mask.
    path : Path
        For errors.
    key : str, optional
        Name of this package's own key, and its file.
    stated : object, optional
        Its value; None if it is absent.
    window : int, optional
        The configuration's. A model with local layers is not GPT-JT, whatever its name, and cannot have the prefix
        mask.

    Returns
    -------
    mask : {"causal", "prefix"}
    source : str
        Where the mask was found, as a sentence.

    Raises
    ------
    CheckpointError
        If the layers disagree, or a buffer shows another pattern.
    ConfigError
        If the key states an unknown mask.
    """
    if asked != "auto":
        return asked, ASKED_FOR
    if stated is not None and not (isinstance(stated, str) and stated in MASKS[1:]):
        raise ConfigError(
            f"{key} makes no sense", where=path, got=shown(stated), wanted=" or ".join(MASKS[1:]), fix=FIX
        )
    corners = {
        name: _corner(buffer, n_ctx)
        for name, buffer in buffers.items()
        if name.endswith((".attn.bias", ".attention.bias"))
    }
    found = {name: _pattern(corner) for name, corner in corners.items() if corner is not None}
    patterns = set(found.values())
    if len(patterns) > 1 or "other" in patterns:
        odd = [f"{name} {pattern}" for name, pattern in found.items()]
        raise CheckpointError(
            "the buffers attn.bias describe no mask that is known",
            where=path,
            got=listed(odd),
            wanted="lower triangular or all ones, in every layer alike",
            fix=FIX,
        )
    called = next((name for name in names if GPT_JT.search(name)), None) if window is None else None
    if patterns == {"prefix"}:
        return "prefix", f"attn.bias is all ones in every layer that stores it ({len(found)}), as in GPT-JT"
    if patterns == {"causal"}:
        # a fine-tuned model may have returned to causal
        though = f", though the model is called {called}" if called else ""
        return "causal", f"attn.bias is lower triangular in every layer that stores it ({len(found)}){though}"
    if isinstance(stated, str):
        return stated, f"the key {key} says so"
    if called:
        return "prefix", f"no attn.bias says otherwise, and the model is called {called}"
    return "causal", NOTHING_SAID


def names_of(path: Path) -> tuple[str, ...]:
    """Names of a model: its file, its directory, and the folder of a download cache around a snapshot."""
    whole = path.resolve()
    here = whole if path.is_dir() else whole.parent
    own = () if path.is_dir() else (whole.stem,)
    return (*own, here.name, *((here.parent.parent.name,) if here.parent.name == "snapshots" else ()))


def _corner(buffer: np.ndarray, n_ctx: int) -> np.ndarray | None:
    """The first ``n_ctx`` rows and columns of a stored mask; None if it is not a square matrix."""
    n = buffer.shape[-1] if buffer.ndim >= 2 else 0
    if n == 0 or buffer.shape[-2] != n or buffer.size != n * n:
        return None
    return buffer.reshape(n, n)[:n_ctx, :n_ctx]


def _pattern(corner: np.ndarray) -> str:
    """ "causal", "prefix" or "other"; a single position is causal."""
    raw = corner["bfloat16"] if corner.dtype == BFLOAT16 else corner.view(np.uint8) if corner.dtype == bool else corner
    possible = {"causal", "prefix"}
    for top in range(0, len(raw), ROWS):
        seen = raw[top : top + ROWS] != 0
        if not (seen == np.tri(len(seen), len(raw), top, dtype=bool)).all():
            possible.discard("causal")
        if not seen.all():
            possible.discard("prefix")
        if not possible:
            break
    release(raw)
    return min(possible, default="other")
