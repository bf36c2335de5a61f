"""Loading: turns a path or a name into a ``Model``, ready to run. ``refgpt._open`` opens the files."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from refgpt._common.arguments import flag, one_of, path_of, whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.float_state import default_float_state
from refgpt._common.progress import Progress
from refgpt._model import Model
from refgpt._open import check_progress, open_adapter, open_adapters, open_model
from refgpt.checkpoints import NOTHING_SAID, Checkpoint, verify_checksums
from refgpt.numbers import checksums
from refgpt.numbers.dtypes import COMPUTES, KV_DTYPES, Compute, DTypeLike, KVDtype, dtype_name, known_dtype
from refgpt.numbers.packing import Kept
from refgpt.numbers.panels import PACKED_DTYPES
from refgpt.runtime.engine import Engine
from refgpt.runtime.spec_engine import SpecEngine, kept_params
from refgpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from refgpt._open import Named
    from refgpt.checkpoints.adapters import Pair

log = logging.getLogger("refgpt")

#: The dtypes in which each backend can keep weights; None means as stored.
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
    adapter: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | bool | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    compute: DTypeLike | None = None,
) -> Model:
    """Load a model.

    Parameters
    ----------
    path : path-like or None
        A directory or file in any supported format: Hugging Face, Mesh Transformer JAX, ggml, GGUF, CTranslate2 or
        refgpt's own; or, if there is no such path, a name on the Hugging Face hub such as "EleutherAI/gpt-j-6b". None
        loads the default model.
    backend : "c" or "numpy"
        The C kernels, or the spec, which is slow and readable; the kernels are tested against it.
    dtype : None, "f32", "f16", "bf16", "q8", "q4", "q3" or "f64"
        The dtype of the matrices in memory; None keeps the stored one. "q8", "q4" and "q3" take 8.5, 4.5 and 3.5 bits
        per weight (the embeddings take 8.5 with all of them); "q3" is meant for files converted with ``--calibrate``.
        Both backends compute in float32, unless ``compute`` says otherwise, with one exception: the C backend rounds
        activations to 8 bits before it multiplies them with quantised matrices. "f64", for the NumPy backend only, uses
        float64 throughout. Other programs' names ("float16", "fp16", "int8")
        and NumPy's dtypes are accepted too.
    mask : "auto", "causal" or "prefix"
        "prefix" lets all tokens of a prompt see each other, as in GPT-JT's training; "auto" uses the mask found in the
        files.
    threads : int or None
        Number of threads of the C backend; None means one per core. (The NumPy backend uses those of its BLAS.)
    kv_dtype : None, "f32", "f16" or "q8"
        Dtype of the C backend's attention cache; None means "f16" with weights of 8, 4 or 3 bits, otherwise "f32". (The
        NumPy backend has no cache.)
    progress : callable or None
        Called as ``progress(n_bytes_done, n_bytes_total)`` while an archive is unpacked, and again, starting at 0,
        while the C backend packs the weights.
    verify : bool
        Whether to check the checksums of a model in the packed format and to look for NaN in it, which reads the whole
        file.
    revision : str or None
        A branch, tag or commit of a model on the hub; None means the main branch.
    copy : bool
        Whether to copy weights into memory that could otherwise be used directly from the mapped file: those of the
        packed format, and all weights with the NumPy backend. See the notes.
    adapter : path, optional
        A directory with a LoRA adapter in PEFT's format. It is applied beside the weights, whatever they are kept in:
        they stay as they are.
    tokenizer : path-like, Tokenizer, False or None
        None: the model's own, if it has one. If that cannot be used, a warning says why, and the model works with ids
        only. Another: one from ``refgpt.load_tokenizer``, or where its files are. False: none.
    adapters : mapping of str to path, optional
        Directories with LoRA adapters by name: each request chooses one (``adapter="oz"``) or none. Those of one pass
        may differ: see ``Model.with_adapters``.
    compute : None, "f32" or "bf16"
        "bf16": linear layers of the C backend round activations to bfloat16 before they multiply them with float
        matrices; products are added in float32. Matrices in bfloat16 are used as they are, and those in float32 are
        rounded to it; float16 is refused. On processors with AVX512_BF16 prompts are read about 1.6 times as fast; the
        numbers are the same on all processors. Training computes its products so too, with weights in any dtype but
        float16, and changes the float32 matrices: see ``refgpt.training``. None is "f32".

    Returns
    -------
    Model

    Raises
    ------
    RefgptError
        If an argument, a file or a weight (NaN, infinity) cannot be used. If a file is missing, the error is also a
        ``FileNotFoundError``.

    Notes
    -----
    Files of weights are mapped, not read: processes share their memory, and a model in the packed format is ready at
    once. Therefore the files must not change while they are in use. Replace a file by renaming a new one to its name,
    as ``mv`` and ``refgpt convert`` do; do not write into it, as ``cp`` onto it, ``rsync --inplace`` and a restarted
    download do. Before each leaf is loaded and before each pass, the sizes and modification times of the files are
    checked: if a file has changed, the model raises a ``CheckpointError``. A file that is truncated in the middle of a
    pass cannot be caught: the system ends the process with SIGBUS. With ``copy=True`` this can only happen during
    ``load`` (and when ``params`` and ``verify`` read the files again).
    """
    kept_in, cached_in, computed_in = known_dtype(dtype), known_dtype(kv_dtype), known_dtype(compute)
    check_options(backend, kept_in, threads, cached_in, computed_in)
    for name, value in (("verify", verify), ("copy", copy)):
        flag(name, value, RefgptError)
    checkpoint, found = open_model(path, mask, progress, revision, tokenizer)
    checkpoint, pairs = open_adapter(adapter, checkpoint, mask)  # before the weights, which may take long
    named = open_adapters(adapters, adapter, checkpoint, mask)
    return start(
        checkpoint, found, backend, kept_in, mask, threads, cached_in, progress, verify, copy, pairs, named, computed_in
    )


def merge_adapter(
    path: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str | None = None,
    mask: str = "auto",
    progress: Progress | None = None,
    revision: str | None = None,
) -> None:
    """Write a model with a LoRA adapter added to its weights, as a directory for Hugging Face.

    Parameters
    ----------
    path : path
        The model: whatever ``load`` takes.
    adapter : path
        A directory with an adapter in PEFT's format.
    out : path
        Not there yet, or an empty directory. It appears when it is whole.
    dtype : "f32", "f16", "bf16" or None
        Of the matrices that are written; None is that of the model's embeddings. Sums are taken in float64 and rounded
        once.
    mask : "auto", "causal" or "prefix"
        What is recorded for the model; "auto" is the mask that the adapter was trained with, if it says so, or else
        that of the model.
    progress : callable, optional
        Called with the bytes that are written, and all.
    revision : str, optional
        See ``load``.

    Raises
    ------
    RefgptError
        If a file or an argument cannot be used, or ``out`` is taken.
    """
    from refgpt.conversion import convert
    from refgpt.conversion.staging import check_free
    from refgpt.training.lora import with_pairs

    check_free(path_of("out", out, RefgptError))
    checkpoint, tokenizer = open_model(path, mask, None, revision)
    checkpoint, pairs = open_adapter(adapter, checkpoint, mask)
    stored = dtype_name(checkpoint.params.wte.dtype)
    kept = (stored if stored in ("f16", "bf16") else "f32") if dtype is None else dtype
    merged = replace(checkpoint, params=with_pairs(checkpoint.params, pairs))
    convert(merged, tokenizer, os.fspath(out), "hf", kept, progress)


def check_options(
    backend: str,
    dtype: str | None,
    threads: int | None,
    kv_dtype: KVDtype | None,
    compute: Compute | None = None,
) -> None:
    """Refuse options that ``start`` cannot use. Called before the files are opened, which may take long.

    Parameters and errors are those of ``load``; dtypes must have the names that ``known_dtype`` returns.
    """
    one_of("backend", backend, tuple(DTYPES), RefgptError)
    one_of("dtype", dtype, DTYPES[backend], RefgptError)
    one_of("kv_dtype", kv_dtype, (None, *KV_DTYPES), RefgptError)
    one_of("compute", compute, (None, *COMPUTES), RefgptError)
    if compute == "bf16":
        if backend != "c":
            raise RefgptError(
                "is for the C kernels", where="compute", got=f"'bf16' and backend '{backend}'", fix="leave compute out"
            )
        if dtype == "f16":
            raise RefgptError(
                "is not for weights in f16",
                where="compute",
                got=f"'bf16' and dtype '{dtype}'",
                fix="load with dtype='bf16' or dtype='f32' (--dtype bf16 or f32), or leave compute out",
            )
    if threads is not None:  # checked for both backends
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
    pairs: Mapping[str, Pair] | None = None,
    named: Named | None = None,
    compute: Compute | None = None,
) -> Model:
    """Make a model from opened files. This is the second half of ``load``, which reads the weights.

    Parameters
    ----------
    checkpoint : Checkpoint
    tokenizer : Tokenizer or None
        Both as ``open_model`` gives them.
    asked_mask : "auto", "causal" or "prefix"
        The ``mask`` that ``open_model`` was given. It only decides the log level at which the mask is reported.
    backend, dtype, threads, kv_dtype, progress, verify, copy
        See ``load``.
    pairs : mapping of str to Pair, optional
        An adapter, as ``open_adapter`` gives it.
    named : mapping, optional
        Adapters, as ``open_adapters`` gives them.
    compute
        See ``load``.

    Returns
    -------
    Model

    Raises
    ------
    RefgptError
        If an argument or a weight (NaN, infinity) cannot be used.
    """
    check_options(backend, dtype, threads, kv_dtype, compute)
    verify, copy = flag("verify", verify, RefgptError), flag("copy", copy, RefgptError)
    check_progress(progress)
    _say_mask(checkpoint, asked=asked_mask != "auto")
    engine: Engine
    if backend == "c":
        from refgpt.kernels import digests_and_finite
        from refgpt.runtime import Runtime

        if verify:
            verify_checksums(checkpoint, partial(digests_and_finite, threads=threads))
        engine = Runtime(
            checkpoint.params,
            checkpoint.config,
            dtype=dtype,
            threads=threads,
            kv_dtype=kv_dtype,
            progress=progress,
            copy=copy,
            n_beside=_packed_bytes(pairs or {}, *(own for own, _ in (named or {}).values())),
            compute=compute or "f32",
        )
    else:
        if verify:
            verify_checksums(checkpoint, checksums.digests_and_finite)
        engine = SpecEngine(
            kept_params(checkpoint.params, dtype, copy), checkpoint.config, np.float64 if dtype == "f64" else np.float32
        )
    if pairs:
        from refgpt.training.lora import attach

        attach(engine, pairs)
    model = Model(engine, checkpoint, tokenizer, backend, dtype)
    return model._with_named(named) if named else model


def _packed_bytes(*adapters: Mapping[str, Pair]) -> int:
    """Bytes of adapters in the kernels' layout."""
    packed = Kept("f32", "panels")
    return sum(packed.n_bytes(side.shape) for pairs in adapters for pair in pairs.values() for side in (pair.a, pair.b))


def _say_mask(checkpoint: Checkpoint, asked: bool) -> None:
    """Log which mask is used and where it was found.

    GPT-JT's mask is a warning if it was found in the files, so it is shown even if no logging is set up. GPT-J's mask
    is only a debug message if it was asked for, if refgpt itself wrote it into the files, or if they do not mention a
    mask.
    """
    if checkpoint.mask == "prefix":
        what, level = "all tokens of a prompt see each other", logging.INFO if asked else logging.WARNING
    else:
        granted = asked or checkpoint.mask_written or checkpoint.mask_source == NOTHING_SAID
        what, level = "each token sees those before it", logging.DEBUG if granted else logging.INFO
    log.log(level, "%s mask: %s (%s)", checkpoint.mask, what, checkpoint.mask_source)
