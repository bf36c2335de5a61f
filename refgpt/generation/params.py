"""How to continue a prompt, and when to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any

import numpy as np

from refgpt._common.arguments import flag, keep_whole, one_of
from refgpt._common.errors import GenerationError
from refgpt._common.wording import did_you_mean, shown
from refgpt.generation.constraint import Constraint
from refgpt.generation.other_names import own_names
from refgpt.generation.sampling_params import SamplingParams, functions_of, keep_form, number

#: Most tokens of a draft.
MOST_DRAFTED = 15
#: Most beams of a search.
MOST_BEAMS = 64

#: What may end a text: it is given the ids so far and the row of logits [v] that the last was drawn from.
Criterion = Callable[[list[int], np.ndarray], Any]


@dataclass(frozen=True)
class GenerationParams(SamplingParams):
    """How to continue a prompt: ``SamplingParams`` and when to end.

    Attributes
    ----------
    max_new_tokens : int
        The most new tokens; there are fewer if the model's context (prompt and new tokens together) is full before.
    stop : str or sequence of str
        The text ends before the first of these strings that is completed.
    ignore_eos : bool
        Whether to continue after the end-of-text token.
    speculate : int
        While one text is generated alone, draft up to this number of tokens by copying from earlier in the text, and
        check them in one pass. This is faster for texts that repeat themselves, and never changes the text. 0 turns it
        off.
    truncate : "left" or None
        What to do with a prompt that is too long: raise an error (None), or drop its beginning so that
        ``max_new_tokens`` fit after it ("left"). The prompt always keeps at least half of the context.
    num_return_sequences : int
        The number of continuations of each prompt: draws with a stream of random numbers each, or the best beams.
    n : int or None
        Another name of ``num_return_sequences``.
    best_of : int or None
        Draw this number of continuations, and return those that are likeliest per token, the best first.
    num_beams : int
        Above 1: beam search, which keeps this number of continuations and looks for the likeliest, without random
        draws. Parameters of draws (``temperature``, ``top_k``, ``top_p`` and the other filters, ``seed``) and
        ``speculate`` then have no effect; ``stop`` and ``logprobs`` cannot be combined with it.
    early_stopping : bool or "never"
        When a beam search ends. True: when ``num_beams`` texts have ended; False: when the best unfinished text would
        not be among them if it ended now; "never": when it could not be among them at any length.
    length_penalty : float
        The score of a finished text is its log-likelihood divided by its length to this power: above 0 longer texts
        are preferred.
    stopping_criteria : callable, list of callables, or None
        Each is called after each token with the ids so far (a list of the prompt's and the new ones) and the row of
        logits [v] from which the token was drawn. If one of them returns True, the text ends with this token, for
        "stop".
    constraint : Constraint or None
        A constraint on the text: ``refgpt.json_schema(...)``, ``refgpt.regex(...)`` or ``refgpt.grammar(...)``. The
        text ends, for "stop", as soon as it is complete and nothing can follow, or with an end-of-text token when it is
        complete. A text that ends for "length" is not complete. (Stop strings and ``stopping_criteria`` may end it
        earlier too.)
    adapter : str or None
        The name of one of the adapters that ``refgpt.load`` was given; None is the model without them.

    Raises
    ------
    GenerationError
        Naming the first parameter that cannot be used.
    """

    max_new_tokens: int = 128
    stop: str | Sequence[str] | None = None
    ignore_eos: bool = False
    speculate: int = 0
    truncate: str | None = None
    _: KW_ONLY
    num_return_sequences: int = 1
    n: int | None = None
    best_of: int | None = None
    num_beams: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    stopping_criteria: Criterion | Sequence[Criterion] | None = None
    constraint: Constraint | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_whole(self, "max_new_tokens", 1, None, GenerationError)
        keep_whole(self, "speculate", 0, MOST_DRAFTED, GenerationError)
        if not isinstance(self.stop, (str, Sequence, type(None))):
            raise GenerationError(
                "cannot be used", where="stop", got=shown(self.stop), wanted="a text or a list of texts"
            )
        for stop in self.stops:
            if not isinstance(stop, str) or not stop:
                raise GenerationError(
                    "cannot be used", where="stop", got=shown(stop), wanted="a text of one character or more"
                )
        flag("ignore_eos", self.ignore_eos, GenerationError)
        one_of("truncate", self.truncate, (None, "left"), GenerationError)
        keep_form(self, "stopping_criteria", functions_of)
        if not isinstance(self.constraint, Constraint | None):
            wanted = "what refgpt.json_schema, refgpt.regex or refgpt.grammar returns"
            raise GenerationError("cannot be used", where="constraint", got=shown(self.constraint), wanted=wanted)
        if not isinstance(self.adapter, str | None):
            raise GenerationError("cannot be used", where="adapter", got=shown(self.adapter), wanted="a name or None")
        keep_whole(self, "n", 1, None, GenerationError, optional=True)
        if self.n is not None:
            object.__setattr__(self, "num_return_sequences", self.n)
            object.__setattr__(self, "n", None)
        keep_whole(self, "num_return_sequences", 1, None, GenerationError)
        keep_whole(self, "best_of", 1, None, GenerationError, optional=True)
        if self.best_of is not None and self.best_of < self.num_return_sequences:
            wanted = f"at least num_return_sequences, {self.num_return_sequences}"
            raise GenerationError("is less than is to be returned", where="best_of", got=self.best_of, wanted=wanted)
        keep_whole(self, "num_beams", 1, MOST_BEAMS, GenerationError)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise GenerationError(
                "cannot be used",
                where="early_stopping",
                got=shown(self.early_stopping),
                wanted="True, False or 'never'",
            )
        number("length_penalty", self.length_penalty, -100, 100)
        if self.num_beams > 1:
            self._check_beams()

    def _check_beams(self) -> None:
        """Refuse what cannot be combined with beam search."""
        if self.num_return_sequences > self.num_beams:
            raise GenerationError(
                "cannot be more than there are beams",
                where="num_return_sequences",
                got=self.num_return_sequences,
                wanted=f"at most {self.num_beams}",
                fix="raise num_beams",
            )
        refused = {"stop": self.stops, "logprobs": self.n_alternatives is not None, "best_of": self.best_of}
        for name, given in refused.items():
            if given:
                raise GenerationError("cannot be combined with beam search", where=name, fix="leave out num_beams")

    @classmethod
    def of(cls, params: GenerationParams | None, changes: dict[str, Any]) -> GenerationParams:
        """Parameters (None: the defaults) with some fields changed.

        A name of transformers' will do where it means the same (``do_sample``, ``prompt_lookup_num_tokens``).

        Raises
        ------
        GenerationError
            Naming what is no field, or the first field that cannot be used.
        """
        if not isinstance(params, GenerationParams | None):
            raise GenerationError(
                "cannot be used", where="params", got=shown(params), wanted="GenerationParams or None"
            )
        known = [field.name for field in fields(cls)]
        own = own_names(changes)
        for name in own:
            if name not in known:
                what = f"there is no such parameter{did_you_mean(name, known)}"
                raise GenerationError(what, where=name, wanted=f"one of {', '.join(known)}")
        return replace(params or cls(), **own)

    @property
    def n_drawn(self) -> int:
        """How many continuations of a prompt are drawn."""
        return max(self.num_return_sequences, self.best_of or 0)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, whether one or several were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
