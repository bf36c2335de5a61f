"""Requests in the form of OpenAI's completions and chat completions, as prompts and generation parameters.

The form is that of https://platform.openai.com/docs/api-reference/completions and ``.../chat``. Fields of
``GenerationParams`` that it lacks may be given under their own names: ``top_k``, ``min_p``, ``repetition_penalty``,
``ignore_eos`` and the others. ``json_schema``, ``regex`` and ``grammar`` give a constraint. Fields without a meaning
here are ignored, as other servers do; unsupported fields that would change the text are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from refgpt._common.arguments import flag, whole_number
from refgpt._common.errors import GenerationError
from refgpt._common.wording import shown
from refgpt.generation.chat_templates import ChatTemplate
from refgpt.generation.constraint import Constraint, grammar, json_schema, regex
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import Prompt, is_batch

#: OpenAI's names, and the names in ``GenerationParams``.
RENAMED = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
#: Fields that give a constraint, and the functions that make it.
CONSTRAINTS: Mapping[str, Callable[[Any], Constraint]] = {
    "json_schema": json_schema,
    "regex": regex,
    "grammar": grammar,
}
#: Fields of ``GenerationParams`` that are Python objects, which no request can carry.
OBJECTS = {"logits_processor", "stopping_criteria", "constraint"}
#: Fields of ``GenerationParams`` that a request can have, and constraints.
FIELDS = (*(field.name for field in fields(GenerationParams) if field.name not in OBJECTS), *CONSTRAINTS)
#: Unsupported fields that would change the answer, and the values that are accepted because they change nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
}
#: Values with which clients of llama.cpp, vLLM and KoboldCpp turn a filter off, or let a penalty see all of the text,
#: and those of ``GenerationParams`` for it.
OFF: Mapping[str, tuple[tuple[int, ...], Any]] = {
    "top_k": ((-1,), 0),
    "typical_p": ((0,), None),
    "repeat_last_n": ((0, -1), None),
}
#: Most tokens of a completion by default.
DEFAULT_TOKENS = 16


@dataclass(frozen=True)
class CompletionRequest:
    """A parsed request.

    Attributes
    ----------
    chat : bool
        Whether it is a chat completion.
    prompts : tuple of (str or list of int)
        A chat has one.
    params : GenerationParams
        The same for all of them.
    n : int
        How many continuations of each prompt are returned. With ``best_of``, ``params`` asks for more, and the
        likeliest are returned.
    logprobs : int or None
        How many likely tokens are returned beside each; None for no log-probabilities. ``params`` may ask for more, to
        find the likeliest texts.
    model : str or None
        The model's name.
    echo : bool
        Whether the prompt is part of the text.
    stream, include_usage : bool
        Whether text is sent as it is generated, and whether the numbers of tokens follow at the end.
    """

    chat: bool
    prompts: tuple[Prompt, ...]
    params: GenerationParams
    n: int = 1
    logprobs: int | None = None
    model: str | None = None
    echo: bool = False
    stream: bool = False
    include_usage: bool = False


def parse_completion(body: Mapping[str, Any], **defaults: Any) -> CompletionRequest:
    """Parse a body of ``/v1/completions``.

    Parameters
    ----------
    body : mapping
        The parsed JSON. A field that is null counts as absent.
    **defaults
        Fields of ``GenerationParams`` that are used if the body lacks them. Without them OpenAI's defaults hold:
        ``max_new_tokens`` is 16.

    Raises
    ------
    GenerationError
        Its ``where`` is the field's name in the body.
    """
    given = _given(body)
    prompt = given.pop("prompt", None)
    if prompt is None:
        raise GenerationError("is missing", where="prompt", wanted="a text, a list of ids, or a list of either")
    several = is_batch(prompt)
    return CompletionRequest(
        chat=False,
        prompts=tuple(prompt) if several else (prompt,),
        echo=flag("echo", given.pop("echo", False), GenerationError),
        **_common(given, GenerationParams(**{"max_new_tokens": DEFAULT_TOKENS, **defaults})),
    )


def parse_chat(body: Mapping[str, Any], template: ChatTemplate, n_ctx: int, **defaults: Any) -> CompletionRequest:
    """Parse a body of ``/v1/chat/completions``; its messages become one prompt.

    Parameters
    ----------
    template : ChatTemplate
        The format of the prompt. Its stop strings also end the text.
    n_ctx : int
        The model's context, which limits the answer if the request does not.

    Other parameters and errors are those of ``parse_completion``.
    """
    given = _given(body)
    prompt = template.prompt_of(given.pop("messages", None))
    wanted = flag("logprobs", given.pop("logprobs", False), GenerationError)
    n_top = whole_number("top_logprobs", given.pop("top_logprobs", 0), 0, None, GenerationError)
    if n_top and not wanted:
        raise GenerationError("needs logprobs", where="top_logprobs", got=n_top, fix="set logprobs to true")
    if wanted:
        given["logprobs"] = n_top
    asked = _common(given, GenerationParams(**{"max_new_tokens": n_ctx, **defaults}))
    asked["params"] = replace(asked["params"], stop=(*template.stop, *asked["params"].stops))
    return CompletionRequest(chat=True, prompts=(prompt,), **asked)


def params_of(given: Mapping[str, Any], base: GenerationParams) -> GenerationParams:
    """Change generation parameters by the fields of a JSON object; fields that name no parameter are ignored.

    Raises
    ------
    GenerationError
        Its ``where`` is the field's name in the object.
    """
    changes: dict[str, Any] = {}
    names: dict[str, str] = {"num_return_sequences": "n"}
    for name, value in given.items():
        field = RENAMED.get(name, name)
        if value is None or field not in FIELDS:
            continue
        values, off = OFF.get(field, ((), None))
        if type(value) in (int, float) and value in values:
            value = off
        if field in CONSTRAINTS:
            if "constraint" in changes:
                raise GenerationError("a text has one constraint", where=name, fix="leave out the others")
            field, value = "constraint", _constraint(name, value)
        changes[field], names[field] = value, name
    if "logit_bias" in changes:
        changes["logit_bias"] = _logit_bias(changes["logit_bias"])
    if isinstance(seed := changes.get("seed"), int) and seed < 0:  # OpenAI's are of 64 bits, with a sign
        changes["seed"] = seed % (1 << 64)
    try:
        return GenerationParams.of(base, changes)
    except GenerationError as error:
        where = names.get(str(error.where), error.where)
        raise GenerationError(error.what, where=where, got=error.got, wanted=error.wanted, fix=error.fix) from None


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not null, once the unsupported ones among them are checked."""
    if not isinstance(body, Mapping):
        raise GenerationError("cannot be used", where="body", got=shown(body), wanted="an object")
    given = {name: value for name, value in body.items() if value is not None}
    for name, allowed in REFUSED.items():
        if name in given and given[name] not in allowed:
            raise GenerationError("is not supported", where=name, got=shown(given[name]), fix="leave it out")
    return given


def _common(given: Mapping[str, Any], base: GenerationParams) -> dict[str, Any]:
    """Parse the fields that completions and chat completions share."""
    own = {**given, "best_of": None, **_response_format(given.get("response_format"))}
    params, model, options = params_of(own, base), given.get("model"), given.get("stream_options", {})
    n, logprobs = params.num_return_sequences, params.n_alternatives
    best_of = whole_number("best_of", given.get("best_of", n), n, None, GenerationError)
    if best_of > n:
        params = replace(params, num_return_sequences=best_of, logprobs=logprobs or 0)
    if not isinstance(model, str | None):
        raise GenerationError("cannot be used", where="model", got=shown(model), wanted="a name")
    if not isinstance(options, Mapping):
        raise GenerationError("cannot be used", where="stream_options", got=shown(options), wanted="an object")
    usage = options.get("include_usage")
    return {
        "params": params,
        "n": n,
        "logprobs": logprobs,
        "model": model,
        "stream": flag("stream", given.get("stream", False), GenerationError),
        "include_usage": flag("stream_options.include_usage", False if usage is None else usage, GenerationError),
    }


def _response_format(given: Any) -> dict[str, Any]:
    """The constraint that ``response_format`` asks for, if any."""
    if given is None or given == {"type": "text"}:
        return {}
    if given == {"type": "json_object"}:
        return {"json_schema": {"type": "object"}}
    try:
        if given["type"] == "json_schema":
            return {"json_schema": given["json_schema"]["schema"]}
    except (TypeError, KeyError):
        pass
    wanted = "an object whose type is text, json_object, or json_schema with a schema under json_schema"
    raise GenerationError("cannot be used", where="response_format", got=shown(given), wanted=wanted)


def _constraint(name: str, given: Any) -> Constraint:
    try:
        return CONSTRAINTS[name](given)
    except GenerationError as error:
        raise GenerationError(error.what, where=name, got=error.got, wanted=error.wanted, fix=error.fix) from None


def _logit_bias(given: Any) -> dict[int, float]:
    """JSON's keys are texts."""
    try:
        return {int(token): bias for token, bias in given.items()}
    except (AttributeError, ValueError):
        raise GenerationError(
            "cannot be used", where="logit_bias", got=shown(given), wanted="an object from ids to numbers"
        ) from None
