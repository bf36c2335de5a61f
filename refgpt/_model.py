"""A loaded model, the one object that most users need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from refgpt._common.arguments import flag
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.mapped import check_unchanged
from refgpt.numbers.panels import BLOCK_BYTES
from refgpt.numbers.tree import ParamTree
from refgpt.runtime.engine import Engine
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from refgpt.evaluation import Classification
    from refgpt.generation.params import GenerationParams
    from refgpt.generation.prompt_file import PromptFile
    from refgpt.generation.prompts import Prompt
    from refgpt.generation.results import Generation
    from refgpt.tracing import Indices, Names, Patches, Report, TapResult


@dataclass(frozen=True, repr=False, eq=False)
class Model:
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
    """

    engine: Engine
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    backend: str
    dtype: str | None

    @property
    def config(self) -> AnyConfig:
        """The model's shape."""
        return self.engine.config

    @property
    def kv_dtype(self) -> KVDtype:
        """Dtype of the engine's attention cache: "f32" or "f16"."""
        return self.engine.kv_dtype

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
        return self.checkpoint.params.kept_as(self.dtype)

    def with_adapter(self, adapter: str | os.PathLike[str]) -> Model:
        """This model with a LoRA adapter beside its weights: several adapters can share one base in memory.

        This model stays as it is. Each of the others has its own sessions; none costs more memory than its adapter.

        Parameters
        ----------
        adapter : path
            A directory with an adapter in PEFT's format.

        Returns
        -------
        Model
            With the mask that the adapter was trained with, if it says so.

        Raises
        ------
        RefgptError
            If the adapter cannot be used, or this model has one already.
        """
        from refgpt.checkpoints.adapters import adapter_mask, read_adapter
        from refgpt.training.lora import attach

        pairs, mask = read_adapter(adapter, self.config), adapter_mask(adapter)
        checkpoint = self.checkpoint
        if mask not in (None, checkpoint.mask):
            checkpoint = replace(checkpoint, mask=mask, mask_source="the adapter was trained with it")
        engine = copy(self.engine)
        attach(engine, pairs)
        return replace(self, engine=engine, checkpoint=checkpoint)

    def logits(self, ids: Sequence[int], prefix_len: int = 0) -> np.ndarray:
        """Scores for the next token at every position of a text.

        Parameters
        ----------
        ids : sequence of int [t]
        prefix_len : int
            So many leading positions see one another; 0 is the causal mask, whatever ``mask`` is.

        Returns
        -------
        ndarray [t, n_vocab]
            float32, or float64 for the NumPy backend with dtype "f64". Includes rows of the head for which the
            tokenizer has no token.

        Raises
        ------
        GenerationError
            If an id does not exist or there are too many ids.
        """
        return self.engine.logits(ids, prefix_len)

    def trace(
        self,
        ids: str | Sequence[int],
        prefix_len: int = 0,
        names: Names | None = None,
        *,
        positions: Indices = None,
        patch: Patches | None = None,
        gradients: bool = False,
        labels: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Named activations of one forward pass. Only the requested activations are kept.

        Parameters
        ----------
        ids : str or sequence of int [t]
            A text, if there is a tokenizer, or its ids.
        prefix_len : int
            So many leading positions see one another; 0 is the causal mask, whatever ``mask`` is.
        names : str or collection of str, optional
            Names of ``refgpt.spec.tap_names(config)``, or patterns such as "blocks.*.pattern"; by default all
            activations.
        positions : int, slice or sequence of int, optional
            Rows of each activation to keep, by default all: queries for "pattern" [h, t, s], otherwise axis 0.
        patch : mapping, or sequence of mappings, optional
            Replacements: maps names or patterns to a function, an array, or the result of ``refgpt.tracing.zero_heads``
            and similar functions.
        gradients : bool
            Give not the activations but, under the same names, the gradient of the loss by each: see
            ``refgpt.tracing.record_gradients``. Nothing can be patched then.
        labels : sequence of int [t], optional
            What the loss is of: the token wanted at each position, not shifted, or -100 for no target. By default the
            text itself.

        Returns
        -------
        dict of str to ndarray
            In the order they were computed, with the axes that ``refgpt.spec.tap_axes`` gives.

        Raises
        ------
        RefgptError
            If an argument cannot be used, or the trace needs more memory than there is; the error then says how much,
            and which argument to narrow. Raised before anything is computed.
        """
        from refgpt.tracing import record, record_gradients

        if not flag("gradients", gradients, RefgptError):
            if labels is not None:
                raise RefgptError("only a loss has labels", where="labels", fix="say gradients=True, or leave them out")
            return record(self, ids, prefix_len, names, positions, patch)
        if patch is not None:
            raise RefgptError(
                "a pass in which activations are replaced has no gradients here",
                where="patch",
                fix="leave out patch or gradients",
            )
        return record_gradients(self, ids, prefix_len, names, positions, labels)

    def verify(
        self,
        ids: Sequence[int],
        prefix_len: int = 0,
        *,
        progress: bool = False,
        on_tap: Callable[[TapResult], object] | None = None,
    ) -> Report:
        """Compare every activation of one forward pass with the float64 spec: see ``refgpt.tracing.verify``.

        Parameters and errors are those of that function. ``report.first_broken`` is None if all activations are within
        their bounds. This holds for the C kernels; the NumPy backend in float32 exceeds the bound at "mlp_post", where
        its ``1 + tanh`` loses digits. Kernels that do not compute the promised bits raise a KernelError, even if they
        are within the bounds.
        """
        from refgpt.tracing import verify

        if self.backend == "c":
            from refgpt.kernels import check_bits

            check_bits()

        return verify(self.engine, self.params(), ids, prefix_len, progress=progress, on_tap=on_tap)

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
            A file that keeps what is computed for the prompt: a later call whose prompt begins alike uses it, with the
            same bits. It is written anew where the prompt has more than it. See ``refgpt.generation.PromptFile``.
        draft : Model, optional
            A smaller model with the same ids. It drafts tokens, up to 15 at a time, and one pass of this model checks
            them: faster where the two mostly agree, and with the same result to the last bit, whatever the draft. What
            was drafted from earlier in the text (``speculate``) goes first. Both may be of any family and dtype.
        **changes
            Any field of ``GenerationParams``, instead of the one in ``params``.

        Returns
        -------
        Generation, or a list of them for a list of prompts
            With a seed, a prompt's continuation is the same alone and in any company. With several continuations
            (``num_return_sequences``) a list of them for the prompt, of beams the best first, or a list of lists for a
            list of prompts.

        Raises
        ------
        GenerationError
            If a prompt or parameter cannot be used, or the draft model's ids are not this one's. Raised before anything
            is computed.
        """
        from refgpt.generation import GenerationParams, generate
        from refgpt.generation.drafting import check_draft
        from refgpt.generation.prompts import is_batch

        settings = GenerationParams.of(params, changes)
        batch = is_batch(prompt)
        prompts: Any = prompt if batch else [prompt]
        check_draft(self, draft, settings)
        encoded = [self._encode(one, settings) for one in prompts]
        done = generate(self, encoded, settings, self._prompt_file(prompt_cache), draft)
        return done if batch else done[0]

    def _encode(self, prompt: Prompt, settings: GenerationParams) -> list[int]:
        from refgpt.generation import encode_prompt

        return encode_prompt(prompt, self.config, self.tokenizer, settings, self.checkpoint.tokenizer_fault)

    def _prompt_file(self, path: str | os.PathLike[str] | None) -> PromptFile | None:
        from refgpt.generation import PromptFile

        if path is not None and self.mask == "prefix":
            raise GenerationError(
                "a prompt that sees itself whole has nothing in common with another",
                where="prompt_cache",
                fix="leave it out, or load the model with mask='causal' (--mask causal)",
            )
        return None if path is None else PromptFile(path)

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
        from refgpt.generation.prompts import is_batch

        settings = GenerationParams.of(params, changes)
        if is_batch(prompt):
            raise GenerationError(
                "takes one prompt", where="stream", got=f"a list of {len(prompt)}", fix="use generate for several"
            )
        if max(settings.n_drawn, settings.num_beams) > 1:
            raise GenerationError(
                "gives one text, token by token",
                where="stream",
                got=f"num_return_sequences {settings.n_drawn}, num_beams {settings.num_beams}",
                fix="use generate for several, and for beams",
            )
        if self.tokenizer is None:
            raise GenerationError(
                "this model has no tokenizer, so there is no text to stream",
                where="stream",
                got=self.checkpoint.tokenizer_fault or None,
                fix="use generate, whose result has .ids",
            )
        check_draft(self, draft, settings)
        return stream_text(self, self._encode(prompt, settings), settings, self._prompt_file(prompt_cache), draft)

    @overload
    def score(
        self,
        prompt: Prompt | np.ndarray,
        continuations: Sequence[Prompt] | np.ndarray,
        return_greedy: Literal[False] = False,
    ) -> list[np.ndarray]: ...
    @overload
    def score(
        self, prompt: Prompt | np.ndarray, continuations: Sequence[Prompt] | np.ndarray, return_greedy: bool
    ) -> Any: ...
    def score(
        self,
        prompt: Prompt | np.ndarray,
        continuations: Sequence[Prompt] | np.ndarray,
        return_greedy: bool = False,
    ) -> list[np.ndarray] | list[tuple[np.ndarray, bool]]:
        """Log-probabilities of texts that may follow a prompt.

        Parameters
        ----------
        prompt : str or list of int
            A text or its ids. An empty one is the model's beginning-of-text token.
        continuations : list of str or of list of int
            Each is weighed by itself, right after the prompt. Begin a text with the space that would stand there, and
            end the prompt without one: "The sky is", [" blue", " green"]. After a prompt that is text a continuation
            gets the ids that it has within the whole text; where it has none of its own, because a token would span the
            seam, and after a prompt of ids, it is encoded by itself.
        return_greedy : bool
            Say too whether a continuation is what greedy decoding would have written.

        Returns
        -------
        list of ndarray [t], float64
            For each continuation one natural logarithm a token, given the prompt and the tokens before it: their sum is
            the log-probability of the continuation. Probabilities are the model's own, over all rows of its head, also
            those for which the tokenizer has no token. With the prefix mask the prompt sees itself both ways, and
            the continuations stay causal. With ``return_greedy`` a list of pairs of such an array and a bool: whether
            each token was the likeliest one, the lowest id among equals.

        Raises
        ------
        GenerationError
            If the prompt or a continuation cannot be used, or they are longer together than the model's context and
            one token more, as the last is only predicted; before anything is computed.
        """
        flag("return_greedy", return_greedy, GenerationError)
        from refgpt.generation import encode_continuations, score

        fault = self.checkpoint.tokenizer_fault
        encoded = encode_continuations(prompt, continuations, self.config, self.tokenizer, fault)
        return score(self, *encoded, bool(return_greedy))

    def embed(
        self, texts: Prompt | Sequence[Prompt] | np.ndarray, layer: int = -1, pooling: str = "mean"
    ) -> np.ndarray:
        """Texts as vectors: hidden states, pooled over the positions of each text. See ``refgpt.tracing.embed``.

        Parameters
        ----------
        texts : list of str or of list of int
            One text alone is a list of one.
        layer : int
            0 is the embedding, i the residual stream after the i-th block, -1 the final LayerNorm's output.
        pooling : "mean", "last", "first" or "max"

        Returns
        -------
        ndarray [n, c], float32
            Each row depends on its text alone, to the last bit.

        Raises
        ------
        GenerationError
            If a text or an argument cannot be used; before anything is computed.
        """
        from refgpt.tracing import embed

        return embed(self, texts, layer, pooling)

    def classify(
        self,
        text: str,
        labels: Sequence[str],
        template: str | None = None,
        examples: Sequence[tuple[str, str]] = (),
        normalise: str = "sum",
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
            What a label scores: the log-likelihood of its tokens; that, divided by their number; or that, less the
            log-likelihood of the label where no text stands before it. See ``refgpt.evaluation.Classifier``, which is
            also the faster way to classify many texts by "pmi".

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
        return Classifier(self, labels, template, examples, normalise).classify(text)

    def __repr__(self) -> str:
        return (
            f"<refgpt.Model {self.checkpoint.path} {self.backend} dtype={self.dtype or 'as stored'} "
            f"mask={self.mask}: {self.config}>"
        )
