"""Fields of a request that constrain its text: ``json_schema``, ``regex``, ``grammar``, ``response_format``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt._model import Model
from refgpt.generation.constraint import Constraint, grammar, json_schema, regex
from refgpt.generation.matching import ConstraintMatcher
from refgpt.generation.params import GenerationParams
from refgpt.generation.sequence import ends_of
from refgpt.server.errors import ApiError

MAKERS: dict[str, Callable[[Any], Constraint]] = {"json_schema": json_schema, "regex": regex, "grammar": grammar}


async def constraint_of(model: Model, body: Mapping[str, Any]) -> tuple[Constraint | None, dict[str, Any]]:
    """The constraint of a request, and the body without the fields that define it.

    Compiling a constraint takes time, so it is done in a separate thread before the scheduler gets the request.

    Raises
    ------
    ApiError
        Naming the field that cannot be used.
    """
    rest = {name: value for name, value in body.items() if name not in MAKERS and name != "response_format"}
    given = {name: body[name] for name in MAKERS if body.get(name) is not None}
    form = _of_response_format(body.get("response_format"))
    if form is not None:
        given["response_format"] = form
    if not given:
        return None, rest
    if len(given) > 1:
        names = list(given)
        raise ApiError(400, f"{names[1]}: cannot be combined with {names[0]}", param=names[1])
    ((name, value),) = given.items()

    def work() -> Constraint:
        made = MAKERS["json_schema" if name == "response_format" else name](value)
        if model.tokenizer is not None:
            ConstraintMatcher(made, model.tokenizer, ends_of(model, GenerationParams()))
        return made

    try:
        return await asyncio.get_running_loop().run_in_executor(None, work), rest
    except RefgptError as error:
        raise ApiError(400, str(error), param=name) from None
    except UnicodeEncodeError:
        raise ApiError(400, f"{name}: holds half a character", param=name) from None


def _of_response_format(form: Any) -> Any:
    """The schema that OpenAI's "response_format" asks for; None for plain text."""
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    described = form.get("json_schema") if kind == "json_schema" else None
    if isinstance(described, Mapping) and isinstance(described.get("schema"), Mapping | bool):
        return described["schema"]
    message = f"response_format: got {shown(form)}; wanted text, json_object, or json_schema with a schema"
    raise ApiError(400, message, param="response_format")
