"""Loading a model: from a path or a name to a ``Model``, ready to run."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from refgpt._common.arguments import flag, one_of, path_of, whole_number
from refgpt._common.errors import RefgptError, TokenizerError
from refgpt._common.float_state import default_float_state
from refgpt._common.progress import Progress
from refgpt._common.wording import shown
from refgpt._model import Model
from refgpt.checkpoints import NOTHING_SAID, Checkpoint, hub, open_checkpoint, verify_checksums
from refgpt.numbers import checksums
from refgpt.numbers.dtypes import KV_DTYPES, KVDtype, known_dtype
from refgpt.numbers.panels import PACKED_DTYPES
from refgpt.runtime.engine import Engine
from refgpt.runtime.spec_engine import SpecEngine, kept_params
from refgpt.tokenizers import Tokenizer, find_tokenizer, load_tokenizer, tokenizer_of

log = logging.getLogger("refgpt")

#: What each backend can keep weights in; None is as stored.
DTYPES = {"c": PACKED_DTYPES, "numpy": (*PACKED_DTYPES, "f64")}


def load(
    path: str | os.PathLike[str] | None = None,
    backend: str = "c",
    dtype: DTypeLike | None = None,
    mask: str = "auto",
    threads: int | None = None,
    kv_dtype: DTypeLike | None = None,
    progress: Progress | None = None,
    verify: bool = True,
    revision: str | None = None,
    copy: bool = False,
    tokenizer: str | os.PathLike[str] | Tokenizer | bool | None = None,
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
        throughout. Names of other programs ("float16", "fp16", "int8") and NumPy's dtypes are understood too.
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
        Whether to compare the checksums of a model in the packed format with its bytes and to look for NaN in them,
        which reads all of them.
    revision : str or None
        Of a model on the hub: a branch, a tag or a commit; None is the main branch.
    copy : bool
        Whether to copy into memory also those weights that could be read where they lie in their files: of a model in
        the packed format, and of any model with the NumPy backend. See the notes.
    tokenizer : path-like, Tokenizer, False or None
        None: the model's own, if it has one. If that cannot be used, a warning says why, and the model takes and gives
        ids alone. Another: one from ``refgpt.load_tokenizer``, or where its files are. False: none.

    Returns
    -------
    Model

    Raises
    ------
    RefgptError
        If an argument, a file or a weight (NaN, infinity) cannot be used. One that is a ``FileNotFoundError`` too if a
        file is not there.

    Notes
    -----
    Files of weights are mapped, not read: processes share their memory, and a model in the packed format is ready at
    once. So the files have to stay as they are while they are in use. Replace a file by renaming a new one to its name,
    as ``mv`` and ``refgpt convert`` do; do not write into it, as ``cp`` onto it, ``rsync --inplace`` and a download
    that starts again do. Before each leaf is loaded and before each pass of the model its files are asked for their
    size and time: if one was written to, the model refuses to go on with a ``CheckpointError``. What is cut short in
    the middle of a pass cannot be caught, and the system ends the process with SIGBUS. With ``copy=True`` that can only
    happen during ``load`` (and where ``params`` and ``verify`` read the files anew).
    """
    kept_in, cached_in = known_dtype(dtype), known_dtype(kv_dtype)
    check_options(backend, kept_in, threads, cached_in)
    flag("verify", verify, RefgptError)
    checkpoint, found = open_model(path, mask, progress, revision, tokenizer)
    return start(checkpoint, found, backend, kept_in, mask, threads, cached_in, progress, verify, copy)


def check_options(backend: str, dtype: str | None, threads: int | None, kv_dtype: KVDtype | None) -> None:
    """Refuse what ``start`` cannot use: for before the files are opened, which may take long.

    Parameters and errors are those of ``load``, with dtypes by the names that ``known_dtype`` gives them.
    """
    one_of("backend", backend, tuple(DTYPES), RefgptError)
    if isinstance(dtype, str) and dtype == "bf16":
        raise RefgptError(
            "cannot be used",
            where="dtype",
            got="'bf16'",
            wanted=", ".join(map(repr, DTYPES[backend])),
            fix="leave it out: weights that are stored as bfloat16 are kept so",
        )
    one_of("dtype", dtype, DTYPES[backend], RefgptError)
    one_of("kv_dtype", kv_dtype, (None, *KV_DTYPES), RefgptError)
    if threads is not None:  # a mistake is one for either backend
        whole_number("threads", threads, 1, None, RefgptError)


@default_float_state()
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
    copy: bool = False,
) -> Model:
    """Make a model of files that are open: what ``load`` ends with, and what reads the weights' numbers.

    Parameters
    ----------
    checkpoint : Checkpoint
    tokenizer : Tokenizer or None
        Both as ``open_model`` gives them.
    asked_mask : "auto", "causal" or "prefix"
        The ``mask`` that ``open_model`` was given. It only decides how loudly the checkpoint's is told.
    backend, dtype, threads, kv_dtype, progress, verify, copy
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
    verify = flag("verify", verify, RefgptError)
    _say_mask(checkpoint, asked=asked_mask != "auto")
    engine: Engine
    if backend == "c":
        from refgpt.kernels import digests
        from refgpt.runtime import Runtime

        if verify:
            verify_checksums(checkpoint, partial(digests, threads=threads))
        engine = Runtime(
            checkpoint.params,
            checkpoint.config,
            dtype=dtype,
            threads=threads,
            kv_dtype=kv_dtype,
            progress=progress,
            copy=copy,
        )
    else:
        if verify:
            verify_checksums(checkpoint, checksums.digests)
        engine = SpecEngine(
            kept_params(checkpoint.params, dtype, copy), checkpoint.config, np.float64 if dtype == "f64" else np.float32
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


@default_float_state()
def open_model(
    path: str | os.PathLike[str] | None = None,
    mask: str = "auto",
    progress: Progress | None = None,
    revision: str | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | bool | None = None,
) -> tuple[Checkpoint, Tokenizer | None]:
    """A model's files without its weights' numbers: what ``load`` begins with, in well under a second, but for archives
    and what has to be fetched first.

    Parameters, and the errors that need no numbers, are those of ``load``.
    """
    given: Tokenizer | None = None
    if isinstance(tokenizer, Tokenizer):
        given = tokenizer
    elif tokenizer is True:
        raise RefgptError(
            "cannot be used",
            where="tokenizer",
            got="True",
            wanted="a path, a Tokenizer, False or None",
            fix="leave it out",
        )
    elif tokenizer is not None and tokenizer is not False:
        given = load_tokenizer(tokenizer)
    checkpoint = open_checkpoint(_files_of(path, revision), mask, progress)
    if tokenizer is None:
        checkpoint, found = _with_own_tokenizer(checkpoint)
    else:
        checkpoint, found = replace(checkpoint, own_tokenizer=False), given
    if found is not None:
        found.fit(checkpoint.config.n_vocab)
    return checkpoint, found


def _with_own_tokenizer(checkpoint: Checkpoint) -> tuple[Checkpoint, Tokenizer | None]:
    """The tokenizer that came with a checkpoint; if it is broken, none, and the checkpoint knows why."""
    vocabulary, directory = checkpoint.vocabulary, checkpoint.directory
    try:
        return checkpoint, find_tokenizer(directory) if vocabulary is None else tokenizer_of(vocabulary, directory)
    except TokenizerError as fault:
        log.warning("the model's tokenizer cannot be used, so that it takes and gives ids alone: %s", fault)
        return replace(checkpoint, tokenizer_fault=str(fault)), None


def _files_of(path: str | os.PathLike[str] | None, revision: str | None) -> Path:
    if path is not None and hub.is_name(path):
        return hub.fetch(str(path), revision)
    if revision is not None:
        raise RefgptError(
            "only a model on the hub has revisions",
            where="revision",
            got=shown(revision),
            fix="leave it out, or give a name such as EleutherAI/gpt-j-6b",
        )
    if path is None:
        return default_model_path()
    found = path_of("path", path, RefgptError)
    if hub.is_nickname(path):
        raise RefgptError(
            "there is no such file or directory",
            where=shown(path),
            wanted="a path, or a name on the hub",
            fix=hub.WELL_KNOWN,
        )
    return found


def default_model_path() -> Path:
    """Where the default model is: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "default_model"
    return packaged if packaged.is_dir() else package.parent / "weights" / "default"
