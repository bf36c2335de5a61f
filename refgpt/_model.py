"""A loaded model: the one object that most users need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from refgpt._common.arguments import flag
from refgpt._common.errors import GenerationError
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.generation.loop import generate, stream_text
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import Prompt, encode_prompt, is_batch
from refgpt.generation.results import Generation
from refgpt.generation.scoring import encode_continuations, score
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.mapped import check_unchanged
from refgpt.numbers.panels import BLOCK_BYTES
from refgpt.numbers.tree import ParamTree
from refgpt.runtime.engine import Engine
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from refgpt.evaluation import Classification
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
        None if there was none beside the weights: the model then takes and gives ids.
    backend : str
        "c" or "numpy".
    dtype : str or None
        What the weights are kept in; None is as stored.
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
        """What the engine's cache keeps keys and values in: "f32" or "f16"."""
        return self.engine.kv_dtype

    @property
    def mask(self) -> str:
        """ "causal", or "prefix" when a prompt's tokens all see each other (GPT-JT)."""
        return self.checkpoint.mask

    @property
    def mask_source(self) -> str:
        """How the mask is known."""
        return self.checkpoint.mask_source

    def params(self) -> ParamTree:
        """The weights as the engine keeps them: the stored ones, rounded or quantised if ``dtype`` asked for it.

        Matrices may be ``refgpt.numbers.panels.Panels``; ``refgpt.numbers.leaves.widen`` makes arrays of them.
        """
        if self.dtype in BLOCK_BYTES:  # what quantising made of them would take long to make again
            return self.engine.kept()
        # Not as the engine has packed them: ``verify`` would never see a fault of the packing.
        check_unchanged(*(leaf for _, leaf in self.checkpoint.params.items()))
        return self.checkpoint.params.kept_as(self.dtype)

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
            float32, or float64 for the NumPy backend with dtype "f64". All rows of the head, also those
            for which the tokenizer has no token.

        Raises
        ------
        GenerationError
            If the ids do not exist or are too many.
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
    ) -> dict[str, np.ndarray]:
        """Named activations of one forward pass: those that are asked for, and nothing beyond them is kept.

        Parameters
        ----------
        ids : str or sequence of int [t]
            A text, if there is a tokenizer, or its ids.
        prefix_len : int
            So many leading positions see one another; 0 is the causal mask, whatever ``mask`` is.
        names : str or collection of str, optional
            Which ones: names of ``refgpt.spec.tap_names(config)``, or patterns such as "blocks.*.pattern"; by default
            all of them.
        positions : int, slice or sequence of int, optional
            Which rows of each to keep, by default all: of "pattern" [h, t, s] queries, of all others those of axis 0.
        patch : mapping, or sequence of mappings, optional
            What to replace on the way: from names or patterns to a function, an array, or what
            ``refgpt.tracing.zero_heads`` and its like make.

        Returns
        -------
        dict of str to ndarray
            In the order they were computed, with the axes that ``refgpt.spec.tap_axes`` gives.

        Raises
        ------
        RefgptError
            If an argument cannot be used, or the trace would take more memory than there is: then it says how much, and
            what to narrow. Before anything is computed.
        """
        from refgpt.tracing import record

        return record(self, ids, prefix_len, names, positions, patch)

    def verify(
        self,
        ids: Sequence[int],
        prefix_len: int = 0,
        *,
        progress: bool = False,
        on_tap: Callable[[TapResult], object] | None = None,
    ) -> Report:
        """Hold every activation of one forward pass to the float64 spec: see ``refgpt.tracing.verify``.

        Parameters and errors are those of that function. ``report.first_broken`` is None if all are within their
        bounds. The C kernels are; the NumPy backend in float32 is not at "mlp_post", where its ``1 + tanh`` loses
        digits. Kernels whose bits are not the promised ones, whatever the bounds say, are a KernelError.
        """
        from refgpt.tracing import verify

        if self.backend == "c":
            from refgpt.kernels import check_bits

            check_bits()

        return verify(self.engine, self.params(), ids, prefix_len, progress=progress, on_tap=on_tap)

    @overload
    def generate(self, prompt: str, params: GenerationParams | None = None, **changes: Any) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[Any] | np.ndarray, params: GenerationParams | None = None, **changes: Any
    ) -> Any: ...
    def generate(
        self, prompt: Prompt | Sequence[Prompt] | np.ndarray, params: GenerationParams | None = None, **changes: Any
    ) -> Any:
        """Continue one prompt or several.

        Parameters
        ----------
        prompt : str, list of int, or list of either
            A text or its ids. An empty one starts from the model's beginning-of-text token.
        params : GenerationParams, optional
            How to continue it; by default with max_new_tokens 128 and draws from the model's own distribution.
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
            If a prompt or parameter cannot be used; before anything is computed.
        """
        settings = GenerationParams.of(params, changes)
        batch = is_batch(prompt)
        prompts: Any = prompt if batch else [prompt]
        done = generate(self, [encode_prompt(one, self.config, self.tokenizer, settings) for one in prompts], settings)
        return done if batch else done[0]

    def stream(self, prompt: Prompt, params: GenerationParams | None = None, **changes: Any) -> Iterator[str]:
        """Continue one prompt, piece by piece.

        Parameters are those of ``generate``, but for one prompt only. A model without a tokenizer has no text to
        stream: use ``generate``.

        Returns
        -------
        iterator of str
            Each piece as soon as it is certain: whole characters, and nothing of a stop string. Joined they are the
            ``text`` that ``generate`` gives for the same seed. If Ctrl-C interrupts the model, what was held back
            because it might have become a stop string comes before the ``KeyboardInterrupt``.

        Raises
        ------
        GenerationError
            If the prompt or a parameter cannot be used; at the call, not at the first piece.
        """
        settings = GenerationParams.of(params, changes)
        if is_batch(prompt):
            raise GenerationError(
                "takes one prompt", where="stream", got=f"a list of {len(prompt)}", fix="use generate for several"
            )
        if max(settings.num_return_sequences, settings.num_beams) > 1:
            raise GenerationError(
                "gives one text, token by token",
                where="stream",
                got=f"num_return_sequences {settings.num_return_sequences}, num_beams {settings.num_beams}",
                fix="use generate for several, and for beams",
            )
        if self.tokenizer is None:
            raise GenerationError(
                "this model has no tokenizer, so there is no text to stream",
                where="stream",
                fix="use generate, whose result has .ids",
            )
        return stream_text(self, encode_prompt(prompt, self.config, self.tokenizer, settings), settings)

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
        return score(
            self, *encode_continuations(prompt, continuations, self.config, self.tokenizer), bool(return_greedy)
        )

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
        """Which of some labels fits a text best: the one that the model is likeliest to write after it.

        Parameters
        ----------
        text : str
        labels : sequence of str
            Two or more, of one line each. None should begin another.
        template : str, optional
            How text and label are put into words, by default ``refgpt.evaluation.DEFAULT_TEMPLATE``. ``{text}`` is the text; ``{label}``, after it, is where the label
            stands, by default at the end; ``{labels}`` becomes a numbered list of them. What comes before the last
            blank line before ``{text}`` stands once, the rest again for each example.
        examples : sequence of (text, label)
            Shown before the text, in this order.
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
            If an argument cannot be used, or the prompt is too long for the context; before anything is computed.
        """
        from refgpt.evaluation import DEFAULT_TEMPLATE, Classifier

        template = DEFAULT_TEMPLATE if template is None else template
        return Classifier(self, labels, template, examples, normalise).classify(text)

    def __repr__(self) -> str:
        return (
            f"<refgpt.Model {self.checkpoint.path} {self.backend} dtype={self.dtype or 'as stored'} "
            f"mask={self.mask}: {self.config}>"
        )
