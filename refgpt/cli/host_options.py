"""Options of commands that can run on the hosts of a Ray cluster."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

#: The options of a command that are arguments of ``refgpt.load`` of the same name.
LOADED = ("backend", "dtype", "mask", "kv_dtype", "revision", "copy", "adapter", "adapters", "tokenizer", "compute")


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument_group("many machines").add_argument
    add(
        "--ray-address",
        metavar="ADDRESS",
        help="use all hosts of a Ray cluster (needs the extra ray): the address of its head, or auto. Each host reads "
        "the model at the same path, or from the hub; -t then is the number of threads of each worker",
    )
    add(
        "--workers-per-host",
        type=int,
        default=1,
        metavar="N",
        help="worker processes on each host of the cluster, which share its processors (default: 1)",
    )


def on_any_host(path: Any) -> Any:
    """A path as other processes find it, whose current directory may differ; what is no path here stays as it is."""
    return str(Path(path).absolute()) if isinstance(path, (str, os.PathLike)) and os.path.exists(path) else path


def load_options(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which each host calls ``refgpt.load``, from a command's options."""
    found = {name: options[name] for name in LOADED if options.get(name) is not None}
    for name in ("adapter", "tokenizer"):
        if name in found:
            found[name] = on_any_host(found[name])
    if "adapters" in found:
        found["adapters"] = {name: on_any_host(path) for name, path in found["adapters"].items()}
    return {"path": on_any_host(options["model"]), **found}


def check_host_arguments(arguments: argparse.Namespace) -> None:
    """Refuse options that make no sense together."""
    if arguments.ray_address is None and arguments.workers_per_host != 1:
        arguments.parser.error("--workers-per-host is for many machines; give --ray-address too")
