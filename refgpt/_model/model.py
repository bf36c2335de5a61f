"""A loaded model, the one object that most users need."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from refgpt._common.arguments import flag
from refgpt._common.errors import GenerationError
from refgpt._model.inside import Inside
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.numbers.casting import kept_leaf
from refgpt.numbers.dtypes import Compute, KVDtype
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.mapped import check_unchanged
from refgpt.numbers.packing import plan
from refgpt.numbers.panels import BLOCK_BYTES
from refgpt.numbers.tree import ParamTree
from refgpt.runtime.engine import Engine
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from refgpt.checkpoints.adapters import Pair
    from refgpt.evaluation import Classification
    from refgpt.generation.params import GenerationParams
    from refgpt.generation.prompts import Prompt
    from refgpt.generation.results import Generation


@dataclass(frozen=True, repr=False, eq=False)
class Model(Inside):
    """A model ready to run. ``refgpt.load`` makes one.

    Attributes
    ----------
    engine : Engine
        Runs the forward pass.
    checkpoint : Checkpoint
        The files it came from.
    tokenizer : Tokenizer or None
        None if there is none beside the weights: the model then takes and returns token ids.
    backend : str
        "c" or "numpy".
    dtype : str or None
        The dtype of the weights in memory; None means as stored.
    adapters : mapping of str to Model
        Models by the names of their adapters: each is this model with one adapter, and shares the weights.
    """

    engine: Engine
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    backend: str
    dtype: str | None
    adapters: Mapping[str, Model] = field(default_factory=dict)

    @property
    def config(self) -> AnyConfig:
        """The model's shape."""
        return self.engine.config

    @property
    def kv_dtype(self) -> KVDtype:
        """Dtype of the engine's attention cache: "f32", "f16" or "q8"."""
        return self.engine.kv_dtype

    @property
    def compute(self) -> Compute:
        """Dtype to which linear layers round activations before they multiply them with float weights: "f32" or
        "bf16"."""
        return self.engine.compute

    @property
    def mask(self) -> str:
        """ "causal", or "prefix" if all tokens of a prompt see each other (GPT-JT)."""
        return self.checkpoint.mask

    @property
    def mask_source(self) -> str:
        """Where the mask was found."""
        return self.checkpoint.mask_source

    def params(self) -> ParamTree:
        """The weights as the engine keeps them: the stored ones, rounded or quantised if ``dtype`` asked for it.

        Matrices may be ``refgpt.numbers.panels.Panels``; ``refgpt.numbers.leaves.widen`` converts them to arrays.
        """
        if self.engine.adopted:  # they are no longer those of the files
            return self.engine.kept()
        if self.dtype in BLOCK_BYTES:  # quantising again would take long
            return self.engine.kept()
        # Do not return the engine's packed weights: ``verify`` would then miss faults of the packing.
        check_unchanged(*(leaf for _, leaf in self.checkpoint.params.items()))
        if self.compute == "bf16":  # matrices in float32 are multiplied in it
            return self.checkpoint.params.map(self._multiplied)
        return self.checkpoint.params.kept_as(self.dtype)

    def _multiplied(self, name: str, leaf: Leaf) -> Leaf:
        kept = plan(name, leaf, self.dtype, self.checkpoint.params.looked_up, self.compute)
        return kept_leaf(name, leaf, "bf16" if kept.kind == "bf16" else self.dtype)

    def with_adapter(self, adapter: str | os.PathLike[str]) -> Model:
        """This model with a LoRA adapter beside its weights: several adapters can share one base in memory.

        This model stays as it is. Each new model has its own sessions, and takes only its adapter's memory.

        Parameters
        ----------
        adapter : path
            A directory with an adapter in PEFT's format.

        Returns
        -------
        Model
            With the mask of the adapter's training, if its files record it.

        Raises
        ------
        RefgptError
            If the adapter cannot be used, or this model has one already.
        """
        from refgpt.checkpoints.adapters import adapter_mask, read_adapter

        return self._with_pairs(read_adapter(adapter, self.config), adapter_mask(adapter))

    def with_adapters(self, adapters: Mapping[str, str | os.PathLike[str]]) -> Model:
        """This model with several LoRA adapters; each request names one of them or none.

        Requests with different adapters are computed together, each with the bits that it has with ``with_adapter``.
        This model stays as it is; the new one has its ``adapters`` too.

        Parameters
        ----------
        adapters : mapping of str to path
            Directories with adapters in PEFT's format, by the names that ``adapter=`` of this model's methods,
            ``GenerationParams.adapter`` and ``Scheduler.add`` take.

        Returns
        -------
        Model
            Its ``adapters`` are models of their own.

        Raises
        ------
        RefgptError
            If an adapter or its name cannot be used, or this model has an adapter already.
        """
        from refgpt.checkpoints.adapters import read_adapters

        return self._with_named(read_adapters(adapters, self.config))

    def _with_pairs(self, pairs: Mapping[str, Pair], mask: str | None) -> Model:
        from refgpt.training.lora import attach

        checkpoint, engine = self.checkpoint, self.engine.share()
        if mask not in (None, checkpoint.mask):
            checkpoint = replace(
                checkpoint, mask=mask, mask_source="the adapter was trained with it", mask_written=False
            )
        engine.adapters = {}
        attach(engine, pairs)
        return replace(self, engine=engine, checkpoint=checkpoint, adapters={})

    def _with_named(self, named: Mapping[str, tuple[Mapping[str, Pair], str | None]]) -> Model:
        models = {**self.adapters, **{name: self._with_pairs(pairs, mask) for name, (pairs, mask) in named.items()}}
        engine = self.engine.share()
        engine.adapters = {name: model.engine for name, model in models.items()}
        return replace(self, engine=engine, adapters=models)

    def _named(self, adapter: str | None) -> Model:
        """This model with the adapter of this name; this model itself for None."""
        from refgpt.runtime.engine import adapter_named

        return self if adapter is None else adapter_named(self.adapters, adapter)

    @overload
    def generate(
        self,
        prompt: str,
        params: GenerationParams | None = None,
        *,
        prompt_cache: str | os.PathLike[str] | None = None,
        draft: Model | None = None,
        **changes: Any,
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Any] | np.ndarray,
        params: GenerationParams | None = None,
        *,
        prompt_cache: str | os.PathLike[str] | None = None,
        draft: Model | None = None,
        **changes: Any,
    ) -> Any: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] | np.ndarray,
        params: GenerationParams | None = None,
        *,
        prompt_cache: str | os.PathLike[str] | None = None,
        draft: Model | None = None,
        **changes: Any,
    ) -> Any:
        """Continue one prompt or several.

        Parameters
        ----------
        prompt : str, list of int, or list of either
            A text or its ids. An empty one starts from the model's beginning-of-text token.
        params : GenerationParams, optional
            Generation parameters; the default is 128 new tokens sampled from the model's own distribution.
        prompt_cache : path, optional
            A file that keeps the prompt's keys and values. A later call whose prompt begins alike uses it, with the
            same bits, and writes it again if its prompt is longer. See ``refgpt.generation.PromptFile``.
        draft : Model, optional
            A smaller model with the same ids. It drafts tokens, up to 15 at a time, and one pass of this model checks
            them. This is faster if the two mostly agree, and the result is exactly the same, whatever the draft.
            Tokens drafted from earlier in the text (``speculate``) come first. Both models may be of any family and
            dtype.
        **changes
            Fields of ``GenerationParams`` that replace those of ``params``.

        Returns
        -------
        Generation, or a list of them for a list of prompts
            With a seed, a prompt's continuation is the same alone and with any other prompts. With several
            continuations (``num_return_sequences``), a list of them for the prompt (beams with the best first), or a
            list of lists for a list of prompts.

        Raises
        ------
        GenerationError
            If a prompt or parameter cannot be used, or the draft model's ids are not this one's. Raised before anything
            is computed.
        """
        from refgpt.generation import GenerationParams, generate
        from refgpt.generation.drafting import check_draft
        from refgpt.generation.prompt_file import prompt_file_of
        from refgpt.generation.prompts import is_batch

        settings = GenerationParams.of(params, changes)
        batch = is_batch(prompt)
        prompts: Any = prompt if batch else [prompt]
        check_draft(self, draft, settings)
        encoded = [self._encode(one, settings) for one in prompts]
        cache = prompt_file_of(prompt_cache, self._named(settings.adapter).mask)
        done = generate(self, encoded, settings, cache, draft)
        return done if batch else done[0]

    def _encode(self, prompt: Prompt, settings: GenerationParams) -> list[int]:
        from refgpt.generation import encode_prompt

        return encode_prompt(prompt, self.config, self.tokenizer, settings, self.checkpoint.tokenizer_fault)

    def stream(
        self,
        prompt: Prompt,
        params: GenerationParams | None = None,
        *,
        prompt_cache: str | os.PathLike[str] | None = None,
        draft: Model | None = None,
        **changes: Any,
    ) -> Iterator[str]:
        """Continue one prompt, piece by piece.

        Parameters are those of ``generate``, but there is only one prompt. A model without a tokenizer cannot stream
        text: use ``generate``.

        Returns
        -------
        iterator of str
            Each piece is yielded as soon as it is certain: whole characters, and no part of a stop string. Joined, the
            pieces equal the ``text`` that ``generate`` returns for the same seed. If Ctrl-C interrupts the model, text
            that was held back as a possible beginning of a stop string is yielded before the ``KeyboardInterrupt``.

        Raises
        ------
        GenerationError
            If the prompt or a parameter cannot be used. Raised by the call, not at the first piece.
        """
        from refgpt.generation import GenerationParams, stream_text
        from refgpt.generation.drafting import check_draft
        from refgpt.generation.loop import check_streamed
        from refgpt.generation.prompt_file import prompt_file_of

        settings = GenerationParams.of(params, changes)
        check_streamed(prompt, settings, self.tokenizer, self.checkpoint.tokenizer_fault)
        check_draft(self, draft, settings)
        cache = prompt_file_of(prompt_cache, self._named(settings.adapter).mask)
        return stream_text(self, self._encode(prompt, settings), settings, cache, draft)

    @overload
    def score(
        self,
        prompt: Prompt | np.ndarray,
        continuations: Sequence[Prompt] | np.ndarray,
        return_greedy: Literal[False] = False,
        adapter: str | None = None,
    ) -> list[np.ndarray]: ...
    @overload
    def score(
        self,
        prompt: Prompt | np.ndarray,
        continuations: Sequence[Prompt] | np.ndarray,
        return_greedy: bool,
        adapter: str | None = None,
    ) -> Any: ...
    def score(
        self,
        prompt: Prompt | np.ndarray,
        continuations: Sequence[Prompt] | np.ndarray,
        return_greedy: bool = False,
        adapter: str | None = None,
    ) -> list[np.ndarray] | list[tuple[np.ndarray, bool]]:
        """Log-probabilities of texts that may follow a prompt.

        Parameters
        ----------
        prompt : str or list of int
            A text or its ids. An empty one is the model's beginning-of-text token.
        continuations : list of str or of list of int
            Each is scored by itself, right after the prompt. Begin a text with the space that separates it from the
            prompt, and end the prompt without one: "The sky is", [" blue", " green"]. After a prompt that is a text, a
            continuation gets the ids that it has within the whole text. It is encoded by itself if a token would span
            the end of the prompt, and after a prompt of ids.
        return_greedy : bool
            Whether to return also whether greedy decoding would generate each continuation.
        adapter : str, optional
            The name of one of ``adapters``; by default none.

        Returns
        -------
        list of ndarray [t], float64
            For each continuation, the natural logarithm of each token's probability, given the prompt and the tokens
            before it. Their sum is the log-probability of the continuation. Probabilities are the model's own, over all
            rows of its head, also those for which the tokenizer has no token. With the prefix mask the prompt's tokens
            see one another, and the continuations stay causal. With ``return_greedy``, a list of pairs of such an array
            and a bool: whether each token was the likeliest one, the lowest id among equal ones.

        Raises
        ------
        GenerationError
            Before anything is computed, if the prompt or a continuation cannot be used, or together they are longer
            than the model's context and one token more (the last token is only predicted).
        """
        flag("return_greedy", return_greedy, GenerationError)
        from refgpt.generation import encode_continuations, score

        fault = self.checkpoint.tokenizer_fault
        encoded = encode_continuations(prompt, continuations, self.config, self.tokenizer, fault)
        return score(self._named(adapter), *encoded, bool(return_greedy))

    def classify(
        self,
        text: str,
        labels: Sequence[str],
        template: str | None = None,
        examples: Sequence[tuple[str, str]] = (),
        normalise: str = "sum",
        adapter: str | None = None,
    ) -> Classification:
        """Choose the label that fits a text best: the one that the model is most likely to generate after it.

        Parameters
        ----------
        text : str
        labels : sequence of str
            Two or more labels of one line each. No label should be the beginning of another.
        template : str, optional
            The prompt format, by default ``refgpt.evaluation.DEFAULT_TEMPLATE``. ``{text}`` is replaced by the text;
            ``{label}``, after it, marks the place of the label, by default the end; ``{labels}`` becomes a numbered
            list of the labels. The part before the last blank line before ``{text}`` is used once; the rest is repeated
            for each example.
        examples : sequence of (text, label)
            Examples that are shown before the text, in this order.
        normalise : "sum", "mean" or "pmi"
            The score of a label: the log-likelihood of its tokens ("sum"), divided by their number ("mean"), or minus
            the log-likelihood of the label without the text ("pmi"). See ``refgpt.evaluation.Classifier``, which is
            also faster for classifying many texts by "pmi".
        adapter : str, optional
            The name of one of ``adapters``; by default none.

        Returns
        -------
        Classification
            ``label``, ``probabilities`` and ``scores``.

        Raises
        ------
        GenerationError
            If an argument cannot be used, or the prompt is too long for the context. Raised before anything is
            computed.
        """
        from refgpt.evaluation import DEFAULT_TEMPLATE, Classifier

        template = DEFAULT_TEMPLATE if template is None else template
        return Classifier(self._named(adapter), labels, template, examples, normalise).classify(text)

    def __repr__(self) -> str:
        return (
            f"<refgpt.Model {self.checkpoint.path} {self.backend} dtype={self.dtype or 'as stored'} "
            f"mask={self.mask}: {self.config}>"
        )
