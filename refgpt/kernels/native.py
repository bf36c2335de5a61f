"""The compiled extension, after a check that its version fits this Python code."""

from refgpt._common.errors import KernelError

try:
    from _refgpt_kernels import ffi, lib
except ImportError as error:  # the kernels were never built
    raise KernelError(
        "the C kernels are not built",
        got=error,
        fix="run 'python -m pip install .' or use backend='numpy' (--backend numpy)",
    ) from None

ABI = 18
if ABI != lib.REFGPT_ABI:
    raise KernelError(
        "the installed C kernels are of another version than this Python code",
        got=lib.REFGPT_ABI,
        wanted=ABI,
        fix='run "python -m pip install ."',
    )

CHUNK: int = lib.REFGPT_CHUNK
FEW_ROWS: int = lib.REFGPT_FEW_ROWS
ROW_GROUP: int = lib.REFGPT_ROW_GROUP

__all__ = ["CHUNK", "FEW_ROWS", "ROW_GROUP", "ffi", "lib"]
