"""Fields of a request's body, each checked, with an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refgpt._common.wording import shown
from refgpt.server.errors import ApiError


def flag_of(body: Mapping[str, Any], name: str, default: bool) -> bool:
    """A field that is true or false; an ApiError if it is anything else."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(400, f"{name}: cannot be used; got {shown(value)}; wanted true or false", param=name)
    return value


def number(given: Mapping[str, Any], name: str, default: float, status: int = 400) -> float:
    """A field that is a number, or a string of one, as the first servers accepted; otherwise an ApiError."""
    value = given.get(name)
    if value is None:
        return default
    try:
        if isinstance(value, (bool, list, dict)):
            raise ValueError
        found = float(value)
        if not abs(found) < 1e18:
            raise ValueError
    except (ValueError, OverflowError):
        raise ApiError(status, f"{name}: got {shown(value)}; wanted a number", param=name) from None
    return found


def whole(given: Mapping[str, Any], name: str, default: int, least: int, most: int, status: int = 400) -> int:
    """A field that is a whole number within limits, or a string of one."""
    found = number(given, name, default, status)
    if found != int(found) or not least <= found <= most:
        message = f"{name}: got {shown(given.get(name))}; wanted a whole number from {least} to {most}"
        raise ApiError(status, message, param=name)
    return int(found)


def text(given: Mapping[str, Any], name: str, status: int = 400) -> str:
    """A field that is a text."""
    value = given.get(name)
    if not isinstance(value, str):
        raise ApiError(status, f"{name}: got {shown(value)}; wanted a text", param=name)
    return value
