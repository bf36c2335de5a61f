"""Information about the server and its model: names, health, metrics, and the tokenizer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from refgpt import __version__
from refgpt._common.wording import shown
from refgpt.evaluation.demos import DEMO_SETTINGS, DEMOS
from refgpt.generation.openai_answers import token_text
from refgpt.server.errors import ApiError
from refgpt.server.exchange import Exchange
from refgpt.server.fields import flag_of
from refgpt.server.state import State


async def models(exchange: Exchange) -> None:
    """``GET /v1/models``."""
    state = exchange.state
    await exchange.send_json(
        {"object": "list", "data": [_model(state, name) for name in (*state.names, *state.model.adapters)]}
    )


async def model(exchange: Exchange) -> None:
    """``GET /v1/models/NAME``."""
    name = exchange.scope["path_params"]["name"]
    await exchange.send_json(_model(exchange.state, name))


def _model(state: State, name: str) -> dict[str, Any]:
    adapter, model = state.check_model(name), state.model_named(name)
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "refgpt",
        "n_ctx": model.config.n_ctx,
        "max_model_len": model.config.n_ctx,
        "family": model.checkpoint.family,
        "dtype": model.dtype or "as stored",
        "mask": model.mask,
        "max_tokens": state.settings.max_tokens,
        "max_logprobs": state.settings.max_logprobs,
        "max_stops": state.settings.max_stops,
        "inspect": state.settings.inspect,
        **({} if adapter is None else {"parent": state.names[0]}),
    }


async def health(exchange: Exchange) -> None:
    """``GET /health``: 200 while requests are taken; otherwise 503, with the reason."""
    error = exchange.state.core.refusal
    if error is None:
        await exchange.send_json({"status": "ok"})
    else:
        await exchange.send_json({"status": error.code, "reason": error.message}, error.status, error.headers)


async def version(exchange: Exchange) -> None:
    """``GET /version``."""
    await exchange.send_json({"version": __version__})


async def metrics(exchange: Exchange) -> None:
    """``GET /metrics``, in Prometheus's text form."""
    kind = "text/plain; version=0.0.4; charset=utf-8"
    await exchange.send_bytes(exchange.state.metrics.text().encode(), kind)


async def presets(exchange: Exchange) -> None:
    """``GET /presets``: the demonstrations of GPT-JT, with the parts of their prompts."""
    settings = {
        "max_tokens": DEMO_SETTINGS.max_new_tokens,
        "temperature": DEMO_SETTINGS.temperature,
        "top_k": DEMO_SETTINGS.top_k,
        "top_p": DEMO_SETTINGS.top_p,
        "seed": DEMO_SETTINGS.seed,
        "stop": list(DEMO_SETTINGS.stops),
    }
    data = [
        {
            "name": name,
            "about": demo.about,
            "template": asdict(demo.template),
            "examples": [{"text": text, "label": label} for text, label in demo.examples],
            "text": demo.text,
            "prompt": demo.prompt(),
            "settings": settings,
        }
        for name, demo in DEMOS.items()
    ]
    await exchange.send_json({"presets": data})


async def tokenize(exchange: Exchange) -> None:
    """``POST /tokenize``: a text (``prompt`` or ``content``) as ids. Special tokens are found in it unless
    ``parse_special`` is false."""
    state, body = exchange.state, await exchange.json()
    text = next((body[name] for name in ("prompt", "content", "text") if body.get(name) is not None), None)
    if not isinstance(text, str):
        raise ApiError(400, f"prompt: cannot be used; got {shown(text)}; wanted a text", param="prompt")
    special = flag_of(body, "parse_special", True)
    named = [token_id for token_id in _special(state) if token_id is not None and text == _name(state, token_id)]
    (ids,) = [named[:1]] if special and named else await state.ids_of([text], special)

    def answer() -> dict[str, Any]:
        return {
            "count": len(ids),
            "max_model_len": state.model.config.n_ctx,
            "tokens": ids,
            "token_strs": [token_text(token_id, state.model.tokenizer) for token_id in ids],
        }

    await exchange.send_made(answer, len(ids))


async def detokenize(exchange: Exchange) -> None:
    """``POST /detokenize``: ids (``tokens``) as a text."""
    state, body = exchange.state, await exchange.json()
    text = await exchange.prepare(lambda: _text_of(state, body.get("tokens")))
    await exchange.send_json({"prompt": text, "content": text})


def _text_of(state: State, ids: Any) -> str:
    """The text of ids; an ApiError if they are not ids."""
    tokenizer = state.model.tokenizer
    if not isinstance(ids, list) or not all(type(token_id) is int for token_id in ids):
        raise ApiError(400, f"tokens: cannot be used; got {shown(ids)}; wanted a list of ids", param="tokens")
    if tokenizer is None:
        raise ApiError(400, "tokens: this model has no tokenizer", param="tokens")
    for token_id in ids:
        if not tokenizer.has(token_id) and not 0 <= token_id < state.model.config.n_vocab:
            raise ApiError(400, f"tokens: there is no id {shown(token_id)}", param="tokens")
    return tokenizer.decode(token_id for token_id in ids if tokenizer.has(token_id))


async def tokenizer_info(exchange: Exchange) -> None:
    """``GET /tokenizer_info``: the properties of a remote tokenizer that lm-eval needs."""
    state = exchange.state
    tokenizer, config = state.model.tokenizer, state.model.config
    eos_id, bos_id = _special(state)
    await exchange.send_json(
        {
            "tokenizer_class": tokenizer.kind if tokenizer is not None else None,
            "eos_token": _name(state, eos_id),
            "eos_token_id": eos_id,
            "bos_token": _name(state, bos_id),
            "bos_token_id": bos_id,
            "pad_token": _name(state, eos_id),
            "chat_template": None,
            "n_vocab": config.n_vocab,
            "max_model_len": config.n_ctx,
        }
    )


def _special(state: State) -> tuple[int | None, int | None]:
    """The ids that end and begin a text."""
    tokenizer, config = state.model.tokenizer, state.model.config
    eos_id = tokenizer.eos_id if tokenizer is not None and tokenizer.eos_id is not None else config.eos_id
    return eos_id, config.bos_id if config.bos_id is not None else eos_id


def _name(state: State, token_id: int | None) -> str | None:
    """The name of a special token, also if no text is encoded as it (such as sentencepiece's "</s>")."""
    tokenizer = state.model.tokenizer
    if token_id is None or tokenizer is None or not tokenizer.has(token_id):
        return None
    vocab: dict[str, int] = getattr(tokenizer, "vocab", {})
    return token_text(token_id, tokenizer) or next((name for name, one in vocab.items() if one == token_id), None)
