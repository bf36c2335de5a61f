"""What is printed and said: short, on one line, and nothing that a terminal would obey."""

from __future__ import annotations

import logging
import pickle
import unicodedata

import numpy as np
import pytest

import refgpt
from refgpt._common import wording
from refgpt._common.errors import CheckpointError, GenerationError, RefgptError
from refgpt._common.wording import displayable, listed, printable, shortened, shown, told

EVIL = [
    "\x1b[2J",
    "\x1b]0;owned\x07",
    "a\nmodel   /a/trusted/name",
    "a\rb",
    "\x9b31m",
    "\x90q\x9c",
    "\x7f\x08\x08",
    "\u202egnp.exe",
    "\u2066\u2069",
    "\u200e\u200f",
    "\u061c",
    "a\u2028b\u2029c",
    "\u0085",
    "\udc9b",
    "\x00",
]


def obeyed(text: str, allowed: str = "") -> list[str]:
    """Characters that a terminal would not simply show."""
    kinds = {"Cc", "Cs", "Zl", "Zp"}
    turning = {"\u061c", *map(chr, [*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])}
    return [c for c in text if c not in allowed and (unicodedata.category(c) in kinds or c in turning)]


@pytest.mark.parametrize("text", EVIL)
def test_nothing_that_a_terminal_obeys_gets_through(text):
    assert obeyed(text) and not obeyed(printable(text))
    assert not obeyed(displayable(text), allowed="\n\t")
    assert printable(printable(text)) == printable(text)


def test_what_shows_stays():
    text = "Größe 大きさ ∞ 🙂 a\u00a0b"
    assert printable(text) == displayable(text) == text
    assert printable("a\nb\x1b") == "a\\nb\\x1b" and printable("\u202e") == "\\u202e"
    assert displayable("a\n\tb👩\u200d🔬") == "a\n\tb👩\u200d🔬"  # joiners make one picture of two


class Mute:
    """An object that cannot say what it is."""

    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __repr__


class Loud:
    """An object that says what a terminal obeys."""

    def __repr__(self) -> str:
        return "\x1b[2J\n"


LONG = [
    "x" * 10_000_000,
    b"x" * 10_000_000,
    10**5000,
    -(10**5000),
    [10**5000] * 3,
    list(range(1_000_000)),
    {"a" * 10**6: 1},
    "\x1b" * 1_000_000,
    np.zeros(100_000),
    Mute(),
    [Mute()],
    Loud(),
    {Loud(): Mute()},
    type("n" * 100_000, (Mute,), {})(),
    "\U000e0001" * 5000,
    object(),
]


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__[:20])
@pytest.mark.parametrize("say", [told, shown])
def test_every_value_can_be_told_in_a_line(value, say):
    text = say(value)
    assert 0 < len(text) < 1200 and text.isprintable()


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__[:20])
def test_a_message_is_short_whatever_stands_in_it(value):
    error = RefgptError("cannot be used", where=value, got=value, wanted=value, fix="leave it out")
    assert str(error).isprintable() and len(str(error)) < 4000
    assert error.got is value  # the attributes are what was given
    assert str(error).endswith("; leave it out")
    assert str(error.within(value)).isprintable() and len(str(error.within(value))) < 4000


def test_short_values_are_told_as_they_are():
    assert str(GenerationError("cannot be used", where="k", got=np.int8(-1), wanted=[1, 2, 3])) == (
        "k: cannot be used; got -1; wanted [1, 2, 3]"
    )
    assert told("x" * 900) == "x" * 900 and told(range(3)) == "range(0, 3)"
    assert shown(12) == "12" and shown("a") == "'a'" and shown(10**100) == str(10**100)
    assert shown(10**5000) == "a whole number of about 5,000 digits"
    assert shortened("a" * 600 + "b" * 600, 10) == "aaaaa [1,190 characters left out] bbbbb"
    assert told(list(range(99))) == str(list(range(99)))


def test_an_error_stays_itself_in_a_pickle():
    error = CheckpointError("damaged", where="a\x1bb", got=10**5000)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.where) == (CheckpointError, str(error), "a\x1bb")


def test_names_are_listed_in_a_line():
    assert listed(["a", "b\n"]) == "a, 'b\\n'"
    assert len(str(RefgptError("x", wanted=listed(["n" * 119] * 100)))) < 1000


def test_sizes_of_narrow_numbers():
    assert wording.size(np.int8(100)) == "100 B" and wording.size(np.uint16(65000)) == "65 kB"
    assert wording.size(np.float16(2000)) == "2 kB"


def test_what_is_logged_is_printable(caplog):
    with caplog.at_level(logging.INFO, "refgpt"):
        logging.getLogger("refgpt").info("%s: %s", "/tmp/\x1b[2J", "a\nrefgpt: error: nothing is wrong")
    (line,) = caplog.messages
    assert line == "/tmp/\\x1b[2J: a\\nrefgpt: error: nothing is wrong"


@pytest.mark.parametrize("value", ["x" * 10_000_000, 10**5000, Mute(), Loud()], ids=["text", "number", "mute", "loud"])
def test_arguments_do_not_fill_a_message(value):
    for use in (
        lambda: refgpt.ModelConfig(ln_eps=value),
        lambda: refgpt.GenerationParams(temperature=value),
        lambda: refgpt.load(revision=value),
    ):
        with pytest.raises(RefgptError) as caught:
            use()
        assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_sizes_have_three_digits():
    sizes = [0, 999, 1000, 12_102_000_000, 999_600, 5e15]
    assert [wording.size(n) for n in sizes] == ["0 B", "999 B", "1 kB", "12.1 GB", "1 MB", "5e+03 TB"]
