"""Constraints: a text has to be JSON of a schema, match a regular expression, or follow a grammar.

The library llguidance (the extra ``[constrain]``) reads all three.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from refgpt._common.errors import GenerationError
from refgpt._common.wording import shown

#: The mask of a step holds every token that fits, not only the one that the library's own tokenizer would write.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
#: White space between the parts of JSON, without and with line breaks: bounded, so that a text ends.
_BLANKS = {False: " ", True: r"[ \t\n]{1,20}"}

#: The library compiles a rule, or a part of a schema, while it compiles the one that uses it, and so needs a deep
#: stack: bytes for each, how many of them fit into any thread's own, and how many are accepted.
STACK_FOR_ONE, FEW_RULES, MOST_RULES = 16 << 10, 200, 20_000
#: Most rules of llama.cpp's GBNF that are converted: the time grows with the square of their number.
MOST_CONVERTED = 500
_RULE = re.compile(r"[\w-]+\s*(?:\[[^\]\n]*\]\s*)?:|\{")

T = TypeVar("T")


@dataclass(frozen=True)
class Constraint:
    """A constraint on a text. Make one with ``refgpt.json_schema``, ``refgpt.regex`` or ``refgpt.grammar``.

    Attributes
    ----------
    kind : str
        Which of the three it is, for display.
    grammar : str
        The grammar of the text, as the library reads it.
    """

    kind: str
    grammar: str


def json_schema(schema: Mapping[str, Any] | bool | str, indent: bool = False) -> Constraint:
    """The constraint that a text is JSON that fits a schema.

    Parameters
    ----------
    schema : mapping, bool or str
        A JSON schema (https://json-schema.org, draft 2020-12), or its text. ``{}`` is any JSON.
    indent : bool
        Whether line breaks and indentation are allowed between the parts of the JSON, up to 20 characters; otherwise
        at most one blank is.

    Returns
    -------
    Constraint
        For ``generate(constraint=...)``. Properties come in the schema's order.

    Raises
    ------
    GenerationError
        If it is not a schema, has a keyword or a format that is not supported, or llguidance is not installed.

    Examples
    --------
    >>> import refgpt
    >>> schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    >>> model = refgpt.load()
    >>> model.generate("A toad: ", constraint=refgpt.json_schema(schema), seed=1).text  # doctest: +SKIP
    '{"age": 4}'
    """
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(value, (Mapping, bool)):
            raise TypeError("wanted a mapping, or JSON text")
        if isinstance(value, Mapping):
            value = {**value, "x-guidance": {"whitespace_pattern": _BLANKS[bool(indent)]}}
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused("json_schema", "is no JSON schema", f"{shown(schema)}: {error}") from None
    return _checked("json_schema", f"start: %json {text}")


def regex(pattern: str) -> Constraint:
    r"""The constraint that the whole text matches a regular expression.

    Parameters
    ----------
    pattern : str
        The syntax of Rust's regex library (https://docs.rs/regex/latest/regex/#syntax), which is Python's without
        references to groups, lookahead and lookbehind.

    Returns
    -------
    Constraint
        For ``generate(constraint=...)``.

    Raises
    ------
    GenerationError
        If it is not a regular expression, or llguidance is not installed.

    Examples
    --------
    >>> import refgpt
    >>> refgpt.load().generate("Seven times 7 is", constraint=refgpt.regex(r" \d{2}"), seed=1).text  # doctest: +SKIP
    ' 49'
    """
    if not isinstance(pattern, str):
        raise _refused("regex", "is no text", shown(pattern))
    try:
        made = json.loads(_library().LLMatcher.grammar_from_regex(pattern))  # escapes what ends a pattern in a grammar
    except UnicodeEncodeError as error:
        raise _refused("regex", "holds a lone surrogate", f"{pattern[error.start]!r}") from None
    return _checked("regex", made["grammars"][0]["lark_grammar"])


def grammar(text: str) -> Constraint:
    """The constraint that a text is derived from a grammar.

    Parameters
    ----------
    text : str
        In llguidance's variant of Lark's syntax, with a rule ``start``
        (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), or in llama.cpp's GBNF, with a rule
        ``root``.

    Returns
    -------
    Constraint
        For ``generate(constraint=...)``.

    Raises
    ------
    GenerationError
        If it is not such a grammar, or llguidance is not installed.

    Examples
    --------
    >>> import refgpt
    >>> answer = refgpt.grammar('start: " yes" | " no, because" /[a-z ]{5,60}/ "."')
    >>> refgpt.load().generate("Is the moon made of cheese?", constraint=answer, seed=1).text  # doctest: +SKIP
    ' no, because it is very far away.'
    """
    if not isinstance(text, str):
        raise _refused("grammar", "is no text", shown(text))
    _library()
    if "::=" in text:
        if text.count("::=") > MOST_CONVERTED:
            raise _refused("grammar", f"has more than {MOST_CONVERTED} rules of GBNF", f"{text.count('::=')}")
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            text = any_to_lark(text)
        except Exception as error:  # the converter's own, and whatever an odd text makes of it
            raise _refused("grammar", "is no grammar", str(error)) from None
    return _checked("grammar", text)


def _checked(kind: str, text: str) -> Constraint:
    """A constraint that the library accepts."""
    made = Constraint(kind, text + _OPTIONS)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refused(kind, "holds a lone surrogate", f"{text[error.start]!r}") from None
    if (n := _n_rules(made.grammar)) > MOST_RULES:
        raise _refused(kind, "has too many rules or parts", f"up to {n}")
    check = _library().LLMatcher.validate_grammar_with_warnings
    wrong, messages = with_deep_stack(made.grammar, lambda: check(made.grammar))
    if wrong:
        raise _refused(kind, "cannot be used", " ".join(messages[0].split("\n   1 |")[0].split()))
    return made


def _n_rules(grammar: str) -> int:
    """At most so many rules, or parts of a schema, use one another in turn."""
    return len(_RULE.findall(grammar))


def with_deep_stack(grammar: str, work: Callable[[], T]) -> T:
    """Run the library's work on a grammar in a thread with a stack that is deep enough, and return its result."""
    n = _n_rules(grammar)
    if n <= FEW_RULES:
        return work()
    with _STACK, ThreadPoolExecutor(1) as pool:
        before = threading.stack_size(n * STACK_FOR_ONE + (1 << 20))
        try:
            done = pool.submit(work)  # starts the thread
        except RuntimeError as error:
            raise _refused("constraint", "needs more memory for its stack than there is", str(error)) from None
        finally:
            threading.stack_size(before)
        return done.result()


#: The size of stacks holds for all threads that begin while it is set.
_STACK = threading.Lock()


def _refused(kind: str, what: str, got: str) -> GenerationError:
    return GenerationError(what, where=kind, got=got)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as fault:
        raise GenerationError(
            "a constraint needs llguidance", where="constraint", fix='pip install "refgpt[constrain]"'
        ) from fault
    return llguidance
