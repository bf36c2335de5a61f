"""Answers in the form of OpenAI's completions and chat completions: objects for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refgpt._common.errors import RefgptError
from refgpt.generation.openai import CompletionRequest
from refgpt.generation.results import Generation
from refgpt.tokenizers import Tokenizer


def completion_body(
    request: CompletionRequest,
    results: Sequence[Sequence[Generation]],
    tokenizer: Tokenizer | None,
    name: str,
    created: int,
    model: str,
) -> dict[str, Any]:
    """The whole answer to a request.

    Parameters
    ----------
    request : CompletionRequest
    results : sequence of sequences of Generation
        For each prompt, all continuations that ``request.params`` asks for.
    tokenizer : Tokenizer or None
    name : str
        The answer's own ``id``.
    created : int
        Seconds since 1970.
    model : str
        The model's name.

    Returns
    -------
    dict
    """
    choices: list[dict[str, Any]] = []
    for prompt, continuations in zip(request.prompts, results, strict=True):
        before = prompt_text(prompt, tokenizer) if request.echo else ""
        for one in likeliest(continuations, request.n):
            choices.append(_choice(request, one, len(choices), before, tokenizer))
    return {
        "id": name,
        "object": "chat.completion" if request.chat else "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage(results),
    }


def _choice(
    request: CompletionRequest, one: Generation, index: int, before: str, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    logprobs = None if request.logprobs is None or one.logprobs is None else one
    if request.chat:
        return {
            "index": index,
            "message": {"role": "assistant", "content": one.text.strip(), "refusal": None},
            "logprobs": logprobs and {"content": chat_logprobs(logprobs, tokenizer), "refusal": None},
            "finish_reason": one.finish_reason,
        }
    return {
        "index": index,
        "text": before + one.text,
        "logprobs": logprobs and completion_logprobs(logprobs, tokenizer, len(before)),
        "finish_reason": one.finish_reason,
    }


def likeliest(continuations: Sequence[Generation], n: int) -> list[Generation]:
    """The ``n`` continuations with the highest mean log-probability per token."""
    if len(continuations) <= n:
        return list(continuations)
    return sorted(continuations, key=lambda one: -sum(one.logprobs or ()) / max(1, len(one.ids)))[:n]


def usage(results: Iterable[Sequence[Generation]]) -> dict[str, int]:
    """How many tokens were read and written: a prompt counts once however many continuations it has."""
    n_read = n_written = 0
    for continuations in results:
        n_read += continuations[0].n_prompt if continuations else 0
        n_written += sum(len(one.ids) for one in continuations)
    return {"prompt_tokens": n_read, "completion_tokens": n_written, "total_tokens": n_read + n_written}


def completion_logprobs(one: Generation, tokenizer: Tokenizer | None, start: int = 0) -> dict[str, Any]:
    """The "logprobs" of a completion that begins at character ``start`` of the answer's text."""
    tokens, offsets = [token_text(token_id, tokenizer) for token_id in one.ids], []
    decoder = None if tokenizer is None else tokenizer.stream_decoder()
    n_characters = 0
    for token_id in one.ids:
        offsets.append(start + min(n_characters, len(one.text)))
        if decoder is not None and tokenizer is not None and tokenizer.has(token_id):
            n_characters += len(decoder.push(token_id))
    top = None
    if one.top_logprobs is not None and any(one.top_logprobs):
        drawn = zip(one.ids, one.logprobs or (), strict=True)  # the drawn token has an entry too
        top = [
            by_text({**likely, token_id: logprob}, tokenizer)
            for likely, (token_id, logprob) in zip(one.top_logprobs, drawn, strict=True)
        ]
    return {"tokens": tokens, "token_logprobs": one.logprobs, "top_logprobs": top, "text_offset": offsets}


def chat_logprobs(one: Generation, tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    """The "logprobs.content" of a chat completion."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        known = tokenizer is not None and tokenizer.has(token_id)
        raw = list(tokenizer.token_bytes(token_id)) if known and tokenizer is not None else None
        return {"token": token_text(token_id, tokenizer), "logprob": logprob, "bytes": raw}

    tops: Sequence[Mapping[int, float]] = one.top_logprobs or [{}] * len(one.ids)
    return [
        {**entry(token_id, logprob), "top_logprobs": [entry(*pair) for pair in top.items()]}
        for token_id, logprob, top in zip(one.ids, one.logprobs or (), tops, strict=True)
    ]


def by_text(likely: Mapping[int, float], tokenizer: Tokenizer | None) -> dict[str, float]:
    """Log-probabilities by the texts of their tokens, one entry for each token even if two have the same text."""
    return {key: likely[token_id] for key, token_id in keys_of(likely, tokenizer).items()}


def keys_of(ids: Iterable[int], tokenizer: Tokenizer | None) -> dict[str, int]:
    """The keys of tokens in "top_logprobs", with their ids. Each token has its own key, even if two share a text."""
    found: dict[str, int] = {}
    for token_id in ids:
        text = token_text(token_id, tokenizer)
        found[f"token_id:{token_id}" if text in found else text] = token_id
    return found


def token_text(token_id: int, tokenizer: Tokenizer | None) -> str:
    r"""A token as OpenAI writes it: its text; "bytes:\xf0" for part of a character; "token_id:7" for no text at all."""
    if tokenizer is None or not tokenizer.has(token_id):
        return f"token_id:{token_id}"
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def prompt_text(prompt: Any, tokenizer: Tokenizer | None) -> str:
    """A prompt as text."""
    if isinstance(prompt, str) or tokenizer is None:
        return prompt if isinstance(prompt, str) else ""
    return tokenizer.decode(token_id for token_id in prompt if tokenizer.has(token_id))


def error_body(error: RefgptError) -> dict[str, Any]:
    """The error object that answers a faulty request."""
    param = error.where if isinstance(error.where, str) else None
    return {"message": str(error), "type": "invalid_request_error", "param": param, "code": None}
