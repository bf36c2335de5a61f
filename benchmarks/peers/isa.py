"""Instruction sets that a whole comparison can be held to: a fast processor then tells what slower ones would see.

llama.cpp is built for the set, the others are told to use no more, and ctransformers' wheel is AVX2's anyway. Intel's
MKL, which PyTorch multiplies float32 with, listens on Intel's processors only. Standard library only: installing needs
this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Isa:
    """How engines and yardsticks are held to an instruction set.

    Attributes
    ----------
    cmake : mapping
        What llama.cpp is compiled with.
    cflags : tuple of str
        What ``peak.c`` is compiled with.
    environment : mapping
        What the other engines are told while they run: refgpt, CTranslate2, and the libraries of matrix products
        that CTranslate2 and PyTorch bring along.
    """

    cmake: Mapping[str, str]
    cflags: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


ISAS = {
    "native": Isa({"GGML_NATIVE": "ON"}, ("-march=native",)),
    "avx2": Isa(
        {
            "GGML_NATIVE": "OFF",
            "GGML_SSE42": "ON",
            "GGML_AVX": "ON",
            "GGML_AVX2": "ON",
            "GGML_FMA": "ON",
            "GGML_F16C": "ON",
            "GGML_BMI2": "ON",
        },
        ("-mavx2", "-mfma", "-mf16c"),
        {
            "REFGPT_ISA": "avx2",
            "CT2_FORCE_CPU_ISA": "AVX2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "DNNL_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
        },
    ),
}
