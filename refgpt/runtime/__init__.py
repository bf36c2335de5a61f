"""GPT-J in C kernels, with a cache: what runs. It computes what ``refgpt.spec`` says, and is held to it."""

from refgpt.runtime.session import Runtime, RuntimeSession

__all__ = ["Runtime", "RuntimeSession"]
