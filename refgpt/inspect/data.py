"""Gathers the page's data from a model, as a dict for JSON. The page shows nothing else."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from refgpt import __version__
from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.wording import size, told
from refgpt._model import Model
from refgpt._open import default_model_path
from refgpt.generation import GenerationParams
from refgpt.generation.prompts import prompt_ids
from refgpt.generation.sampling import log_softmax
from refgpt.generation.sequence import ends_of
from refgpt.inspect.heads import kind_scores, opening, titles
from refgpt.inspect.labels import label
from refgpt.spec import prefix_mask, tap_names
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_ids
from refgpt.tokenizers import Tokenizer
from refgpt.tracing import Report, logit_attribution, logit_lens, visit

Prompt = str | Sequence[int] | np.ndarray

#: Number of tokens listed for a prediction, and for a cell of the logit lens.
N_PREDICTED, N_LENS = 10, 5
#: Number of tokens with which the model continues the prompt.
N_CONTINUED = 12
#: The parts of a look inside a text, and those of a page, which also has the comparison with the spec.
PARTS = ("attention", "lens", "attribution")
PAGE_PARTS = (*PARTS, "continuation")
#: An attention probability is stored as a whole number of these steps; the error is at most half a step, 0.0000076.
STEPS = 65535
#: Limits on the page's size and the prompt's length, so that a browser can show the page.
MOST_BYTES, MOST_TOKENS = 32_000_000, 512
#: Generous size estimates: the page without its data, the description of a token, the errors of an activation, the
#: title of a head.
PAGE_BYTES, LABEL_BYTES, TAP_BYTES, TITLE_BYTES = 100_000, 72, 200, 80
#: Most bytes of a token that are listed, and most characters of the prompt that are shown as running text.
MOST_LISTED, MOST_READ = 64, 2000


def prompt_of(prompt: Prompt, config: AnyConfig, tokenizer: Tokenizer | None) -> np.ndarray:
    """Encode a prompt and check that it fits a page. -> int64 [t]

    Raises
    ------
    RefgptError
        If the model cannot take the prompt, or it is too long for a page. This needs no weights.
    """
    ids = check_ids(prompt_ids(prompt, config, tokenizer), config)
    most = most_tokens(config)
    if len(ids) > most:
        got = (
            f"{len(ids)} tokens, up to {size(html_bytes(config, len(ids)))}: what {config.n_layer} x "
            f"{config.n_head} heads look at grows with the square of the tokens"
        )
        raise GenerationError(
            "the page would be too large",
            where="prompt",
            got=got,
            wanted=f"at most {most} tokens for this model",
            fix="give a shorter prompt",
        )
    return ids


def most_tokens(config: AnyConfig) -> int:
    """The largest number of tokens of a page for a model."""
    fits = (n for n in range(MOST_TOKENS, 0, -1) if html_bytes(config, n) <= MOST_BYTES)
    return next(fits, 1)


def html_bytes(config: AnyConfig, n: int) -> int:
    """Upper bound for the size of a page of ``n`` tokens. (With a causal mask half of the pattern is left out.)"""
    pattern = 2 * config.n_layer * config.n_head * n * n
    lens, predicted = 8 * N_LENS * (config.n_layer + 1) * n, 8 * (N_PREDICTED + 1) * n
    named = min(config.n_vocab, n * (1 + N_PREDICTED + N_LENS * (config.n_layer + 1)) + N_CONTINUED)
    read = 12 * min(MOST_READ, MOST_LISTED * n)
    heads = TITLE_BYTES * config.n_layer * config.n_head
    taps = TAP_BYTES * len(tap_names(config))
    return PAGE_BYTES + 4 * (pattern + lens + predicted) // 3 + LABEL_BYTES * named + read + heads + taps


def gather(
    model: Model,
    ids: np.ndarray,
    prefix_len: int,
    verify: bool,
    progress: bool = False,
    parts: Collection[str] = PARTS,
    position: int = -1,
    token: int | None = None,
    on_pass: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """All that the page shows.

    Parameters
    ----------
    parts : collection of "attention", "lens", "attribution" and "continuation"
        The parts to compute; the others are None. "attention" comes with the predictions and the titles of heads,
        "continuation" with the prompt as text.
    position : int
        The row of logits that is attributed.
    token : int, optional
        The id whose logit is attributed; by default the likeliest.
    on_pass : callable
        Called after each pass of the model for "attention", "lens" and "attribution". What it raises ends the work.

    Other parameters are those of ``build_report``; ``ids`` as ``prompt_of`` gives them.
    """
    config = model.config
    predictions: dict[str, np.ndarray] = {}
    pattern = scores = None
    if "attention" in parts:
        pattern, predictions, scores = _pattern_and_predictions(model, ids, prefix_len)
        on_pass()
    lens: dict[str, np.ndarray] = {}
    if "lens" in parts:
        lens = _lens(model, ids, prefix_len)
        on_pass()
    attribution = None
    if "attribution" in parts:
        attribution = logit_attribution(model, ids, token, position=position, prefix_len=prefix_len)
        on_pass()
    titled = None if scores is None else titles(scores, ids, prefix_len)
    continued = _continuation(model, ids, prefix_len) if "continuation" in parts else None
    named = {*ids.tolist(), *(continued or [])}
    for found in (predictions, lens):
        named |= set(np.unique(found["ids"]).tolist()) if found else set()
    named |= set() if attribution is None else {attribution.token}
    named |= set() if token is None else {token}
    report = model.verify(ids.tolist(), prefix_len, progress=progress) if verify else None
    return {
        "maker": f"refgpt {__version__}",
        "model": name_of(model),
        "facts": facts(model, len(ids), prefix_len),
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_vocab": config.n_vocab,
        "prefix_len": prefix_len,
        "ids": ids.tolist(),
        "tokens": {str(i): _token(i, model.tokenizer) for i in sorted(named)},
        "predictions": {name: packed(values) for name, values in predictions.items()} or None,
        "pattern": None if pattern is None else packed(pattern),
        "heads": None if titled is None else {"titles": titled, "opening": opening(titled, attribution)},
        "text": None if continued is None else [_text(model, ids.tolist()), _text(model, continued)],
        "continuation": continued,
        "lens": {name: packed(values) for name, values in lens.items()} or None,
        "attribution": attribution
        and {
            "token": attribution.token,
            "embed": attribution.embed,
            "heads": attribution.heads.tolist(),
            "mlps": attribution.mlps.tolist(),
            "attn_biases": attribution.attn_biases.tolist(),
            "bias": attribution.bias,
            "total": attribution.total,
            "logit": attribution.logit,
        },
        "verify": None if report is None else _verified(model, report),
    }


def name_of(model: Model) -> str:
    """A model's name for the page. It leaves out the folders of the path, which are private."""
    path = model.checkpoint.path
    if path == default_model_path():
        return "refgpt's included model"
    # The hub's cache names its folders in this form, and the folders inside after commits.
    from_hub = [part for part in path.parts if part.startswith("models--")]
    name = "/".join(from_hub[-1].split("--")[1:]) if from_hub else path.resolve().name
    # Folder names may contain bytes that are not text, and characters that change the text direction.
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def facts(model: Model, n: int, prefix_len: int) -> list[tuple[str, str]]:
    """Names and values for the head of the page."""
    checkpoint, config = model.checkpoint, model.config
    weights = (tensor for tensor in checkpoint.tensors if len(tensor.shape) in (1, 2))  # masks have more axes
    stored = ", ".join(dtype for dtype, _ in Counter(tensor.dtype for tensor in weights).most_common())
    kept = f"as stored ({stored})" if model.dtype is None else f"{model.dtype} (stored: {stored})"
    sees = f"; here the first {prefix_len} of {n} positions see one another" if prefix_len else ""
    found = [
        ("prompt", f"{n} token{'s' if n > 1 else ''}"),
        ("format", checkpoint.format),
        ("family", checkpoint.family),
        ("shape", str(config)),
        ("parameters", f"{checkpoint.params.size:,}"),
        ("weights", kept),
        ("engine", _engine(model)),
        ("mask", f"{model.mask} ({model.mask_source}){sees}"),
        ("tokenizer", model.tokenizer.describe() if model.tokenizer else "none: the model takes and returns token ids"),
    ]
    return [(name, told(value)) for name, value in found]  # some of it comes from files


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array as text: its shape, its dtype ("u2", "u4" or "f4") and its bytes, little-endian, in base64."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return {"shape": list(values.shape), "dtype": little.dtype.str[1:], "base64": b64encode(little.tobytes()).decode()}


def likeliest(logits: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The most likely tokens of each row, best first, and their probabilities. [t, v] -> uint32, float32 [t, n]"""
    n = min(n, logits.shape[-1])
    best = np.argpartition(-logits, n - 1)[:, :n]
    p = np.exp(np.take_along_axis(log_softmax(logits), best, -1))
    order = np.lexsort((best, -p))
    return (np.take_along_axis(best, order, -1).astype(np.uint32), np.take_along_axis(p, order, -1).astype(np.float32))


def _continuation(model: Model, ids: np.ndarray, prefix_len: int) -> list[int]:
    """The greedy continuation of a prompt; shorter if the text or the context ends."""
    ends = ends_of(model, GenerationParams())
    n = min(N_CONTINUED, model.config.n_ctx - len(ids))
    found: list[int] = []
    if n > 0:
        session = model.engine.session(1, len(ids) + n)
        row = session.prefill(0, ids.tolist(), prefix_len)
        while len(found) < n and (token := int(row.argmax())) not in ends:
            found.append(token)
            row = row if len(found) == n else session.decode([0], [token])[0]
    return found


def _text(model: Model, ids: list[int]) -> list[str]:
    """Tokens as running text: ``label`` of all their bytes, with spaces as they are. Empty without a tokenizer."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return []
    raw = b"".join(tokenizer.token_bytes(i) if tokenizer.has(i) else b"" for i in ids)
    return label(raw, MOST_READ, blanks=False)


def _pattern_and_predictions(
    model: Model, ids: np.ndarray, prefix_len: int
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """The attention pattern of every head, the predictions of every position and the scores of heads, from one pass.

    Returns
    -------
    ndarray [n_layer, n_head, n], uint16
        Steps of ``STEPS``. Only what the mask lets a query see: its keys in a row, one query after another.
    dict
        "ids" and "p" [t, N_PREDICTED]: the likeliest tokens after each position. "given" and "rank" [t - 1]: what the
        token got that follows, and its place among all (1 is the likeliest).
    ndarray [n_layer, n_head, kinds]
        See ``refgpt.inspect.heads``.
    """
    seen = prefix_mask(len(ids), prefix_len)
    scores = []
    followed = np.arange(len(ids) - 1), ids[1:]  # where each token but the first stands in the row before it

    def look(name: str, value: np.ndarray) -> Any:
        if not np.isfinite(value).all():
            raise RefgptError(
                "the model computes NaN or infinity here, so there is nothing to show",
                where=name,
                fix="refgpt verify tells whether the kernels or the weights do it",
            )
        if name != "logits":
            scores.append(kind_scores(value, ids))
            return np.rint(value[:, seen] * STEPS).astype(np.uint16)
        best, p = likeliest(value, N_PREDICTED)
        given = np.exp(log_softmax(value[:-1])[followed])
        rank = 1 + (value[:-1] > value[followed][:, None]).sum(axis=-1)
        return {"ids": best, "p": p, "given": given.astype(np.float32), "rank": rank.astype(np.uint32)}

    found = visit(model, ids, ["blocks.*.pattern", "logits"], look, prefix_len)
    predictions = found.pop("logits")
    return np.stack(list(found.values())), predictions, np.stack(scores)


def _lens(model: Model, ids: np.ndarray, prefix_len: int) -> dict[str, np.ndarray]:
    """The likeliest tokens before the first block and after each: "ids" and "p" [n_layer + 1, t, N_LENS]."""
    best = [likeliest(logits, N_LENS) for logits in logit_lens(model, ids, prefix_len)]
    return {"ids": np.stack([ids for ids, _ in best]), "p": np.stack([p for _, p in best])}


def _token(token_id: int, tokenizer: Tokenizer | None) -> list[str]:
    """The bytes of a token in hexadecimal, then ``label`` of them; a mark with its id where it has none."""
    raw = tokenizer.token_bytes(token_id) if tokenizer is not None and tokenizer.has(token_id) else b""
    listed = raw[:MOST_LISTED].hex(" ") + (" …" if len(raw) > MOST_LISTED else "")
    return [listed, *(label(raw) if raw else ["", f"id {token_id}"])]


def _verified(model: Model, report: Report) -> dict[str, Any]:
    """A ``Report``. Numbers that JSON has not become their names."""
    return {
        "ok": report.first_broken is None,
        "first_broken": report.first_broken and report.first_broken.name,
        "logit_error": _number(report.logit_error),
        "same_argmax": _number(report.same_argmax),
        "expected": "The NumPy backend in float32 is known to leave its bound at mlp_post, where 1 + tanh loses digits."
        if model.backend == "numpy" and model.dtype != "f64"
        else "",
        "taps": [
            [tap.name, tap.ok, *_numbers((tap.error, tap.bound, tap.ratio, tap.cosine, tap.max_error))]
            for tap in report.taps
        ],
    }


def _numbers(values: Iterable[float]) -> list[float | str]:
    return [_number(value) for value in values]


def _number(value: float) -> float | str:
    return value if isfinite(value) else str(value)


def _engine(model: Model) -> str:
    """Description of the engine that ran the pass."""
    if model.backend == "numpy":
        return f"the NumPy spec in {'float64' if model.dtype == 'f64' else 'float32'}"
    from refgpt.kernels import active

    arithmetic = "" if model.compute == "f32" else f", arithmetic in {model.compute}"
    return f"C kernels ({active('linear_f32').isa}){arithmetic}, keys and values cached in {model.kv_dtype}"
