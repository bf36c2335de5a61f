"""Errors of requests, as the answers that clients get."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from refgpt._common.errors import RefgptError

#: Matches a ``where`` of an error that names a field of the body.
FIELD = re.compile(r"[a-z_][a-z0-9_]*(\[\d+\]|\.[a-z_][a-z0-9_]*)*")
#: Seconds after which a client may retry a request that was refused because the queue was full.
RETRY_AFTER = 2


class ApiError(Exception):
    """An error that is sent to the client.

    Parameters
    ----------
    status : int
    message : str
    kind : str
        OpenAI's "type": "invalid_request_error", "server_error" and others.
    param : str or None
        The field at fault.
    code : str or None
    headers : mapping
        Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = {},
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers)


class ClientGone(Exception):
    """The client has closed the connection, or does not receive what is sent."""


def refused(error: RefgptError) -> ApiError:
    """The answer to a request that the library cannot use."""
    where = error.where if isinstance(error.where, str) and FIELD.fullmatch(error.where) else None
    return ApiError(400, str(error), param=where)


def too_long(n_tokens: int, n_ctx: int, name: str = "prompt") -> ApiError:
    """The answer to a text that does not fit into the model's context."""
    return ApiError(
        400,
        f"{name}: the text has {n_tokens} tokens, and this model's context holds {n_ctx}, of which one is for a new "
        'token; shorten it, or keep only its end with "truncate": "left"',
        param=name,
        code="context_length_exceeded",
    )


def busy() -> ApiError:
    """The answer while too many requests wait."""
    return ApiError(
        429,
        "too many requests are waiting; try again later",
        "rate_limit_error",
        code="queue_full",
        headers={"retry-after": str(RETRY_AFTER)},
    )


def _out_of_service(message: str, code: str, **headers: str) -> ApiError:
    """A refusal of all requests, which clients may send again later."""
    return ApiError(503, message, "server_error", code=code, headers={"retry-after": str(RETRY_AFTER), **headers})


def closing() -> ApiError:
    """The answer of a server that is shutting down."""
    return _out_of_service("the server is shutting down", "shutting_down", connection="close")


def unavailable() -> ApiError:
    """The answer while there is no scheduler, since it failed and cannot be made again."""
    message = "the server has failed and cannot run its model now; its log has the details"
    return _out_of_service(message, "unavailable")


def stalled() -> ApiError:
    """The answer while a step of the model does not return."""
    return _out_of_service(
        "a step of the model does not return; the server runs requests again when it does", "stalled"
    )


def failed(error: Exception) -> ApiError:
    """The answer after an internal error. Its cause is only logged."""
    if isinstance(error, ApiError):
        return error
    message = str(error) if isinstance(error, RefgptError) else "the server failed; its log has the details"
    return ApiError(500, message, "server_error", code="internal_error")


def openai_form(error: ApiError) -> dict[str, Any]:
    """OpenAI's object."""
    return {
        "error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code},
    }


def kobold_form(error: ApiError) -> dict[str, Any]:
    """KoboldAI's object."""
    return {"detail": {"msg": error.message, "type": error.code or error.kind}}


def plain_form(error: ApiError) -> dict[str, Any]:
    """The error object of the first interfaces: a single text."""
    return {"error": error.message}
