"""Applies a constraint to one text: which tokens may follow, and whether the text is complete."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from refgpt._common.errors import GenerationError, TokenizerError
from refgpt.generation.constraint import Constraint, with_deep_stack
from refgpt.tokenizers import Tokenizer

#: Grammars that are kept compiled for each tokenizer.
MOST_COMPILED = 32
#: Tokens with a space at their start that are decoded to see whether a tokenizer drops it. Bytes keep it always.
MOST_PROBED = 20


class ConstraintMatcher:
    """The state of one text under a constraint; it may also go back, and over to another text of the same prompt.

    Parameters
    ----------
    constraint : Constraint
    tokenizer : Tokenizer
    ends : collection of int
        The tokens that end a text. They are allowed once the text is complete.
    prompt : sequence of int
        The prompt of the text. The constraint does not apply to it.

    Raises
    ------
    GenerationError
        If the constraint is too large.
    """

    def __init__(
        self, constraint: Constraint, tokenizer: Tokenizer, ends: Collection[int], prompt: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._spelling = _spelling_of(tokenizer, _begins_a_text(tokenizer, prompt))
        self._matcher = self._spelling.matcher(constraint.grammar).deep_copy()
        self._ends = np.array([i for i in ends if i < tokenizer.n_vocab], np.intp)
        self._ids: list[int] = []
        self._possible: np.ndarray | None = None  # of self._ids
        self.possible([])

    def possible(self, ids: Sequence[int]) -> np.ndarray:
        """Which ids may follow the new ids of a text, [n_vocab of the tokenizer] of bool. Do not change it."""
        self._go_to(list(ids))
        if self._possible is None:
            spellings = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
            self._check()
            n = self._spelling.n_ids
            possible = spellings[:n].astype(bool)
            if not ids and self._spelling.at_start:
                possible[:] = spellings[self._spelling.first]
            possible[self._ends[self._ends < n]] = self._matcher.is_accepting()
            self._possible = possible
        return self._possible

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether the text satisfies the constraint."""
        self._go_to(list(ids))
        return bool(self._matcher.is_accepting())

    def over(self, ids: Sequence[int]) -> bool:
        """Whether the text is complete, and only an end token can follow."""
        return self.complete(ids) and int(self.possible(ids).sum()) == len(self._ends)

    def n_possible(self, ids: Sequence[int], draft: Sequence[int]) -> int:
        """How many leading tokens of a draft the constraint allows after the new ids."""
        self._go_to(list(ids))
        spelled = [self._spelling.of(id, not ids and not i) for i, id in enumerate(draft)]
        n = next((i for i, id in enumerate(draft) if id in self._ends), len(draft))
        return int(self._matcher.validate_tokens(spelled[:n]))

    def forced(self, ids: Sequence[int]) -> list[int]:
        """Tokens that are likely to follow the new ids: those of the text that has to, written as in any text.

        The last is left out, since what comes after that text may be part of it.
        """
        self._go_to(list(ids))
        has_to = bytes(self._matcher.compute_ff_bytes())
        if not has_to:
            return []
        try:
            following = self._tokenizer.encode(has_to.decode("utf-8", "ignore"))[:-1]
        except TokenizerError:  # it has a character that only other spellings have
            return []
        return following if has_to.startswith(b"".join(map(self._tokenizer.token_bytes, following))) else []

    def _go_to(self, ids: list[int]) -> None:
        n = len(self._ids)
        if ids == self._ids:
            return
        if ids[:n] != self._ids:
            n = next((i for i, (old, new) in enumerate(zip(self._ids, ids, strict=False)) if old != new), len(ids))
            self._matcher.rollback(len(self._ids) - n)
        for i in range(n, len(ids)):
            self._matcher.consume_token(self._spelling.of(ids[i], not i))
        self._ids, self._possible = ids, None
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            fault = self._matcher.get_error().split("\n", 1)[0]
            if not self._ids and fault.startswith("NoExtension"):
                raise GenerationError("there is no text that it describes", where="constraint")
            raise GenerationError("the text cannot be held to it any further", where="constraint", got=fault)


class _Spelling:
    """A vocabulary as llguidance takes it: the bytes of each id, and behind them one token that ends a text.

    At the start of a text some tokenizers drop the space of a token. Of each such token a second one without the space
    is added, which stands for it there.

    Parameters
    ----------
    tokenizer : Tokenizer
    at_start : bool
        Whether the text is to follow nothing.

    Attributes
    ----------
    at_start : bool
    n_ids : int
    first : ndarray [n_ids] of int
        The number of the token that stands for each id at the start of a text.
    matcher : callable
        From a grammar to the llguidance.LLMatcher of an empty text.
    """

    def __init__(self, tokenizer: Tokenizer, at_start: bool) -> None:
        import llguidance

        self.at_start, self.n_ids = at_start, tokenizer.n_vocab
        tokens = [tokenizer.token_bytes(i) if tokenizer.has(i) else b"" for i in range(self.n_ids)]
        self.first = np.arange(self.n_ids)
        if at_start:
            for i in np.flatnonzero([token.startswith(b" ") for token in tokens]).tolist():
                self.first[i] = len(tokens)
                tokens.append(tokenizer.decode([i]).encode())
        spelled: Any = _Tokens([*tokens, b""])
        library = llguidance.LLTokenizer(spelled)

        def compiled(grammar: str) -> Any:
            return with_deep_stack(grammar, lambda: llguidance.LLMatcher(library, grammar, log_level=0))

        self.matcher = lru_cache(MOST_COMPILED)(compiled)

    def of(self, id: int, first: bool) -> int:
        """The number of the token that stands for an id, which is the text's first or not."""
        return int(self.first[id]) if first else id


class _Tokens:
    """The tokenizer interface of llguidance."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens, self.special_token_ids = tokens, [len(tokens) - 1]
        self.eos_token_id, self.bos_token_id = len(tokens) - 1, None
        self.is_tokenizer_wrapper = True

    def __call__(self, text: Any) -> list[int]:
        raise NotImplementedError("only asked for where a grammar forces tokens")


_SPELLINGS: WeakKeyDictionary[Tokenizer, dict[bool, _Spelling]] = WeakKeyDictionary()


def _spelling_of(tokenizer: Tokenizer, at_start: bool) -> _Spelling:
    known = _SPELLINGS.setdefault(tokenizer, {})
    if at_start not in known:
        known[at_start] = _Spelling(tokenizer, at_start)
    return known[at_start]


def _begins_a_text(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether the space at the start of the next token would be dropped."""
    before = [i for i in prompt if tokenizer.has(i)]
    if any(tokenizer.token_bytes(i).strip(b" ") for i in before):
        return False
    words = (i for i in np.flatnonzero(tokenizer.exists).tolist() if tokenizer.token_bytes(i).startswith(b" "))
    return any(not tokenizer.decode([*before, word]).startswith(" ") for word in islice(words, MOST_PROBED))
