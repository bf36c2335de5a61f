"""What every test shares: no network but this machine, and no deadlines where it is busy."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Hypothesis gives up on a machine that is slow, or busy: it counts seconds.
settings.register_profile("refgpt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refgpt")


# Whoever starts the suite with nohup, or in the background of a script, has it ignore Ctrl-C, and its children with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would need a network fails here, not on the first machine without one."""

    connect = socket.socket.connect

    def to_this_machine(self: socket.socket, address: Any) -> None:
        if not isinstance(address, tuple) or address[0] not in ("127.0.0.1", "::1"):
            raise OSError("tests do not reach a network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", to_this_machine)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run the command line in this process -> (exit status, what it printed, what it complained)."""
    from refgpt import cli

    def run(*arguments: object) -> SimpleNamespace:
        code = cli.main([str(argument) for argument in arguments])
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    return run
