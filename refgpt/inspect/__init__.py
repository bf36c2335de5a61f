"""A page about one forward pass: a single HTML file that needs no network and no other files.

``data`` gathers what the page shows, ``heads`` gives titles to heads, ``labels`` makes tokens visible, ``views/`` holds
the scripts and the style that draw it, ``page`` puts them, ``report.html``, ``report.css``, ``report.js`` and the data
together.
"""

from __future__ import annotations

from refgpt._common.arguments import flag
from refgpt._common.errors import RefgptError
from refgpt._model import Model
from refgpt.generation.prompts import telling_fault
from refgpt.inspect.data import PAGE_PARTS, Prompt, gather, html_bytes, most_tokens, prompt_of
from refgpt.inspect.figures import figures
from refgpt.inspect.page import page
from refgpt.spec.ids import check_ids, check_prefix

__all__ = ["Prompt", "build_report", "figures", "gather", "html_bytes", "most_tokens", "prompt_of"]


def build_report(
    model: Model, prompt: Prompt, prefix_len: int | None = None, verify: bool = True, progress: bool = False
) -> str:
    """Build a page about one forward pass: tokens, a continuation, attention, logit lens, attribution, and the
    comparison with the spec.

    ``refgpt.inspect.heads`` gives titles to heads, and chooses the head that the page shows first.

    Parameters
    ----------
    model : Model
    prompt : str or sequence of int
        A text or its ids; an empty one means the begin-of-text token.
    prefix_len : int, optional
        Number of leading positions that see one another; by default all if the model's mask is "prefix", otherwise
        none.
    verify : bool
        Whether to compare every activation with the float64 spec, which takes longest.
    progress : bool
        Show a bar on standard error for it.

    Returns
    -------
    str
        HTML. The same model and prompt give the same page.

    Raises
    ------
    RefgptError
        If the prompt cannot be used, or the page would be too large; the error then says how large, and how many tokens
        are possible for this model. Raised before anything is computed.
    """
    with telling_fault(model.checkpoint.tokenizer_fault):
        ids = prompt_of(prompt, model.config, model.tokenizer)
    if prefix_len is None:
        prefix_len = len(ids) if model.mask == "prefix" else 0
    prefix_len = check_prefix(prefix_len, len(check_ids(ids, model.config)), model.config)
    return page(gather(model, ids, prefix_len, flag("verify", verify, RefgptError), progress, PAGE_PARTS))
