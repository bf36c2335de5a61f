"""MLPerf Inference's GPT-J task: summaries of news articles of CNN and the Daily Mail, counted by ROUGE.

Prompt, generation and metric are those of MLPerf's reference (https://github.com/mlcommons/inference, language/gpt-j):
an instruction, cut to its first 1919 tokens in a context of 2048; four beams and 30 to 128 new tokens;
ROUGE-1, ROUGE-2 and ROUGE-L with stemming.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from refgpt._common.errors import DataError, GenerationError
from refgpt.evaluation.answering import Answer, Request
from refgpt.evaluation.measures import Measure, Metric, Record
from refgpt.evaluation.published import ROUGE
from refgpt.evaluation.requests import Text
from refgpt.evaluation.rows import Rows
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import needs_tokenizer
from refgpt.generation.results import Generation
from refgpt.generation.sequence import Generates
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{article}\n\n### Response:"
)
INSTRUCTION = "Summarize the following news article:"
BEAMS = GenerationParams(num_beams=4, early_stopping=True, min_new_tokens=30, max_new_tokens=128)


class Summaries(Measure):
    """Articles and their summaries.

    Parameters
    ----------
    data : Rows
        MLPerf's ``cnn_eval.json`` (instruction, input, output), or the data set's own columns (article, highlights).
    n_rows : int, optional
        Only the first rows.

    Raises
    ------
    DataError
        If a row lacks a column, or rouge-score is not installed.
    """

    name = "cnn-dailymail"

    def __init__(self, data: Rows, n_rows: int | None = None) -> None:
        rows = data.rows[:n_rows]
        self._data = data
        self.places = [row.place for row in rows]
        self.prompts = [
            PROMPT.format(
                instruction=row.text("instruction") if "instruction" in row.values else INSTRUCTION,
                article=row.text("input", "article"),
            )
            for row in rows
        ]
        self.summaries = [row.text("output", "highlights") for row in rows]
        self.metrics = (
            *(Metric(name, name, of=lambda share: 100 * share, percent=False) for name in ROUGE),
            Metric("characters", "characters", percent=False),
        )
        _ = self._scorer

    @cached_property
    def _scorer(self) -> Any:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError:
            raise DataError(
                "counting ROUGE needs a package that is not installed",
                where="rouge-score",
                fix='pip install "refgpt[eval]"',
            ) from None
        return RougeScorer(list(ROUGE), use_stemmer=True)

    def describe(self) -> dict[str, Any]:
        """Its name, the data's checksum and the number of articles."""
        return {"task": self.name, "data": self._data.sha256, "n_items": len(self.prompts)}

    def requests(self, config: AnyConfig, tokenizer: Tokenizer | None) -> list[list[Request]]:
        """The prompt of each article, without its end if it is too long."""
        if tokenizer is None:
            raise needs_tokenizer("the articles are text", "take another model")
        most = config.n_ctx - BEAMS.max_new_tokens - 1
        if most < 1:
            raise GenerationError(
                "the model's context is too small for a summary",
                got=f"{config.n_ctx} positions",
                wanted=f"more than {BEAMS.max_new_tokens + 1}",
            )
        return [[Text(tokenizer.encode(prompt)[:most], BEAMS)] for prompt in self.prompts]

    def record(self, item: int, answered: Sequence[Answer], model: Generates) -> Record:
        """The summary that was written, its length and its ROUGE scores (F-measures, from 0 to 1)."""
        (written,) = answered
        assert isinstance(written, Generation)
        text = written.text.strip()
        scores = self._scorer.score(self.summaries[item].strip(), text)
        return {
            "item": item,
            "summary": text,
            "n_prompt": written.n_prompt,
            "tokens": len(written.ids),
            "characters": len(text),
            **{name: float(score.fmeasure) for name, score in scores.items()},
        }
