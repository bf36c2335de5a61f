"""Running models. ``Runtime`` computes the same as ``refgpt.spec`` with C kernels and a cache, and is tested against
it.

``Runtime`` and its sessions are imported on first use: the specification runs without compiled kernels.
"""

from typing import TYPE_CHECKING, Any

from refgpt.runtime.engine import Engine, Session
from refgpt.runtime.spec_engine import SpecEngine

if TYPE_CHECKING:
    from refgpt.runtime.kernel_engine import Runtime
    from refgpt.runtime.session import RuntimeSession

__all__ = ["Engine", "Runtime", "RuntimeSession", "Session", "SpecEngine"]


def __getattr__(name: str) -> Any:
    if name in ("Runtime", "RuntimeSession"):
        from refgpt.runtime import kernel_engine

        return getattr(kernel_engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
