"""A terminal to run things before."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable

import pytest


def shown_on_terminal(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> str:
    """What ``act`` writes to standard error while that is a terminal of 80 columns."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with open(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        act()
        terminal.write(".")
    shown = ""
    while not shown.endswith("."):
        shown += os.read(mine, 10_000).decode()
    return shown[:-1]


def told_to_terminal(command: list[str]) -> bytes:
    """What a command writes to standard output and standard error while both are a terminal."""
    mine, theirs = pty.openpty()
    with open(mine, "rb", buffering=0) as terminal, subprocess.Popen(command, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        told = b""
        try:
            while piece := terminal.read(10_000):
                told += piece
        except OSError:  # how a terminal that nobody writes to any more ends
            pass
        process.wait()
    return told
