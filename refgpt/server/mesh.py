"""The first interfaces to GPT-J: those of Mesh Transformer JAX and of its public demonstration, and a widely used later
one, each with its own names and defaults. Numbers may be sent as strings, as some of their clients do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any
from urllib.parse import parse_qsl

from refgpt._common.wording import shown
from refgpt.generation.params import GenerationParams
from refgpt.server import fields, plain
from refgpt.server.errors import ApiError
from refgpt.server.exchange import Exchange
from refgpt.server.jobs import Job
from refgpt.server.plain import finished_texts
from refgpt.server.state import State

#: Most new tokens of a text, and their number in an interface that fixes it.
MOST_TOKENS, FIXED_TOKENS = 2048, 512
NAMES = {"temperature": "temp", "max_new_tokens": "response_length"}


async def complete(exchange: Exchange) -> None:
    """``POST /complete`` {context, top_p, temp} -> {completion}: ``device_serve.py``."""
    body = await exchange.json()
    params = _params(exchange.state, body, NAMES, 1.0, 0.9, fields.whole(body, "length", FIXED_TOKENS, 1, MOST_TOKENS))
    await exchange.send_json({"completion": await _text(exchange, fields.text(body, "context"), params)})


async def completion(exchange: Exchange) -> None:
    """``POST /completion`` {context, top_p, temp, response_length, remove_input} -> [{generated_text}]."""
    body = await exchange.json()
    context = fields.text(body, "context")
    params = _params(exchange.state, body, NAMES, 0.8, 0.9, fields.whole(body, "response_length", 128, 1, MOST_TOKENS))
    removes = body.get("remove_input")
    if removes not in (None, True, False, "true", "false", "1", "0"):
        raise ApiError(400, f"remove_input: got {shown(removes)}; wanted true or false", param="remove_input")
    text = await _text(exchange, context, params)
    await exchange.send_json([{"generated_text": text if removes in (True, "true", "1") else context + text}])


async def generate(exchange: Exchange) -> None:
    """``POST /generate?context=&token_max_length=&temperature=&top_p=&stop_sequence=``."""
    try:
        query = parse_qsl(exchange.scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:  # bytes that are no text
        raise ApiError(400, "the query is not UTF-8 text") from None
    given = dict(query)
    context, stop = fields.text(given, "context"), given.get("stop_sequence") or None
    n = fields.whole(given, "token_max_length", FIXED_TOKENS, 1, MOST_TOKENS)
    names = {"max_new_tokens": "token_max_length", "stop": "stop_sequence"}
    params = _params(exchange.state, given, names, 1.0, 0.9, n, "temperature", stop)
    began = perf_counter()
    text = await _text(exchange, context, params)
    await exchange.send_json(
        {
            "model": exchange.state.names[0],
            "compute_time": perf_counter() - began,
            "text": text if stop is None else text + stop,
            "prompt": context,
            "token_max_length": n,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "stop_sequence": stop,
        }
    )


async def predict(exchange: Exchange) -> None:
    """``POST /model/predict`` {context, temp, top_p, top_k, length} -> {qid}: the text is written meanwhile."""
    state, body = exchange.state, await exchange.json()
    context = fields.text(body, "context")
    params = _params(state, body, NAMES, 1.0, 0.9, fields.whole(body, "length", 256, 1, MOST_TOKENS), top_k=50)
    state.predictions.make_room(len(context))
    job = await _submit(state, context, params)
    await job.until_accepted()
    await exchange.send_json({"qid": state.predictions.add(_prediction(state, job, context), len(context))})


async def get_prediction(exchange: Exchange) -> None:
    """``POST /model/get_prediction`` {qid} -> {context, completion, time}, once it is written; only once."""
    state, body = exchange.state, await exchange.json()
    number = fields.whole(body, "qid", 0, 0, 1 << 53)
    task = state.predictions.get(number)
    if task is None:
        raise ApiError(404, f"qid: there is no prediction {number}", param="qid")
    try:
        async with exchange.watched():
            result = await asyncio.shield(task)
    finally:
        if task.done():
            state.predictions.forget(number)
    await exchange.send_json(result)


async def _prediction(state: State, job: Job, context: str) -> dict[str, Any]:
    began = perf_counter()
    timer = asyncio.get_running_loop().call_later(state.settings.timeout, job.end)
    try:
        (text,) = await finished_texts(job, state.model.tokenizer)
    finally:
        timer.cancel()
    return {"context": context, "completion": text.text, "time": perf_counter() - began}


def _params(
    state: State,
    given: Mapping[str, Any],
    names: Mapping[str, str],
    temperature: float,
    top_p: float,
    n_tokens: int,
    temperature_name: str = "temp",
    stop: str | None = None,
    top_k: int = 0,
) -> GenerationParams:
    """The parameters of a request, with its interface's defaults."""
    seed = fields.whole(given, "seed", -1, -1, 1 << 53)
    params = plain.params(
        names,
        max_new_tokens=n_tokens,
        temperature=fields.number(given, temperature_name, temperature),
        top_p=fields.number(given, "top_p", top_p),
        top_k=fields.whole(given, "top_k", top_k, 0, 1 << 30),
        seed=None if seed < 0 else seed,
        stop=stop,
        truncate="left",
        speculate=state.settings.speculate,
    )
    return state.limited(params, names)


async def _submit(state: State, context: str, params: GenerationParams) -> Job:
    ids = await state.encode([context], params, state.settings.parse_special, "context")
    return state.core.submit(ids, params)


async def _text(exchange: Exchange, context: str, params: GenerationParams) -> str:
    """What follows a context."""
    state = exchange.state
    if state.settings.log_prompts:
        exchange.note["prompt"] = context
    job = await _submit(state, context, params)
    async with exchange.watched(job):
        await job.until_accepted()
        (text,) = await finished_texts(job, state.model.tokenizer)
    exchange.note |= {"prompt_tokens": len(job.prompts[0]), "completion_tokens": len(text.ids)}
    return text.text
