"""The options of the stages that measure, as ``__main__`` passes them on."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.peers.lineup import LAYERS


def stage_parser() -> argparse.ArgumentParser:
    """A parser of the options that every stage that measures takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--patience", type=float, required=True)
    parser.add_argument("--family", choices=LAYERS, required=True)
    parser.add_argument("--engines")
    return parser


def passed_on(args: argparse.Namespace, *more: str) -> list[str]:
    """The options with which a stage that measures is called, and ``more`` that it takes besides."""
    names = ["family", "layers", "rounds", "threads", "patience", *more, *(["engines"] * bool(args.engines))]
    return [f"--{name}={getattr(args, name)}" for name in names]
