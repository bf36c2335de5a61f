"""How to choose the next token: the parameters, validated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from refgpt._common.arguments import flag, keep_whole, one_of, whole_number
from refgpt._common.errors import GenerationError
from refgpt._common.wording import shown

#: What changes scores: it is given the ids so far and the scores [v], and returns scores.
Processor = Callable[[list[int], np.ndarray], np.ndarray]

#: Of each field that takes more than a number, what it takes.
WANTED = {
    "bad_words_ids": "a list of lists of ids, none of them empty",
    "sequence_bias": "a mapping from tuples of ids to numbers, or a list of [ids, number]",
    "logit_bias": "a mapping from ids to numbers",
    "suppress_tokens": "a list of ids",
    "begin_suppress_tokens": "a list of ids",
    "eos_token_id": "an id, or a list of ids",
    "forced_eos_token_id": "an id, or a list of ids",
    "exponential_decay_length_penalty": "(a whole number from 0, a number above 0)",
    "logits_processor": "a function, or a list of functions",
    "stopping_criteria": "a function, or a list of functions",
}


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token. Building one validates it; the defaults draw from the model's own distribution.

    Attributes
    ----------
    temperature : float
        The logits are divided by it; 0 takes the most likely token, the lowest id among equals.
    top_k : int or None
        Keep the k most likely tokens, and any that ties with the last of them; 0 or None keeps all.
    top_p : float
        After temperature and top_k, keep the fewest most likely tokens whose probabilities sum to at least this.
    repetition_penalty : float
        The logit of every token of the prompt and of the new text is divided by it if positive, else multiplied
        (CTRL, https://arxiv.org/abs/1909.05858, as in transformers). 1 changes nothing.
    presence_penalty, frequency_penalty : float
        Subtracted from a token's logit once if it has been generated, and once for each time it has been. Only new
        tokens count, not the prompt's: OpenAI's definition. 0 changes nothing.
    seed : int or None
        Whole number from 0. None draws a new one from the operating system.
    logprobs : int, bool or None
        How many of the most likely tokens to report beside the chosen one. 0 or True reports the chosen one alone,
        None or False nothing.
    repeat_last_n : int or None
        The repetition penalty counts the last so many tokens of prompt and new text; None counts all.
    min_p : float or None
        Drop tokens less likely than this share of the likeliest one's probability (https://arxiv.org/abs/2407.01082).
    typical_p : float or None
        Keep the tokens whose surprise is closest to the expected one, until their probabilities sum to at least this
        (https://arxiv.org/abs/2202.00666). None or 1 keeps all.
    epsilon_cutoff, eta_cutoff : float or None
        Drop tokens less likely than this; or than the lesser of this and its square root times exp(-entropy)
        (https://arxiv.org/abs/2210.15191). None or 0 keeps all.
    no_repeat_ngram_size : int
        No so many tokens in a row occur twice in prompt and new text. 0: they may.
    bad_words_ids : list of list of int, or None
        None of these is written. An end-of-text token alone is not counted among them, as in transformers.
    sequence_bias : mapping from tuple of int to float, list of [list of int, float], or None
        Added to the logit of the last token of a sequence where the others stand before it.
    logit_bias : mapping from int to float, or None
        The same for single tokens.
    suppress_tokens, begin_suppress_tokens : list of int, or None
        Never drawn; never drawn first.
    eos_token_id : int, list of int, or None
        The tokens that end a text; None: those of the model and its tokenizer.
    forced_eos_token_id : int, list of int, or None
        Drawn as the last token that ``max_new_tokens`` and the context allow; of several the likeliest by the others'
        rules, as each has logit 0.
    min_new_tokens : int
        No end-of-text token is drawn before so many others.
    exponential_decay_length_penalty : (int, float) or None
        After so many new tokens the logit of each end-of-text token rises by its size times (factor to the power of the
        tokens since, less 1).
    renormalize_logits : bool
        Whether beams are ranked by log-probabilities that are normalised again after all of this.
    sampler : "transformers" or "mesh"
        The order of temperature, ``top_k`` and ``top_p``, and the random numbers. "mesh": those of Mesh Transformer
        JAX, with which GPT-J was first shown. It filters the probabilities before the temperature is applied. ``top_p``
        drops the tokens after the one with which the sum exceeds it; ``top_k`` keeps one token more, and always the
        token 0. Of equally likely tokens the ones with higher ids are kept. It draws with JAX's random numbers: equal
        logits and an equal ``seed`` (JAX uses 32 bits of it) give the tokens that Mesh Transformer JAX draws with
        ``hk.PRNGSequence(seed)``; n texts are drawn like a batch of n.
    logits_processor : callable, list of callables, or None
        Each is called with the ids so far (prompt and new ones, a list) and the scores (an array [v] of float64, -inf
        for what cannot be drawn) after all that comes before the temperature, and returns scores.

    Raises
    ------
    GenerationError
        Naming the first parameter that cannot be used.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | bool | None = None
    _: KW_ONLY
    repeat_last_n: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    sequence_bias: Mapping[tuple[int, ...], float] | Sequence[Any] | None = None
    logit_bias: Mapping[int, float] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    eos_token_id: int | Sequence[int] | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    min_new_tokens: int = 0
    exponential_decay_length_penalty: tuple[int, float] | None = None
    renormalize_logits: bool = False
    logits_processor: Processor | Sequence[Processor] | None = None
    sampler: str = "transformers"

    def __post_init__(self) -> None:
        number("temperature", self.temperature, 0, 1e6)
        keep_whole(self, "top_k", 0, None, GenerationError, optional=True)
        number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise GenerationError(
                "cannot be used",
                where="top_p",
                got=0,
                wanted="a number above 0, at most 1",
                fix="for the most likely token use temperature 0",
            )
        number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        number("presence_penalty", self.presence_penalty, -1e3, 1e3)
        number("frequency_penalty", self.frequency_penalty, -1e3, 1e3)
        keep_whole(self, "seed", 0, None, GenerationError, optional=True)
        if not isinstance(self.logprobs, bool):
            keep_whole(self, "logprobs", 0, None, GenerationError, optional=True)
        keep_whole(self, "repeat_last_n", 1, None, GenerationError, optional=True)
        for name in ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), 1e-6 if name == "typical_p" else 0, 1)
        keep_whole(self, "no_repeat_ngram_size", 0, None, GenerationError)
        keep_whole(self, "min_new_tokens", 0, None, GenerationError)
        flag("renormalize_logits", self.renormalize_logits, GenerationError)
        one_of("sampler", self.sampler, ("transformers", "mesh"), GenerationError)
        keep_form(
            self, "bad_words_ids", lambda words: tuple(_ids("bad_words_ids", word, 1) for word in _several(words))
        )
        keep_form(self, "sequence_bias", _biases)
        keep_form(self, "logit_bias", _single_biases)
        keep_form(self, "suppress_tokens", lambda ids: _ids("suppress_tokens", ids, 0))
        keep_form(self, "begin_suppress_tokens", lambda ids: _ids("begin_suppress_tokens", ids, 0))
        keep_form(self, "eos_token_id", lambda ids: _ids("eos_token_id", _one_or_several(ids), 1))
        keep_form(self, "forced_eos_token_id", lambda ids: _ids("forced_eos_token_id", _one_or_several(ids), 1))
        keep_form(self, "exponential_decay_length_penalty", _decay)
        keep_form(self, "logits_processor", functions_of)

    def check_ids(self, n_vocab: int) -> None:
        """Refuse ids that a model of ``n_vocab`` does not have, naming the field that has them.

        Raises
        ------
        GenerationError
        """
        named: list[tuple[str, Iterable[int]]] = [
            ("bad_words_ids", (i for word in self.bad_words_ids or () for i in word)),
            ("sequence_bias", (i for word in dict(self.sequence_bias or {}) for i in word)),
            ("logit_bias", self.logit_bias or ()),
            ("suppress_tokens", self.suppress_tokens or ()),
            ("begin_suppress_tokens", self.begin_suppress_tokens or ()),
            ("eos_token_id", id_list(self.eos_token_id)),
            ("forced_eos_token_id", id_list(self.forced_eos_token_id)),
        ]
        for name, ids in named:
            for i in ids:
                if i >= n_vocab:
                    raise GenerationError(
                        "the id does not exist in this vocabulary", where=name, got=i, wanted=f"0 to {n_vocab - 1}"
                    )

    @property
    def n_alternatives(self) -> int | None:
        """How many likely tokens to report beside the chosen one; None when no log-probabilities are wanted."""
        if self.logprobs is None or self.logprobs is False:
            return None
        return 0 if self.logprobs is True else self.logprobs


def keep_form(params: SamplingParams, name: str, normal: Callable[[Any], Any]) -> None:
    """Keep a field in one form, or refuse it with its name; None stays."""
    value = getattr(params, name)
    if value is None:
        return
    try:
        object.__setattr__(params, name, normal(value))
    except (TypeError, ValueError, OverflowError, AttributeError):
        raise GenerationError("cannot be used", where=name, got=shown(value), wanted=WANTED[name]) from None


def number(name: str, value: object, least: float, most: float) -> None:
    """Refuse, with ``name`` as the error's ``where``, what is no number within limits."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not least <= value <= most
    ):
        raise GenerationError(
            "cannot be used", where=name, got=shown(value), wanted=f"a number from {least:g} to {most:g}"
        )


def id_list(ids: int | Sequence[int] | None) -> list[int]:
    """No id, one or several, as a list."""
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def functions_of(value: Any) -> tuple[Any, ...]:
    """One function or several as a tuple; a TypeError if it is anything else."""
    functions = (value,) if callable(value) else tuple(_several(value))
    if not all(map(callable, functions)):
        raise TypeError
    return functions


def _several(value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)):
        raise TypeError
    return list(value)


def _one_or_several(value: Any) -> list[Any]:
    return [value] if isinstance(value, (int, np.integer)) else _several(value)


def _ids(name: str, values: Any, least: int) -> tuple[int, ...]:
    ids = tuple(whole_number(name, value, 0, None, GenerationError) for value in _several(values))
    if len(ids) < least:
        raise ValueError
    return ids


def _bias(value: Any) -> float:
    if isinstance(value, (bool, str)) or not float(value) < float("inf"):
        raise ValueError
    return float(value)


def _biases(value: Any) -> dict[tuple[int, ...], float]:
    pairs = value.items() if isinstance(value, Mapping) else value
    return {_ids("sequence_bias", ids, 1): _bias(bias) for ids, bias in pairs}


def _single_biases(value: Any) -> dict[int, float]:
    return {i: bias for (i,), bias in _biases([((i,), bias) for i, bias in value.items()]).items()}


def _decay(value: Any) -> tuple[int, float]:
    start, factor = value
    if isinstance(factor, (bool, str)) or not 0 < float(factor) < 1e3:
        raise ValueError
    return whole_number("exponential_decay_length_penalty", start, 0, None, GenerationError), float(factor)
