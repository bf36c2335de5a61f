"""Requests of a batch: parse a line in the short form or in OpenAI's, and build its record.

The short form is ``{"prompt": ..., "id": ..., "max_new_tokens": ...}`` with any field of ``GenerationParams``, or with
"messages" in place of the prompt; "metadata" goes to the record as it is. OpenAI's form is that of its batch files
(https://platform.openai.com/docs/guides/batch): ``custom_id``, ``method``, ``url`` and ``body``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.wording import did_you_mean, listed, shown
from refgpt.batches.lines import Line
from refgpt.generation.chat_templates import TEMPLATES, ChatTemplate
from refgpt.generation.openai import (
    FIELDS,
    RENAMED,
    CompletionRequest,
    params_of,
    parse_chat,
    parse_completion,
)
from refgpt.generation.openai_answers import completion_body, error_body
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import Prompt, fault_of, telling_fault
from refgpt.generation.results import Generation
from refgpt.generation.sequence import Generates, with_named_adapter
from refgpt.tracing.embedding import embed, encode_texts

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
#: Fields of the short form that are no parameters.
OWN_FIELDS = ("prompt", "messages", "id", "metadata")
#: All fields of the short form.
SHORT_FIELDS = (*OWN_FIELDS, *FIELDS, *RENAMED)


@dataclass(frozen=True)
class Settings:
    """What holds for all requests of a batch.

    Attributes
    ----------
    params : GenerationParams
        Defaults of requests in the short form. Requests in OpenAI's form have OpenAI's defaults.
    template : ChatTemplate
        The prompt format of messages.
    n_ctx : int
        The model's context.
    model : str
        The model's name in answers in OpenAI's form to requests that do not name it.
    batch : str
        The beginning of this batch's identifiers.
    adapters : collection of str
        The model's adapters, which a request in OpenAI's form chooses as its model.
    """

    n_ctx: int
    params: GenerationParams = field(default_factory=GenerationParams)
    template: ChatTemplate = TEMPLATES["base"]
    model: str = "refgpt"
    batch: str = "0"
    adapters: Collection[str] = ()


class Request(ABC):
    """A request of a batch.

    Attributes
    ----------
    prompts : sequence of (str or list of int)
        The prompts to continue; empty if the request cannot be used, or does not ask for text.
    params : GenerationParams
    error : RefgptError or None
        Why it cannot be used.
    """

    prompts: Sequence[Prompt] = ()
    params: GenerationParams
    error: RefgptError | None = None

    @abstractmethod
    def record(self, results: Sequence[Sequence[Generation]], model: Generates) -> dict[str, Any]:
        """The record of a successful request, given the continuations of each prompt."""

    @abstractmethod
    def refusal(self, error: RefgptError) -> dict[str, Any]:
        """The record of a failed request."""


def request_of(line: Line, settings: Settings) -> Request:
    """The request that a line of a file makes."""
    if "custom_id" in line.content or {"url", "body"} <= line.content.keys():
        return OpenAIRequest(line, settings)
    return ShortRequest(line, settings)


class ShortRequest(Request):
    """A request in the short form. Its record has the "id", that of the line or the line's number."""

    def __init__(self, line: Line, settings: Settings) -> None:
        content = line.content
        self._kept = {"id": content.get("id", line.number)}
        if "metadata" in content:
            self._kept["metadata"] = content["metadata"]
        self._chat = "messages" in content
        try:
            if line.error is not None:
                raise line.error
            self.params = _own_params(content, settings.params)
            self.prompts = [_own_prompt(content, settings.template)]
            if self._chat:
                stops = {"stop": (*settings.template.stop, *self.params.stops)}
                self.params = GenerationParams.of(self.params, stops)
        except RefgptError as error:
            self.error, self.prompts = error, ()

    def record(self, results: Sequence[Sequence[Generation]], model: Generates) -> dict[str, Any]:
        """See ``Request.record``."""
        (texts,) = results
        choices = [self._choice(text) for text in texts]
        found = choices[0] if self.params.num_return_sequences == 1 else {"choices": choices}
        return {**self._kept, "n_prompt": texts[0].n_prompt, **found}

    def _choice(self, one: Generation) -> dict[str, Any]:
        text = one.text.strip() if self._chat else one.text
        choice = {"text": text, "finish_reason": one.finish_reason, "n_new": len(one.ids)}
        if one.score is not None:
            choice["score"] = one.score
        if one.logprobs is not None:
            choice |= {"ids": one.ids, "logprobs": one.logprobs}
        if one.top_logprobs is not None and any(one.top_logprobs):
            choice["top_logprobs"] = [{str(i): logprob for i, logprob in top.items()} for top in one.top_logprobs]
        return choice

    def refusal(self, error: RefgptError) -> dict[str, Any]:
        """See ``Request.refusal``."""
        return {**self._kept, "error": str(error)}


class OpenAIRequest(Request):
    """A request in OpenAI's form. An answer has status 200; one that the endpoint refuses has status 400."""

    def __init__(self, line: Line, settings: Settings) -> None:
        content = line.content
        self._id, self._settings = f"{settings.batch}{line.number}", settings
        self._custom_id = content.get("custom_id")
        self._url, self._body = content.get("url"), dict[str, Any]()
        self._asked: CompletionRequest | None = None
        self._reached = False
        try:
            self._check_envelope(content)
            self._reached = True
            if self._body.get("adapter") is None and self._body.get("model") in self._settings.adapters:
                self._body = {**self._body, "adapter": self._body["model"]}
            if self._body.get("stream"):
                raise GenerationError("a batch has no streams", where="stream", fix="leave it out")
            if self._url == COMPLETIONS:
                self._asked = parse_completion(self._body)
            elif self._url == CHAT:
                self._asked = parse_chat(self._body, settings.template, settings.n_ctx)
            if self._asked is not None:
                self.prompts, self.params = self._asked.prompts, self._asked.params
        except RefgptError as error:
            self.error, self.prompts = error, ()

    def record(self, results: Sequence[Sequence[Generation]], model: Generates) -> dict[str, Any]:
        """See ``Request.record``."""
        name = self._body.get("model") or self._settings.model
        if self._asked is None:
            chosen = with_named_adapter(model, self._body.get("adapter"))
            return self._answer(200, embeddings_body(self._body, chosen, name))
        kind = "chatcmpl" if self._asked.chat else "cmpl"
        created = int(time.time())
        return self._answer(
            200, completion_body(self._asked, results, model.tokenizer, f"{kind}-{self._id}", created, name)
        )

    def refusal(self, error: RefgptError) -> dict[str, Any]:
        """See ``Request.refusal``."""
        if self._reached:
            return self._answer(400, {"error": error_body(error)})
        return {**self._answer(400, None), "response": None, "error": {"code": "bad_line", "message": str(error)}}

    def _answer(self, status: int, body: Any) -> dict[str, Any]:
        response = {"status_code": status, "request_id": f"req_{self._id}", "body": body}
        return {"id": f"batch_req_{self._id}", "custom_id": self._custom_id, "response": response, "error": None}

    def _check_envelope(self, content: Mapping[str, Any]) -> None:
        if not isinstance(self._custom_id, str):
            raise GenerationError("cannot be used", where="custom_id", got=shown(self._custom_id), wanted="a text")
        if content.get("method", "POST") != "POST":
            raise GenerationError("cannot be used", where="method", got=shown(content["method"]), wanted="POST")
        urls = (COMPLETIONS, CHAT, EMBEDDINGS)
        if self._url not in urls:
            raise GenerationError("cannot be used", where="url", got=shown(self._url), wanted=listed(urls))
        if not isinstance(content.get("body"), dict):
            raise GenerationError("cannot be used", where="body", got=shown(content.get("body")), wanted="an object")
        self._body = content["body"]


def embeddings_body(body: Mapping[str, Any], model: Generates, name: str) -> dict[str, Any]:
    """The answer of ``/v1/embeddings``: the mean of the last hidden states of each text.

    Raises
    ------
    GenerationError
        With the body's own name of a field as its ``where``.
    """
    given = body.get("input")
    if given is None:
        raise GenerationError("is missing", where="input", wanted="a text, a list of ids, or a list of either")
    if body.get("encoding_format", "float") != "float":
        raise GenerationError("cannot be used", where="encoding_format", got=shown(body["encoding_format"]))
    one = isinstance(given, str) or (isinstance(given, list) and all(isinstance(i, int) for i in given))
    try:
        with telling_fault(fault_of(model)):
            encoded = encode_texts([given] if one else given, model.engine.config, model.tokenizer)
    except GenerationError as error:
        raise GenerationError(error.what, where="input", got=error.got, wanted=error.wanted, fix=error.fix) from None
    vectors = embed(model, encoded)
    n_tokens = sum(map(len, encoded))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector.tolist()} for i, vector in enumerate(vectors)],
        "model": name,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def _own_params(content: Mapping[str, Any], base: GenerationParams) -> GenerationParams:
    """The parameters of a request in the short form."""
    for name in content:
        if name not in SHORT_FIELDS:
            hint = did_you_mean(name, SHORT_FIELDS)
            raise GenerationError(
                f"there is no such field{hint}", where=name, fix="put what only the record is to have under metadata"
            )
    return params_of(content, base)


def _own_prompt(content: Mapping[str, Any], template: ChatTemplate) -> Prompt:
    """The prompt of a request in the short form."""
    if ("prompt" in content) == ("messages" in content):
        raise GenerationError("needs one of the two, and not both", where="prompt, messages")
    if "messages" in content:
        return template.prompt_of(content["messages"])
    prompt = content["prompt"]
    whole = isinstance(prompt, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt)
    if not (isinstance(prompt, str) or whole):
        raise GenerationError("cannot be used", where="prompt", got=shown(prompt), wanted="a text or a list of ids")
    return prompt
