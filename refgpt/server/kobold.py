"""KoboldAI's interface and the parts of KoboldCpp's that its clients call, SillyTavern among them.

The samplers that this engine lacks (``tfs``, ``top_a``, Mirostat, ``rep_pen_slope``) are ignored, as are all fields
that it does not know; ``sampler_order`` is checked, but the order of the samplers is this engine's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from refgpt._common.wording import shown
from refgpt.generation.params import GenerationParams
from refgpt.generation.sequence import ends_of
from refgpt.server import fields, plain
from refgpt.server.constraints import constraint_of
from refgpt.server.errors import ApiError, ClientGone, failed, kobold_form
from refgpt.server.exchange import Exchange
from refgpt.server.fields import flag_of
from refgpt.server.jobs import Job
from refgpt.server.plain import PlainText
from refgpt.server.state import State

#: Versions of the interfaces, by which clients tell what they may ask for: streams since KoboldCpp 1.30.
VERSION, CPP_VERSION = "1.2.5", "1.30"
#: Most new tokens and most texts of one request, and the default number of new tokens.
MOST_TOKENS, MOST_TEXTS, DEFAULT_TOKENS = 512, 5, 80
#: The engine's parameters, and their names in this interface.
NAMES = {
    "repetition_penalty": "rep_pen",
    "repeat_last_n": "rep_pen_range",
    "typical_p": "typical",
    "seed": "sampler_seed",
    "stop": "stop_sequence",
    "max_new_tokens": "max_length",
}
INVALID = 422
#: What stands for 0, which these clients send for the likeliest token alone.
LEAST_TOP_P = 1e-9


@dataclass(eq=False)
class Running:
    """A request that can be asked about and ended."""

    key: str
    client: str
    job: Job
    texts: list[PlainText]


async def generate(exchange: Exchange) -> None:
    """``POST /api/v1/generate``."""
    body = await exchange.json()
    running, trims = await _start(exchange, body)
    job = running.job
    try:
        async with exchange.watched(job):
            await job.until_accepted()
            async for some in job.events():
                for _, event in some:
                    running.texts[event.index].take(event)
            results = [
                {
                    "text": text.text + ("" if trims else text.stop),
                    "finish_reason": text.finish_reason,
                    "prompt_tokens": len(job.prompts[0]),
                    "completion_tokens": len(text.ids),
                }
                for text in running.texts
            ]
            await exchange.send_json({"results": results})
    finally:
        _over(exchange, running)


async def stream(exchange: Exchange) -> None:
    """``POST /api/extra/generate/stream``: the same, as server-sent events."""
    body = await exchange.json()
    running, trims = await _start(exchange, {**body, "n": 1})
    (text,) = running.texts
    try:
        async with exchange.watched(running.job):
            await running.job.until_accepted()
            await exchange.start_stream()
            try:
                async for some in running.job.events():
                    for _, event in some:
                        piece = text.take(event)
                        piece += "" if trims else text.stop
                        if piece or event.finish_reason is not None:
                            data = {"token": piece, "finish_reason": event.finish_reason}
                            await exchange.send_event(data, "message")
            except ApiError as error:
                exchange.note["error"] = error.code or error.kind
                await exchange.send_event({"error": kobold_form(failed(error))["detail"]}, "error")
            await exchange.end_stream()
    except ClientGone:
        exchange.note["left"] = True
        raise
    finally:
        _over(exchange, running)


async def check(exchange: Exchange) -> None:
    """``/api/extra/generate/check``: what has been written so far."""
    found = _found(exchange, await _optional_body(exchange))
    text = found[0].texts[0].text if found else ""
    await exchange.send_json({"results": [{"text": text}]})


async def abort(exchange: Exchange) -> None:
    """``POST /api/extra/abort``: end the request of this "genkey"; without one, those of this client without one."""
    found = _found(exchange, await _optional_body(exchange))
    for running in found:
        running.job.end()
    await exchange.send_json({"success": bool(found), "done": bool(found)})


async def token_count(exchange: Exchange) -> None:
    """``POST /api/extra/tokencount``."""
    text = fields.text(await exchange.json(), "prompt", INVALID)
    (ids,) = await exchange.state.ids_of([text], False)
    await exchange.send_made(lambda: {"value": len(ids), "ids": ids}, len(ids))


async def model(exchange: Exchange) -> None:
    """``GET /api/v1/model``."""
    await exchange.send_json({"result": exchange.state.names[0]})


async def version(exchange: Exchange) -> None:
    """``GET /api/v1/info/version``."""
    await exchange.send_json({"result": VERSION})


async def cpp_version(exchange: Exchange) -> None:
    """``GET /api/extra/version``: which of KoboldCpp's extras a client may use."""
    await exchange.send_json({"result": "KoboldCpp", "version": CPP_VERSION})


async def most_tokens(exchange: Exchange) -> None:
    """``GET /api/v1/config/max_length``."""
    await exchange.send_json({"value": MOST_TOKENS})


async def context(exchange: Exchange) -> None:
    """``GET /api/v1/config/max_context_length``."""
    await exchange.send_json({"value": exchange.state.model.config.n_ctx})


async def _start(exchange: Exchange, body: Mapping[str, Any]) -> tuple[Running, bool]:
    """Queue a request. -> it, and whether its stop string is left out"""
    state = exchange.state
    prompt = fields.text(body, "prompt", INVALID)
    grammar = body.get("grammar") or None
    constraint, _ = await constraint_of(state.model, {"grammar": grammar})
    params = await exchange.prepare(lambda: _params(state, body))
    params = state.limited(replace(params, constraint=constraint), NAMES)
    (ids,) = await state.encode([prompt], params, state.settings.parse_special)
    most = fields.whole(body, "max_context_length", state.model.config.n_ctx, 1, 1 << 30, INVALID)
    ids = ids[-max(1, most - params.max_new_tokens) :]
    if state.settings.log_prompts:
        exchange.note["prompt"] = prompt
    key, trims = body.get("genkey"), flag_of(body, "trim_stop", False)
    job = state.core.submit([ids], params)
    tokenizer = state.model.tokenizer
    texts = [PlainText(ids, params.stops, tokenizer) for _ in range(params.num_return_sequences)]
    running = Running(key if isinstance(key, str) else "", _client(exchange), job, texts)
    state.kobold.add(running)
    return running, trims


def _params(state: State, body: Mapping[str, Any]) -> GenerationParams:
    order = body.get("sampler_order")
    if order is not None and order != []:
        if not isinstance(order, list) or not all(type(one) is int for one in order):
            raise ApiError(
                INVALID, f"sampler_order: got {shown(order)}; wanted a list of numbers", param="sampler_order"
            )
        if sorted(order) not in (list(range(6)), list(range(7))):
            message = f"sampler_order: got {shown(order)}; wanted the numbers from 0 to 6, each once"
            raise ApiError(INVALID, message, param="sampler_order")
    stops = body.get("stop_sequence")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        message = f"stop_sequence: got {shown(stops)}; wanted a list of texts"
        raise ApiError(INVALID, message, param="stop_sequence")
    stops = [one for one in stops if one]  # clients send empty ones
    if flag_of(body, "singleline", False):
        stops.append("\n")
    seed = fields.whole(body, "sampler_seed", -1, -1, (1 << 53), INVALID)
    n_last = fields.whole(body, "rep_pen_range", 0, 0, 1 << 30, INVALID)
    bans_end = flag_of(body, "use_default_badwordsids", False) or flag_of(body, "ban_eos_token", False)
    typical = fields.number(body, "typical", 1.0, INVALID)
    ends = sorted(ends_of(state.model, GenerationParams())) if bans_end else None
    return plain.params(
        NAMES,
        INVALID,
        max_new_tokens=fields.whole(body, "max_length", DEFAULT_TOKENS, 1, MOST_TOKENS, INVALID),
        num_return_sequences=fields.whole(body, "n", 1, 1, MOST_TEXTS, INVALID),
        temperature=fields.number(body, "temperature", 0.5, INVALID),
        top_k=fields.whole(body, "top_k", 0, 0, 1 << 30, INVALID),
        top_p=fields.number(body, "top_p", 0.9, INVALID) or LEAST_TOP_P,
        min_p=fields.number(body, "min_p", 0.0, INVALID),
        typical_p=None if typical in (0, 1) else typical,
        repetition_penalty=max(1e-3, fields.number(body, "rep_pen", 1.1, INVALID)),
        repeat_last_n=n_last or None,
        seed=None if seed < 0 else seed,
        stop=stops,
        suppress_tokens=ends,
        truncate="left",
        speculate=state.settings.speculate,
    )


async def _optional_body(exchange: Exchange) -> dict[str, Any]:
    body = await exchange.body()
    return await exchange.parsed(body) if body.strip() else {}


def _found(exchange: Exchange, body: Mapping[str, Any]) -> list[Running]:
    """The running requests that a client refers to."""
    key = body.get("genkey") or ""
    mine = [running for running in exchange.state.kobold if running.key == key]
    return mine if key else [running for running in mine if running.client == _client(exchange)]


def _client(exchange: Exchange) -> str:
    client = exchange.scope.get("client")
    return str(client[0]) if client else ""


def _over(exchange: Exchange, running: Running) -> None:
    exchange.state.kobold.discard(running)
    n_written = sum(len(text.ids) for text in running.texts)
    exchange.note |= {"prompt_tokens": len(running.job.prompts[0]), "completion_tokens": n_written}
