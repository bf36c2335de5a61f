"""A GPT-J as one .bin file of ggml: the header is the configuration, tensors have Hugging Face's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refgpt._common.errors import CheckpointError
from refgpt._common.progress import Progress
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.checkpoints.families import gptj
from refgpt.checkpoints.files import ggml_file
from refgpt.checkpoints.files.ggml_file import OTHER_MODEL, VERSION_FACTOR, GgmlFile
from refgpt.checkpoints.layouts import single_file
from refgpt.checkpoints.mask import find_mask, names_of
from refgpt.spec.gptj import Config
from refgpt.tokenizers.vocabulary import Vocabulary

#: The header's numbers by the configuration's names.
NUMBERS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "d_model": "n_embd",
    "d_rotary": "n_rot",
    "n_vocab": "n_vocab",
    "n_ctx": "n_ctx",
}
END_OF_TEXT = b"<|endoftext|>"


def is_at(path: Path) -> bool:
    """Whether a path is such a file, or a directory that has one and no other weights."""
    return single_file.is_at(path, ggml_file.MAGIC)


def open_at(path: Path, mask: str, progress: Progress | None = None) -> Checkpoint:
    """Open it, which takes no time: see ``open_checkpoint``."""
    file = single_file.file_at(path, ggml_file.MAGIC)
    content = ggml_file.read(file)
    config = _config(content, file)
    params = gptj.named_params(content.tensors, gptj.full_name, config, file, lambda *_: OTHER_MODEL)
    mask, source = find_mask(mask, {}, config.n_ctx, names_of(file), file)
    vocabulary = Vocabulary(content.tokens, False, None, None, config.eos_id, file)
    infos = single_file.tensor_infos(content.tensors, file)
    version = content.numbers["ftype"] // VERSION_FACTOR
    kind = f"ggml, quantisation version {version}" if version else "ggml"  # before May 2023 there was no number
    return Checkpoint(path, kind, gptj.MODEL_TYPE, config, params, mask, source, infos, vocabulary)


def _config(content: GgmlFile, path: Path) -> Config:
    """The header does not tell the MLP's width, which the tensors do, nor epsilon, which ggml's code fixes at 1e-5."""
    given: dict[str, Any] = {field: content.numbers[name] for field, name in NUMBERS.items()}
    name = gptj.full_name("blocks.0.b_in")
    if name not in content.tensors:
        raise CheckpointError("this is no GPT-J's ggml file", where=path, got=f"no tensor {name}", fix=OTHER_MODEL)
    end = _end_of_text(content.tokens)
    told = {"d_ff": content.tensors[name].size, "ln_eps": 1e-5, "bos_id": end, "eos_id": end}
    return gptj.build_config(given | told, NUMBERS, path, OTHER_MODEL)


def _end_of_text(tokens: tuple[bytes, ...]) -> int | None:
    """GPT-J has one token that begins and ends a text."""
    if END_OF_TEXT in tokens:
        return tokens.index(END_OF_TEXT)
    return Config.eos_id if len(tokens) > (Config.eos_id or 0) else None
