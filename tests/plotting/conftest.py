"""Pictures are drawn without a screen, and nothing that matplotlib keeps is changed by drawing them."""

from __future__ import annotations

import matplotlib
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def settings_stay():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


@pytest.fixture(autouse=True)
def nothing_is_shown(monkeypatch):
    def show(*_, **__):
        raise AssertionError("a picture was shown")

    monkeypatch.setattr(plt, "show", show)
