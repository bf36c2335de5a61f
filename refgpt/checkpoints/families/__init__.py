"""Families: the names of each family's tensors and configuration keys, in every format that stores it.

A layout knows how files are arranged and read. It looks up the family in ``FAMILIES`` by the name in the files, and
takes all names from there.
"""

from __future__ import annotations

from typing import Any, Protocol

from refgpt.checkpoints.families import gpt2, gpt_neo, gpt_neox, gptj
from refgpt.checkpoints.families.formats import CTranslate2, Ggml, Gguf, HuggingFace


class Family(Protocol):
    """A module with the names of one family in each format; None if the format does not support the family."""

    @property
    def TITLE(self) -> str:
        """What people call it."""
        ...

    @property
    def MODEL_TYPE(self) -> str:
        """What transformers calls it, and ``refgpt.spec.FAMILIES``."""
        ...

    @property
    def HUGGING_FACE(self) -> HuggingFace: ...
    @property
    def GGUF(self) -> Gguf | None: ...
    @property
    def GGML(self) -> Ggml | None: ...
    @property
    def CTRANSLATE2(self) -> CTranslate2 | None: ...
    @property
    def MESH(self) -> Any:
        """A module like ``gptj_mesh``."""
        ...


#: By model_type.
FAMILIES: dict[str, Family] = {family.MODEL_TYPE: family for family in (gpt2, gpt_neo, gptj, gpt_neox)}
#: What to do about a model of another family.
SUPPORTED = "use a checkpoint of GPT-J or GPT-JT, GPT-2, GPT-Neo, or GPT-NeoX"
#: Models that resemble one of these families but compute something else, by model_type.
OTHERS = {
    "codegen": "CodeGen",
    "falcon": "Falcon",
    "RefinedWeb": "Falcon",
    "RefinedWebModel": "Falcon",
    "gpt_bigcode": "StarCoder",
    "gpt_neox_japanese": "GPT-NeoX-Japanese",
    "mpt": "MPT",
    "stablelm": "StableLM",
    "stablelm_epoch": "StableLM",
}


def holders(form: str) -> list[Any]:
    """The families that a format holds; ``form`` is its attribute of ``Family``."""
    return [family for family in FAMILIES.values() if getattr(family, form) is not None]
