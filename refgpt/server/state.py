"""The state of a server, with operations that all interfaces share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import time
from types import MappingProxyType
from typing import Any, TypeVar

from refgpt._common.errors import RefgptError, ServerError
from refgpt._common.wording import listed
from refgpt._model import Model
from refgpt._open import default_model_path
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import encode_prompt, prompt_ids
from refgpt.inspect.data import name_of
from refgpt.server.aside import Aside
from refgpt.server.core import Core
from refgpt.server.errors import ApiError, too_long
from refgpt.server.metrics import Gauge, Metrics
from refgpt.server.predictions import Predictions
from refgpt.server.settings import ServerSettings
from refgpt.spec.ids import check_tokens

T = TypeVar("T")

#: Most characters of prompts, bytes of bodies or entries of answers that are processed in the event loop instead of a
#: thread.
SHORT = 4096


@dataclass(eq=False)
class State:
    """A model that is served.

    Attributes
    ----------
    names : tuple of str
        Names of the model; answers use the first. The names of its adapters are those of ``model.adapters``.
    kobold : set
        Requests of KoboldAI's clients that can be ended by name.
    predictions : Predictions
        Texts of Mesh Transformer JAX's second interface.
    large_bodies : asyncio.Lock
        Held while a large body is parsed.
    """

    model: Model
    settings: ServerSettings
    metrics: Metrics
    core: Core
    aside: Aside
    names: tuple[str, ...]
    created: int
    kobold: set[Any] = field(default_factory=set)
    predictions: Predictions = field(default_factory=Predictions)
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, model: Model, settings: ServerSettings, draft: Model | None = None) -> State:
        """The state of a new server; ``core`` and ``aside`` have not begun."""
        metrics = Metrics()
        core = Core(model, settings, metrics, draft)
        metrics.gauges += [
            Gauge("refgpt_requests_running", "Texts that are being written.", lambda: core.n_running),
            Gauge("refgpt_requests_waiting", "Texts that wait for a slot.", lambda: core.n_waiting),
            Gauge("refgpt_slots", "Texts that can be written at once.", lambda: settings.max_slots),
            Gauge(
                "refgpt_prefix_cache_tokens_total",
                "Tokens of prompts that were found in the prefix cache.",
                lambda: core.cache.n_found if core.cache else 0,
                "counter",
            ),
            Gauge(
                "refgpt_prefix_cache_bytes",
                "Memory that the prefix cache takes.",
                lambda: core.cache.n_bytes if core.cache else 0,
            ),
        ]
        if draft is not None:
            about = "Tokens that the draft model drafted.", "Drafted tokens that were accepted."
            metrics.gauges += [
                Gauge("refgpt_drafted_tokens_total", about[0], lambda: core.n_drafted, "counter"),
                Gauge("refgpt_accepted_tokens_total", about[1], lambda: core.n_accepted, "counter"),
            ]
        included = model.checkpoint.path == default_model_path()
        names = settings.served_names or ("refgpt-default" if included else name_of(model),)
        if both := {*names} & {*model.adapters}:
            fix = "give one of them another name (--served-name)"
            raise ServerError(
                "the model and an adapter have the same name", where="adapters", got=listed(both), fix=fix
            )
        return cls(model, settings, metrics, core, Aside(settings.step_timeout), names, int(time()))

    def check_model(self, name: Any) -> str | None:
        """The adapter that a request's model names; None if it names the model itself or nothing.

        Raises
        ------
        ApiError
            If it names another model.
        """
        if name is None or name == "":
            return None
        if not isinstance(name, str):
            raise ApiError(400, "model: has to be a text", param="model")
        if name in self.names:
            return None
        if name not in self.model.adapters:
            known = ", ".join(f"{one!a}" for one in (self.names[0], *self.model.adapters))
            message = f"the model {name[:200]!a} is not served here; there is {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    def model_named(self, name: Any) -> Model:
        """The model that a request names, with the adapter if it names one; errors are those of ``check_model``."""
        adapter = self.check_model(name)
        return self.model if adapter is None else self.model.adapters[adapter]

    def limited(self, params: GenerationParams, names: Mapping[str, str] = MappingProxyType({})) -> GenerationParams:
        """Parameters within this server's limits: more new tokens are cut, anything else is refused.

        Parameters
        ----------
        names : mapping
            The client's names of parameters, where they differ.
        """
        s = self.settings
        stops = params.stops
        for name, got, most in (
            ("n", params.num_return_sequences, s.max_texts),
            ("num_beams", params.num_beams, s.max_slots),
            ("stop", len(stops), s.max_stops),
            ("stop", max(map(len, stops), default=0), s.max_stop_chars),
            ("logprobs", params.n_alternatives or 0, s.max_logprobs),
            ("logit_bias", len(params.logit_bias or ()), s.max_biases),
            ("sequence_bias", len(params.sequence_bias or ()), s.max_biases),
            ("bad_words_ids", len(params.bad_words_ids or ()), s.max_biases),
        ):
            if got > most:
                called = names.get(name, name)
                raise ApiError(400, f"{called}: {got} is more than this server allows, {most}", param=called)
        if s.max_tokens is not None and params.max_new_tokens > s.max_tokens:
            params = replace(params, max_new_tokens=s.max_tokens)
        return replace(params, speculate=min(params.speculate, s.speculate))

    async def encode(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: GenerationParams,
        special: bool,
        name: str = "prompt",
        go_on: bool = True,
    ) -> list[list[int]]:
        """Prompts as ids.

        Parameters
        ----------
        special : bool
            Whether strings such as ``"<|endoftext|>"`` are special tokens.
        name : str
            The field that has them.
        go_on : bool
            Whether there has to be room for a new token. If not, the last token is only predicted, not read.

        Raises
        ------
        ApiError
        """
        if len(prompts) > self.settings.max_prompts:
            n, most = len(prompts), self.settings.max_prompts
            raise ApiError(400, f"{name}: {n} prompts are more than this server allows, {most}", param=name)

        def work() -> list[list[int]]:
            return [self._encode(prompt, params, special, name, go_on) for prompt in prompts]

        return await self.do(work, sum(map(len, prompts)))

    async def ids_of(
        self, prompts: Sequence[str | Sequence[int]], special: bool, name: str = "prompt"
    ) -> list[Sequence[int]]:
        """The ids of texts of any length; prompts that are ids already stay as they are.

        Raises
        ------
        ApiError
            If a text cannot be encoded. ``name`` is the field that has it.
        """

        def work() -> list[Sequence[int]]:
            return [self._text_ids(one, special, name) if isinstance(one, str) else one for one in prompts]

        return await self.do(work, sum(map(len, prompts)))

    async def do(self, work: Callable[[], T], size: int) -> T:
        """Run a function for one client, in a separate thread if the work is large, so that others do not wait.

        All work that grows with a request or an answer is run here: reading fields, tokenising, and building answers.
        """
        if size <= SHORT:
            return work()
        return await asyncio.get_running_loop().run_in_executor(None, work)

    def _encode(
        self, prompt: str | Sequence[int], params: GenerationParams, special: bool, name: str, go_on: bool
    ) -> list[int]:
        model, config = self.model, self.model.config
        try:
            given: Any = self._text_ids(prompt, special, name) if isinstance(prompt, str) else prompt
            ids = prompt_ids(given or "", config, model.tokenizer, model.checkpoint.tokenizer_fault)
            if not go_on and 0 < len(ids) <= config.n_ctx + 1:
                return check_tokens(ids, config).tolist()
            if params.truncate is None and len(ids) >= config.n_ctx:
                raise too_long(len(ids), config.n_ctx, name)
            return encode_prompt(ids, config, model.tokenizer, params, model.checkpoint.tokenizer_fault)
        except RefgptError as error:
            raise ApiError(400, str(error), param=name) from None

    def _text_ids(self, text: str, special: bool, name: str) -> list[int]:
        """The ids of a text; an ApiError if it is too long, there is no tokenizer, or it cannot spell the text."""
        model, most = self.model, self.settings.max_prompt_chars
        if len(text) > most:
            message = f"{name}: {len(text)} characters are more than this server allows, {most}"
            raise ApiError(400, message, param=name, code="context_length_exceeded")
        try:
            if model.tokenizer is None:
                return prompt_ids(text, model.config, None, model.checkpoint.tokenizer_fault)
            return model.tokenizer.encode(text, special=special)
        except RefgptError as error:
            raise ApiError(400, str(error), param=name) from None
