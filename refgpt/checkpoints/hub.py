"""Models by their names on the Hugging Face hub, such as "EleutherAI/gpt-j-6b": downloaded once, then cached.

Only a model's own files are fetched: its configuration, its tokenizer and one set of weights, safetensors before
PyTorch's. Nothing in them is executed: they are read like any other files. The huggingface_hub library downloads them,
manages the cache, and obeys HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from refgpt._common.errors import RefgptError, is_foreign
from refgpt._common.file_names import CONFIG, GENERATION_CONFIG, INDEX, TOKENIZER_FILES, WEIGHTS
from refgpt._common.small_files import read_bytes, read_json
from refgpt._common.wording import listed, shown

LONGEST_NOTE = 1024  # bytes of a file that holds a commit's id
#: An organisation or person, a slash, and a model. Any other text with a slash is a path.
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: Common names of GPT-J and GPT-JT that are not names on the hub.
NICKNAME = re.compile(r"gpt[-_ ]?jt?([-_ ]?6b)?([-_ ]?v1)?", re.IGNORECASE)
WELL_KNOWN = "GPT-J is EleutherAI/gpt-j-6b on the hub, and GPT-JT is togethercomputer/GPT-JT-6B-v1"
#: The library, and the libraries that it uses to connect to the hub.
LIBRARIES = (
    "huggingface_hub",
    "hf_xet",
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "h11",
    "anyio",
    "requests",
    "urllib3",
    "filelock",
    "tqdm",
)
SMALL_FILES = (GENERATION_CONFIG, *TOKENIZER_FILES)


def is_name(text: str | os.PathLike[str]) -> bool:
    """Whether this is a name on the hub: two words with a slash between, and no such path exists."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None and not os.path.lexists(text)


def is_nickname(text: str | os.PathLike[str]) -> bool:
    """Whether this is a common name of GPT-J or GPT-JT, such as "gpt-j", and no such path exists."""
    return isinstance(text, str) and NICKNAME.fullmatch(text) is not None and not Path(text).exists()


def fetch(name: str, revision: str | None = None) -> Path:
    """Download the missing files of a model, and return its directory in the cache.

    Parameters
    ----------
    name : str
        The model's name, see ``is_name``.
    revision : str, optional
        A branch, a tag or a commit; by default the main branch.

    Raises
    ------
    RefgptError
        If the model or revision does not exist, has no weights in a supported format, or the hub cannot be reached and
        the cache does not hold the complete model.
    """
    hub = _library(name)
    where = name if revision is None else f"{name}, revision {revision}"
    endpoint = os.environ.get("HF_ENDPOINT")  # the library reads it when it is imported
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(name, revision=revision)
    except Exception as fault:
        if not _is_its_own(fault):
            raise
        cached = _cached(hub, name, revision)
        if cached is not None and not _is_refusal(hub, fault):
            return cached
        raise _error(hub, fault, where) from fault

    def get(file: str, revision: str | None = info.sha) -> Path:
        try:
            return Path(hub.hf_hub_download(name, file, revision=revision, endpoint=endpoint))
        except Exception as fault:
            if not _is_its_own(fault):
                raise
            raise _error(hub, fault, f"{where}, {file}") from fault

    path = _fetch_files(where, [sibling.rfilename for sibling in info.siblings or ()], get)
    get(path.name, revision)  # the files are complete, so the cache may record the revision's commit
    return path.parent


def _fetch_files(where: str, there: Sequence[str], get: Callable[[str], Path]) -> Path:
    """Fetch all files of a model; returns the path of one of them."""
    weights = next((file for file in WEIGHTS if file in there), None)
    if weights is None:
        single = [file for file in there if file.endswith(".gguf") and "/" not in file]
        if len(single) != 1:
            raise RefgptError(
                "this model has no weights that are read by its name",
                where=where,
                got=listed(there) or "no files",
                wanted=f"{' or '.join(WEIGHTS)}, or one .gguf",
                fix="fetch the file that you want and give its path",
            )
        return get(single[0])
    if CONFIG not in there:
        raise RefgptError(f"this model has no {CONFIG}", where=where, got=listed(there), fix="check the name")
    for file in (CONFIG, *(file for file in SMALL_FILES if file in there)):
        get(file)
    path = get(weights)
    if weights.endswith(INDEX):
        for shard in _shards(path, where, there):
            get(shard)
    return path


def _shards(index: Path, where: str, there: Sequence[str]) -> list[str]:
    weight_map = read_json(index, RefgptError).get("weight_map")
    shards = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not shards or not set(shards) <= set(there):
        raise RefgptError(
            "the index of the weights names files that are not there",
            where=where,
            got=listed(shards) or shown(weight_map),
            fix="another revision may be whole",
        )
    return shards


def _library(name: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as fault:
        raise RefgptError(
            "there is no such path, and a model's name on the hub needs huggingface_hub",
            where=name,
            fix='check the path, or pip install "refgpt[hub]"',
        ) from fault
    return huggingface_hub


def _cached(hub: Any, name: str, revision: str | None) -> Path | None:
    """The snapshot in the cache for this revision or commit, if it is complete."""
    cache = Path(hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    note = cache / "refs" / (revision or "main")
    commit = revision
    if note.is_file():
        commit = read_bytes(note, RefgptError, LONGEST_NOTE).decode("ascii", "replace").strip()
    snapshot = cache / "snapshots" / (commit or "")
    return snapshot if commit and snapshot.is_dir() and _is_whole(snapshot) else None


def _is_whole(snapshot: Path) -> bool:
    """Whether all weights are there: other programs may have fetched only a tokenizer, or a download was
    interrupted."""
    there = [file.name for file in snapshot.iterdir() if file.is_file()]
    weights = next((file for file in WEIGHTS if file in there), None)
    if weights is None:
        return any(file.endswith(".gguf") for file in there)
    try:
        return CONFIG in there and (not weights.endswith(INDEX) or bool(_shards(snapshot / weights, "cache", there)))
    except RefgptError:
        return False


def _is_its_own(fault: Exception) -> bool:
    """Whether the library raised this, not a signal handler that ran meanwhile."""
    refused = isinstance(fault, OSError) and fault.errno is not None  # by the system
    its_own = type(fault).__module__.partition(".")[0] in LIBRARIES
    return refused or its_own or not is_foreign(fault, *LIBRARIES, *sys.stdlib_module_names)


def _is_refusal(hub: Any, fault: Exception) -> bool:
    """Whether the hub answered with a refusal."""
    return isinstance(fault, hub.errors.RepositoryNotFoundError | hub.errors.RevisionNotFoundError)


def _error(hub: Any, fault: Exception, where: str) -> RefgptError:
    errors = hub.errors
    elsewhere = "fetch the model's files on another machine and give the path of their directory"
    if isinstance(fault, errors.GatedRepoError):
        return RefgptError(
            "this model is given only to those who asked for it",
            where=where,
            fix="ask on its page, then log in with `hf auth login`",
        )
    if isinstance(fault, errors.RevisionNotFoundError):
        return RefgptError("the model has no such revision", where=where, fix="name one of its branches or tags")
    if isinstance(fault, errors.RepositoryNotFoundError):
        return RefgptError(
            "neither a path that exists nor a model on the hub",
            where=where,
            fix="check the spelling; for a private model, log in with `hf auth login`",
        )
    said = " ".join(str(fault).split())[:200]
    return RefgptError(
        "there is no such path, the hub cannot be reached, and its cache has no such model",
        where=where,
        got=f"{type(fault).__name__}: {said}",
        fix=f"connect to the network and try again, or {elsewhere}",
    )
