"""Finds the tokens of a text, of any length, at which a neuron is most active.

The text is read piece by piece, and the model computes no further than the requested layer. For each neuron the largest
activations are kept, with the tokens around them. Interpreting neurons by such examples is common, and misleading if
all examples come from one kind of text: Bolukbasi et al. 2021, "An interpretability illusion for BERT"
(https://arxiv.org/abs/2104.07143).
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refgpt._common.arguments import flag, one_of, path_of, whole_number
from refgpt._common.errors import DataError, GenerationError
from refgpt._common.progress import counted
from refgpt._common.small_files import open_file
from refgpt._common.wording import shown, told
from refgpt.tokenizers import Tokenizer
from refgpt.tracing.memory import check_fits
from refgpt.tracing.places import Indices, find_indices
from refgpt.tracing.recording import record
from refgpt.tracing.subjects import HasEngine, engine_of

PARTS = ("mlp_post", "mlp_pre")
#: Longest piece of a line that is encoded at a time.
PIECE_BYTES = 1 << 16
#: Tokens that are kept with an activation: before it and after it.
BEFORE, AFTER = 12, 4
NO_TOKEN = -1
WINDOW = 128


@dataclass(frozen=True, eq=False)
class TopActivations:
    """The largest activations of some neurons of one layer.

    Attributes
    ----------
    layer : int
    neurons : ndarray of int [n]
    values : ndarray [n, k], float32
        For each neuron its activations, largest first; -inf if the text had fewer than ``k`` tokens.
    places : ndarray of int64 [n, k]
        Index of the token in the text, from 0; -1 for none.
    contexts : ndarray of int32 [n, k, 17]
        The ids of 12 tokens before it, itself and 4 after it within its window; -1 for none.
    n_tokens : int
        Number of tokens of the whole text.
    """

    layer: int
    neurons: np.ndarray
    values: np.ndarray
    places: np.ndarray
    contexts: np.ndarray
    n_tokens: int

    def lines(self, tokenizer: Tokenizer) -> Iterator[str]:
        """A line for each activation: neuron, value and text, with the token itself in brackets."""
        for neuron, values, contexts in zip(self.neurons, self.values, self.contexts, strict=True):
            for value, context in zip(values, contexts, strict=True):
                if np.isfinite(value):
                    parts = (context[:BEFORE], context[BEFORE : BEFORE + 1], context[BEFORE + 1 :])
                    before, token, after = (tokenizer.decode(ids[ids != NO_TOKEN].tolist()) for ids in parts)
                    text = f"{before}[{token}]{after}".replace("\n", "\\n")
                    yield f"blocks.{self.layer} neuron {neuron:>5} {value:9.3f}  {text}"


def top_activations(
    model: HasEngine,
    text: str | os.PathLike[str] | Iterable[str],
    layer: int,
    neurons: Indices = None,
    *,
    k: int = 8,
    window: int | None = None,
    part: str = "mlp_post",
    progress: bool = False,
) -> TopActivations:
    """Run a model over a text and record where its neurons are most active.

    Parameters
    ----------
    model : Model
        With a tokenizer.
    text : path or iterable of str
        A file, in UTF-8, or pieces of text as they come. Lines, and pieces, are encoded one by one.
    layer : int
        The block.
    neurons : int, slice or sequence of int, optional
        Which of its ``d_ff`` neurons; by default all.
    k : int
        Number of activations per neuron.
    window : int, optional
        Tokens that the model sees together, by default 128 if its context is as long; windows do not overlap. Each
        starts with the token that begins a text, if the model has one, whose own activations do not count.
    part : "mlp_post" or "mlp_pre"
        The neuron's output, or the input of its GELU.
    progress : bool
        Show a bar on standard error: bytes of a file, or pieces.

    Raises
    ------
    RefgptError
        If an argument cannot be used, there is no tokenizer, or the result takes more memory than there is.
    DataError
        If the file cannot be read, or there is no text in it.
    """
    engine = engine_of(model)
    config, tokenizer = engine.config, getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise GenerationError(
            "there is no tokenizer to encode a text",
            where="model",
            fix="load the model from a directory with its tokenizer",
        )
    layer = whole_number("layer", layer, 0, config.n_layer - 1, GenerationError)
    one_of("part", part, PARTS, GenerationError)
    start = [] if config.bos_id is None else [config.bos_id]
    longest = config.n_ctx - len(start)
    window = whole_number("window", min(WINDOW, longest) if window is None else window, 1, longest, GenerationError)
    chosen = find_indices(neurons, config.d_ff, "neurons")
    chosen = np.arange(config.d_ff) if chosen is None else chosen
    k = whole_number("k", k, 1, None, GenerationError)
    progress = flag("progress", progress, GenerationError)
    if not isinstance(text, (str, os.PathLike, Iterable)) or (isinstance(text, np.ndarray) and not text.ndim):
        raise DataError("is no text", where="text", got=shown(text), wanted="a path, or pieces of text")
    best = _Best(len(chosen), k, window)

    name, n_tokens = f"blocks.{layer}.{part}", 0
    size, unit, pieces = _opened(text)
    with counted(progress, size, unit, "reading") as done:
        for ids in _windows(pieces(done), tokenizer, window):
            rows = record(engine, [*start, *ids], names=name)[name][len(start) :, chosen]  # [t, n]
            best.take(rows, np.array(ids), n_tokens)
            n_tokens += len(ids)
    if not n_tokens:
        raise DataError("there is no text in it", where=text if isinstance(text, (str, os.PathLike)) else "text")
    return TopActivations(layer, chosen, best.values, best.places, best.contexts, n_tokens)


class _Best:
    """The ``k`` largest activations of ``n`` neurons so far. An earlier one comes before a later one of its size."""

    def __init__(self, n: int, k: int, window: int) -> None:
        width = BEFORE + 1 + AFTER
        check_fits(
            n * (2 * k * (4 + 8 + 4 * width) + window * 24),
            f"{told(k)} activations of {n} neurons with contexts",
            "ask for fewer neurons or a smaller k",
        )
        self.values = np.full((n, k), -np.inf, np.float32)
        self.places = np.full((n, k), -1, np.int64)
        self.contexts = np.full((n, k, width), NO_TOKEN, np.int32)

    def take(self, rows: np.ndarray, ids: np.ndarray, n_before: int) -> None:
        """Consider the activations [t, n] of one window's tokens, before which there were ``n_before``."""
        padded = np.pad(ids, (BEFORE, AFTER), constant_values=NO_TOKEN)
        contexts = np.lib.stride_tricks.sliding_window_view(padded, BEFORE + 1 + AFTER)  # [t, width]
        rows, k = rows.astype(np.float32).T, self.values.shape[1]  # [n, t]
        new = np.argsort(-rows, axis=1, kind="stable")[:, :k]  # [n, k or fewer]
        values = np.concatenate([self.values, np.take_along_axis(rows, new, axis=1)], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        self.values = np.take_along_axis(values, order, axis=1)
        self.places = np.take_along_axis(np.concatenate([self.places, n_before + new], axis=1), order, axis=1)
        both = np.concatenate([self.contexts, contexts[new].astype(np.int32)], axis=1)
        self.contexts = np.take_along_axis(both, order[..., None], axis=1)


Pieces = Callable[[Callable[[int], object]], Iterator[str]]


def _opened(text: str | os.PathLike[str] | Iterable[str]) -> tuple[int | None, str, Pieces]:
    """The amount to read, its unit, and a function that reads it and reports progress."""
    if not isinstance(text, (str, os.PathLike)):
        return None, "piece", lambda done: _counted(text, done)
    path = path_of("text", text, DataError)
    with open_file(path, DataError) as file:
        size = os.fstat(file.fileno()).st_size
    return size, "B", lambda done: _lines(path, done)


def _counted(pieces: Iterable[str], done: Callable[[int], object]) -> Iterator[str]:
    for piece in pieces:
        if not isinstance(piece, str):
            raise DataError("is no text", where="text", got=type(piece).__name__, wanted="a path, or pieces of text")
        yield piece
        done(1)


def _lines(path: Path, done: Callable[[int], object]) -> Iterator[str]:
    """A file's lines, very long ones in parts; invalid UTF-8 becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with open_file(path, DataError) as file:
        while line := file.readline(PIECE_BYTES):
            yield decoder.decode(line)
            done(len(line))
    yield decoder.decode(b"", final=True)


def _windows(pieces: Iterator[str], tokenizer: Tokenizer, n: int) -> Iterator[list[int]]:
    """Ids of a text in windows of ``n``; the last window may be shorter."""
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer.encode(piece)
        while len(ids) >= n:
            yield ids[:n]
            del ids[:n]
    if ids:
        yield ids
