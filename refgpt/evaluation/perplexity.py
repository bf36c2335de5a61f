"""Perplexity of whole texts, over words, bytes and tokens.

A text is cut into windows as lm-evaluation-harness cuts it (``refgpt.evaluation.requests.windows``), each text by
itself. Words are counted as it counts them: one more than there are runs of white space.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from refgpt._common.errors import DataError, RefgptError
from refgpt.evaluation.answering import Answer, Request, Scored
from refgpt.evaluation.measures import Measure, Metric, Record, perplexity_of
from refgpt.evaluation.metrics import Estimate, Sample, difference_of, estimate
from refgpt.evaluation.requests import LM_EVAL, Framing, start_ids, windows
from refgpt.evaluation.rows import Rows
from refgpt.generation.prompts import needs_tokenizer
from refgpt.generation.sequence import Generates
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

#: From so many texts on, intervals are for the choice of texts; with fewer, for the choice of windows.
ENOUGH_TEXTS = 30

#: WikiText separates punctuation and numbers by spaces. These rules, in this order, put texts back as they were, as
#: lm-evaluation-harness does: plain replacements, and patterns.
WIKITEXT: tuple[tuple[str | re.Pattern[str], str], ...] = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    *(("= " * n + "=", "=" * (n + 1)) for n in (3, 2, 1)),
    (" \u00b0 ", "\u00b0"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def joined_wikitext(text: str) -> str:
    """A text of WikiText without the spaces that separate its punctuation."""
    for found, put in WIKITEXT:
        text = text.replace(found, put) if isinstance(found, str) else found.sub(put, text)
    return text


VARIANTS: dict[str, Callable[[str], str]] = {"plain": str, "wikitext": joined_wikitext}


def _bits(loglikelihood: float) -> float:
    return -loglikelihood / math.log(2)


class Perplexity(Measure):
    """The perplexity of texts.

    Parameters
    ----------
    data : Rows
        With a column "text" or "page".
    variant : "plain" or "wikitext"
        Whether texts are scored as they are, or without the spaces that WikiText puts around punctuation. Words and
        bytes are counted in the text as it is.
    framing : Framing
        Only ``ftfy`` matters here: each text begins after the end-of-text token anyway.
    n_rows : int, optional
        Only the first rows.

    Raises
    ------
    DataError
        If a row has no text, or there is no such variant.
    """

    metrics = tuple(
        Metric(name, "loglikelihood", below, of, percent=False, higher_is_better=False)
        for name, below, of in (
            ("word_perplexity", "words", perplexity_of),
            ("byte_perplexity", "bytes", perplexity_of),
            ("bits_per_byte", "bytes", _bits),
            ("token_perplexity", "tokens", perplexity_of),
        )
    )

    def __init__(
        self, data: Rows, variant: str | None = None, framing: Framing = LM_EVAL, n_rows: int | None = None
    ) -> None:
        if variant is not None and variant not in VARIANTS:
            raise DataError("there is no such version", where="variant", got=variant, wanted=", ".join(VARIANTS))
        self.name = "perplexity" if variant in (None, "plain") else variant
        self._prepare, self._framing, self._clean, self._data = (
            VARIANTS[variant or "plain"],
            framing,
            framing.cleaner(),
            data,
        )
        rows = data.rows[:n_rows]
        self.places = [row.place for row in rows]
        self.texts = [row.text("text", "page") for row in rows]

    def describe(self) -> dict[str, Any]:
        """Its name, the data's checksum, the number of texts and the framing."""
        return {
            "task": self.name,
            "data": self._data.sha256,
            "n_items": len(self.texts),
            "framing": self._framing.describe(),
        }

    def requests(self, config: AnyConfig, tokenizer: Tokenizer | None) -> list[list[Request]]:
        """The windows of each text."""
        if tokenizer is None:
            raise needs_tokenizer("the data is text", "take another model")
        start = start_ids(config, tokenizer)
        found: list[list[Request]] = []
        for place, text in zip(self.places, self.texts, strict=True):
            try:
                found.append([*windows(tokenizer.encode(self._clean(self._prepare(text))), start, config.n_ctx)])
            except RefgptError as error:
                raise error.within(place) from None
        if not any(found):
            raise DataError("has no text", where=self._data.path)
        return found

    def record(self, item: int, answered: Sequence[Answer], model: Generates) -> Record:
        """The log-likelihood of a text and of each window, and how long it is."""
        scored = [answer for answer in answered if isinstance(answer, Scored)]
        parts = [[answer.sums[0], len(answer.logprobs[0])] for answer in scored]
        text = self.texts[item]
        return {
            "item": item,
            "loglikelihood": math.fsum(value for value, _ in parts),
            "words": len(re.split(r"\s+", text)),
            "bytes": len(text.encode()),
            "tokens": sum(n for _, n in parts),
            "windows": parts,
        }

    def results(self, records: Sequence[Record]) -> dict[str, Estimate]:
        """The metrics of all texts together, with intervals for the choice of texts; of windows if there are few."""
        return {metric.name: estimate(_sample(metric, records)) for metric in self.metrics}

    def differences(self, before: Sequence[Record], after: Sequence[Record]) -> dict[str, Estimate]:
        """By how much each metric changed."""
        found = {}
        for metric in self.metrics:
            found[metric.name] = estimate(difference_of(_sample(metric, before), _sample(metric, after)))
        return found


def _sample(metric: Metric, records: Sequence[Record]) -> Sample:
    """A metric of texts or, if there are few, of their windows.

    Words and bytes of a window are not counted: each of its tokens counts as the average number of them for a token.
    """
    if len(records) >= ENOUGH_TEXTS:
        return metric.sample(records)
    n_tokens = sum(record["tokens"] for record in records)
    share = sum(record[metric.denominator] for record in records) / n_tokens
    parts = [
        {"loglikelihood": value, metric.denominator: share * n} for record in records for value, n in record["windows"]
    ]
    return metric.sample(parts)
