"""Who is measured against whom: engines in groups of like precision, each led by refgpt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.peers.questions import DECODE, EVERYTHING

#: The model in all its forms, files and directories, each made from those before it. The checkpoint's name is that of
#: every family's; the twin of a model that llama.cpp runs is the model itself.
CHECKPOINT, REFERENCE, TWIN, OPENVINO = "gptj", "reference.npy", "twin-F16.gguf", "openvino-f16"
FORMS = (
    CHECKPOINT,
    REFERENCE,
    TWIN,
    "twin-Q8_0.gguf",
    "twin-Q4_0.gguf",
    "twin-Q4_0-pure.gguf",
    "twin-Q4_K_M.gguf",
    "twin-Q3_K_S.gguf",
    "ggml-q4_0.bin",
    "ctranslate2-int8",
    "ctranslate2-float32",
    OPENVINO,
    "openvino-int8",
    "openvino-int4",
)
#: An engine whose logits have a smaller cosine with the spec's runs something else, quantised or not. In 3 bits, twelve
#: layers of random weights give 0.88.
SAME_MODEL, SAME_IN_3_BITS = 0.9, 0.8

#: What servers load, see ``serving.py``: engines and their forms of the model.
SERVED = {"refgpt": CHECKPOINT, "llama.cpp": "twin-Q4_0.gguf", "CTranslate2": "ctranslate2-int8"}

#: Engines that compute the last block of a prompt only for the token whose logits are asked for, by the beginning of
#: their names. The others compute all of it.
LAST_BLOCK_IN_PART = ("refgpt", "llama.cpp")

#: Families, and the layers of each that are measured where nothing else is asked for.
LAYERS = {"gptj": 4, "gpt-neox": 4, "gpt2": 12}


def suffix(family: str) -> str:
    """What names of files and directories get, but for GPT-J's."""
    return "" if family == "gptj" else f"-{family}"


@dataclass(frozen=True)
class Engine:
    """One row of the table.

    Attributes
    ----------
    name : str
        As shown.
    adapter : str
        Module in ``engines``.
    precision : str
        In the adapter's words.
    form : str
        Which of ``FORMS`` it loads.
    threads : int
    """

    name: str
    adapter: str
    precision: str
    form: str
    threads: int = 2


@dataclass(frozen=True)
class Group:
    """Engines that are alive together and answer in turn. Ratios are against the first.

    An engine is left out if the cosine of its logits with the spec's is below ``least_cosine``.
    """

    title: str
    engines: tuple[Engine, ...]
    questions: tuple[dict[str, Any], ...] = EVERYTHING
    threads: int = 2
    least_cosine: float = SAME_MODEL


REFGPT_Q4 = Engine("refgpt q4", "refgpt", "q4", CHECKPOINT)
LLAMA_Q4_0 = Engine("llama.cpp Q4_0", "llama_cpp", "Q4_0", "twin-Q4_0.gguf")


def one_thread(engine: Engine) -> Engine:
    return replace(engine, name=f"{engine.name}, 1 thread", threads=1)


def groups(threads: int, family: str = "gptj") -> list[Group]:
    """All groups, with so many threads but for those that say otherwise."""
    all_of_them = [
        Group(
            "4 bits",
            (
                REFGPT_Q4,
                LLAMA_Q4_0,
                Engine("llama.cpp Q4_0 pure", "llama_cpp", "Q4_0", "twin-Q4_0-pure.gguf"),
                Engine("llama.cpp Q4_K_M", "llama_cpp", "Q4_K_M", "twin-Q4_K_M.gguf"),
                Engine("OpenVINO int4", "openvino", "int4", "openvino-int4"),
                Engine("ctransformers q4_0", "ctransformers", "q4_0", "ggml-q4_0.bin"),
            ),
        ),
        Group(
            "3 bits",
            (
                Engine("refgpt q3", "refgpt", "q3", CHECKPOINT),
                Engine("llama.cpp Q3_K_S", "llama_cpp", "Q3_K_S", "twin-Q3_K_S.gguf"),
                replace(REFGPT_Q4, name="refgpt q4, beside q3"),
            ),
            least_cosine=SAME_IN_3_BITS,
        ),
        Group(
            "8 bits",
            (
                Engine("refgpt q8", "refgpt", "q8", CHECKPOINT),
                Engine("llama.cpp Q8_0", "llama_cpp", "Q8_0", "twin-Q8_0.gguf"),
                Engine("CTranslate2 int8", "ctranslate2", "int8", "ctranslate2-int8"),
                Engine("OpenVINO int8", "openvino", "int8", "openvino-int8"),
            ),
        ),
        Group(
            "16 bits",
            (
                Engine("refgpt f16", "refgpt", "f16", CHECKPOINT),
                Engine("llama.cpp F16", "llama_cpp", "F16", TWIN),
            ),
        ),
        Group(
            "16 bits, multiplied in bfloat16",
            (
                Engine("refgpt bf16", "refgpt", "bf16", CHECKPOINT),
                Engine("transformers bfloat16", "transformers", "bf16", CHECKPOINT),
                Engine("OpenVINO bfloat16", "openvino", "bf16", OPENVINO),
            ),
        ),
        Group(
            "32 bits",
            (
                Engine("refgpt f32", "refgpt", "f32", CHECKPOINT),
                Engine("CTranslate2 float32", "ctranslate2", "float32", "ctranslate2-float32"),
                Engine("transformers float32", "transformers", "f32", CHECKPOINT),
            ),
        ),
    ]
    with_threads = [
        replace(group, engines=tuple(replace(e, threads=threads) for e in group.engines), threads=threads)
        for group in all_of_them
    ]
    alone = Group("4 bits, one thread", (one_thread(REFGPT_Q4), one_thread(LLAMA_Q4_0)), DECODE, 1)
    found = [with_threads[0], alone, *with_threads[1:]]
    if family == "gptj":
        return found
    # Of ggml of 2023 there is a file of GPT-J alone.
    return [replace(group, engines=tuple(e for e in group.engines if e.adapter != "ctransformers")) for group in found]


def is_wanted(name: str, wanted: str | None) -> bool:
    """Whether an engine's name contains one of the words, "refgpt,llama"; None wants all."""
    return any(word.strip().lower() in name.lower() for word in (wanted or "").split(","))


def chosen(groups_: Sequence[Group], wanted: str | None) -> list[Group]:
    """The engines whose names contain one of the words, "refgpt,llama", and the groups that have any."""
    kept = [replace(group, engines=tuple(e for e in group.engines if is_wanted(e.name, wanted))) for group in groups_]
    return [group for group in kept if group.engines]


def forms_of(groups_: Sequence[Group]) -> list[str]:
    """What has to be made for these engines."""
    return with_sources({engine.form for group in groups_ for engine in group.engines} | {REFERENCE})


def served_forms(wanted: str | None) -> list[str]:
    """What has to be made for the servers of these engines."""
    return with_sources({form for name, form in SERVED.items() if is_wanted(name, wanted)})


def with_sources(forms: set[str]) -> list[str]:
    """Forms, and those that they are made from, in the order in which they are made."""
    needed = forms | {CHECKPOINT}
    needed |= {form for form in (TWIN, OPENVINO) if any(other.startswith(form.partition("-")[0]) for other in needed)}
    return [form for form in FORMS if form in needed]
