"""The directory that a training writes: its lock, and the settings of the training that it belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refgpt._common.arguments import path_of, whole_number
from refgpt._common.errors import CheckpointError
from refgpt._common.partial_files import partial_name
from refgpt._common.small_files import LARGEST_JSON, is_there, parse_json, read_bytes, reading
from refgpt._common.wording import listed

SETTINGS = "finetune.json"
METRICS = "metrics.jsonl"
#: Names inside the output: the state from which a training resumes, and a result that is being written.
STATE_DIRECTORY = "state"
RESULT_DIRECTORY = ".result"
LOCK = ".running"
#: The parts of the settings that have to be the same when a run resumes.
PARTS = "settings", "data", "about"
#: Settings that may differ when a run resumes.
SAME_RESULT = {"recompute", "eval_every", "save_every"}
#: What runs of older versions do not record.
NEWER = {"base"}


def check_output(out: str | os.PathLike[str]) -> Path:
    """Check that a run can write a directory: it is new, empty, or an earlier run's.

    Raises
    ------
    CheckpointError
    """
    place = path_of("output", out, CheckpointError)
    with writing(place):
        if not place.parent.is_dir():
            raise CheckpointError("there is no such directory to put it in", where=place.parent, fix="make it first")
        if place.exists() and not place.is_dir():
            raise CheckpointError("is there, and no directory", where=place, fix="name another")
        begun = (LOCK, partial_name(place / SETTINGS).name)  # by a run that was killed soon after its start
        held = [path.name for path in place.iterdir() if path.name not in begun] if place.is_dir() else []
        if held and SETTINGS not in held:
            what = "the directory is not empty, and holds no training that could go on"
            raise CheckpointError(what, where=place, fix="name another, or remove it first")
    return place


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that an earlier run wrote; None if there was none."""
    with reading(path, CheckpointError):
        if not is_there(path):
            return None
    return parse_json(read_bytes(path, CheckpointError, LARGEST_JSON), path, CheckpointError)


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's metrics.jsonl."""
    path = out / METRICS
    with reading(path, CheckpointError):
        if not is_there(path):
            return []
        raw = path.read_bytes()
    found = []
    for line in raw.splitlines():
        try:
            values = parse_json(line, path, CheckpointError)
            values["step"] = whole_number("step", values.get("step"), 0, None, CheckpointError)
        except CheckpointError:  # cut short when the process was killed
            break
        found.append(values)
    return found


def has_begun(earlier: dict[str, Any], out: Path) -> bool:
    """Whether the run with these settings has made a step. Settings that no run wrote count as if it had."""
    written = earlier.get("finished") is False and all(isinstance(earlier.get(part), dict) for part in PARTS)
    if not written or is_there(out / STATE_DIRECTORY):
        return True
    return any("loss" in line for line in read_metrics(out))


def check_same(earlier: dict[str, Any], told: dict[str, Any], out: Path) -> None:
    """Refuse to resume with other settings or data: the result would belong to neither training."""
    other = []
    now = json.loads(json.dumps(told))
    for part in PARTS:
        values, before = now[part], earlier.get(part)
        before = before if isinstance(before, dict) else {}
        names = sorted((before.keys() | values.keys()) - SAME_RESULT)
        names = [name for name in names if name not in NEWER or name in before]
        other += [name for name in names if before.get(name) != values.get(name)]
    if other:
        raise CheckpointError(
            "was begun with other settings or data",
            where=out,
            got=f"another {listed(other)}",
            fix="give the same again to go on, or name another output",
        )


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn the system's errors into one that names the output."""
    try:
        yield
    except BlockingIOError:
        raise CheckpointError("another process is training there", where=out, fix="wait for it") from None
    except OSError as fault:
        if fault.errno is None:
            raise
        raise CheckpointError(f"cannot be written ({fault.strerror})", where=out) from fault
