"""One thread owns the scheduler. Requests reach it through a queue, and its events go back to the event loop.

The event loop never waits for the model, and the model never waits for a client: events that a client does not read
are kept in the request's queue.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

from refgpt._common.errors import RefgptError
from refgpt._model import Model
from refgpt.generation.params import GenerationParams
from refgpt.generation.results import Event
from refgpt.generation.scheduler import Scheduler
from refgpt.generation.sequence import with_named_adapter
from refgpt.server.errors import ApiError, busy, closing, failed, refused, stalled, unavailable
from refgpt.server.jobs import Job, Written
from refgpt.server.metrics import CountingCache, Metrics
from refgpt.server.settings import ServerSettings
from refgpt.server.watch import Watch

log = logging.getLogger("refgpt.server")

#: Seconds between attempts to make a new scheduler, if that fails.
RETRY = 1.0
#: Seconds for the thread to end after its current step.
LAST_STEP = 5.0


class Core:
    """Runs a model for many clients.

    Parameters
    ----------
    model : Model
    settings : ServerSettings
    metrics : Metrics
    draft : Model, optional
        A smaller model, which drafts tokens: see ``Scheduler``.

    Attributes
    ----------
    failed : bool
        Whether there is no scheduler now, since a new one could not be made after a failure. All requests are refused
        until one can be made.

    Notes
    -----
    All methods but ``_run`` and what it calls belong to the event loop's thread.
    """

    def __init__(self, model: Model, settings: ServerSettings, metrics: Metrics, draft: Model | None = None) -> None:
        self.model, self.settings, self.metrics, self._draft = model, settings, metrics, draft
        self.cache = CountingCache(settings.prefix_cache_bytes) if settings.prefix_cache_bytes else None
        self._scheduler: Scheduler | None = self._new_scheduler()
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._texts: dict[int, tuple[Job, int]] = {}  # by the scheduler's number of a request
        self._written: dict[Job, dict[tuple[int, int], Written]] = {}
        self._jobs: set[Job] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="refgpt-core", daemon=True)
        self._watch = Watch(settings.step_timeout, self._stall, self._return)
        self.draining = self.failed = self._given_up = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread, which sends its events to an event loop."""
        self._loop = loop
        self._thread.start()
        self._watch.start(loop)

    def stop(self) -> None:
        """End the thread after its current step. It does not wait for a step that does not return."""
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join(0 if self._watch.stalled or self._given_up else LAST_STEP)
        if self._thread.is_alive():
            log.warning("a step of the model has not returned; the server ends without it")

    @property
    def refusal(self) -> ApiError | None:
        """The answer to new requests while they cannot be run; None while they can."""
        if self.draining:
            return closing()
        if self.failed or not self._thread.is_alive():
            return unavailable()
        return stalled() if self._watch.stalled else None

    @property
    def n_open(self) -> int:
        """Texts that are not finished."""
        return sum(job.n_open for job in self._jobs)

    @property
    def n_running(self) -> int:
        """Texts that have a slot, as of the last step."""
        scheduler = self._scheduler
        return 0 if scheduler is None else scheduler.n_running

    @property
    def n_waiting(self) -> int:
        """Texts without a slot, as of the last step."""
        return max(0, self.n_open - self.n_running)

    @property
    def n_drafted(self) -> int:
        """Tokens that the draft model has drafted."""
        scheduler = self._scheduler
        return 0 if scheduler is None else scheduler.n_drafted

    @property
    def n_accepted(self) -> int:
        """Drafted tokens that the model accepted."""
        scheduler = self._scheduler
        return 0 if scheduler is None else scheduler.n_accepted

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        params: GenerationParams,
        scored: bool = False,
        go_on: bool = True,
        mask: str | None = None,
    ) -> Job:
        """Queue a request.

        Raises
        ------
        ApiError
            429 if too many wait, 503 if requests cannot be run now: see ``refusal``.
        """
        if (error := self.refusal) is not None:
            raise error
        n_open = len(prompts) * (params.num_return_sequences if go_on else 1)
        if self._jobs and self.n_open + n_open > self.settings.max_slots + self.settings.max_queue:
            raise busy()
        job = Job(self, prompts, params, scored, go_on, mask, n_open)
        self._jobs.add(job)
        self.metrics.prompt_tokens.add(sum(map(len, prompts)))
        self._commands.put(lambda: self._add(job))
        return job

    def cancel(self, job: Job) -> None:
        """See ``Job.cancel``."""
        if job in self._jobs:
            self._jobs.discard(job)
            job.n_open = 0
            self._commands.put(lambda: self._forget(job))

    def end(self, job: Job) -> None:
        """See ``Job.end``."""
        if job in self._jobs:
            self._commands.put(lambda: self._end(job))

    def end_all(self) -> None:
        """End all unfinished texts now."""
        for job in self._jobs:
            self.end(job)

    def give_up(self) -> None:
        """End all requests with an error, if the thread has not ended them."""
        if self._jobs:
            self._given_up = True
            self._fail_all(stalled() if self._watch.stalled else closing())

    # The methods below run in the core's own thread.

    def _new_scheduler(self) -> Scheduler:
        slots, n_bytes = self.settings.max_slots, self.settings.max_cache_bytes
        return Scheduler(self.model, slots, n_bytes, prefix_cache=self.cache, draft=self._draft)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler; commands and steps run only while there is one."""
        assert self._scheduler is not None
        return self._scheduler

    def _run(self) -> None:
        """Execute commands and steps until ``stop``. Every failure is told to the event loop, so that nobody waits."""
        going = True
        try:
            while going:
                failure: Exception | None = None
                try:
                    going = self._obey()
                    if going and self.scheduler.busy:
                        self._deliver(self.scheduler.step())
                except Exception as error:  # no request caused this
                    log.exception("the scheduler failed")
                    failure = error.with_traceback(None)  # a traceback would keep the old scheduler's memory
                if failure is not None:
                    going = self._begin_anew(failure)
        except BaseException:
            log.critical("the model's thread has failed", exc_info=True)
            self._tell(self._break)
        finally:
            self._watch.rest()

    def _begin_anew(self, error: Exception) -> bool:
        """End all requests, and make a new scheduler, trying again if that fails. -> whether to continue"""
        self._texts, self._written, self._scheduler = {}, {}, None
        self._tell(self._fail_all, failed(error))
        if self.cache is not None:
            self.cache.clear()
        while True:
            try:
                self._watch.begin()
                self._scheduler = self._new_scheduler()
                self._tell(self._mend)
                return True
            except Exception:
                log.exception("no new scheduler can be made; the next attempt is in %g seconds", RETRY)
                self._tell(self._break)
            if not self._rest():
                return False

    def _rest(self) -> bool:
        """Wait, and discard commands: ``_break`` ends their requests. -> whether to continue"""
        self._watch.rest()
        until = perf_counter() + RETRY
        try:
            while self._commands.get(timeout=max(0.0, until - perf_counter())) is not None:
                pass
            return False
        except Empty:
            return True

    def _obey(self) -> bool:
        """Execute the commands since the last step; wait for one if there is no work. -> whether to continue"""
        try:
            while True:
                if not self.scheduler.busy:
                    self._watch.rest()
                command = self._commands.get(block=not self.scheduler.busy)
                if command is None:
                    return False
                self._watch.begin()
                command()
        except Empty:
            self._watch.begin()
            return True

    def _add(self, job: Job) -> None:
        self._written[job] = {}
        added: list[int] = []
        try:
            for place in range(len(job.prompts)):
                added.append(self._add_prompt(job, place, job.scored))
        except Exception as error:
            for number in added:
                self.scheduler.cancel(number)
            self._drop(job)
            if not isinstance(error, RefgptError):
                log.exception("a request could not be added")
            self._tell(self._fail, job, refused(error) if isinstance(error, RefgptError) else failed(error))
        else:
            self._tell(job.accepted.set)

    def _add_prompt(self, job: Job, place: int, scored: bool) -> int:
        """Give a prompt to the scheduler. With the prefix mask, a separate causal pass scores the prompt."""
        model = with_named_adapter(self.model, job.params.adapter)
        ids, apart = job.prompts[place], scored and (job.mask or model.mask) == "prefix"
        number = self.scheduler.add_ids(ids, job.params, scored, job.go_on and not apart, job.mask)
        self._texts[number] = job, place
        n_texts = job.params.num_return_sequences if job.go_on else 1
        self._written[job] |= {(place, index): Written() for index in range(n_texts)}
        return number

    def _forget(self, job: Job) -> None:
        for number in [number for number, (owner, _) in self._texts.items() if owner is job]:
            self.scheduler.cancel(number)
        self._drop(job)

    def _end(self, job: Job) -> None:
        written = self._written.get(job)
        if written is None:
            return
        self._forget(job)
        ends = [
            (job, place, Event(0, None, text.held, "", "length", index=index))
            for (place, index), text in written.items()
            if not text.finished
        ]
        self._tell(self._dispatch, ends, perf_counter())

    def _drop(self, job: Job) -> None:
        self._texts = {number: text for number, text in self._texts.items() if text[0] is not job}
        self._written.pop(job, None)

    def _deliver(self, events: list[Event]) -> None:
        """Hand a step's events to the event loop, all at once."""
        found = []
        for event in events:
            if event.seq not in self._texts:  # an earlier event of this step has ended its request
                continue
            job, place = self._texts[event.seq]
            if event.error is not None:
                self._forget(job)
                self._tell(self._fail, job, failed(event.error))
                continue
            if event.prompt is not None and event.choice is None and job.go_on:  # its prompt is scored: continue it
                try:
                    del self._texts[event.seq]
                    self._add_prompt(job, place, False)
                except RefgptError as error:
                    self._forget(job)
                    self._tell(self._fail, job, failed(error))
                    continue
                found.append((job, place, Event(event.seq, None, "", "", None, prompt=event.prompt)))
                continue
            text = self._written[job][place, event.index]
            text.held, text.finished = event.held, event.finish_reason is not None
            found.append((job, place, event))
            if text.finished and all(one.finished for one in self._written[job].values()):
                self._drop(job)
        if found:
            self._tell(self._dispatch, found, perf_counter())

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run a function in the event loop."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._receive, function, arguments)
        except RuntimeError:  # the loop is closed: nobody listens
            log.debug("an event came after the end of the event loop")

    # The methods below run in the event loop's thread.

    def _receive(self, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        """Run what the core's thread tells. If it fails, no request can know what it has missed, and all end."""
        try:
            function(*arguments)
        except Exception as error:
            log.exception("events could not be handed on")
            self._fail_all(failed(error))

    def _break(self) -> None:
        """There is no scheduler: end all requests, and refuse new ones."""
        self.failed = True
        self._fail_all(unavailable())

    def _mend(self) -> None:
        self.failed = False

    def _stall(self, seconds: float) -> None:
        """A step does not return: end all requests. What it returns later is discarded."""
        log.error("a step of the model has not returned for %.1f s; requests are refused until it does", seconds)
        self._fail_all(stalled())

    def _return(self, seconds: float) -> None:
        if self.refusal is None:  # the thread may have ended, or the server be shutting down
            log.warning("the step of the model has returned, after about %.1f s; requests are run again", seconds)

    def _fail_all(self, error: Exception) -> None:
        self.metrics.failures.add()
        for job in list(self._jobs):
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        if job in self._jobs:
            self._jobs.discard(job)
            job.error, job.n_open = error, 0
            job.accepted.set()
            job.wake.set()
            self._commands.put(lambda: self._forget(job))  # if the scheduler has it, or will have it

    def _dispatch(self, events: list[tuple[Job, int, Event]], now: float) -> None:
        """Give each job its events."""
        for job, place, event in events:
            if job not in self._jobs:  # it was cancelled meanwhile
                continue
            job.new_events.append((place, event))
            job.wake.set()
            if event.choice is not None:
                seconds = now - (job.last or job.began)
                self.metrics.token_written(seconds, first=job.last is None, adapter=job.params.adapter)
                job.last = now
            if event.finish_reason is not None:
                job.n_open -= 1
                if not job.n_open:
                    self._jobs.discard(job)
