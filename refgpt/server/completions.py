"""``/v1/completions`` and ``/v1/chat/completions``, OpenAI's interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import time
from typing import Any
from uuid import uuid4

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.generation.chat_templates import chat_template
from refgpt.generation.openai import CompletionRequest, parse_chat, parse_completion
from refgpt.server.constraints import constraint_of
from refgpt.server.errors import ApiError, ClientGone, failed, openai_form, refused
from refgpt.server.exchange import Exchange, dumped
from refgpt.server.fields import flag_of
from refgpt.server.state import State
from refgpt.server.texts import Entries, Piece, PromptText, TextWriter
from refgpt.tokenizers import Tokenizer

#: Default number of new tokens of a chat completion.
CHAT_TOKENS = 512
#: Values of the field ``mask``, which OpenAI's interface lacks.
MASKS = ("causal", "prefix")


async def completions(exchange: Exchange) -> None:
    """``POST /v1/completions``."""
    state, body = exchange.state, await exchange.json()
    adapter = state.check_model(body.get("model"))
    scores_alone = type(body.get("max_tokens")) is int and body["max_tokens"] == 0
    if scores_alone:
        body = {**body, "max_tokens": 1}
    constraint, body = await constraint_of(state.model, body)
    defaults = {"speculate": state.settings.speculate, "constraint": constraint, "adapter": adapter}
    try:
        request = await exchange.prepare(lambda: parse_completion(body, **defaults))
    except RefgptError as error:
        raise refused(error) from None
    await _answer(exchange, await _work(state, body, request, go_on=not scores_alone))


async def chat_completions(exchange: Exchange) -> None:
    """``POST /v1/chat/completions``."""
    state, body = exchange.state, await exchange.json()
    adapter = state.check_model(body.get("model"))
    settings, n_ctx = state.settings, state.model.config.n_ctx
    constraint, body = await constraint_of(state.model, body)
    defaults = {"max_new_tokens": CHAT_TOKENS, "speculate": settings.speculate, "constraint": constraint}
    defaults["adapter"] = adapter
    try:
        template = chat_template(settings.template, settings.character, settings.persona)
        request = await exchange.prepare(lambda: parse_chat(body, template, n_ctx, **defaults))
    except RefgptError as error:
        raise refused(error) from None
    await _answer(exchange, await _work(state, body, request, go_on=True))


@dataclass(eq=False)
class Work:
    """A checked request.

    Attributes
    ----------
    prompts : list of PromptText
    go_on : bool
        Whether to generate text after the prompts.
    """

    request: CompletionRequest
    prompts: list[PromptText]
    go_on: bool
    mask: str | None
    id: str
    created: int

    @property
    def n_texts(self) -> int:
        """Number of texts that are generated for each prompt."""
        return self.request.params.num_return_sequences if self.go_on else 1

    @property
    def scored(self) -> bool:
        """Whether the prompts' own log-probabilities are wanted."""
        return self.request.echo and self.request.logprobs is not None

    def n_entries(self, piece: Piece) -> int:
        """Number of log-probabilities in a piece of the answer."""
        return 0 if piece.entries is None else len(piece.entries.ids) * (1 + (self.request.logprobs or 0))

    def usage(self, writers: Mapping[tuple[int, int], TextWriter]) -> dict[str, int]:
        """Tokens read and written."""
        n_read = sum(len(prompt.ids) for prompt in self.prompts)
        n_written = sum(writer.n_tokens for writer in writers.values())
        return {"prompt_tokens": n_read, "completion_tokens": n_written, "total_tokens": n_read + n_written}


async def _work(state: State, body: Mapping[str, Any], request: CompletionRequest, go_on: bool) -> Work:
    """Check and encode a request."""
    special = flag_of(body, "parse_special", state.settings.parse_special)
    mask = body.get("mask")
    if mask is not None and mask not in MASKS:
        raise ApiError(400, f"mask: cannot be used; got {shown(mask)}; wanted one of {', '.join(MASKS)}", param="mask")
    if request.stream and request.n < request.params.num_return_sequences:
        raise ApiError(400, "best_of: cannot be combined with stream", param="best_of")
    request = replace(request, params=state.limited(request.params))
    name = "messages" if request.chat else "prompt"
    ids = await state.encode(request.prompts, request.params, special, name, go_on)
    tokenizer = state.model.tokenizer
    prompts = [PromptText(prompt, one, tokenizer) for prompt, one in zip(request.prompts, ids, strict=True)]
    kind = "chatcmpl" if request.chat else "cmpl"
    return Work(request, prompts, go_on, mask, f"{kind}-{uuid4().hex}", int(time()))


async def _answer(exchange: Exchange, work: Work) -> None:
    """Run a request and send its answer."""
    state, request = exchange.state, work.request
    tokenizer = state.model.tokenizer
    logprobs = request.logprobs is not None
    shown = request.echo or logprobs or state.settings.log_prompts  # whether the prompt's text is needed

    def new_writers() -> dict[tuple[int, int], TextWriter]:
        for prompt in work.prompts:
            if shown:
                prompt.decode()
        return {
            (place, index): TextWriter(prompt, tokenizer, request.echo, logprobs)
            for place, prompt in enumerate(work.prompts)
            for index in range(work.n_texts)
        }

    n_read = sum(len(prompt.ids) for prompt in work.prompts) * work.n_texts
    writers = await state.do(new_writers, n_read if shown else 0)
    exchange.note |= {"prompts": len(work.prompts), "stream": request.stream}
    if request.params.adapter is not None:
        exchange.note["adapter"] = request.params.adapter
    if state.settings.log_prompts:
        exchange.note["prompt"] = [prompt.text for prompt in work.prompts]
    try:
        if not work.go_on and not work.scored:
            await _echo_alone(exchange, work, writers)
            return
        job = state.core.submit(
            [prompt.ids for prompt in work.prompts], request.params, work.scored, work.go_on, work.mask
        )
        async with exchange.watched(job):
            await job.until_accepted()
            if request.stream:
                await _stream(exchange, work, writers, job.events())
            else:
                await _whole(exchange, work, writers, job.events())
    finally:
        exchange.note |= work.usage(writers)


async def _echo_alone(exchange: Exchange, work: Work, writers: Mapping[tuple[int, int], TextWriter]) -> None:
    """Answer a request without new tokens and scores, which needs no pass of the model."""
    tokenizer = exchange.state.model.tokenizer
    entries = Entries() if work.request.logprobs is not None else None
    choices = [
        _text_choice(index, prompt.text if work.request.echo else "", entries, "length", tokenizer)
        for index, prompt in enumerate(work.prompts)
    ]
    if work.request.stream:
        await exchange.start_stream()
        for choice in choices:
            await exchange.send_event(_head(exchange.state, work, chunk=True) | {"choices": [choice]})
        await _end_stream(exchange, work, writers)
    else:
        head = _head(exchange.state, work, chunk=False)
        await exchange.send_json({**head, "choices": choices, "usage": work.usage(writers)})


async def _whole(exchange: Exchange, work: Work, writers: Mapping[tuple[int, int], TextWriter], events: Any) -> None:
    """Answer when all texts are finished."""
    tokenizer, request = exchange.state.model.tokenizer, work.request
    texts = {key: Piece("", Entries() if request.logprobs is not None else None, None) for key in writers}
    async for some in events:
        for place, event in some:
            piece, text = writers[place, event.index].take(event), texts[place, event.index]
            text.text += piece.text
            text.finish_reason = piece.finish_reason or text.finish_reason
            if text.entries is not None and piece.entries is not None:
                text.entries.extend(piece.entries)
    if exchange.state.settings.log_prompts:
        exchange.note["text"] = [text.text for text in texts.values()]
    head = _head(exchange.state, work, chunk=False)

    def body() -> dict[str, Any]:
        return {**head, "choices": _choices(work, writers, texts, tokenizer), "usage": work.usage(writers)}

    await exchange.send_made(body, sum(work.n_entries(text) for text in texts.values()))


def _choices(
    work: Work,
    writers: Mapping[tuple[int, int], TextWriter],
    texts: Mapping[tuple[int, int], Piece],
    tokenizer: Tokenizer | None,
) -> list[dict[str, Any]]:
    """The choices of a whole answer."""
    request = work.request
    choices: list[dict[str, Any]] = []
    for place in range(len(work.prompts)):
        keys = [(place, index) for index in range(work.n_texts)]
        if request.n < len(keys):  # the likeliest, by the mean of their tokens
            keys.sort(key=lambda key: -writers[key].total / max(1, writers[key].n_tokens))
        for key in keys[: request.n]:
            text = texts[key]
            if request.chat:
                logprobs = text.entries and text.entries.chat_form(tokenizer)
                message = {"role": "assistant", "content": text.text.strip(), "refusal": None}
                choice = {"index": len(choices), "message": message, "logprobs": logprobs}
                choices.append({**choice, "finish_reason": text.finish_reason})
            else:
                choices.append(_text_choice(len(choices), text.text, text.entries, text.finish_reason, tokenizer))
    return choices


async def _stream(exchange: Exchange, work: Work, writers: Mapping[tuple[int, int], TextWriter], events: Any) -> None:
    """Stream the answer piece by piece. An error after the first piece is sent as an event."""
    request, head = work.request, _head(exchange.state, work, chunk=True)
    extra = {"usage": None} if request.include_usage else {}
    forms = {key: _ChatPieces() if request.chat else None for key in writers}
    await exchange.start_stream()
    try:
        if request.chat:
            for place, index in writers:
                delta = {"role": "assistant", "content": "", "refusal": None}
                await exchange.send_event(
                    {**head, "choices": [_delta(place * work.n_texts + index, delta, None, None)], **extra}
                )
        async for some in events:
            for place, event in some:
                piece, index = writers[place, event.index].take(event), place * work.n_texts + event.index
                made = partial(_chunk, exchange.state, index, piece, forms[place, event.index], head | extra)
                chunk = await exchange.state.do(made, work.n_entries(piece))
                if chunk is not None:
                    await exchange.send_event(chunk)
        await _end_stream(exchange, work, writers)
    except ClientGone:
        raise
    except Exception as error:
        told = failed(error)
        exchange.note["error"] = told.code or told.kind
        await exchange.send_event(openai_form(told))
        await exchange.send_event("[DONE]")
        await exchange.end_stream()
        if not isinstance(error, ApiError):
            raise


async def _end_stream(exchange: Exchange, work: Work, writers: Mapping[tuple[int, int], TextWriter]) -> None:
    if work.request.include_usage:
        head = _head(exchange.state, work, chunk=True)
        await exchange.send_event({**head, "choices": [], "usage": work.usage(writers)})
    await exchange.send_event("[DONE]")
    await exchange.end_stream()


class _ChatPieces:
    """The pieces of an answer without the white space around it."""

    def __init__(self) -> None:
        self._begun, self._blank = False, ""

    def push(self, text: str) -> str:
        """Return the part of a piece that can be sent already."""
        text = self._blank + text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        certain = text.rstrip()
        self._blank = text[len(certain) :]
        return certain


def _chunk(state: State, index: int, piece: Piece, chat: _ChatPieces | None, head: Mapping[str, Any]) -> bytes | None:
    """A chunk as JSON; None if it would be empty."""
    choice = _piece_choice(state, index, piece, chat)
    return None if choice is None else dumped({**head, "choices": [choice]})


def _piece_choice(state: State, index: int, piece: Piece, chat: _ChatPieces | None) -> dict[str, Any] | None:
    tokenizer = state.model.tokenizer
    if chat is None:
        if not piece.text and piece.finish_reason is None and (piece.entries is None or not piece.entries.ids):
            return None
        return _text_choice(index, piece.text, piece.entries, piece.finish_reason, tokenizer)
    text = chat.push(piece.text)
    logprobs = piece.entries and piece.entries.chat_form(tokenizer)
    if not text and piece.finish_reason is None and (piece.entries is None or not piece.entries.ids):
        return None
    delta = {"content": text} if text or piece.finish_reason is None else {}
    return _delta(index, delta, logprobs, piece.finish_reason)


def _text_choice(
    index: int, text: str, entries: Entries | None, finish_reason: str | None, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    logprobs = entries and entries.completion_form(tokenizer)
    choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
    return choice if entries is None else {**choice, "token_ids": entries.ids}


def _delta(index: int, delta: Mapping[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _head(state: State, work: Work, chunk: bool) -> dict[str, Any]:
    """The first fields of every object of an answer."""
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if work.request.chat else "text_completion"
    name = work.request.params.adapter or state.names[0]
    return {"id": work.id, "object": kind, "created": work.created, "model": name}
