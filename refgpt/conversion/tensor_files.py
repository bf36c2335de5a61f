"""Writing safetensors: the header of a file, and small files at once."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.partial_files import lock_partial, partial_name, sync
from refgpt.numbers.dtypes import STORED_DTYPES, dtype_name

SAFETENSORS_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "f64": "F64", "bool": "BOOL"}
ITEM_SIZES = {name: dtype.itemsize for name, dtype in STORED_DTYPES.items()} | {"bool": 1}


def header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """What a file of safetensors begins with.

    Parameters
    ----------
    tensors : mapping of str to (str, tuple of int)
        Dtype and shape of each tensor, in the order in which their bytes will follow.
    metadata : mapping of str to str
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + int(np.prod(shape, dtype=np.int64)) * ITEM_SIZES[dtype]
        entries[name] = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a file of safetensors that is there whole or not at all; one that is there already is replaced.

    Parameters
    ----------
    path : Path
        In a directory that exists.
    arrays : mapping of str to ndarray
        In float32, float64 or float16.
    metadata : mapping of str to str

    Raises
    ------
    CheckpointError
        If another process is writing it, or it cannot be written.
    """
    partial = partial_name(path)
    try:
        descriptor = lock_partial(partial)
    except BlockingIOError:
        raise CheckpointError("another process is writing it", where=path, fix="wait for it") from None
    except OSError as fault:
        raise CheckpointError(f"cannot be written ({fault.strerror})", where=path) from fault
    done = False
    try:
        os.ftruncate(descriptor, 0)
        ordered = sorted(arrays, key=lambda name: -arrays[name].itemsize)  # so that each is aligned
        with os.fdopen(os.dup(descriptor), "wb") as file:
            dtypes = {name: (str(dtype_name(arrays[name].dtype)), arrays[name].shape) for name in ordered}
            file.write(header(dtypes, metadata))
            for name in ordered:
                file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
        os.fsync(descriptor)
        partial.rename(path)
        done = True
        sync(path.parent)
    except OSError as fault:
        if fault.errno is None:  # a signal handler's
            raise
        raise CheckpointError(f"cannot be written ({fault.strerror})", where=path) from fault
    finally:
        if not done:
            partial.unlink(missing_ok=True)
        os.close(descriptor)
