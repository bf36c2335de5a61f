"""A loaded model: the one object that most users need."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from refgpt import checksums, hub
from refgpt.arguments import one_of, path_of, whole_number
from refgpt.checkpoints import NOTHING_SAID, Checkpoint, open_checkpoint, verify_checksums
from refgpt.config import ModelConfig
from refgpt.engine import Engine, SpecEngine, kept_params
from refgpt.errors import GenerationError, RefgptError
from refgpt.evaluation import DEFAULT_TEMPLATE, Classification, Classifier
from refgpt.generation import Generation, GenerationParams, Prompt, encode_prompt, generate, is_batch, stream_text
from refgpt.panels import BLOCK_BYTES, PACKED_DTYPES
from refgpt.params import KV_DTYPES, KVDtype, Params, Progress
from refgpt.scoring import encode_continuations, score
from refgpt.tokenizers import Tokenizer, find_tokenizer, tokenizer_of
from refgpt.tracing import Indices, Names, Patches, Report, record, verify

log = logging.getLogger("refgpt")

#: What each backend can keep weights in; None is as stored.
DTYPES = {"c": PACKED_DTYPES, "numpy": (*PACKED_DTYPES, "f64")}


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
    def config(self) -> ModelConfig:
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

    def params(self) -> Params:
        """The weights as the engine keeps them: the stored ones, rounded or quantised if ``dtype`` asked for it.

        Matrices may be ``refgpt.panels.Panels``; ``refgpt.params.widen`` makes arrays of them.
        """
        if self.dtype in BLOCK_BYTES:  # what quantising made of them would take long to make again
            return self.engine.kept()
        # Not as the engine has packed them: ``verify`` would never see a fault of the packing.
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
        return record(self, ids, prefix_len, names, positions, patch)

    def verify(self, ids: Sequence[int], prefix_len: int = 0) -> Report:
        """Hold every activation of one forward pass to the float64 spec: see ``refgpt.tracing.verify``.

        Parameters and errors are those of ``logits``. ``report.first_broken`` is None if all are within their bounds.
        The C kernels are; the NumPy backend in float32 is not at "mlp_post", where its ``1 + tanh`` loses digits.
        """
        return verify(self.engine, self.params(), ids, prefix_len)

    @overload
    def generate(self, prompt: str, params: GenerationParams | None = None, **changes: Any) -> Generation: ...
    @overload
    def generate(
        self, prompt: Sequence[Any] | np.ndarray, params: GenerationParams | None = None, **changes: Any
    ) -> Any: ...
    def generate(
        self, prompt: Prompt | Sequence[Prompt] | np.ndarray, params: GenerationParams | None = None, **changes: Any
    ) -> Generation | list[Generation]:
        """Continue one prompt or several.

        Parameters
        ----------
        prompt : str, list of int, or list of either
            A text or its ids. An empty one starts from the model's beginning-of-text token.
        params : GenerationParams, optional
            How to continue it; by default with max_new_tokens 128 and draws from the model's own distribution.
        **changes
            Any field of ``GenerationParams``, instead of the one in ``params``: max_new_tokens, temperature, top_k,
            top_p, repetition_penalty, presence_penalty, frequency_penalty, seed, stop, logprobs, ignore_eos,
            speculate, truncate.

        Returns
        -------
        Generation, or a list of them for a list of prompts
            With a seed, a prompt's continuation is the same alone and in any company.

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
        if self.tokenizer is None:
            raise GenerationError(
                "this model has no tokenizer, so there is no text to stream",
                where="stream",
                fix="use generate, whose result has .ids",
            )
        return stream_text(self, encode_prompt(prompt, self.config, self.tokenizer, settings), settings)

    def score(self, prompt: Prompt | np.ndarray, continuations: Sequence[Prompt] | np.ndarray) -> list[np.ndarray]:
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

        Returns
        -------
        list of ndarray [t], float64
            For each continuation one natural logarithm a token, given the prompt and the tokens before it: their sum is
            the log-probability of the continuation. Probabilities are the model's own, over all rows of its head, also
            those for which the tokenizer has no token. With the prefix mask the prompt sees itself both ways, and
            the continuations stay causal.

        Raises
        ------
        GenerationError
            If the prompt or a continuation cannot be used, or they are longer together than the model's context; before
            anything is computed.
        """
        return score(self, *encode_continuations(prompt, continuations, self.config, self.tokenizer))

    def classify(
        self,
        text: str,
        labels: Sequence[str],
        template: str = DEFAULT_TEMPLATE,
        examples: Sequence[tuple[str, str]] = (),
        normalise: str = "sum",
    ) -> Classification:
        """Which of some labels fits a text best: the one that the model is likeliest to write after it.

        Parameters
        ----------
        text : str
        labels : sequence of str
            Two or more, of one line each. None should begin another.
        template : str
            How text and label are put into words. ``{text}`` is the text; ``{label}``, after it, is where the label
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
        return Classifier(self, labels, template, examples, normalise).classify(text)

    def __repr__(self) -> str:
        return (
            f"<refgpt.Model {self.checkpoint.path} {self.backend} dtype={self.dtype or 'as stored'} "
            f"mask={self.mask}: {self.config}>"
        )


def load(
    path: str | os.PathLike[str] | None = None,
    backend: str = "c",
    dtype: str | None = None,
    mask: str = "auto",
    threads: int | None = None,
    kv_dtype: KVDtype | None = None,
    progress: Progress | None = None,
    verify: bool = True,
    revision: str | None = None,
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : path-like or None
        A directory or file in any format that is read: Hugging Face's, Mesh Transformer JAX's, ggml, GGUF,
        CTranslate2's or refgpt's own; or, if there is no such path, a name on the Hugging Face hub such as
        "EleutherAI/gpt-j-6b". None: the default model.
    backend : "c" or "numpy"
        The C kernels, or the spec itself: slow, readable, and what the kernels are tested against.
    dtype : None, "f32", "f16", "q8", "q4" or "f64"
        What the matrices are kept in; None as stored. "q8" and "q4" are 8.5 and 4.5 bits a weight, but for the
        embeddings, which have 8.5 in either. Both backends compute in float32, whatever they are kept in; only that
        the C backend rounds what meets quantised matrices to 8 bits. "f64", for the NumPy backend alone, is float64
        throughout.
    mask : "auto", "causal" or "prefix"
        "prefix" lets a prompt's tokens all see each other, as GPT-JT was trained; "auto" does what the files say.
    threads : int or None
        Of the C backend; None: one per core. (The NumPy backend has those of its BLAS.)
    kv_dtype : None, "f32" or "f16"
        What the C backend's cache keeps keys and values in; None is "f16" beside weights of 8 or 4 bits, and else
        "f32". (The NumPy backend has no cache.)
    progress : callable or None
        Called as ``progress(n_bytes_done, n_bytes_total)`` while an archive is unpacked, and from nothing again while
        the C backend packs the weights.
    verify : bool
        Whether to compare the checksums of a model in the packed format with its bytes, which reads all of them.
    revision : str or None
        Of a model on the hub: a branch, a tag or a commit; None is the main branch.

    Returns
    -------
    Model

    Raises
    ------
    RefgptError
        If an argument, a file or a weight (NaN, infinity) cannot be used.
    """
    check_options(backend, dtype, threads, kv_dtype)
    checkpoint, tokenizer = open_model(path, mask, progress, revision)
    return start(checkpoint, tokenizer, backend, dtype, mask, threads, kv_dtype, progress, verify)


def check_options(backend: str, dtype: str | None, threads: int | None, kv_dtype: KVDtype | None) -> None:
    """Refuse what ``start`` cannot use: for before the files are opened, which may take long.

    Parameters and errors are those of ``load``.
    """
    one_of("backend", backend, tuple(DTYPES), RefgptError)
    one_of("dtype", dtype, DTYPES[backend], RefgptError)
    one_of("kv_dtype", kv_dtype, (None, *KV_DTYPES), RefgptError)
    if threads is not None:  # a mistake is one for either backend
        whole_number("threads", threads, 1, None, RefgptError)


def start(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | None,
    backend: str = "c",
    dtype: str | None = None,
    asked_mask: str = "auto",
    threads: int | None = None,
    kv_dtype: KVDtype | None = None,
    progress: Progress | None = None,
    verify: bool = True,
) -> Model:
    """Make a model of files that are open: what ``load`` ends with, and what reads the weights' numbers.

    Parameters
    ----------
    checkpoint : Checkpoint
    tokenizer : Tokenizer or None
        Both as ``open_model`` gives them.
    asked_mask : "auto", "causal" or "prefix"
        The ``mask`` that ``open_model`` was given. It only decides how loudly the checkpoint's is told.
    backend, dtype, threads, kv_dtype, progress, verify
        See ``load``.

    Returns
    -------
    Model

    Raises
    ------
    RefgptError
        If an argument or a weight (NaN, infinity) cannot be used.
    """
    check_options(backend, dtype, threads, kv_dtype)
    _say_mask(checkpoint, asked=asked_mask != "auto")
    engine: Engine
    if backend == "c":
        from refgpt.kernels import digests  # the compiled extension; the NumPy backend works without
        from refgpt.runtime import Runtime

        if verify:
            verify_checksums(checkpoint, partial(digests, threads=threads))
        engine = Runtime(
            checkpoint.params, checkpoint.config, dtype=dtype, threads=threads, kv_dtype=kv_dtype, progress=progress
        )
    else:
        if verify:
            verify_checksums(checkpoint, checksums.digests)
        engine = SpecEngine(
            kept_params(checkpoint.params, dtype), checkpoint.config, np.float64 if dtype == "f64" else np.float32
        )
    return Model(engine, checkpoint, tokenizer, backend, dtype)


def _say_mask(checkpoint: Checkpoint, asked: bool) -> None:
    """Say which mask it is and how that is known.

    GPT-JT's is news when it was found, and shown even where no logging is set up. GPT-J's is taken for granted where
    it was asked for or nothing speaks of another.
    """
    if checkpoint.mask == "prefix":
        what, level = "all tokens of a prompt see each other", logging.INFO if asked else logging.WARNING
    else:
        granted = asked or checkpoint.mask_source == NOTHING_SAID
        what, level = "each token sees those before it", logging.DEBUG if granted else logging.INFO
    log.log(level, "%s mask: %s (%s)", checkpoint.mask, what, checkpoint.mask_source)


def open_model(
    path: str | os.PathLike[str] | None = None,
    mask: str = "auto",
    progress: Progress | None = None,
    revision: str | None = None,
) -> tuple[Checkpoint, Tokenizer | None]:
    """A model's files without its weights' numbers: what ``load`` begins with, in well under a second, but for archives
    and what has to be fetched first.

    Parameters, and the errors that need no numbers, are those of ``load``.
    """
    path = _files_of(path, revision)
    checkpoint = open_checkpoint(path, mask, progress)
    if checkpoint.vocabulary is not None:
        return checkpoint, tokenizer_of(checkpoint.vocabulary, checkpoint.directory)
    return checkpoint, find_tokenizer(checkpoint.directory)


def _files_of(path: str | os.PathLike[str] | None, revision: str | None) -> Path:
    if path is not None and hub.is_name(path):
        return hub.fetch(str(path), revision)
    if revision is not None:
        raise RefgptError(
            "only a model on the hub has revisions",
            where="revision",
            got=repr(revision),
            fix="leave it out, or give a name such as EleutherAI/gpt-j-6b",
        )
    return default_model_path() if path is None else path_of("path", path, RefgptError)


def default_model_path() -> Path:
    """Where the default model is: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "default_model"
    return packaged if packaged.is_dir() else package.parent / "weights" / "default"
