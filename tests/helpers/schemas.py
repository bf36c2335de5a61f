"""Random JSON schemas, each with texts that end, and whether a value is what a schema describes."""

from __future__ import annotations

import re
from random import Random
from typing import Any

PATTERNS = ("[a-c]{2,4}", "(to|du)(ad|ck)s?", r"\d{1,3}-\d{1,3}", "x?y+z{0,2}q")
WORDS = ("toad", 'a "duck"', "", "\\n", "Kröte", "7")


def random_schema(rng: Random, depth: int = 2) -> dict[str, Any]:
    """A schema of bounded texts, so that a text of some hundred tokens can always be complete."""
    kinds = ["integer", "string", "pattern", "enum", "const", "boolean", "null", "anyOf"]
    kind = rng.choice(kinds + ["object", "array"] * 6) if depth else rng.choice(kinds[:-1])
    if kind == "integer":
        least = rng.randint(-1000, 1000)
        return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 5000)}
    if kind == "string":
        least = rng.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 6)}
    if kind == "pattern":
        return {"type": "string", "pattern": f"^{rng.choice(PATTERNS)}$", "maxLength": 8}
    if kind == "enum":
        return {"enum": rng.sample([*WORDS, 3, -1.5, None, True, [1, "x"]], 3)}
    if kind == "const":
        return {"const": rng.choice([*WORDS, 0, False, {"a": [None]}])}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, 0) for _ in range(rng.randint(2, 3))]}
    if kind == "array":
        least = rng.randint(0, 2)
        sizes = {"minItems": least, "maxItems": least + rng.randint(0, 2)}
        return {"type": "array", "items": random_schema(rng, depth - 1), **sizes}
    names = rng.sample(["name", "age", "a b", "ü", "tags", "x"], rng.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


def described(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what a schema of ``random_schema`` describes."""
    if "anyOf" in schema:
        return any(described(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(same(value, one) for one in schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string":
        sized = isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema["maxLength"]
        return sized and re.search(schema.get("pattern", ""), value) is not None
    if kind == "array":
        sized = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return sized and all(described(one, schema["items"]) for one in value)
    if kind == "object":
        own = schema["properties"]
        known = isinstance(value, dict) and set(schema["required"]) <= value.keys() <= own.keys()
        return known and all(described(one, own[name]) for name, one in value.items())
    return value is None if kind == "null" else isinstance(value, bool)


def same(a: Any, b: Any) -> bool:
    """Equal as JSON, in which true is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)
