"""refgpt as a model of lm-evaluation-harness: import this module, then ask for the model "refgpt".

``pip install "refgpt[eval]"`` brings lm-eval; PyTorch is not needed. ``refgpt lm-eval`` is lm-eval's own command with
this model registered. From Python::

    import refgpt.evaluation.lm_eval
    lm_eval.simple_evaluate(model="refgpt", model_args="pretrained=gpt-j-6b-q4", tasks=["hellaswag"])

Requests become ids as in lm-eval's Hugging Face backend (``refgpt.evaluation.requests``), and are answered together:
choices after one context share it, and what contexts have in common, as few-shot examples, is computed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from refgpt._common.arguments import one_of, whole_number
from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.progress import counted
from refgpt._common.wording import shown
from refgpt.evaluation.answering import Request, Scored, answers
from refgpt.evaluation.requests import FRAMINGS, Likelihoods, Text, encode_pair, start_ids, windows
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import needs_tokenizer
from refgpt.generation.results import Generation

try:
    import lm_eval.models  # noqa: F401 - registers the built-in models, which it would not do after ours
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as missing:
    raise RefgptError(
        "lm-evaluation-harness is not installed, or not whole", got=str(missing), fix='pip install "refgpt[eval]"'
    ) from None

#: lm-eval's names for the largest number of new tokens, the first of those that are given counts.
MOST_NEW = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model("refgpt")
class RefgptLM(LM):
    """A model for lm-eval.

    Parameters
    ----------
    pretrained : str, optional
        What ``refgpt.load`` takes: a path, or a name on the hub; by default the included model.
    dtype, backend, mask, adapter, threads, kv_dtype, tokenizer, revision, compute
        As in ``refgpt.load``.
    max_length : int, optional
        Use a shorter context than the model's.
    max_gen_toks : int
        New tokens at most, where a task does not say.
    protocol : "lm-eval" or "gpt-j"
        How texts become ids; see ``refgpt.evaluation.requests``.
    add_bos_token : bool
        Whether every context begins with the token that begins a text.
    batch_size, max_batch_size, device
        Accepted because lm-eval passes them; the scheduler makes its own batches, on the CPU.

    Raises
    ------
    RefgptError
        If an argument or the model cannot be used.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        dtype: str | None = None,
        backend: str = "c",
        mask: str = "auto",
        adapter: str | None = None,
        threads: int | None = None,
        kv_dtype: str | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        compute: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        protocol: str = "lm-eval",
        add_bos_token: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            known = "pretrained, dtype, backend, mask, adapter, threads, kv_dtype, tokenizer, revision, compute, "
            raise RefgptError(
                "there is no such argument",
                where="model_args",
                got=", ".join(unknown),
                wanted=f"{known}max_length, max_gen_toks, protocol, add_bos_token",
            )
        one_of("protocol", protocol, tuple(FRAMINGS), RefgptError)
        self.max_gen_toks = whole_number("max_gen_toks", max_gen_toks, 1, None, RefgptError)
        self.model = _load(
            pretrained,
            dtype=dtype,
            backend=backend,
            mask=mask,
            adapter=adapter,
            threads=threads,
            kv_dtype=kv_dtype,
            tokenizer=tokenizer,
            revision=revision,
            compute=compute,
        )
        if self.model.tokenizer is None:
            fault = self.model.checkpoint.tokenizer_fault
            raise needs_tokenizer("lm-eval's tasks are text", "take another model", fault)
        n_ctx = self.model.config.n_ctx
        self.max_length = n_ctx if max_length is None else whole_number("max_length", max_length, 2, n_ctx, RefgptError)
        framing = FRAMINGS[protocol]
        self._framing = replace(
            framing,
            leading_end=framing.leading_end or bool(add_bos_token),
            beyond=framing.beyond + self.max_length - n_ctx,
        )
        self._clean = framing.cleaner()

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval names its caches of requests after."""
        return str(self.model.checkpoint.path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results."""
        dtype = self.model.dtype or "as stored"
        return {"model_dtype": dtype, "model_compute": self.model.compute, "model_mask": self.model.mask}

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation of a context, and whether greedy decoding would write it."""
        texts = [request.args for request in requests]
        encoded = [
            encode_pair(self._clean(one), self._clean(two), self._framing, self.model.config, self.model.tokenizer)
            for one, two in texts
        ]
        # Equal contexts side by side are one request; those that begin alike follow each other.
        order = sorted(range(len(texts)), key=lambda i: encoded[i][0])
        asked: list[Likelihoods] = []
        for i in order:
            prompt, ids = encoded[i]
            if asked and asked[-1].prompt == prompt:
                asked[-1].continuations.append(ids)
            else:
                asked.append(Likelihoods(prompt, [ids]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(texts)
        places = iter(order)
        for answer in self._answers(asked, "log-likelihoods", disable_tqdm):
            assert isinstance(answer, Scored)
            for value, greedy in zip(answer.sums, answer.greedy, strict=True):
                place = next(places)
                found[place] = value, greedy
                self.cache_hook.add_partial("loglikelihood", texts[place], found[place])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, in windows of the whole context."""
        start = start_ids(self.model.config, self.model.tokenizer)
        encode = self.model.tokenizer.encode
        parts = [windows(encode(self._clean(request.args[0])), start, self.max_length) for request in requests]
        found: list[float] = []
        given = self._answers([one for own in parts for one in own], "texts", disable_tqdm)
        for request, own in zip(requests, parts, strict=True):
            found.append(float(sum(next(given).sums[0] for _ in own)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """A text after each context, up to the first of its stop strings."""
        asked = [self._text(*request.args) for request in requests]
        found: list[str] = []
        for answer in self._answers([text for text, _ in asked], "texts", disable_tqdm):
            request, (_, stops) = requests[len(found)], asked[len(found)]
            found.append(self._until(answer, stops))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _text(self, context: str, given: dict[str, Any]) -> tuple[Text, list[str]]:
        """A prompt that leaves room for the new tokens, with lm-eval's parameters, and the stop strings."""
        kept = dict(given)
        sizes = [kept.pop(name, None) for name in MOST_NEW]
        n_new = next((size for size in sizes if size is not None), self.max_gen_toks)
        if not isinstance(n_new, int) or not 0 < n_new < self.max_length:
            raise GenerationError(
                "leaves no room for the context",
                where=MOST_NEW[0],
                got=shown(n_new),
                wanted=f"1 to {self.max_length - 1}",
            )
        until = kept.pop("until", None) or []
        stops = [until] if isinstance(until, str) else list(until)
        if not kept.pop("do_sample", kept.get("temperature", 0) != 0):
            kept["temperature"] = 0
        params = GenerationParams.of(None, {"temperature": 1.0, **kept, "max_new_tokens": n_new, "stop": stops or None})
        ids = self.model.tokenizer.encode(self._clean(context)) or start_ids(self.model.config, self.model.tokenizer)
        return Text(ids[-(self.max_length - n_new) :], params), stops

    def _until(self, answer: Generation, stops: Iterable[str]) -> str:
        """A text as lm-eval cuts it: before the first occurrence of each stop string in turn."""
        tokenizer = self.model.tokenizer
        ends = {*self.model.config.eos_ids, tokenizer.eos_id}
        text: str = tokenizer.decode([token for token in answer.ids if token not in ends and tokenizer.has(token)])
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text

    def _answers(self, asked: Sequence[Request], what: str, quiet: bool) -> Any:
        """The answers in order, with a bar on a terminal."""
        with counted(sys.stderr.isatty() and not quiet, len(asked), "request", what) as one_more:
            for answer in answers(self.model, asked):
                one_more()
                yield answer


def _load(path: str | None, **options: Any) -> Any:
    """``refgpt.load``, which is above this module; a program that gets here has it."""
    from importlib import import_module

    return import_module("refgpt._load").load(path, **options)
