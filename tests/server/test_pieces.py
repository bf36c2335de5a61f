"""JSON in pieces: the same values as ``json.loads``, and errors where that has some."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refgpt.server import pieces

VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from('ab"\\,:[]{} \n\x7fé'), max_size=6),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(st.sampled_from('k",]\\'), max_size=2), inner),
    max_leaves=30,
)


def refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def outcome(parse: Any, text: str) -> Any:
    """The value as Python writes it, which tells 1 from True and keeps the order of keys; None for an error."""
    try:
        return repr(parse(text))
    except ValueError:
        return None


def both(text: str, piece: int, patch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    with patch.context() as changed:
        changed.setattr(pieces, "PIECE", piece)
        found = outcome(lambda text: pieces.loads(text, refuse), text)
    return found, outcome(lambda text: json.loads(text, parse_constant=refuse), text)


@settings(max_examples=300)
@given(value=VALUES, piece=st.integers(1, 40), indent=st.sampled_from([None, 0, 1]), ascii_only=st.booleans())
def test_values_are_those_of_json(value: Any, piece: int, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    found, want = both(text, piece, pytest.MonkeyPatch())
    assert want is not None and found == want


@settings(max_examples=300)
@given(value=VALUES, piece=st.integers(1, 40), at=st.integers(0), put=st.sampled_from(["", *',:"[]{}\\1n ', "NaN"]))
def test_what_is_no_json_is_none(value: Any, piece: int, at: int, put: str) -> None:
    """One character is replaced; most texts are broken by that."""
    text = json.dumps([value, value])
    at %= len(text)
    found, want = both(text[:at] + put + text[at + 1 :], piece, pytest.MonkeyPatch())
    assert found == want


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "[",
            "{",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            '{"a"}',
            '{"a":}',
            '{"a":1,}',
            "{a:1}",
            "[1]]",
            "1 2",
        ),
        *('["a" "b",1]', '[1,"a\\",2]', '{"a":[1,{"b":[]},2],"a":3}', "[[1,2},3]", '[{"a",1},2]', "[-Infinity,1]"),
    ],
)
def test_edges(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for piece in (1, 3, 100):
        found, want = both(text, piece, monkeypatch)
        assert found == want, piece


def test_errors_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 8)
    text = "[" + "1," * 50 + "x," * 2 + "1]"
    with pytest.raises(json.JSONDecodeError) as caught:
        pieces.loads(text, refuse)
    assert caught.value.pos == text.index("x")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "objects"])
def test_what_is_nested_too_deeply(text: str) -> None:
    for cut in (text, text[: pieces.PIECE]):
        with pytest.raises(ValueError, match="more than 128 lists and objects inside each other"):
            pieces.loads(cut, refuse)


@pytest.mark.parametrize("n_chars", [1, 2 * pieces.PIECE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("begin", "end", "holds"),
    [("[", "]", 0), ('{"a":', "}", 0), ('[1,"[",', ",[2]]", 1), ('{"a":{},"b":', ',"c":3}', 1)],
)
def test_how_deep_a_body_may_be(n_chars: int, begin: str, end: str, holds: int) -> None:
    """Small and large bodies may be equally deep, with the largest text inside or beside the rest."""
    text, most = '"' + "x" * n_chars + '"', pieces.MOST_DEEP
    for inner, outer in ((text, "0"), ("[]", text)):
        n = most - 1 - max(holds, inner == "[]")
        made = f"[{outer}," + begin * n + inner + end * n + "]"
        assert pieces.loads(made, refuse) == json.loads(made)
        with pytest.raises(ValueError, match="more than 128 lists and objects inside each other"):
            pieces.loads(f"[{made}]", refuse)


@pytest.mark.parametrize(
    "unit",
    ["5,", "12.5,", '"abc",', "[],", '{"a":[1]},', '["a","b"],', '"\\n",', "[[[]]],", '" ,] [",'],
)
def test_no_piece_is_large(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``json`` is given at once is bounded, for bodies of every kind."""
    sizes, decode = [], json.JSONDecoder.raw_decode

    def raw_decode(self: Any, text: str, idx: int = 0) -> Any:
        value, end = decode(self, text, idx)
        sizes.append(end - idx)
        return value, end

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", raw_decode)
    text = "[" + unit * (100_000 // len(unit)) + unit[:-1] + "]"
    found = pieces.loads(text, refuse)
    assert max(sizes, default=0) <= pieces.PIECE + 2 and found == json.loads(text)


@pytest.mark.parametrize("unit", ["[],", '{"a":[]},', "[[[]]],"])
def test_too_many_lists_and_objects(unit: str) -> None:
    with pytest.raises(ValueError, match="more than 65536 lists and objects"):
        pieces.loads("[" + unit * 70_000 + "1]", refuse)
    assert len(pieces.loads("[" + '"[[[{{{",' * 70_000 + '"a\\n' + "{[" * 70_000 + '"]', refuse)) == 70_001  # texts
