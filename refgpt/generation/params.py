"""How to continue a prompt, and when to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from refgpt._common.arguments import flag, keep_whole, one_of
from refgpt._common.errors import GenerationError
from refgpt._common.wording import shown
from refgpt.generation.sampling import SamplingParams

#: Tokens that a draft may have at most.
MOST_DRAFTED = 15


@dataclass(frozen=True)
class GenerationParams(SamplingParams):
    """How to continue a prompt: ``SamplingParams`` and when to end.

    Attributes
    ----------
    max_new_tokens : int
        At most so many tokens; fewer if the model's context (prompt and new tokens together) is full before.
    stop : str or sequence of str
        The text ends before the first of these to be completed.
    ignore_eos : bool
        Go on after the end-of-text token.
    speculate : int
        While one text is written alone, guess up to so many tokens from what the text said before, and check them in
        one pass: faster where a text copies, and the same text whatever the number. 0: do not.
    truncate : "left" or None
        What to do with a prompt that is too long: an error (None), or drop its beginning so that ``max_new_tokens`` fit
        behind it ("left"), though half the context is left to the prompt whatever is asked for.

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

    @classmethod
    def of(cls, params: GenerationParams | None, changes: dict[str, Any]) -> GenerationParams:
        """Parameters (None: the defaults) with some fields changed.

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
        for name in changes:
            if name not in known:
                raise GenerationError("there is no such parameter", where=name, wanted=f"one of {', '.join(known)}")
        return replace(params or cls(), **changes)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, whether one or several were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
