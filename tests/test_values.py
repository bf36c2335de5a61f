"""The checks of single values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from refgpt._common.arguments import one_of, path_of, whole_number
from refgpt._common.errors import ConfigError, GenerationError


def test_whole_numbers_come_back_as_python_has_them():
    for value in (2, np.int8(2), np.uint64(2), np.array(2)):
        got = whole_number("n", value, 2, 2, ConfigError)
        assert (got, type(got)) == (2, int)
    assert whole_number("n", 10**30, 0, None, ConfigError) == 10**30


@pytest.mark.parametrize("value", [1, 6, -3, 2.0, np.float32(2), True, "3", None, [3], np.array([3]), np.array(3.0)])
def test_anything_else_is_refused_by_name(value):
    with pytest.raises(GenerationError, match=r"^n: cannot be used; got .* whole number from 2 to 5$") as error:
        whole_number("n", value, 2, 5, GenerationError)
    assert error.value.where == "n"


def test_nan_is_called_that():
    with pytest.raises(ConfigError, match=r"got NaN; wanted a whole number from 0$"):
        whole_number("n", math.nan, 0, None, ConfigError)


def test_paths():
    for value in ("a/b", Path("a/b")):
        assert path_of("path", value, ConfigError) == Path("a/b")
    for value in (123, None, b"a/b", ["a"], "", "a\0b", "\ud800"):
        with pytest.raises(ConfigError, match=r"^path: cannot be used; got .*; wanted a path$"):
            path_of("path", value, ConfigError)


def test_one_of_some_texts():
    one_of("mask", "auto", ("auto", None), ConfigError)
    one_of("mask", None, ("auto", None), ConfigError)
    for value in ("Auto", 0, ["auto"], np.array(["auto", "b"])):
        with pytest.raises(ConfigError, match=r"^mask: cannot be used; got .*; wanted 'auto', None$"):
            one_of("mask", value, ("auto", None), ConfigError)
