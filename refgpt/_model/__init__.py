"""A loaded model, the one object that most users need."""

from refgpt._model.model import Model

__all__ = ["Model"]
