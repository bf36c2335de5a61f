"""Recognises files by their first bytes, so that the error for a wrong file names its format."""

from __future__ import annotations

from pathlib import Path

from refgpt._common.errors import CheckpointError
from refgpt._common.small_files import open_file
from refgpt.numbers.mapped import MappedFile

RIGHT_FILE = "check that the download is complete and is the right file"

SAVE_AGAIN = "save it again with a recent torch, or convert it to safetensors"
#: First bytes (numbers are little-endian, so "ggml" is "lmgg"), a description of the file, and advice.
MAGICS = {
    b"lmgg": ("a ggml file", "name this file itself as the model: it needs no other"),
    b"GGUF": ("a GGUF file", "name this file itself as the model: it needs no other"),
    b"fmgg": ("a ggmf file, an early format of LLaMA", "use a GPT-J's file: ggml (.bin), GGUF or Hugging Face's"),
    b"tjgg": ("a ggjt file, a format of LLaMA", "use a GPT-J's file: ggml (.bin), GGUF or Hugging Face's"),
    b"algg": ("a ggla file, an adapter of LLaMA", "use a GPT-J's file: ggml (.bin), GGUF or Hugging Face's"),
    b"PK\3\4": ("a zip archive, as torch.save writes", "give it the ending .bin and put config.json beside it"),
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19": ("a file of torch before 1.6", SAVE_AGAIN),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as TensorFlow writes", "convert it to safetensors with transformers 4"),
}


#: Formats that no module here reads.
FOREIGN = (b"fmgg", b"tjgg", b"algg", b"\x89HDF\r\n\x1a\n")


def begins_with(path: Path, magic: bytes) -> bool:
    """Whether a path is a file that begins with these bytes."""
    if not path.is_file():
        return False
    with open_file(path, CheckpointError) as file:
        return file.read(len(magic)) == magic


def recognised(beginning: bytes) -> tuple[str, str] | None:
    """The format of a file that begins with these bytes, and advice; None if unknown."""
    if len(beginning) >= 9 and beginning[8:9] == b"{" and int.from_bytes(beginning[:8], "little") < 1 << 32:
        return "a safetensors file", "give it the ending .safetensors and put config.json beside it"
    return next((kind for magic, kind in MAGICS.items() if beginning.startswith(magic)), None)


def refuse_foreign(path: Path) -> None:
    """Refuse a file of a known format that cannot be read.

    Raises
    ------
    CheckpointError
        Names the format.
    """
    found = next((magic for magic in FOREIGN if begins_with(path, magic)), None)
    if found is not None:
        what, fix = MAGICS[found]
        raise CheckpointError("files of this kind are not read (bad magic)", where=path, got=what, fix=fix)


def refuse_others(mapped: MappedFile, wanted: str, magic: bytes) -> None:
    """Refuse a file that does not begin with a magic.

    Raises
    ------
    CheckpointError
        Names the file's actual format, if it is known.
    """
    beginning = mapped[:16]
    if beginning.startswith(magic):
        return
    what, fix = recognised(beginning) or (f"a beginning of {beginning[:8]!r}", RIGHT_FILE)
    raise CheckpointError(f"this is not {wanted} (bad magic)", where=mapped.path, got=what, fix=fix)
