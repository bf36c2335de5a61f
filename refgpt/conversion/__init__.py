"""Writing checkpoints in other formats."""

from refgpt.conversion.convert import TARGETS, convert

__all__ = ["TARGETS", "convert"]
