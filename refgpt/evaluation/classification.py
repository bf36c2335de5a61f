"""Classification by label likelihood: chooses the label that the model is most likely to generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refgpt._common.arguments import one_of
from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.wording import shown
from refgpt.evaluation.tables import Table
from refgpt.evaluation.templates import Template, check_examples, check_labels
from refgpt.generation.prefix_cache import PrefixCache
from refgpt.generation.prompts import Prompt, fault_of
from refgpt.generation.sampling import log_softmax
from refgpt.generation.scoring import encode_continuations, score
from refgpt.generation.sequence import Generates

#: The format of tasks that GPT-JT was trained on (Natural Instructions, https://arxiv.org/abs/2204.07705).
DEFAULT_TEMPLATE = "Possible labels:\n{labels}\n\nInput: {text}\nOutput: {label}"
NORMALISATIONS = ("sum", "mean", "pmi")


@dataclass(frozen=True)
class Classification:
    """The result of classifying a text.

    Attributes
    ----------
    label : str
        The label with the highest score; the first of equals.
    probabilities : dict from str to float
        Probability of each label among the labels: the softmax of the scores.
    scores : dict from str to float
        The log-likelihood of each label, normalised as requested.
    """

    label: str
    probabilities: dict[str, float]
    scores: dict[str, float]


#: Bytes for keys and values of what prompts begin with: the examples, which are computed once for all texts.
MOST_KNOWN = 1 << 29


class Classifier:
    """Chooses among labels by the probability that a model gives to each as the continuation of a prompt.

    Parameters
    ----------
    model : object with engine, tokenizer and mask
    labels : sequence of str
        Two or more, of one line each.
    template : str or Template
        See ``Template.parse``; by default that of GPT-JT's training tasks.
    examples : sequence of (text, label)
        Examples that are shown before the text, in this order.
    normalise : "sum", "mean" or "pmi"
        "sum" is the label's log-likelihood, the sum over its tokens. "mean" divides it by their number, so that long
        labels are not penalised. "pmi" subtracts the label's log-likelihood after only the part between text and label
        ("Output:"), so that frequent labels are not preferred: the domain-conditional pointwise mutual information of
        Holtzman et al. 2021 (https://arxiv.org/abs/2104.08315).

    Notes
    -----
    A label that begins another ("hate", "hate speech") is at least as likely by the sum of its tokens: take "mean" or
    other names for such labels.

    Raises
    ------
    GenerationError
        If an argument cannot be used, or the template leaves nothing to compare with for "pmi".
    """

    def __init__(
        self,
        model: Generates,
        labels: Sequence[str],
        template: str | Template = DEFAULT_TEMPLATE,
        examples: Sequence[tuple[str, str]] = (),
        normalise: str = "sum",
    ) -> None:
        one_of("normalise", normalise, NORMALISATIONS, GenerationError)
        self.labels = check_labels(labels)
        self.template = template if isinstance(template, Template) else Template.parse(template, self.labels)
        self.examples = check_examples(examples, self.labels)
        self.normalise = normalise
        self._model, self._known = model, PrefixCache(MOST_KNOWN)
        self._answers = [self.template.answer(label) for label in self.labels]
        self._neutral = self.encode_prompt(self.template.neutral) if normalise == "pmi" else None

    def encode(self, text: str) -> tuple[list[int], list[list[int]]]:
        """The ids of the prompt for a text, and of each label after it.

        Raises
        ------
        GenerationError
            If ``text`` is no text, or the prompt does not fit into the context with every label.
        """
        if not isinstance(text, str):
            raise GenerationError("cannot be used", where="text", got=shown(text), wanted="a text")
        return self.encode_prompt(self.template.prompt(text, self.examples))

    def classify(self, text: str) -> Classification:
        """Classify a text. Errors are those of ``encode``."""
        return self.choose(*self.encode(text))

    def choose(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Classification:
        """Choose a label, given what ``encode`` returned."""
        return self.decide(score(self._model, prompt, answers, prefix_cache=self._known))

    def decide(self, logprobs: Sequence[np.ndarray]) -> Classification:
        """Choose a label, given the log-probabilities of each label's tokens, as ``score`` returns them."""
        scores = _sums(logprobs)
        if self.normalise == "mean":
            scores = scores / [len(one) for one in logprobs]
        elif self._neutral is not None:
            scores = scores - self._prior
        probabilities = np.exp(log_softmax(scores)).tolist()
        return Classification(
            label=self.labels[int(scores.argmax())],
            probabilities=dict(zip(self.labels, probabilities, strict=True)),
            scores=dict(zip(self.labels, scores.tolist(), strict=True)),
        )

    def encode_prompt(self, prompt: Prompt) -> tuple[list[int], list[list[int]]]:
        """The ids of a whole prompt, and of each label after it. Errors are those of ``encode``."""
        model = self._model
        return encode_continuations(prompt, self._answers, model.engine.config, model.tokenizer, fault_of(model))

    @cached_property
    def _prior(self) -> np.ndarray:
        """Each label's log-likelihood after the neutral prompt. It is the same for every text, so it is computed
        once."""
        assert self._neutral is not None
        return _sums(score(self._model, *self._neutral, prefix_cache=self._known))


def classify_column(classifier: Classifier, table: Table, column: str) -> Iterator[Classification]:
    """Classify a column of texts, row by row.

    Raises
    ------
    DataError
        If there is no such column.
    RefgptError
        If a row's text cannot be used; names its line. Both are raised by the call, before anything is computed.
    """
    texts = table.column(column)
    for row, text in enumerate(texts):
        try:
            classifier.encode(text)
        except RefgptError as error:
            raise error.within(table.place(row)) from None
    return map(classifier.classify, texts)


def _sums(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([one.sum() for one in logprobs])
