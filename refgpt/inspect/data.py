"""What the page shows, gathered from a model: a dict that JSON can hold, and nothing that is not in it is shown."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from refgpt import __version__
from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.wording import size, told
from refgpt._load import default_model_path
from refgpt._model import Model
from refgpt.generation.prompts import prompt_ids
from refgpt.generation.sampling import log_softmax
from refgpt.inspect.labels import label
from refgpt.spec import prefix_mask, tap_names
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_ids
from refgpt.tokenizers import Tokenizer
from refgpt.tracing import Report, logit_attribution, logit_lens, visit

Prompt = str | Sequence[int] | np.ndarray

#: Tokens that are named for a prediction, and for a cell of the logit lens.
N_PREDICTED, N_LENS = 10, 5
#: A probability of attention is stored as a whole number of such steps: off by half of one, 0.0000076, at most.
STEPS = 65535
#: Larger pages are refused, and so are longer prompts: a browser would stumble over them.
MOST_BYTES, MOST_TOKENS = 32_000_000, 512
#: Of the page without its data, of most descriptions of a token, and of an activation's errors; generously.
PAGE_BYTES, LABEL_BYTES, TAP_BYTES = 80_000, 72, 200
#: Of the bytes of a token no more are listed.
MOST_LISTED = 64


def prompt_of(prompt: Prompt, config: AnyConfig, tokenizer: Tokenizer | None) -> np.ndarray:
    """The ids of a prompt that a page can be made of. -> int64 [t]

    Raises
    ------
    RefgptError
        If it is no prompt for this model, or too long for a page. Needs no weights.
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
    """How many tokens a page about a model may have."""
    fits = (n for n in range(MOST_TOKENS, 0, -1) if html_bytes(config, n) <= MOST_BYTES)
    return next(fits, 1)


def html_bytes(config: AnyConfig, n: int) -> int:
    """How large a page about ``n`` tokens can become. (With a causal mask half of its pattern is not there.)"""
    pattern = 2 * config.n_layer * config.n_head * n * n
    lens, predicted = 8 * N_LENS * (config.n_layer + 1) * n, 8 * (N_PREDICTED + 1) * n
    named = min(config.n_vocab, n * (1 + N_PREDICTED + N_LENS * (config.n_layer + 1)))
    return PAGE_BYTES + 4 * (pattern + lens + predicted) // 3 + LABEL_BYTES * named + TAP_BYTES * len(tap_names(config))


def gather(model: Model, ids: np.ndarray, prefix_len: int, verify: bool, progress: bool = False) -> dict[str, Any]:
    """All that the page shows.

    Parameters are those of ``build_report``; ``ids`` as ``prompt_of`` gives them.
    """
    config = model.config
    pattern, predictions = _pattern_and_predictions(model, ids, prefix_len)
    lens = _lens(model, ids, prefix_len)
    attribution = logit_attribution(model, ids, prefix_len=prefix_len)
    named = {*ids.tolist(), *np.unique(predictions["ids"]).tolist(), *np.unique(lens["ids"]).tolist()}
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
        "tokens": {str(i): _token(i, model.tokenizer) for i in sorted({*named, attribution.token})},
        "predictions": {name: packed(values) for name, values in predictions.items()},
        "pattern": packed(pattern),
        "lens": {name: packed(values) for name, values in lens.items()},
        "attribution": {
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
    """What a model is called, without the folders it lies in: they are nobody's business."""
    path = model.checkpoint.path
    if path == default_model_path():
        return "refgpt's included model"
    # The cache of the hub calls its folders so, and those inside by commits.
    from_hub = [part for part in path.parts if part.startswith("models--")]
    name = "/".join(from_hub[-1].split("--")[1:]) if from_hub else path.resolve().name
    # Folders may be called by bytes that are no text, and by characters that turn the text around them.
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
        ("tokenizer", model.tokenizer.describe() if model.tokenizer else "none: the model takes and gives ids"),
    ]
    return [(name, told(value)) for name, value in found]  # files say some of it


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array as text: its shape, its dtype ("u2", "u4" or "f4") and its bytes, little-endian, in base64."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return {"shape": list(values.shape), "dtype": little.dtype.str[1:], "base64": b64encode(little.tobytes()).decode()}


def likeliest(logits: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens of each row, the best first, and their probabilities. [t, v] -> uint32, float32 [t, n]"""
    n = min(n, logits.shape[-1])
    best = np.argpartition(-logits, n - 1)[:, :n]
    p = np.exp(np.take_along_axis(log_softmax(logits), best, -1))
    order = np.lexsort((best, -p))
    return (np.take_along_axis(best, order, -1).astype(np.uint32), np.take_along_axis(p, order, -1).astype(np.float32))


def _pattern_and_predictions(
    model: Model, ids: np.ndarray, prefix_len: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What every head looks at, and what every position predicts, in one pass.

    Returns
    -------
    ndarray [n_layer, n_head, n], uint16
        Steps of ``STEPS``. Only what the mask lets a query see: its keys in a row, one query after another.
    dict
        "ids" and "p" [t, N_PREDICTED]: the likeliest tokens after each position. "given" and "rank" [t - 1]: what the
        token got that follows, and its place among all (1 is the likeliest).
    """
    seen = prefix_mask(len(ids), prefix_len)
    followed = np.arange(len(ids) - 1), ids[1:]  # where each token but the first stands in the row before it

    def look(name: str, value: np.ndarray) -> Any:
        if not np.isfinite(value).all():
            raise RefgptError(
                "the model computes NaN or infinity here, and so there is nothing to show",
                where=name,
                fix="refgpt verify tells whether the kernels or the weights do it",
            )
        if name != "logits":
            return np.rint(value[:, seen] * STEPS).astype(np.uint16)
        best, p = likeliest(value, N_PREDICTED)
        given = np.exp(log_softmax(value[:-1])[followed])
        rank = 1 + (value[:-1] > value[followed][:, None]).sum(axis=-1)
        return {"ids": best, "p": p, "given": given.astype(np.float32), "rank": rank.astype(np.uint32)}

    found = visit(model, ids, ["blocks.*.pattern", "logits"], look, prefix_len)
    predictions = found.pop("logits")
    return np.stack(list(found.values())), predictions


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
    """What ran the pass."""
    if model.backend == "numpy":
        return f"the NumPy spec in {'float64' if model.dtype == 'f64' else 'float32'}"
    from refgpt.kernels import active

    return f"C kernels ({active('linear_f32').isa}), keys and values cached in {model.kv_dtype}"
