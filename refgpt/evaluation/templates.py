"""Prompts for classification: a template with places for the text, its label and the list of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter

from refgpt._common.arguments import collected
from refgpt._common.errors import GenerationError
from refgpt._common.wording import listed, shown

FIELDS = ("text", "label", "labels")
EXAMPLE = "'Input: {text}\\nOutput: {label}'"


@dataclass(frozen=True)
class Template:
    """The format of a text with its label, and of the examples before it.

    Attributes
    ----------
    header : str
        The text at the beginning of the prompt, with the blank line that ends it.
    lead, between, tail : str
        The parts before a text, between text and label, and after the label of an example.
    """

    header: str
    lead: str
    between: str
    tail: str = ""

    def __post_init__(self) -> None:
        for name in ("header", "lead", "between", "tail"):
            if not isinstance(getattr(self, name), str):
                raise GenerationError("cannot be used", where=name, got=shown(getattr(self, name)), wanted="a text")

    @classmethod
    def parse(cls, template: str, labels: Sequence[str]) -> Template:
        """A template from a format string.

        Parameters
        ----------
        template : str
            Has ``{text}``, and ``{label}`` after it, by default at the end; may have ``{labels}``, which becomes a
            numbered list, one label a line. The part before the last blank line before the text is used once, and the
            rest is repeated for each example. ``{{`` is a brace.
        labels : sequence of str
            As ``check_labels`` returns them.

        Raises
        ------
        GenerationError
            If a field is missing, unknown, formatted, repeated or out of order.
        """
        parts = _parts(template)
        fields = [field for _, field in parts if field is not None]
        for name in fields:
            if name not in FIELDS:
                raise _bad_template(f"has an unknown field {{{name}}}", template)
            if fields.count(name) > 1:
                raise _bad_template(f"has the field {{{name}}} twice", template)
        if "text" not in fields:
            raise _bad_template("has no {text}", template)
        if "label" in fields and fields.index("label") < fields.index("text"):
            raise _bad_template("has {label} before {text}", template)
        pieces = {"text": "", "label": "", "tail": ""}  # the literal text before each field
        place = iter(pieces)
        current = next(place)
        for literal, field in parts:
            pieces[current] += literal + (numbered(labels) if field == "labels" else "")
            if field in ("text", "label"):
                current = next(place)
        if "label" not in fields and not pieces["label"].endswith("\n"):
            pieces["label"] = pieces["label"].rstrip(" ") + " "
        header, blank, lead = pieces["text"].rpartition("\n\n")
        return cls(header + blank, lead, pieces["label"], pieces["tail"])

    def prompt(self, text: str, examples: Iterable[tuple[str, str]] = ()) -> str:
        """The prompt for a text up to its label, without the spaces right before it; ``examples`` are texts and
        labels."""
        shown = [f"{self.lead}{told}{self.between}{label}{self.tail}".rstrip("\n") for told, label in examples]
        return self.header + "\n\n".join([*shown, f"{self.lead}{text}{self.between.rstrip(' ')}"])

    def answer(self, label: str) -> str:
        """The continuation of the prompt: a label, with the spaces right before it."""
        return self.between[len(self.between.rstrip(" ")) :] + label

    @property
    def neutral(self) -> str:
        """A prompt without a text: only the part between text and label."""
        return self.between.strip()


def numbered(labels: Sequence[str]) -> str:
    """Labels as a numbered list, one per line."""
    return "\n".join(f"{i}. {label}" for i, label in enumerate(labels, 1))


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Check that labels can be distinguished, and return them.

    Raises
    ------
    GenerationError
        If there are fewer than two, or one is no text, empty, of several lines, surrounded by spaces or given twice.
    """
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise GenerationError("cannot be used", where="labels", got=shown(labels), wanted="a list of texts")
    seen = set()
    for label in labels:
        if not isinstance(label, str) or not label or label != label.strip() or len(label.splitlines()) > 1:
            raise GenerationError(
                "cannot be used",
                where="labels",
                got=shown(label),
                wanted="texts of one line, without spaces around them",
            )
        if label in seen:
            raise GenerationError("are not all different", where="labels", got=f"{shown(label)} twice")
        seen.add(label)
    if len(labels) < 2:
        raise GenerationError("leave no choice", where="labels", got=list(labels), wanted="two or more")
    return tuple(labels)


def check_examples(examples: Sequence[tuple[str, str]], labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Check that each example is a text with one of the labels. Raises a GenerationError."""
    checked, known = [], frozenset(labels)
    for i, example in enumerate(collected("examples", examples, "pairs of texts: (text, label)", GenerationError)):
        pair = tuple(example) if isinstance(example, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise GenerationError(
                "cannot be used", where=f"examples[{i}]", got=shown(example), wanted="a pair of texts: (text, label)"
            )
        if pair[1] not in known:
            raise GenerationError(
                "has a label that is not among the labels",
                where=f"examples[{i}]",
                got=shown(pair[1]),
                wanted=listed(map(shown, labels)),
            )
        checked.append((pair[0], pair[1]))
    return tuple(checked)


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Literal texts, each with the field that follows it, if any."""
    if not isinstance(template, str):
        raise _bad_template("is no text", template)
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise _bad_template(f"is no format string ({error})", template) from None
    for _, field, spec, conversion in parsed:
        if spec or conversion:
            raise _bad_template(f"formats the field {{{field}}}, which is always put in as it is", template)
    return [(literal, field) for literal, field, _, _ in parsed]


def _bad_template(what: str, template: object) -> GenerationError:
    return GenerationError(
        what,
        where="template",
        got=shown(template),
        wanted=f"one like {EXAMPLE}",
        fix="write a brace that is meant as one twice: {{ or }}",
    )
