"""Draft models: a small model drafts tokens, and one pass of the large model checks them.

A drafted token is accepted if the large model draws the same one from its own logits with its own random number, so
a text is bitwise the same with and without drafts. The draft model guesses with the same random numbers: the
more similar the two models are, the more tokens are accepted, also in sampled texts ("speculative decoding",
https://arxiv.org/abs/2211.17192, which draws with other random numbers and keeps the distribution, not the text).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.wording import shown
from refgpt.generation.draft_pace import FIRST_RATE, DraftPace
from refgpt.generation.params import MOST_DRAFTED, GenerationParams
from refgpt.generation.prefix_cache import PrefixCache, PrefixKeeper
from refgpt.generation.room import position_bytes
from refgpt.generation.sequence import Continuation, Generates
from refgpt.runtime.engine import Part
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

log = logging.getLogger("refgpt")

#: Most ids that one vocabulary may have beyond the other's: heads are padded to a round number of rows.
MOST_SPARE = 256
#: Rows that the draft model reads in one go: while several texts wait for it, and where there is one.
ROWS_BESIDE, ROWS_ALONE = 64, 512
#: Positions from which on it is cheaper to copy those of another slot than to compute them.
WORTH_COPYING = 16


def check_same_ids(
    config: AnyConfig, tokenizer: Tokenizer | None, draft_config: AnyConfig, draft_tokenizer: Tokenizer | None
) -> None:
    """Refuse a draft model whose ids stand for other tokens than the model's.

    Up to ``MOST_SPARE`` ids at the end may exist in one of them alone, as GPT-J has 143 more than GPT-Neo. Where a
    tokenizer is missing, the ids cannot be compared, and the heads must have equally many rows.

    Raises
    ------
    GenerationError
        Naming the first id that differs.
    """
    fix = "draft with a model of the same vocabulary"
    if tokenizer is None or draft_tokenizer is None:
        if config.n_vocab != draft_config.n_vocab:
            which = "the draft model" if draft_tokenizer is None else "the model"
            raise GenerationError(
                f"{which} has no tokenizer, so that ids can only be compared by their number",
                where="draft",
                got=f"{draft_config.n_vocab} ids",
                wanted=f"{config.n_vocab}",
                fix="load it with a tokenizer",
            )
        return
    ends = [min(config.n_vocab, tokenizer.n_vocab), min(draft_config.n_vocab, draft_tokenizer.n_vocab)]
    differing = tokenizer.first_difference(draft_tokenizer, min(ends))
    if differing is None and abs(ends[0] - ends[1]) > MOST_SPARE:
        differing = min(ends)
    if differing is not None:
        raise GenerationError(
            f"the draft model's vocabulary differs from the model's, first in the id {differing}",
            where="draft",
            got=_token(draft_tokenizer, differing),
            wanted=_token(tokenizer, differing),
            fix=fix,
        )


def check_draft(model: Generates, draft: object, params: GenerationParams) -> None:
    """Refuse an unusable draft model before anything is computed. None is allowed.

    Raises
    ------
    GenerationError
        If it is no model, its ids differ, or the parameters ask for beams, whose texts are not drafted.
    """
    if draft is None:
        return
    if not (hasattr(draft, "engine") and hasattr(draft, "tokenizer")):
        raise GenerationError("cannot be used", where="draft", got=shown(draft), wanted="a model from refgpt.load")
    check_params(params)
    check_same_ids(model.engine.config, model.tokenizer, draft.engine.config, draft.tokenizer)


def check_params(params: GenerationParams) -> None:
    """Refuse parameters that cannot be combined with a draft model: beams, whose texts are not drafted.

    Raises
    ------
    GenerationError
    """
    if params.num_beams > 1:
        raise GenerationError("cannot be combined with beam search", where="draft", fix="leave out num_beams or draft")


def _token(tokenizer: Tokenizer, token_id: int) -> str:
    if not tokenizer.has(token_id):
        return "no token"
    return shown(tokenizer.token_bytes(token_id).decode("utf-8", "replace"))


@dataclass
class _Slot:
    """The ids in a slot of the draft model: those of a text from ``start`` on, of which ``prefix_len`` see one
    another."""

    text: Continuation | None = None
    start: int = 0
    prefix_len: int = 0
    ids: list[int] = field(default_factory=list)
    kept: bool = False  # in the prefix cache

    def n_common(self, start: int, prefix_len: int, ids: Sequence[int]) -> int:
        """How many leading positions are those of a text whose ids from ``start`` on are these, all but its last."""
        if (start, prefix_len) != (self.start, self.prefix_len):
            return 0
        n = min(len(self.ids), len(ids) - 1)
        if self.ids[:n] != ids[:n]:
            n = next(i for i in range(n) if self.ids[i] != ids[i])
        return n if n >= prefix_len else 0


class Drafter:
    """Drafts for the texts of a scheduler: a draft model, and a session of it with a slot for each of the scheduler's.

    A text that outgrows the draft model's context is drafted from its latter part.

    Parameters
    ----------
    model, draft : object with engine, tokenizer and mask
    n_slots, capacity : int
        Of the scheduler's session.
    prefix_cache : PrefixCache, optional
        The model's: the draft model gets one for as many positions.

    Attributes
    ----------
    n_drafted, n_accepted : int
        How many drafted tokens were checked, and how many of them were accepted.

    Raises
    ------
    GenerationError
        If the ids of the two models differ.
    """

    def __init__(
        self, model: Generates, draft: Generates, n_slots: int, capacity: int, prefix_cache: PrefixKeeper | None = None
    ) -> None:
        check_same_ids(model.engine.config, model.tokenizer, draft.engine.config, draft.tokenizer)
        self.n_drafted = self.n_accepted = 0
        self._prompt_sees_itself = draft.mask == "prefix"
        self._capacity = min(capacity, draft.engine.config.n_ctx)
        self._n_rows = min(model.engine.config.n_vocab, draft.engine.config.n_vocab)
        self._cost = draft.engine.bytes_per_token / model.engine.bytes_per_token
        self._broken = False
        self._prefix_cache = None
        if isinstance(prefix_cache, PrefixCache):
            share = position_bytes(draft.engine) / position_bytes(model.engine)
            self._prefix_cache = PrefixCache(int(prefix_cache.max_bytes * share))
        self._session = draft.engine.session(n_slots, self._capacity)
        self._slots = [_Slot() for _ in range(n_slots)]

    def release(self, slots: Sequence[int]) -> None:
        """Forget the texts of some slots, and free their memory."""
        for number in slots:
            self._session.release(number)
            self._slots[number] = _Slot()

    def new_pace(self) -> DraftPace:
        """The pace of a new text, which starts from the acceptance rate of earlier texts."""
        rate = (self.n_accepted + 8 * FIRST_RATE) / (self.n_drafted + 8)
        return DraftPace(MOST_DRAFTED, self._cost, rate, self._learn)

    def draft(self, texts: Sequence[Continuation], alone: bool) -> None:
        """Draft tokens for the texts without a draft, if that is likely to save time.

        An error of the draft model does not end a text, but stops all further drafting. ``alone`` says that no other
        text is running.
        """
        if self._broken:
            return
        try:
            self._draft(texts, alone)
        except RefgptError as error:
            self._broken = True
            for text in texts:
                text.draft = []
            log.warning("the draft model cannot go on, and the text is written without it: %s", error)

    def _draft(self, texts: Sequence[Continuation], alone: bool) -> None:
        n_texts = max(1, len(texts))
        most = ROWS_ALONE if alone else max(1, ROWS_BESIDE // n_texts)
        lengths: dict[Continuation, int] = {}
        parts: list[Part] = []
        for text in texts:
            # An id for which the draft model has no row cannot be read.
            if text.draft or text.pace is None or max(text.text) >= self._n_rows:
                continue
            if not (length := text.pace.length(text.room, n_texts)):
                continue
            ids, prefix_len = self._missing(text, length)
            # What is long is read by itself, so that the next text finds it if it begins with the same.
            while len(ids) > WORTH_COPYING:
                n = max(prefix_len, min(most, len(ids) - 1))
                self._feed([(text.slots[0], ids[:n], prefix_len)], [0])
                ids, prefix_len = ids[n:], 0
                if not alone:
                    break
            if len(ids) > WORTH_COPYING:  # so that the others do not wait until it is read completely
                continue
            parts.append((text.slots[0], ids, prefix_len))
            lengths[text] = min(length, self._capacity - len(text.text) + self._slots[text.slots[0]].start + 1)
        while parts:
            rows = self._feed(parts, [1] * len(parts))
            self._keep(lengths)
            parts = []
            for (text, length), row in zip(list(lengths.items()), rows, strict=True):
                guess = text.sampler.guess(row[: self._n_rows], [*text.text, *text.draft], len(text.draft))
                if guess is not None:
                    text.draft.append(guess)
                if guess is None or len(text.draft) == length or guess in text.ends:
                    del lengths[text]
                else:
                    parts.append((text.slots[0], [guess], 0))

    def _feed(self, parts: Sequence[Part], n_rows: Sequence[int]) -> np.ndarray:
        rows = self._session.step(parts, n_rows)
        for number, ids, _ in parts:
            self._slots[number].ids.extend(ids)
        return rows

    def _missing(self, text: Continuation, length: int) -> tuple[list[int], int]:
        """What a text's slot has to read before ``length`` tokens are drafted: ids, and how many see one another."""
        number, n = text.slots[0], len(text.text)
        slot = self._slots[number]
        start = slot.start if slot.text is text else 0
        if n - start + length - 1 > self._capacity:  # the last drafted token is not read
            start = n - max(1, self._capacity // 2)
        ids = text.text[start:]
        prefix_len = text.n_prompt if self._prompt_sees_itself and not start else 0
        commons = [one.n_common(start, prefix_len, ids) for one in self._slots]
        n_common, best = commons[number], max(range(len(commons)), key=commons.__getitem__)
        if commons[best] >= n_common + WORTH_COPYING:
            self._session.release(number)
            self._session.fork(best, [number])
            n_common = commons[best]
        if n_common:
            self._session.truncate(number, n_common)
        else:
            self._session.release(number)
        if not n_common and not start and not prefix_len and self._prefix_cache is not None:
            n_common = self._prefix_cache.fill(self._session, number, ids[: text.n_prompt - 1])
        self._slots[number] = _Slot(text, start, prefix_len, ids[:n_common])
        return ids[n_common:], prefix_len if not n_common else 0

    def _keep(self, texts: Iterable[Continuation]) -> None:
        """Keep what was computed for the prompts of these texts."""
        for text in texts:
            slot = self._slots[text.slots[0]]
            if self._prefix_cache is not None and not slot.kept and not slot.start and not slot.prefix_len:
                self._prefix_cache.keep(self._session, text.slots[0], text.text[: text.n_prompt])
            slot.kept = True

    def _learn(self, n_drafted: int, n_accepted: int) -> None:
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
