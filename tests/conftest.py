"""What every test shares: no network, and no deadlines on a busy machine."""

from __future__ import annotations

import socket

import pytest
from hypothesis import settings

settings.register_profile("refgpt", deadline=None)
settings.load_profile("refgpt")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would need a network fails here, not on the first machine without one."""

    def refuse(*args: object) -> None:
        raise OSError("tests do not reach a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
