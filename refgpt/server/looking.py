"""Inspections of the model, and embeddings. Both are computed beside the scheduler."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.generation.prompts import fault_of, is_batch, telling_fault
from refgpt.inspect.data import PARTS, gather, prompt_of
from refgpt.server.errors import ApiError, refused
from refgpt.server.exchange import Exchange, dumped
from refgpt.server.fields import flag_of
from refgpt.server.state import State
from refgpt.tracing import embedding


async def inspect(exchange: Exchange) -> None:
    """``POST /inspect``: {"prompt", "position", "token", "prefix_len", "what"} -> what ``refgpt inspect`` shows of
    these tokens."""
    state, body = exchange.state, await exchange.json()
    if not state.settings.inspect:
        raise ApiError(404, "this server does not look inside its model", code="inspect_off")
    what = body.get("what")
    parts = list(PARTS) if what is None else what
    if not isinstance(parts, list) or not parts or not all(part in PARTS for part in parts):
        raise ApiError(400, f"what: cannot be used; got {shown(what)}; wanted a list of {PARTS}", param="what")
    prompt, position, token = body.get("prompt"), body.get("position"), body.get("token")
    if not isinstance(prompt, str | list):
        raise ApiError(400, f"prompt: cannot be used; got {shown(prompt)}; wanted a text or ids", param="prompt")
    (prompt,) = await state.ids_of([prompt], flag_of(body, "parse_special", state.settings.parse_special))
    prefix_len = body.get("prefix_len")
    for name, value in (("position", position), ("token", token), ("prefix_len", prefix_len)):
        if value is not None and type(value) is not int:
            raise ApiError(400, f"{name}: cannot be used; got {shown(value)}; wanted a whole number", param=name)
    model = state.model_named(body.get("model"))
    try:
        ids = await exchange.prepare(lambda: prompt_of(prompt, state.model.config, state.model.tokenizer))
    except RefgptError as error:
        raise ApiError(400, str(error), param="prompt") from None
    most = state.settings.max_inspect_tokens
    if len(ids) > most:
        message = f"prompt: {len(ids)} tokens are more than can be looked at, {most}"
        raise ApiError(400, message, param="prompt", code="context_length_exceeded")
    position = -1 if position is None else position
    if not -len(ids) <= position < len(ids):
        raise ApiError(400, f"position: there is none {shown(position)} among {len(ids)} tokens", param="position")
    if token is not None and not 0 <= token < state.model.config.n_vocab:
        raise ApiError(400, f"token: there is no id {shown(token)}", param="token")
    if prefix_len is None:
        prefix_len = len(ids) if model.mask == "prefix" else 0
    if not 0 <= prefix_len <= len(ids):
        message = f"prefix_len: got {shown(prefix_len)}; wanted a number of the {len(ids)} tokens"
        raise ApiError(400, message, param="prefix_len")

    def work() -> bytes:
        data = gather(model, ids, prefix_len, False, False, parts, position, token, state.aside.step)
        return dumped(data | {"position": position % len(ids)})

    await exchange.send_bytes(await _aside(exchange, state, work), "application/json")


async def embeddings(exchange: Exchange) -> None:
    """``POST /v1/embeddings``."""
    state, body = exchange.state, await exchange.json()
    model = state.model_named(body.get("model"))
    given, form = body.get("input"), body.get("encoding_format") or "float"
    if given is None:
        raise ApiError(400, "input: is missing; wanted a text, a list of ids, or a list of either", param="input")
    if form not in ("float", "base64"):
        raise ApiError(400, f"encoding_format: got {shown(form)}; wanted float or base64", param="encoding_format")
    width = state.model.config.d_model
    if body.get("dimensions") not in (None, width):
        raise ApiError(400, f"dimensions: this model's vectors have {width}, and no others", param="dimensions")
    layer, pooling = body.get("layer"), body.get("pooling")
    pooling = "mean" if pooling is None else pooling
    try:
        texts = given if await exchange.prepare(lambda: is_batch(given)) else [given]
    except RefgptError as error:
        raise ApiError(400, f"input: {error.what}", param="input") from None
    if len(texts) > state.settings.max_prompts:
        most = state.settings.max_prompts
        raise ApiError(400, f"input: {len(texts)} texts are more than this server allows, {most}", param="input")
    special = flag_of(body, "parse_special", state.settings.parse_special)
    found = await state.ids_of(texts, special, "input")
    ids = [one or "" if isinstance(text, str) else one for text, one in zip(texts, found, strict=True)]
    n_tokens = sum(max(1, len(one)) for one in ids)

    def work() -> bytes:
        with telling_fault(fault_of(model)):
            encoded = embedding.encode_texts(ids, model.config, model.tokenizer)
        data: list[dict[str, Any]] = []
        for row in embedding.embeddings(model, encoded, -1 if layer is None else layer, pooling):
            data.append({"object": "embedding", "index": len(data), "embedding": _form(row, form)})
            state.aside.step()
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        name = state.check_model(body.get("model")) or state.names[0]
        return dumped({"object": "list", "data": data, "model": name, "usage": usage})

    answer = await _aside(exchange, state, work)
    exchange.state.metrics.prompt_tokens.add(n_tokens)
    await exchange.send_bytes(answer, "application/json")


def _form(row: np.ndarray, form: str) -> Any:
    little = row.astype("<f4")
    return b64encode(little.tobytes()).decode() if form == "base64" else little.tolist()


async def _aside(exchange: Exchange, state: State, work: Any) -> Any:
    """Run work beside the scheduler, until it is done or the client disconnects."""
    if (error := state.core.refusal) is not None:
        raise error
    try:
        async with exchange.watched():
            return await state.aside.do(work)
    except RefgptError as fault:
        raise refused(fault) from None
