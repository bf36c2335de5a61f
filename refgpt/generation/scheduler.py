"""Run many requests at once in one session: choose the rows of each pass, and turn its logits into events.

Every pass gives each text that is being generated its next token, and reads some more of the prompts of new texts. A
sequence's logits have the same bits whatever else is in the pass (``Session.step``), so the order of the work changes
no text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.generation.beams import Beams
from refgpt.generation.best_of import Ballot, Candidate
from refgpt.generation.drafting import Drafter
from refgpt.generation.params import GenerationParams
from refgpt.generation.prefix_cache import PrefixKeeper
from refgpt.generation.prompts import Prompt, encode_prompt, fault_of
from refgpt.generation.reading import pieces
from refgpt.generation.results import Event
from refgpt.generation.room import Room, position_bytes
from refgpt.generation.scored import ScoredContinuation
from refgpt.generation.sequence import Continuation, Generates, Masked, Task, with_named_adapter
from refgpt.runtime.engine import Engine, Part, Session

#: The largest number of sequences that are decoded together, and the most bytes of all their keys and values.
MOST_TOGETHER = 16
MOST_CACHE = 2 << 30


def enough_bytes(engines: Sequence[Engine], n_positions: int) -> int:
    """The limit of bytes for the caches of some sequences, raised so that one can have ``n_positions``."""
    return max(MOST_CACHE, n_positions * position_bytes(*engines))


def engines_of(model: Generates, draft: Generates | None) -> list[Engine]:
    """The engines that have caches: the model's, and the draft model's if there is one."""
    return [one.engine for one in (model, draft) if one is not None]


class Scheduler:
    """Continues prompts that come at any time, many of them together.

    Requests begin in the order in which they came, each as soon as there is a slot and memory for the longest text that
    it may become; so none fails half-way, and none waits for ever. Long prompts are read piece by piece between the
    other texts' tokens. Of several prompts the oldest gets half of every pass, and those that are nearest to their ends
    get the rest.

    The result of a request depends only on its prompt and its parameters; with a seed, results are bitwise equal.

    Parameters
    ----------
    model : refgpt.Model
    max_slots : int
        The largest number of texts that are generated at once.
    max_cache_bytes : int
        The most bytes of all keys and values, counted in whole blocks of 64 positions, of which those that texts share
        are counted once.
    capacity : int, optional
        The longest sequence, prompt and new tokens together. The default is what memory and context allow.
    prefix_cache : PrefixCache or PromptFile, optional
        Keeps keys and values of earlier prompts for prompts that begin alike. It changes no text.
    draft : refgpt.Model, optional
        A smaller model with the same ids, which drafts tokens for the large one to check: fewer passes of the large
        model, and exactly the same texts, whatever the draft. Beams are not drafted.

    Raises
    ------
    GenerationError
        If a number cannot be used, or the ids of the draft model are not the model's.

    Examples
    --------
    >>> import refgpt
    >>> scheduler = refgpt.Scheduler(refgpt.load())
    >>> first = scheduler.add("Once upon a time", seed=1, max_new_tokens=5)
    >>> second = scheduler.add("There was a king", temperature=0, max_new_tokens=3)
    >>> texts = {first: "", second: ""}
    >>> while scheduler.busy:
    ...     for event in scheduler.step():
    ...         texts[event.seq] += event.text
    >>> texts[first] == refgpt.load().generate("Once upon a time", seed=1, max_new_tokens=5).text
    True
    """

    def __init__(
        self,
        model: Generates,
        max_slots: int = MOST_TOGETHER,
        max_cache_bytes: int = MOST_CACHE,
        *,
        capacity: int | None = None,
        prefix_cache: PrefixKeeper | None = None,
        draft: Generates | None = None,
    ) -> None:
        n_ctx, n_bytes = model.engine.config.n_ctx, position_bytes(*engines_of(model, draft))
        self._model, self._prefix_cache = model, prefix_cache
        self._has_adapters = bool(getattr(model, "adapters", None))
        self._n_slots = whole_number("max_slots", max_slots, 1, None, GenerationError)
        self._n_positions = whole_number("max_cache_bytes", max_cache_bytes, n_bytes, None, GenerationError) // n_bytes
        longest = n_ctx if capacity is None else whole_number("capacity", capacity, 1, None, GenerationError)
        self._capacity = min(n_ctx, longest, self._n_positions)
        self._session = self._new_session()
        self._room = Room(self._n_slots, self._capacity, self._n_positions)
        self._drafter: Drafter | None = None
        if draft is not None:
            self._drafter = Drafter(model, draft, self._n_slots, self._capacity, prefix_cache)
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []
        self._n_added = 0

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._running)

    @property
    def n_waiting(self) -> int:
        """How many texts wait for a slot."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """How many texts have a slot."""
        return len(self._running)

    @property
    def n_drafted(self) -> int:
        """How many tokens of the draft model the large one has checked."""
        return 0 if self._drafter is None else self._drafter.n_drafted

    @property
    def n_accepted(self) -> int:
        """How many of the drafted tokens the large model has accepted."""
        return 0 if self._drafter is None else self._drafter.n_accepted

    def add(self, prompt: Prompt | np.ndarray, params: GenerationParams | None = None, **changes: Any) -> int:
        """Add a request to the queue.

        Parameters
        ----------
        prompt : str or list of int
        params : GenerationParams, optional
        **changes
            Fields of ``GenerationParams`` that replace those of ``params``.

        Returns
        -------
        int
            The request's number, from 0; the ``seq`` of its events.

        Raises
        ------
        GenerationError
            If the prompt or a parameter cannot be used, or the text might need more memory than all texts may have.
        """
        settings = GenerationParams.of(params, changes)
        model, fault = self._model, fault_of(self._model)
        return self.add_ids(encode_prompt(prompt, model.engine.config, model.tokenizer, settings, fault), settings)

    def add_ids(
        self,
        prompt: Sequence[int],
        params: GenerationParams,
        scored: bool = False,
        go_on: bool = True,
        mask: str | None = None,
    ) -> int:
        """``add`` for a prompt as ``encode_prompt`` returns it.

        ``scored``: the first event also has the prompt's log-probabilities (``refgpt.generation.scored``). They are
        causal, so with the mask "prefix" they are available only if no text is generated (``go_on`` is False).
        ``mask``: "causal" or "prefix" in place of the model's own.
        """
        n, texts = self._n_added, range(params.n_drawn)
        model = with_named_adapter(self._model, params.adapter)
        if mask is not None:
            model = Masked(model.engine, model.tokenizer, mask)
        if params.num_beams > 1:
            return self.add_tasks([Beams(n, prompt, model, params)], params.adapter)
        tasks = [Continuation(n, prompt, model, params, i) for i in texts]
        if scored:
            tasks = [ScoredContinuation(n, prompt, model, params, go_on), *(tasks[1:] if go_on else ())]
        elif params.best_of is not None and params.n_drawn > 1:
            ballot = Ballot(params)
            tasks = [Candidate(n, prompt, model, params, i, ballot) for i in texts]
        if self._drafter is not None:
            for task in tasks:
                task.pace = self._drafter.new_pace()
        return self.add_tasks(tasks, params.adapter)

    def add_tasks(self, tasks: Sequence[Task], adapter: str | None = None) -> int:
        """Add the texts of one request to the queue. They continue one prompt, which is read once for all of them."""
        for task in tasks:
            task.adapter = adapter
            self._check_room(task)
            task.shared = tasks[0].shared
        tasks[0].shared.waiting.extend(tasks[1:])
        self._waiting.append(tasks[0])
        self._n_added += 1
        return self._n_added - 1

    def cancel(self, request: int) -> bool:
        """Cancel a request; it has no more events. Returns whether it was unfinished."""
        mine = [task for task in (*self._running, *self._waiting) if task.request == request]
        self._waiting = deque(task for task in self._waiting if task.request != request)
        for task in mine:
            self._end(task)
        return bool(mine)

    def step(self) -> list[Event]:
        """Make one pass: a token or more for every text that is being generated, and some more rows of new prompts.

        Returns
        -------
        list of Event
            In the order of the requests; a pass that only reads prompts may give none. A request that fails, for
            example because logits are not finite, ends with an event that has the error, and the others go on.
        """
        events = self._admit()
        parts, n_rows, owners = self._plan()
        if not parts:
            return events
        for task, rows in self._rows(parts, n_rows, owners):
            if isinstance(rows, Exception):
                events.append(self._failed(task, rows))
            else:
                events += self._take(task, rows)
        return events

    def _admit(self) -> list[Event]:
        """Give slots to the tasks in the queue, until one has to wait."""
        events: list[Event] = []
        while self._waiting:
            task = self._waiting[0]
            slots = self._room.take(task.n_slots, task.n_positions, self._n_shared(task), task.shared)
            if slots is None:
                break
            self._waiting.popleft()
            if task.shared.row is None:
                task.slots = slots
                self._running.append(task)
                if self._has_adapters:
                    self._session.use_adapter(slots[0], task.adapter)
                if self._prefix_cache is not None and not task.prefix_len:  # the last token's row has to be computed
                    task.n_read = self._prefix_cache.fill(self._session, slots[0], task.ids[: task.first_row])
            else:
                reader = next(one for one in self._running if one.shared is task.shared)
                self._session.fork(reader.slots[0], slots)
                events += self._begin_after_prompt(task, slots)
        return events

    def _begin_after_prompt(self, task: Task, slots: list[int]) -> list[Event]:
        """Begin a text in a slot that already holds the prompt, and perhaps another text's continuation of it."""
        assert task.shared.row is not None
        task.shared.waiting.remove(task)
        self._session.truncate(slots[0], task.n_prompt)
        task.slots, task.n_read = slots, task.n_prompt
        self._running.append(task)
        return self._take(task, task.shared.row[None])

    def _plan(self) -> tuple[list[Part], list[int], list[Task]]:
        """Plan the next pass: the ids for each slot, for how many rows the logits are needed, and by which task."""
        parts: list[Part] = []
        n_rows, owners = [], []
        writing = [task for task in self._running if not task.reads]
        reading = [task for task in self._running if task.reads]
        alone = len(self._running) == 1
        for task in writing:
            task.look_up(alone)
        if self._drafter is not None:
            self._drafter.draft([task for task in writing if isinstance(task, Continuation)], alone)
        for task in writing:
            for slot, ids in task.next_ids():
                parts.append((slot, ids, 0))
                n_rows.append(len(ids))
                owners.append(task)
        for task, size in pieces(reading, bool(writing)):
            start, stop = task.n_read, task.n_read + size
            parts.append((task.slots[0], task.ids[start:stop], 0 if start else task.prefix_len))
            task.n_read = stop
            n_rows.append(max(0, stop - max(start, task.first_row)))
            owners.append(task)
        return parts, n_rows, owners

    def _rows(
        self, parts: list[Part], n_rows: list[int], owners: list[Task]
    ) -> list[tuple[Task, np.ndarray | Exception]]:
        """The logits that each task asked for, or the error that prevented them."""
        try:
            rows = self._session.step(parts, n_rows)
        except RefgptError as error:
            if owners[0] is owners[-1]:
                return [(owners[0], error)]
            # One of them has failed. Running each by itself gives the same bits, and shows which.
            found = []
            for task in dict.fromkeys(owners):
                own = [i for i, owner in enumerate(owners) if owner is task]
                found += self._rows([parts[i] for i in own], [n_rows[i] for i in own], [task] * len(own))
            return found
        counts = dict.fromkeys(owners, 0)
        for task, n in zip(owners, n_rows, strict=True):
            counts[task] += n
        stops = accumulate(counts.values())
        return [(task, rows[stop - n : stop]) for (task, n), stop in zip(counts.items(), stops, strict=True)]

    def _take(self, task: Task, rows: np.ndarray) -> list[Event]:
        """The events of a task's rows, and of the tasks that begin when it has read the prompt or has ended."""
        if not len(rows) or task not in self._running:
            return []
        shared = task.shared
        if shared.row is None and task.n_read >= task.n_prompt:
            shared.row = rows[task.n_prompt - 1 - task.n_read].copy()
            self._waiting.extendleft(reversed(shared.waiting))
            if self._prefix_cache is not None and not task.prefix_len:
                self._prefix_cache.keep(self._session, task.slots[0], task.ids[: task.n_prompt])
        try:
            events = task.take(self._session, rows)
        except Exception as error:
            return [self._failed(task, error)]
        if task.finished and shared.waiting:  # one that continues the same prompt takes over
            following = shared.waiting[0]
            self._running.remove(task)
            self._waiting.remove(following)
            events += self._begin_after_prompt(following, task.slots)
        elif task.finished:
            self._end(task)
        return events

    def _failed(self, task: Task, error: Exception) -> Event:
        """End a request, with all its texts, with an error."""
        self.cancel(task.request)
        return Event(task.request, None, "", "", "error", error)

    def _end(self, task: Task) -> None:
        """End a task, and free its slots."""
        if task in self._running:
            self._running.remove(task)
            for slot in task.slots:
                self._session.release(slot)
            if self._drafter is not None:
                self._drafter.release(task.slots)
            self._room.give_back(task.slots)

    def _n_shared(self, task: Task) -> int:
        """How many positions of a task the texts of its request are certain to share. A draft model may compute some of
        them again for each."""
        return task.n_prompt if self._drafter is None else 0

    def _check_room(self, task: Task) -> None:
        """Refuse a request that would wait for ever."""
        needed = self._room.needed(task.n_slots, task.n_positions, self._n_shared(task))
        if task.n_slots > self._n_slots:
            raise GenerationError(
                "needs more slots than there are", where="max_slots", got=self._n_slots, wanted=task.n_slots
            )
        if task.n_positions > self._capacity or needed > self._n_positions:
            raise GenerationError(
                "the text might need more memory for keys and values than there is",
                where="max_cache_bytes",
                got=f"room for {self._capacity} positions",
                wanted=f"{needed} for {task.n_prompt} of the prompt and what follows",
                fix="raise max_cache_bytes, lower max_new_tokens or shorten the prompt",
            )

    def _new_session(self) -> Session:
        """A session of as many slots as memory allows. It takes memory only as it is written to."""
        while True:
            try:
                return self._model.engine.session(self._n_slots, self._capacity)
            except GenerationError:
                if self._n_slots == 1:
                    raise
                self._n_slots //= 2
