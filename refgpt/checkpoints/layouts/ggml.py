"""A model as one .bin file of ggml, whose header is the configuration."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from refgpt._common.errors import CheckpointError, RefgptError
from refgpt._common.progress import Progress
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.checkpoints.families import Family, holders
from refgpt.checkpoints.families.formats import Ggml, without_head
from refgpt.checkpoints.families.names import named_params
from refgpt.checkpoints.families.settings import build_config
from refgpt.checkpoints.files import ggml_file
from refgpt.checkpoints.files.ggml_file import COUNT, OTHER_MODEL, VERSION_FACTOR, VOCABULARY, GgmlFile
from refgpt.checkpoints.layouts import single_file
from refgpt.checkpoints.mask import find_mask, names_of
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers.vocabulary import Vocabulary

log = logging.getLogger("refgpt")

#: The family of most of these files.
MOST = "GPT-J"
END_OF_TEXT = b"<|endoftext|>"


def is_at(path: Path) -> bool:
    """Whether a path is such a file, or a directory that has one and no other weights."""
    return single_file.is_at(path, ggml_file.MAGIC)


def open_at(path: Path, mask: str, progress: Progress | None = None) -> Checkpoint:
    """Open it, which takes no time: see ``open_checkpoint``."""
    file = single_file.file_at(path, ggml_file.MAGIC)
    family, content, config, params = _that_fits(file)
    mask, source = find_mask(mask, {}, config.n_ctx, names_of(file), file)
    vocabulary = Vocabulary(content.tokens, False, None, None, config.eos_id, file)
    infos = single_file.tensor_infos(content.tensors, file)
    version = content.numbers["ftype"] // VERSION_FACTOR
    kind = f"ggml, quantisation version {version}" if version else "ggml"  # before May 2023 there was no number
    return Checkpoint(path, kind, family.MODEL_TYPE, config, params, mask, source, infos, vocabulary)


def _that_fits(file: Path) -> tuple[Family, GgmlFile, AnyConfig, ParamTree]:
    """The first family whose file it is to the last byte.

    Where it is none's, the error is that of the family whose tensors are there, else that of the first whose vocabulary
    has the size that the header says, or could be read, else that of GPT-J, which most of these files are.
    """
    faults: list[tuple[tuple[bool, bool, bool], RefgptError]] = []
    families: list[Family] = sorted(holders("GGML"), key=lambda family: family.TITLE != MOST)
    for family in families:
        form = family.GGML
        assert form is not None
        for header in form.headers:
            seen: list[str] = []
            try:
                content = ggml_file.read(file, header, seen)
                tensors = without_head(form, content.tensors, file, OTHER_MODEL)
                config = _config(form, content, file)
                params = named_params(tensors, form.names, form.title, config, file, lambda *_: OTHER_MODEL)
            except RefgptError as fault:
                known = {form.names(leaf) for leaf in ("wte", "ln_w", "blocks.0.w_in")}
                fits = bool(known & set(seen)), COUNT in seen, VOCABULARY in seen
                faults.append((fits, fault.with_traceback(None)))  # which would keep what was read
                continue
            if form.note:
                log.info("%s: %s", file, form.note)
            return family, content, config, params
    raise max(faults, key=lambda fault: fault[0])[1]


def _config(form: Ggml, content: GgmlFile, path: Path) -> AnyConfig:
    """The header does not tell the MLP's width, which the tensors do, nor what ggml's code fixes."""
    given: dict[str, Any] = dict(form.constants)
    for field, name in form.fields.items():
        if name in content.numbers:
            number = content.numbers[name]
            given[field] = bool(number) if isinstance(getattr(form.config, field), bool) else number
    name = form.names("blocks.0.b_in")
    if name not in content.tensors:
        raise CheckpointError(
            f"this is no {form.title}'s ggml file", where=path, got=f"no tensor {name}", fix=OTHER_MODEL
        )
    end = _end_of_text(content.tokens, form.config.eos_id)
    told = {field: tell(content.tensors) for field, tell in form.told.items()}
    told |= {"d_ff": content.tensors[name].size, "bos_id": end, "eos_id": end}
    config: AnyConfig = build_config(form.config, given | told, form.fields, path, OTHER_MODEL)
    return config


def _end_of_text(tokens: tuple[bytes, ...], default: int | None) -> int | None:
    """One token begins and ends a text."""
    if END_OF_TEXT in tokens:
        return tokens.index(END_OF_TEXT)
    return default if len(tokens) > (default or 0) else None
